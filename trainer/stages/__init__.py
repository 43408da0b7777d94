"""The stages, one file each. They leave files for each other, and never import each other."""
