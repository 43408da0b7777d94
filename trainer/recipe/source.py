"""A recipe file: its values with line numbers, overrides, paths, and error messages that name the line and key."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer.errors import RecipeError, did_you_mean
from trainer.recipe.data import HUB
from trainer.recipe.plain_yaml import PlainLoader, compose, read_text
from trainer.recipe.schema import Recipe, sections
from trainer.recipe.section import LONGEST_TEXT

OPTIONAL_SECTIONS = ("generate", "passages", "distil", "push")  # a section that is not given asks for nothing
PATHS = [("data", key) for key in ("path", "corpus", "queries", "qrels", "pairs", "dev", "test", "judgements")]
PATHS += [("generate", "examples"), ("retriever", "run"), ("evaluate", "guard")]
COLLECTIONS = [("data", "path"), ("evaluate", "guard")]  # keys that may also name a data set as hub:OWNER/NAME
REFERENCES = [("retriever", "model"), ("mine", "teacher"), ("reranker", "model"), ("distil", "model")]  # of models
REFERENCES += [("generate", "tokenizer")]
# Keys of older recipes, with the message about each.
MOVED = {
    "evaluate.depth": "is now reranker.depth",
    "mine.margin": "was removed; use mine.max_share_of_positive",
    "mine.bm25_share": "was removed; negatives come from the fused ranks",
    "mine.deeper_share": "was removed; use mine.last_rank for deeper candidates, mine.random_share for the corpus",
}
COMMAND_LINE = 10**9  # line number of overrides; sorts after every line of the file
LONGEST_MESSAGE, LONGEST_VALUE = 600, 100  # characters


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `section.key=value`, with the value written as in YAML.

    Raises RecipeError with one message per problem, sorted by line number, those of the command line last.
    """
    source = Source.read(Path(path))
    for override in overrides:
        source.override(override)
    source.resolve_paths()
    recipe = None
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        source.problems += [source.explain(details) for details in error.errors()]
    if recipe is None or source.problems:
        source.check_files()
        raise RecipeError([text for _, text in sorted(source.problems, key=lambda problem: problem[0])])
    recipe._tried = tuple(source.tried)
    return recipe


