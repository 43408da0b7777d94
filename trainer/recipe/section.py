"""The base class of every section of a recipe, and the limits of a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

LARGEST_NUMBER = 2**32 - 1  # for steps, tokens, documents; also NumPy's largest seed
LONGEST_TEXT = 4096  # characters of a value; the longest path on Linux


class Section(BaseModel):
    """Base class of all sections: unknown keys are errors, values are frozen, docstrings describe the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"is a number, got {value}")
        return value

    @field_validator("*")
    @classmethod
    def _check_limits(cls, value: Any) -> Any:
        if isinstance(value, int) and value > LARGEST_NUMBER:
            raise ValueError(f"is more than {LARGEST_NUMBER:,}")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and "\0" in str(text):
                raise ValueError(f"holds a NUL character: {str(text)!r:.100}; remove it")
            if isinstance(text, str | Path) and len(str(text)) > LONGEST_TEXT:
                raise ValueError(f"has {len(str(text)):,} characters, more than {LONGEST_TEXT:,}: {str(text)!r:.100}")
        return value


def contradiction(key: str, message: str) -> PydanticCustomError:
    """Return the error for a key that contradicts another; pydantic reports the section, so the error names the key."""
    return PydanticCustomError("contradiction", "{message}", {"key": key, "message": message})
