"""Likely false negatives to spreadsheets and Label Studio and back: no id is lost, no cell is a formula."""

import csv
import io
import json
import shutil

import pytest

from trainer.commands import labels as module
from trainer.commands.label_files import FIRST, escaped, key_of, restored
from trainer.commands.labels import read_labels, write_pairs
from trainer.errors import DataError, RunError

ODD = [
    "a,b",
    'say "hi"',
    "two\nlines",
    "=1+1",
    "+49 30",
    "-5",
    "@home",
    "'=quoted",
    "''@twice",
    "'plain",
    "ＦＵＬＬ＝",
    "＝full width",
    "007",
    "1-2",
    "1e10",
    "a;b|c",
    "Straße 日本語 🙂",
    "e\u0301",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with one likely false negative for each odd id, and queries of the same ids."""
    folder = tmp_path / "run"
    (folder / "mine").mkdir(parents=True)
    lines = [
        {"query_id": query, "document_id": document, "relevant": None, "why": "near", "rank": 3}
        | {"query": f"query {query}", "document": f"=HYPERLINK({document})\r\nsecond", "positive": "-1"}
        for query, document in zip(ODD, reversed(ODD), strict=True)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "mine" / "suspected_false_negatives.jsonl").write_text(text)
    known = {*ODD}

    def unknown(_):
        return lambda pair: "" if set(pair) <= known else f"{pair} is not in the collection"

    monkeypatch.setattr(module, "_unknown", unknown)
    return folder


def pairs_file(run):
    return run / "mine" / "suspected_false_negatives.jsonl"


def kept(run):
    path = run / "judgements.jsonl"
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else []
    return {(line["query_id"], line["document_id"]): line["relevant"] for line in lines}


def out(run, name):
    write_pairs(pairs_file(run), run / "judgements.jsonl", run / name)
    return run / name


def back(run, path):
    return read_labels(path, pairs_file(run), run / "judgements.jsonl")


def sheet(path):
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))
    assert len(rows) == len(ODD)
    return rows


def saved(path, rows, columns=FIRST, **dialect):
    """Write rows as a spreadsheet does."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", **dialect)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


@pytest.mark.parametrize("text", [*ODD, "\tx", "\rx", "", "'", "'-", "a=b"])
def test_no_cell_is_a_formula_and_every_text_comes_back(text):
    assert restored(escaped(text)) == text
    assert not escaped(text).startswith(tuple("=+-@\t\r＝＋－＠"))