class Source:
    """The recipe's raw values, the line number of each key, and the problems collected so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.lines: dict[tuple[str, ...], int] = {}
        self.problems: list[tuple[int, str]] = []
        self.tried: list[str] = []

    @classmethod
    def read(cls, path: Path) -> Source:
        """Parse the YAML safely; raises RecipeError if it is not a mapping, and collects duplicate keys as problems."""
        source = cls(path)
        text = read_text(path)
        try:
            root = compose(text)
        except yaml.MarkedYAMLError as error:
            line = (error.problem_mark.line + 1) if error.problem_mark else 1
            raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}; check indentation and colons") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise RecipeError(f"{path}:{line}: not valid YAML: {error.reason}; remove the character") from None
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path}:1: not a recipe, which is a mapping that begins with `name:`")
        source.values = source._mapping(root, ())
        return source

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(line, path, "a key is one word, not a list or a mapping")
                continue
            key = str(key_node.value)
            key_path = (*path, key)
            if key_path in self.lines:
                self._add(line, key_path, f"given twice, first on line {self.lines[key_path]}; keep one")
            self.lines[key_path] = line
            if isinstance(value_node, yaml.MappingNode) and not path:  # sections have no nested mappings
                values[key] = self._mapping(value_node, key_path)
            else:
                values[key] = self._value(value_node, line, key_path)
            if values[key] is None and not path and key in sections() and key not in OPTIONAL_SECTIONS:
                values[key] = {}  # a section whose keys are all commented out
        return values

    def _value(self, node: yaml.Node, line: int, path: tuple[str, ...]) -> Any:
        try:
            return PlainLoader("").construct_object(node, deep=True)
        except (yaml.MarkedYAMLError, ValueError) as error:  # an unknown !tag, a recursive anchor, `!!int x`
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self._add(line, path, f"not a plain YAML value ({reason}); write it without ! and &")
            return None

    def override(self, text: str) -> None:
        """Apply one `section.key=value` of the command line to the values."""
        name, equals, value = text.partition("=")
        path = tuple(name.split("."))
        if not equals or not all(path) or len(path) > 2:
            self._add(
                COMMAND_LINE, (), f"{_shown(text)} is not an override; write section.key=value, e.g. train.epochs=3"
            )
            return
        try:
            node = compose(value)
            parsed = None if node is None else PlainLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError):
            self._add(COMMAND_LINE, path, f"{_shown(value)} is not a YAML value; quote it")
            return
        target = self.values
        for part in path[:-1]:
            if target.get(part) is None:  # not there, or a section without keys
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                self._add(COMMAND_LINE, path, f"{part} is not a section")
                return
        target[name.split(".")[-1]] = parsed
        self.lines = {known: line for known, line in self.lines.items() if known[: len(path)] != path}
        self.lines[path] = COMMAND_LINE
        self.lines.setdefault(path[:1], COMMAND_LINE)

    def resolve_paths(self) -> None:
        """Resolve relative paths, and list in `tried` those that do not exist."""
        for section, key in PATHS + REFERENCES:
            values = self.values.get(section)
            given = values.get(key) if isinstance(values, dict) else None
            if isinstance(values, dict) and isinstance(given, str):
                values[key] = self._resolved((section, key), given)
            elif isinstance(values, dict) and isinstance(given, list):
                values[key] = [
                    self._resolved((section, key), file) if isinstance(file, str) else file for file in given
                ]

    def _resolved(self, path: tuple[str, str], given: str) -> str:
        """Return the file path of a value, relative to the recipe's folder or the working directory.

        A value that exists in neither is returned as it is.
        """
        prefix = HUB if path in COLLECTIONS and given.startswith(HUB) else ""
        file = given.removeprefix(prefix)
        if not file or "\0" in file or len(file) > LONGEST_TEXT or file.startswith("package:"):
            return given
        if file.startswith("~"):
            return prefix + self._in_home(path, file)
        bases = [self.path.parent, Path()]
        if self._line(path) == COMMAND_LINE:
            bases.reverse()
        for base in bases:
            if _exists(base / file):
                return prefix + str(base / file)
        apart = self.path.parent.absolute() != Path.cwd() and not Path(file).is_absolute()
        if apart and not prefix and path not in REFERENCES:
            folders = " and ".join(str(base.absolute()) for base in bases)
            self.tried.append(f"{'.'.join(path)}: {file} does not exist in {folders}")
        return given

    def _in_home(self, path: tuple[str, str], file: str) -> str:
        try:
            return str(Path(file).expanduser())
        except RuntimeError:
            self._add(self._line(path), path, f"{file}: there is no user {file[1:].partition('/')[0]!r} here")
            return file

    def explain(self, error: ErrorDetails) -> tuple[int, str]:
        """Return the line number and message of a pydantic error, in the recipe's terms."""
        path = tuple(str(part) for part in error["loc"] if not isinstance(part, int))
        given = _shown(error["input"])
        if error["type"] == "extra_forbidden":
            known = Recipe if len(path) == 1 else sections().get(path[0], Recipe)
            elsewhere = [
                f"{name}.{path[-1]}" for name, section in sections().items() if path[-1] in section.model_fields
            ]
            near = (
                f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(path[-1], known.model_fields)
            )
            moved = MOVED.get(".".join(path))
            message = moved or f"no such key{near}"
        elif error["type"] == "missing":
            message = "is required but missing"
        elif error["type"] == "contradiction":
            context = error.get("ctx", {})
            key = tuple(context["key"].split("."))  # with its section if that is another one
            path, message = key if len(key) > 1 else (*path, *key), context["message"]
        elif error["type"] == "tuple_type":
            message = f"is a list, e.g. [{given.strip(chr(39))[:40]}], got {given}"
        elif error["type"] == "value_error":
            message = error["msg"].removeprefix("Value error, ")
        elif error["type"] in ("model_type", "model_attributes_type"):
            message = f"is a section with keys of its own, got {given}"
        else:
            message = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {given}"
        return self._located(self._line(path), path, message)

    def check_files(self) -> None:
        """Add missing files of the data section, so that they are reported with the recipe's other problems.

        Other problems of the data are reported once the recipe is valid.
        """
        section = self.values.get("data")
        files = section if isinstance(section, dict) else {}
        for path in (path for path in PATHS if path[0] == "data"):
            given = files.get(path[1])
            for name in given if isinstance(given, list) else [given]:
                if isinstance(name, str) and not name.startswith((HUB, "~")) and _is_missing(name):
                    self._add(self._line(path), path, f"no such file or folder: {_shown(name)}")

    def _add(self, line: int, path: tuple[str, ...], message: str) -> None:
        self.problems.append(self._located(line, path, message))

    def _located(self, line: int, path: tuple[str, ...], message: str) -> tuple[int, str]:
        """Return the line number, and the message with file, line and key in front; long messages are truncated."""
        where = "command line" if line == COMMAND_LINE else f"{self.path}:{line}"
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ... ({len(message) - LONGEST_MESSAGE:,} more characters)"
        return line, f"{where}: {'.'.join(path)}: {message}" if path else f"{where}: {message}"

    def _line(self, path: tuple[str, ...]) -> int:
        """Return the line of a key, or of the nearest enclosing one; 1 for a key that is missing at the top level."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def _is_missing(name: str) -> bool:
    """Return True if no file has this path; False for an invalid path, which has an error of its own."""
    return "\0" not in name and len(name) <= LONGEST_TEXT and not _exists(Path(name))


def _exists(path: Path) -> bool:
    """Return True if a path exists, or a glob pattern matches a file."""
    try:
        return path.exists() or (glob.has_magic(str(path)) and next(glob.iglob(str(path), recursive=True), "") != "")
    except OSError:  # a name that is too long, a folder without permission
        return False


def _shown(value: Any) -> str:
    """Return a value's representation, truncated if it is long."""
    try:
        shown = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return "a number with thousands of digits"
    return shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]} ..."
