"""The command line: `train`, which runs a complete recipe, and `reranker`, which has all other commands.

Imports inside run down, like the package's own:

    cli                                 the entry points: both apps with all their commands
    recipe_commands                     commands whose argument is a recipe
    run_commands                        commands whose argument is a run
    scoring_commands                    commands whose argument is a model
    labels                              likely false negatives to files of other tools, and back
    clean  compare  init  generate      implementations of the longer commands
    pull  push  review  runs  score     implementations of the longer commands
    search  show                        implementations of the longer commands
    label_files                         the formats of files in which people label pairs
    run_folders                         the runs in a folder, and the recipe of a run
    apps                                both apps, and the options and exit codes of all commands
"""
