"""The licence of a model, as the front matter of its README.md states it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

README = "README.md"


@dataclass(frozen=True)
class Licence:
    """A licence by its name on the Hub; `other` has a full name and often a link. All are None if none is stated."""

    name: str | None = None
    full_name: str | None = None
    link: str | None = None

    @classmethod
    def of(cls, folder: Path) -> Licence:
        """Return the licence in the README.md of a model folder."""
        stated = _front_matter(folder / README)
        name, full_name, link = (_text(stated.get(key)) for key in ("license", "license_name", "license_link"))
        return cls(name, full_name, link) if name else cls()

    @property
    def sentence(self) -> str:
        """The sentence of a model card."""
        if self.name is None:
            return "The base model's folder states no licence; look it up before you share this model."
        more = ", ".join(part for part in (self.full_name, self.link) if part)
        return f"The base model's licence is {self.name}{f' ({more})' if more else ''}; it holds for this model too."


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the YAML at the top of a file, empty if there is none that can be read."""
    try:
        start, _, rest = path.read_text(encoding="utf-8").partition("---\n")
        stated = yaml.safe_load(rest.partition("\n---")[0]) if not start.strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _text(value: Any) -> str | None:
    """Return a text in one line, of a list the first; None for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    return " ".join(value.split())[:200] or None if isinstance(value, str) else None
