"""Read files of JSON lines that people may have edited."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def are_numbers(*values: object) -> bool:
    """Return whether all values are finite numbers."""
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file; skip other lines, and a missing file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content
