"""The models that a recipe names: references, and checks of their files before and after loading.

Imports inside run down, like the package's own:

    checks  pins                        checks of a model's files; the commits of a run's Hub models
    modules                             a head that sentence-transformers saved as modules
    tokenizer_file  decoders            the tokenizer's files, read without transformers; tokens and prompt of a decoder
    weights  prompt                     loading with transformers, and a check of the loaded weights; the chat template
    pull                                a model of the Hub as a folder of one's own
    references  architectures           a Hub id, folder or package to a local folder; supported architectures
    licence                             the licence that a model's folder states
"""
