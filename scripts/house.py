"""The code in numbers: python scripts/house.py [--long] [--lazy] [--write].

`--write` puts the table into docs/architecture.md; `--long` lists the longest functions and files, `--lazy` every
import inside a function.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "trainer"
DOCS = PACKAGE.with_name("docs") / "architecture.md"
BEGIN, END = "<!-- house -->\n", "<!-- /house -->"
LONG_FUNCTION = 50  # lines, decorators and docstring included
LONG_FILE = 350  # lines
MANY_PARAMETERS = 5


class Function(NamedTuple):
    """A function or method, with its lines and parameters (self and cls not counted)."""

    name: str
    lines: int
    parameters: int
    imports: int


class File(NamedTuple):
    """A source file: its name below the package, its lines, and its functions."""

    name: str
    lines: int
    functions: list[Function]


def read(package: Path = PACKAGE) -> list[File]:
    """Return every source file of the package, in the order of their names."""
    return [_file(path, package) for path in sorted(package.rglob("*.py"))]


def _file(path: Path, package: Path) -> File:
    text = path.read_text(encoding="utf-8")
    return File(str(path.relative_to(package)), len(text.splitlines()), list(_functions(ast.parse(text))))


def _functions(tree: ast.AST) -> Iterator[Function]:
    """Yield all functions; an import belongs to the outermost function around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = [argument for argument in named if argument.arg not in ("self", "cls")]
            imports = sum(isinstance(part, ast.Import | ast.ImportFrom) for part in ast.walk(node))
            yield Function(node.name, (node.end_lineno or first) - first + 1, len(parameters), imports)
            yield from (inner._replace(imports=0) for inner in _functions(node))
        else:
            yield from _functions(node)


def numbers(files: list[File]) -> dict[str, str]:
    """Return the rows of the table: what is counted, and the count."""
    functions = [function for file in files for function in file.functions]
    lengths = [function.lines for function in functions]
    folders = {file.name.split("/")[0] for file in files if "/" in file.name}
    longest = max(files, key=lambda file: file.lines)
    pipeline = next(file for file in files if file.name == "pipeline.py")
    return {
        "folders, files, lines": f"{len(folders)}, {len(files)}, {sum(file.lines for file in files):,}",
        "lines of `pipeline.py`": str(pipeline.lines),
        "lines of a file: median": f"{median(file.lines for file in files):g}",
        "longest file": f"{longest.lines} ({longest.name})",
        f"files over {LONG_FILE} lines": str(sum(file.lines > LONG_FILE for file in files)),
        "functions": str(len(functions)),
        "lines of a function: median, 95 %": f"{median(lengths):g}, {quantiles(lengths, n=20)[-1]:g}",
        "longest function": str(max(lengths)),
        f"functions over {LONG_FUNCTION} lines": str(sum(length > LONG_FUNCTION for length in lengths)),
        f"functions with over {MANY_PARAMETERS} parameters": str(
            sum(function.parameters > MANY_PARAMETERS for function in functions)
        ),
        "imports inside functions": str(sum(function.imports for function in functions)),
    }


def table(files: list[File]) -> str:
    """Return the numbers as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in numbers(files).items()]
    return "\n".join(["| | |", "| --- | ---: |", *rows])


def written(docs: str, files: list[File]) -> str:
    """Return the page with the table between its marks."""
    before, _, rest = docs.partition(BEGIN)
    return f"{before}{BEGIN}{table(files)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Print the table, and the lists that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--lazy", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    files = read()
    print(table(files))
    if arguments.write:
        DOCS.write_text(written(DOCS.read_text(encoding="utf-8"), files), encoding="utf-8")
    rows = [(file.name, function) for file in files for function in file.functions]
    if arguments.long:
        for name, function in sorted(rows, key=lambda row: -row[1].lines)[:20]:
            print(f"{function.lines:5} {name} {function.name} ({function.parameters} parameters)")
        for file in sorted(files, key=lambda file: -file.lines)[:10]:
            print(f"{file.lines:5} {file.name}")
    if arguments.lazy:
        for name, function in rows:
            if function.imports:
                print(f"{function.imports:3} {name} {function.name}")


if __name__ == "__main__":
    main()
