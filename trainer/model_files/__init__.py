"""The models that a recipe names: references, and their files judged before and after they are loaded.

Imports inside run down, like the package's own:

    checks  pins                        a folder judged by its files; the commits of a run's Hub models
    weights                             what transformers loaded, judged
    references  architectures           a Hub id, folder or package to a local folder; which base carries which head
"""
