"""One file for each stage.

Imports inside run down, like the package's own:

    distil                              a standard checkpoint taught by the tuned model
"""
