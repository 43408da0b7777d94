"""Write the tables of docs/recipe.md anew from the recipe's schema: python scripts/recipe_table.py"""

from __future__ import annotations

from pathlib import Path

from trainer.recipe import Recipe, schema_table, sections

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
BEGIN, END = "<!-- schema -->\n", "<!-- /schema -->"
HEAD = "| key | default | meaning |\n| --- | --- | --- |\n"


def tables() -> str:
    """Return a heading and a table for the keys outside of sections and for each section, in the order of a recipe."""
    outside = [row for row in schema_table(Recipe) if row[0] not in sections()]
    parts = ["### name and seed\n\n" + HEAD + _rows("", outside)]
    parts += [f"### {name}\n\n{HEAD}{_rows(f'{name}.', schema_table(keys))}" for name, keys in sections().items()]
    return "\n" + "\n".join(parts) + "\n"


def _rows(prefix: str, rows: list[list[str]]) -> str:
    return "".join(f"| `{prefix}{key}` | {default} | {meaning} |\n" for key, default, meaning in rows)


def replaced(page: str) -> str:
    """Return the text of the page with the tables of today between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
