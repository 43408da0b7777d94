"""Imports only run down the map in docs/architecture.md, which names every room."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trainer"
MAP = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = sorted(
    {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {"__init__"}
)


def read_map(text: str) -> list[list[str]]:
    """Return the names on each floor of the map, the lowest floor first.

    A line is a floor: names, then three or more spaces and what they are. A line of names alone belongs to the floor
    of the line before it.
    """
    section = text.partition("\n## Map of the code\n")[2].partition("\n## ")[0]
    floors: list[list[str]] = []
    for line in section.split("```")[1].strip().splitlines():
        names, *meaning = re.split(r"\s{3,}", line.strip(), maxsplit=1)
        if meaning:
            floors.append([])
        floors[-1] += names.split()
    return floors[::-1]


FLOOR = {name: number for number, names in enumerate(read_map(MAP)) for name in names}


def files(room: str) -> list[Path]:
    """The files of a room: a module, or all of a package folder."""
    return sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]


def imports(path: Path) -> set[str]:
    """What a file imports from the package, anywhere in it, as dotted names below `trainer`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "trainer":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer."):
            module = str(node.module).removeprefix("trainer.")
            files = {
                name.name for name in node.names if (PACKAGE / module.replace(".", "/") / f"{name.name}.py").exists()
            }
            found |= {f"{module}.{file}" for file in files}
            if len(files) < len(node.names):
                found.add(module)
    return found


def rooms(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_every_room_has_one_floor_in_the_map():
    assert sorted(name for names in read_map(MAP) for name in names) == ROOMS


def test_a_line_of_names_alone_belongs_to_the_floor_above_it():
    text = "# x\n## Map of the code\nwords\n```\ntop          first\na  b       stages\nc\nlow   last\n```\n## Next\n"
    assert read_map(text) == [["low"], ["a", "b", "c"], ["top"]]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_down(room):
    for path in files(room):
        upward = {other for other in rooms(path) - {room} if FLOOR[other] >= FLOOR[room]}
        assert not upward, f"{path.relative_to(PACKAGE)} (floor {FLOOR[room]}) imports {upward}"


def test_stages_never_import_each_other():
    for path in files("stages"):
        assert not {other for other in imports(path) if other.split(".")[0] == "stages"}, path.name


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir() and room != "stages"])
def test_imports_inside_a_room_run_down_in_the_order_that_its_docstring_gives(room):
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    inside = {path.stem: path for path in files(room) if path.stem != "__init__"}
    floors = [set(re.split(r"\s{3,}", line.strip())[0].split()) & set(inside) for line in said.splitlines()]
    floor = {name: -number for number, names in enumerate(floors) for name in names}
    assert set(floor) == set(inside), "every file stands in the docstring"
    for name, path in inside.items():
        below = {other.partition(".")[2] for other in imports(path) if other.split(".")[0] == room}
        upward = {other for other in below if floor.get(other, 1) >= floor[name]}
        assert not upward, f"{room}/{name} imports {upward or room}"


@pytest.mark.parametrize("name", ["model/interaction.py", "export/readers.py", "export/odd_pairs.py"])
def test_files_that_run_elsewhere_stand_alone(name):
    assert imports(PACKAGE / name) == set()
