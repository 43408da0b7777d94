"""The models that a recipe names: references, and checks of their files before and after loading.

Imports inside run down, like the package's own:

    checks  pins                        checks of a model's files; the commits of a run's Hub models
    tokenizer_file                      the tokenizer's files, read without transformers
    weights                             loading with transformers, and a check of the loaded weights
    references  architectures           a Hub id, folder or package to a local folder; supported architectures
"""
