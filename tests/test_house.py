"""The code keeps to the sizes that docs/architecture.md promises, and the table there is of this code."""

import pytest


@pytest.fixture
def house(scripts):
    import house

    return house


def test_no_file_and_no_function_outgrows_its_aim(house):
    files = house.read()
    lines = {file.name: file.lines for file in files}
    assert lines["pipeline.py"] <= 200
    assert not {name: count for name, count in lines.items() if count > house.LONG_FILE}
    functions = {(file.name, one.name): one.lines for file in files for one in file.functions}
    assert not {name: count for name, count in functions.items() if count > house.LONG_FUNCTION}


def test_the_table_in_the_docs_has_the_rows_of_the_script(house):
    docs = house.DOCS.read_text(encoding="utf-8")
    table = docs.partition(house.BEGIN)[2].partition(house.END)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:] if line]
    assert rows == list(house.numbers(house.read()))
    assert house.written(docs, house.read()).replace(house.table(house.read()), "") == docs.replace(
        table.strip("\n"), ""
    )


def test_functions_are_counted_with_their_decorators_and_inner_ones(house, tmp_path):
    code = "@one\n@two\ndef outer(self, a, *, b):\n    import sys\n    def inner():\n        from os import path\n"
    (tmp_path / "pipeline.py").write_text(code)
    (file,) = house.read(tmp_path)
    assert [tuple(one) for one in file.functions] == [("outer", 6, 2, 2), ("inner", 2, 0, 0)]
