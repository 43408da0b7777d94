"""A recipe file: its values with their lines, overrides, paths, and every error in the user's words."""

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

OPTIONAL = ("distil", "push")  # sections whose stage only runs where they stand
PATHS = [("data", key) for key in ("path", "corpus", "queries", "qrels", "pairs", "dev", "test", "judgements")]
PATHS += [("retriever", "run")]
REFERENCES = [("retriever", "model"), ("mine", "teacher"), ("reranker", "model"), ("distil", "model")]  # or folders
MOVED = {"evaluate.depth": "reranker.depth"}  # keys of older recipes, and where they went
COMMAND_LINE = 10**9  # sorts behind every line of the file
LONGEST_MESSAGE, LONGEST_VALUE = 600, 100  # characters


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `section.key=value`, with the value written as in YAML.

    Raises RecipeError with one line a fault, sorted by line, those of the command line last.
    """
    source = Source.read(Path(path))
    for override in overrides:
        source.override(override)
    source.find_paths()
    recipe = None
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        source.faults += [source.explain(details) for details in error.errors()]
    if recipe is None or source.faults:
        source.look_for_files()
        raise RecipeError([text for _, text in sorted(source.faults, key=lambda fault: fault[0])])
    recipe._tried = tuple(source.tried)
    return recipe


class Source:
    """The recipe's raw values together with the line on which each key stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.lines: dict[tuple[str, ...], int] = {}
        self.faults: list[tuple[int, str]] = []
        self.tried: list[str] = []

    @classmethod
    def read(cls, path: Path) -> Source:
        """Parse the YAML safely; what is not even a mapping ends here, duplicate keys are noted as faults."""
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
            raise RecipeError(f"{path}:1: a recipe is a mapping that begins with `name:`")
        source.values = source._mapping(root, ())
        return source

    def _mapping(self, node: yaml.MappingNode, place: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(line, place, "a key is one word, not a list or a mapping")
                continue
            key = str(key_node.value)
            here = (*place, key)
            if here in self.lines:
                self._fault(line, here, f"given twice, first on line {self.lines[here]}; keep one")
            self.lines[here] = line
            if isinstance(value_node, yaml.MappingNode) and not place:  # nothing nests below a section
                values[key] = self._mapping(value_node, here)
            else:
                values[key] = self._value(value_node, line, here)
            if values[key] is None and not place and key in sections() and key not in OPTIONAL:
                values[key] = {}  # a section whose keys are all commented out
        return values

    def _value(self, node: yaml.Node, line: int, place: tuple[str, ...]) -> Any:
        try:
            return PlainLoader("").construct_object(node, deep=True)
        except (yaml.MarkedYAMLError, ValueError) as error:  # an unknown !tag, an anchor that holds itself, `!!int x`
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self._fault(line, place, f"not a plain YAML value ({reason}); write it without ! and &")
            return None

    def override(self, text: str) -> None:
        """Lay one `section.key=value` of the command line over the file."""
        name, equals, value = text.partition("=")
        place = tuple(name.split("."))
        if not equals or not all(place) or len(place) > 2:
            self._fault(
                COMMAND_LINE, (), f"{_shown(text)} is no override; write section.key=value, e.g. train.epochs=3"
            )
            return
        try:
            node = compose(value)
            parsed = None if node is None else PlainLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError):
            self._fault(COMMAND_LINE, place, f"{_shown(value)} is not a YAML value; quote it")
            return
        target = self.values
        for part in place[:-1]:
            if target.get(part) is None:  # not there, or a section without keys
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                self._fault(COMMAND_LINE, place, f"{part} is not a section")
                return
        target[name.split(".")[-1]] = parsed
        self.lines = {known: line for known, line in self.lines.items() if known[: len(place)] != place}
        self.lines[place] = COMMAND_LINE
        self.lines.setdefault(place[:1], COMMAND_LINE)

    def find_paths(self) -> None:
        """Replace relative paths by where they lead, and note in `tried` those that lead nowhere."""
        for section, key in PATHS + REFERENCES:
            values = self.values.get(section)
            given = values.get(key) if isinstance(values, dict) else None
            if isinstance(values, dict) and isinstance(given, str):
                values[key] = self._found((section, key), given)
            elif isinstance(values, dict) and isinstance(given, list):
                values[key] = [self._found((section, key), path) if isinstance(path, str) else path for path in given]

    def _found(self, place: tuple[str, str], given: str) -> str:
        """Return the path that a value names, from the recipe's folder or from here; the value itself if none does."""
        prefix = HUB if place == ("data", "path") and given.startswith(HUB) else ""
        path = given.removeprefix(prefix)
        if not path or "\0" in path or len(path) > LONGEST_TEXT or path.startswith("package:"):
            return given
        if path.startswith("~"):
            return prefix + self._home(place, path)
        bases = [self.path.parent, Path()]
        if self._line(place) == COMMAND_LINE:
            bases.reverse()
        for base in bases:
            if _leads_somewhere(base / path):
                return prefix + str(base / path)
        apart = self.path.parent.absolute() != Path.cwd() and not Path(path).is_absolute()
        if apart and not prefix and place not in REFERENCES:
            folders = " and in ".join(str(base.absolute()) for base in bases)
            self.tried.append(f"{'.'.join(place)}: {path} was looked for in {folders}")
        return given

    def _home(self, place: tuple[str, str], path: str) -> str:
        try:
            return str(Path(path).expanduser())
        except RuntimeError:
            self._fault(self._line(place), place, f"{path}: there is no user {path[1:].partition('/')[0]!r} here")
            return path

    def explain(self, error: ErrorDetails) -> tuple[int, str]:
        """One pydantic error in the user's words, with the line it stands on."""
        place = tuple(str(part) for part in error["loc"] if not isinstance(part, int))
        given = _shown(error["input"])
        if error["type"] == "extra_forbidden":
            known = Recipe if len(place) == 1 else sections().get(place[0], Recipe)
            elsewhere = [
                f"{name}.{place[-1]}" for name, section in sections().items() if place[-1] in section.model_fields
            ]
            near = (
                f"; did you mean {' or '.join(elsewhere)}?"
                if elsewhere
                else did_you_mean(place[-1], known.model_fields)
            )
            moved = MOVED.get(".".join(place))
            message = f"is now {moved}" if moved else f"no such key{near}"
        elif error["type"] == "missing":
            message = "is required but missing"
        elif error["type"] == "contradiction":
            context = error.get("ctx", {})
            place, message = (*place, context["key"]), context["message"]
        elif error["type"] == "tuple_type":
            message = f"is a list, e.g. [{given.strip(chr(39))[:40]}], got {given}"
        elif error["type"] == "value_error":
            message = error["msg"].removeprefix("Value error, ")
        elif error["type"] in ("model_type", "model_attributes_type"):
            message = f"is a section with keys of its own, got {given}"
        else:
            message = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {given}"
        return self._place(self._line(place), place, message)

    def look_for_files(self) -> None:
        """Note files of the data section that are not there, so that they are told with the recipe's other faults.

        What else is wrong with the data is found once the recipe is right.
        """
        section = self.values.get("data")
        files = section if isinstance(section, dict) else {}
        for place in (place for place in PATHS if place[0] == "data"):
            given = files.get(place[1])
            for name in given if isinstance(given, list) else [given]:
                if isinstance(name, str) and not name.startswith((HUB, "~")) and _is_missing(name):
                    self._fault(self._line(place), place, f"no such file or folder: {_shown(name)}")

    def _fault(self, line: int, place: tuple[str, ...], message: str) -> None:
        self.faults.append(self._place(line, place, message))

    def _place(self, line: int, place: tuple[str, ...], message: str) -> tuple[int, str]:
        where = "command line" if line == COMMAND_LINE else f"{self.path}:{line}"
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ... ({len(message) - LONGEST_MESSAGE:,} more characters)"
        return line, f"{where}: {'.'.join(place)}: {message}" if place else f"{where}: {message}"

    def _line(self, place: tuple[str, ...]) -> int:
        """The line of the key, or of the nearest enclosing one; the first line for what is missing at the top."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def _is_missing(name: str) -> bool:
    """Return whether a path leads nowhere; one that no file can have is another fault, with its own message."""
    return "\0" not in name and len(name) <= LONGEST_TEXT and not _leads_somewhere(Path(name))


def _leads_somewhere(path: Path) -> bool:
    """Return whether a path, or a pattern, names anything."""
    try:
        return path.exists() or (glob.has_magic(str(path)) and next(glob.iglob(str(path), recursive=True), "") != "")
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _shown(value: Any) -> str:
    """Return a value as it was given, cut where it is long."""
    try:
        shown = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return "a number with thousands of digits"
    return shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]} ..."
