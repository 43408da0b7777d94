"""The recipe: all settings of a run, checked before anything heavy is imported.

`load_recipe` reads the YAML file, applies `section.key=value` overrides and returns a frozen `Recipe`, or raises one
RecipeError that lists every problem with `file:line`. Relative paths are resolved against the recipe's folder first,
then against the working directory; on the command line the other way round.

A recipe does not name devices or processes; `accelerate_config.yaml` does.

Imports inside run down, like the package's own:

    source                              a file and its overrides to a recipe; errors with line numbers
    plain_yaml  schema                  safe YAML; all sections, and the checks across them
    data  generate  retriever           sections of a recipe, by these names
    sections  output                    the sections from `mine` to `evaluate`; what leaves a run
    endpoints                           the section `endpoints`
    metric_names  section  endpoint     names of metrics; the base class of every section; models behind an endpoint
"""

from trainer.recipe.data import CLICKS, FILES, HUB, READING, Data, GuardSet
from trainer.recipe.endpoint import CHAT, RERANK, Endpoint, is_endpoint, read_endpoint
from trainer.recipe.endpoints import Endpoints
from trainer.recipe.generate import Generate
from trainer.recipe.output import Export, Push, Track
from trainer.recipe.retriever import UNSPACED, Retriever
from trainer.recipe.schema import (
    BESIDES_WINDOW,
    MAX_AUTO_LENGTH,
    RERANK_DEPTH,
    ModelReference,
    Recipe,
    schema_table,
    sections,
    window_too_long,
)
from trainer.recipe.sections import (
    Distil,
    Evaluate,
    Mine,
    Passages,
    Reranker,
    Train,
)
from trainer.recipe.source import OPTIONAL_SECTIONS, PATHS, REFERENCES, load_recipe

__all__ = [
    "BESIDES_WINDOW",
    "CHAT",
    "CLICKS",
    "FILES",
    "HUB",
    "MAX_AUTO_LENGTH",
    "OPTIONAL_SECTIONS",
    "PATHS",
    "READING",
    "REFERENCES",
    "RERANK",
    "RERANK_DEPTH",
    "UNSPACED",
    "Data",
    "Distil",
    "Endpoint",
    "Endpoints",
    "Evaluate",
    "Export",
    "Generate",
    "GuardSet",
    "Mine",
    "ModelReference",
    "Passages",
    "Push",
    "Recipe",
    "Reranker",
    "Retriever",
    "Track",
    "Train",
    "is_endpoint",
    "load_recipe",
    "read_endpoint",
    "schema_table",
    "sections",
    "window_too_long",
]
