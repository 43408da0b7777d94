"""Inputs of a stage for its fingerprint: recipe keys with their values, and hashes of files and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.model_files import references
from trainer.recipe import CHAT, Recipe, is_endpoint
from trainer.runtime.run_folder import CONTENT
from trainer.runtime.verify import sha256


def settings(name: str, section: BaseModel | None, without: set[str] | None = None) -> dict[str, Any]:
    """Return {section.key: value} of a recipe section; empty if there is no section."""
    values = section.model_dump(mode="json", exclude=without) if section is not None else {}
    return {f"{name}.{key}": value for key, value in values.items()}


def file(key: str, path: Path | None) -> dict[str, str]:
    """Return the hash of the file in a recipe key, because its content counts and not its name; {} without a file."""
    return {CONTENT + key: sha256(path)} if path is not None and path.is_file() else {}


def prompt(recipe: Recipe, reference: str | None) -> dict[str, Any]:
    """Return the recipe's settings of the base's prompt where another key names the base too; {} for other models."""
    section = recipe.reranker
    if reference != section.model:
        return {}
    named = {"reranker.instruction": section.instruction, "reranker.tokens": section.tokens}
    return {key: value for key, value in named.items() if value} | file("reranker.template", section.template)


def endpoint(key: str, recipe: Recipe) -> dict[str, Any]:
    """Return the model behind an endpoint without its address, and what else its scores depend on; {} without one."""
    named = recipe.scoring_endpoints.get(key)
    if named is None:
        return {}
    tokens = {"endpoints.answer_tokens": recipe.endpoints.answer_tokens} if named.kind == CHAT else {}
    return {key: f"{named.kind}{named.identity}"} | tokens


def content(key: str, reference: str | None) -> dict[str, str]:
    """Return the hash of the model in a recipe key, because its content counts and not its name.

    Return {} without a model, and for an endpoint, whose content is unknown.
    """
    if not reference or is_endpoint(reference):
        return {}
    return {CONTENT + key: references.fingerprint(references.locate(reference))}
