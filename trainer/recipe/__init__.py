"""The recipe: all settings of a run, checked before anything heavy is imported.

`load_recipe` reads the YAML file, applies `section.key=value` overrides and returns a frozen `Recipe`, or raises one
RecipeError that lists every problem with `file:line`. Relative paths are resolved against the recipe's folder first,
then against the working directory; on the command line the other way round.

A recipe does not name devices or processes; `accelerate_config.yaml` does.

Imports inside run down, like the package's own:

    source                              a file and its overrides to a recipe; errors with line numbers
    plain_yaml  schema                  safe YAML; all sections, and the checks across them
    data  sections                      the section `data`; the other sections
    metric_names  section               names of metrics; the base class of every section
"""

from trainer.recipe.data import FILES, HUB, READING, Data, GuardSet
from trainer.recipe.schema import RERANK_DEPTH, ModelReference, Recipe, schema_table, sections
from trainer.recipe.sections import UNSPACED, Distil, Evaluate, Export, Mine, Push, Reranker, Retriever, Track, Train
from trainer.recipe.source import OPTIONAL_SECTIONS, PATHS, REFERENCES, load_recipe

__all__ = [
    "FILES",
    "HUB",
    "OPTIONAL_SECTIONS",
    "PATHS",
    "READING",
    "REFERENCES",
    "RERANK_DEPTH",
    "UNSPACED",
    "Data",
    "Distil",
    "Evaluate",
    "Export",
    "GuardSet",
    "Mine",
    "ModelReference",
    "Push",
    "Recipe",
    "Reranker",
    "Retriever",
    "Track",
    "Train",
    "load_recipe",
    "schema_table",
    "sections",
]
