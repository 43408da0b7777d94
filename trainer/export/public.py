"""What a model card shows of a recipe: neither local paths nor the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.data import guard_sets
from trainer.model_files import references
from trainer.recipe import Data, Generate, Recipe


def _public_data(section: Data) -> dict[str, Any]:
    """Return the data section without local paths; a collection on the Hub has its name."""
    shown = section.model_dump(mode="json", exclude_defaults=True)
    for key, value in dict(section).items():
        if isinstance(value, Path):
            on_hub = key == "path" and section.hub == section.title
            shown[key] = str(value) if on_hub else section.title if key == "path" else value.name
        elif isinstance(value, tuple) and isinstance(value[0], Path):
            shown[key] = [path.name for path in value]
    return shown


def public_name(reference: str) -> str:
    """Return a model reference without local folders."""
    hidden = references.is_local(reference) and not reference.startswith("package:")
    return Path(reference).name if hidden else reference


def _public_generate(section: Generate) -> dict[str, Any]:
    """Return the keys of the section generate that are shown without addresses and folders."""
    shown: dict[str, Any] = {
        key: endpoint.model for key, endpoint in (("model", section.endpoint), ("check", section.checker)) if endpoint
    }
    if section.cross_encoder is not None:
        shown["check"] = public_name(section.cross_encoder)
    files = {"examples": section.examples, "tokenizer": section.tokenizer}
    return shown | {key: Path(file).name for key, file in files.items() if file is not None}


def public_recipe(recipe: Recipe) -> str:
    """Return the recipe as JSON without local paths and the repository."""
    shown = recipe.model_dump(mode="json", exclude_none=True)
    shown["data"] = _public_data(recipe.data)
    for section, key in (("retriever", "model"), ("mine", "teacher"), ("reranker", "model"), ("distil", "model")):
        if key in shown.get(section, {}):
            shown[section][key] = public_name(shown[section][key])
    if recipe.distil is not None and recipe.distil.other_teacher is not None:
        shown["distil"]["teacher"] = public_name(recipe.distil.other_teacher)
    for name, endpoint in recipe.scoring_endpoints.items():
        section, key = name.split(".")
        shown[section][key] = endpoint.model or "a rerank server"
    if recipe.generate is not None:
        shown["generate"] |= _public_generate(recipe.generate)
    if recipe.evaluate.guard is not None:
        shown["evaluate"]["guard"] = list(guard_sets(recipe.evaluate))
    if recipe.retriever.run is not None:
        shown["retriever"]["run"] = recipe.retriever.run.name
    shown.pop("push", None)
    return json.dumps(shown, indent=2)


def base_of(recipe: Recipe) -> str:
    """Return the reference of the base of the exported model."""
    return (recipe.distil and recipe.distil.model) or recipe.reranker.model