def test_a_spreadsheet_keeps_every_id(run):
    path = out(run, "labels.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows = sheet(path)
    assert [cell for row in rows for cell in row.values() if cell.startswith(tuple("=+-@"))] == []
    for number, row in enumerate(rows):
        row["relevant"] = ["relevant", "Not relevant ", "", "2", "0", "TRUE"][number % 6]
    assert back(run, saved(path, rows)) == 15
    wanted = [True, False, None, 2, 0, True] * 3
    assert kept(run) == {
        pair: label
        for pair, label in zip(zip(ODD, reversed(ODD), strict=True), wanted, strict=True)
        if label is not None
    }
    assert back(run, path) == 0
    assert len(sheet_of_open(run)) == 3


def sheet_of_open(run):
    return list(csv.DictReader(io.StringIO(out(run, "open.csv").read_text("utf-8-sig"))))


def test_semicolons_other_columns_and_another_order_are_read(run):
    path = out(run, "labels.csv")
    rows = [row | {"relevant": "no", "note": "a;b"} for row in sheet(path)]
    columns = ["note", *reversed(FIRST)]
    assert back(run, saved(path, reversed(rows), columns, delimiter=";", lineterminator="\n")) == len(ODD)
    assert set(kept(run).values()) == {False}


def test_ids_that_a_spreadsheet_changed_are_recognised_by_the_key(run):
    path = out(run, "labels.csv")
    rows = [row for row in sheet(path) if "007" in (row["query_id"], row["document_id"])]
    changed = [{name: "7" if cell == "007" else cell for name, cell in row.items()} | {"relevant": "1"} for row in rows]
    assert back(run, saved(path, changed)) == 2
    assert {"007"} < {identity for pair in kept(run) for identity in pair}
    with pytest.raises(DataError, match="is not in the collection"):
        back(run, saved(path, changed, [name for name in FIRST if name != "pair"]))


def test_rows_whose_columns_were_sorted_apart_are_refused(run):
    path = out(run, "labels.csv")
    rows = sheet(path)
    rows[0] |= {"pair": key_of((ODD[1], ODD[-2])), "relevant": "yes"}
    with pytest.raises(DataError, match="was a single column sorted"):
        back(run, saved(path, rows[:1]))


def test_all_problems_are_told_with_their_lines_and_nothing_is_changed(run):
    (run / "judgements.jsonl").write_text('{"query_id": "a,b", "document_id": "@home", "relevant": true}\n')
    before = (run / "judgements.jsonl").read_bytes()
    path = run / "labels.csv"
    path.write_text(
        "query_id,document_id,relevant\n007,007,yes\n007,1-2,maybe\n007,007,no\nnobody,007,yes\n007,007,3\n"
    )
    with pytest.raises(DataError) as raised:
        back(run, path)
    text = "\n".join(raised.value.faults)
    assert f'{path}:3: "relevant" is' in text
    assert "got 'maybe'" in text
    assert f"relevant ({path}:2), not relevant ({path}:4), grade 3 ({path}:6); keep one" in text
    assert f"{path}:5: ('nobody', '007') is not in the collection" in text
    assert (run / "judgements.jsonl").read_bytes() == before
    path.write_text("query_id,relevant\n1,yes\n")
    with pytest.raises(DataError, match="document_id missing, columns here: query_id, relevant"):
        back(run, path)


def test_the_same_label_twice_is_one_and_earlier_answers_are_replaced(run):
    judged = run / "judgements.jsonl"
    judged.write_text('{"query_id": "007", "document_id": "1-2", "relevant": true, "note": "by hand"}\n')
    path = run / "labels.jsonl"
    lines = [{"query_id": "007", "document_id": document, "relevant": False} for document in ("1-2", "1-2", "-5")]
    path.write_text("\ufeff" + "\r\n".join(map(json.dumps, lines)))
    assert back(run, path) == 2
    assert kept(run) == {("007", "1-2"): False, ("007", "-5"): False}
    assert "by hand" in judged.read_text()


@pytest.mark.parametrize("minimal", [False, True])
def test_label_studio_reads_tasks_and_its_exports_come_back(run, minimal):
    tasks = json.loads(out(run, "tasks.json").read_text(encoding="utf-8"))
    assert [(task["data"]["query_id"], task["data"]["document_id"]) for task in tasks] == list(
        zip(ODD, reversed(ODD), strict=True)
    )
    choices = ["relevant", "not relevant", None]
    exported = []
    for number, task in enumerate(tasks):
        choice = choices[number % 3]
        if minimal:
            exported.append({"id": number, **task["data"], "annotator": 1} | ({"relevant": choice} if choice else {}))
            continue
        value = {"type": "choices", "from_name": "relevant", "to_name": "document", "value": {"choices": [choice]}}
        comment = {"type": "textarea", "from_name": "comment", "value": {"text": ["hm"]}}
        cancelled = {"was_cancelled": True, "result": [value | {"value": {"choices": ["relevant"]}}]}
        annotations = [{"was_cancelled": False, "result": [comment, value] if choice else []}, cancelled]
        exported.append({"id": number, "data": task["data"], "annotations": annotations, "predictions": []})
    path = run / "export.json"
    path.write_text(json.dumps(exported), encoding="utf-8")
    assert back(run, path) == 12
    pairs = list(zip(ODD, reversed(ODD), strict=True))
    assert [kept(run).get(pair) for pair in pairs] == [True, False, None] * 6


def test_two_annotators_who_disagree_are_both_named(run):
    value = [
        {"result": [{"from_name": "relevant", "value": {"choices": [choice]}}]}
        for choice in ("relevant", "not relevant")
    ]
    path = run / "export.json"
    path.write_text(json.dumps([{"data": {"query_id": "007", "document_id": "-5"}, "annotations": value}]))
    with pytest.raises(DataError, match=r"relevant \(.*task 1\), not relevant \(.*task 1\)"):
        back(run, path)
    path.write_text('{"data": 1}')
    with pytest.raises(DataError, match="a JSON list of tasks is expected"):
        back(run, path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="task 1: has no query_id"):
        back(run, path)


def test_a_file_that_may_hold_labels_is_not_overwritten(run):
    out(run, "labels.csv")
    with pytest.raises(RunError, match="exists already, and may hold labels"):
        out(run, "labels.csv")
    with pytest.raises(RunError, match="the ending chooses the format"):
        out(run, "labels.xlsx")
    with pytest.raises(RunError, match="no such file"):
        back(run, run / "nothing.csv")


def test_the_labels_of_a_run_are_used_by_the_next_one(exported, tmp_path):
    from trainer.data import check_collection
    from trainer.recipe import load_recipe

    recipe, runs = exported
    mined = tmp_path / "run" / "mine" / "suspected_false_negatives.jsonl"
    mined.parent.mkdir(parents=True)
    (tmp_path / "run" / "data").symlink_to(runs / "exported" / "data")
    mined.write_text('{"query_id": "train-disk", "document_id": "disk-1", "relevant": null}\n')
    path = tmp_path / "labels.csv"
    path.write_text("query_id;document_id;relevant\ntrain-disk;disk-1;relevant\ntrain-cert;cert-1;not relevant\n")
    judgements = tmp_path / "run" / "judgements.jsonl"
    assert read_labels(path, mined, judgements) == 2
    summary = check_collection(load_recipe(recipe, [f"data.judgements={judgements}"]).data)
    assert any("2 judgements added" in note for note in summary.notes)
    path.write_text("query_id,document_id,relevant\ntrain-disc,disk-1,yes\n")
    with pytest.raises(DataError, match="query 'train-disc' is not in the collection"):
        read_labels(path, mined, judgements)


def test_the_command_writes_and_reads_the_file_of_a_run(exported, tmp_path):
    from typer.testing import CliRunner

    from trainer.commands.cli import reranker_app

    run = tmp_path / "later"
    shutil.copytree(exported[1] / "exported", run)
    pairs_file(run).write_text('{"query_id": "train-disk", "document_id": "disk-1", "relevant": null, "query": "+1"}\n')
    path = str(tmp_path / "labels.csv")
    written = CliRunner().invoke(reranker_app, ["review", str(run), "--to", path])
    assert "1 open pairs" in written.output
    (row,) = csv.DictReader(io.StringIO((tmp_path / "labels.csv").read_text("utf-8-sig")))
    assert row["query"] == "'+1"
    saved(tmp_path / "labels.csv", [row | {"relevant": "not relevant"}])
    read = CliRunner().invoke(reranker_app, ["review", str(run), "--from", path])
    assert "1 labels: 1 new, 0 changed, 0 the same; 0 rows without a label" in read.output
    assert f"data.judgements={run / 'judgements.jsonl'}" in read.output.replace("\n", "")
    assert kept(run) == {("train-disk", "disk-1"): False}
    both = CliRunner().invoke(reranker_app, ["review", str(run), "--from", path, "--to", path])
    assert "give either --to or --from" in str(both.exception)


def test_rows_that_are_no_labels_are_let_be(run):
    path = run / "labels.csv"
    path.write_text("query_id,document_id,relevant,note\n007,-5,yes,\n,,,\n,,,5 pairs\ngone,gone,,\n")
    assert back(run, path) == 1
    (run / "labels.jsonl").write_text('{"query_id": "007", "document_id": "-5", "relevant": 1}\n{"relevant": 1}\n')
    with pytest.raises(DataError, match="labels.jsonl:2: needs the keys query_id and document_id"):
        back(run, run / "labels.jsonl")
    (run / "labels.xlsx").touch()
    with pytest.raises(RunError, match="saved as CSV in UTF-8"):
        back(run, run / "labels.xlsx")
