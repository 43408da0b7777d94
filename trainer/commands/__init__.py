"""The command line: `train`, which carries out a whole recipe, and `reranker`, which does everything else.

Imports inside run down, like the package's own:

    cli                                 the entry points: both apps with all their commands
    recipe_commands                     the arguments of the commands that take a recipe
    run_commands                        of those that take a run
    scoring_commands                    of those that take a model
    clean  compare  init  push          what the longer commands do
    review  runs  score  show           likewise
    run_folders                         the runs in a folder, and the recipe that lies in one
    apps                                both apps, and the options and exit codes of all commands
"""
