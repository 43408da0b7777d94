"""reranker init: whatever a folder holds, the recipe that is written loads and its data passes the check."""

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trainer.commands.cli import reranker_command
from trainer.commands.init import write_recipe
from trainer.data import check_collection
from trainer.errors import DataError
from trainer.recipe import Data, Recipe, load_recipe

QUERIES = [(f"q{number}", f"how does thing number {number} work") for number in range(60)]
DOCUMENTS = [(f"d{number}", f"thing number {number} works like this") for number in range(20)]
QRELS = [(f"q{number}", f"d{number % 20}", 1) for number in range(60)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("my set").mkdir()


def lines(name: str, names: list[str], rows: list[tuple]) -> None:
    """JSON lines, CSV or TSV, by the ending."""
    path = Path("my set") / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        text = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        text = [mark.join(map(str, row)) for row in [names, *rows]]
    path.write_text("\n".join(text) + "\n")


def beir() -> None:
    lines("corpus.jsonl", ["_id", "text"], DOCUMENTS)
    lines("queries.jsonl", ["_id", "text"], QUERIES)
    lines("qrels/train.tsv", ["query-id", "corpus-id", "score"], QRELS)


def packed_beir() -> None:
    beir()
    for path in [path for path in Path("my set").rglob("*") if path.is_file()]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def tables() -> None:
    lines("articles.csv", ["sku", "docid", "title", "body"], [("x", name, "", text) for name, text in DOCUMENTS])
    lines("searches.tsv", ["qid", "query"], QUERIES)
    lines("clicks-train.csv", ["qid", "docid", "relevance"], QRELS[:40])
    lines("clicks-valid.csv", ["qid", "docid", "relevance"], QRELS[40:50])
    lines("clicks-test.csv", ["qid", "docid", "relevance"], QRELS[50:])


def trec() -> None:
    lines("docs.jsonl", ["id", "contents"], DOCUMENTS)
    lines("topics.jsonl", ["id", "text"], QUERIES)
    text = "".join(f"{query} 0 {document} {grade}\n" for query, document, grade in QRELS)
    Path("my set/labels.qrels").write_text(text)


def pairs() -> None:
    lines("data.csv", ["question", "answer"], [(text, f"answer to {text}") for _, text in QUERIES])


def triplets_in_parquet() -> None:
    names = [text for _, text in QUERIES]
    columns = {
        "anchor": names,
        "positive": [f"yes {name}" for name in names],
        "negative": [f"no {name}" for name in names],
    }
    parquet.write_table(pyarrow.table(columns), "my set/part-0.parquet")
    parquet.write_table(
        pyarrow.table({key: values[:0] + [f"{key} dev"] for key, values in columns.items()}), "my set/dev.parquet"
    )


def data_set_folder() -> None:
    triplets_in_parquet()
    head = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: part-0.parquet",
    ]
    Path("my set/README.md").write_text("\n".join([*head, "---", ""]))


FOLDERS: dict[Callable[[], None], dict] = {
    beir: {"path": "my set"},
    packed_beir: {"path": "my set"},
    tables: {
        "corpus": ["my set/articles.csv"],
        "queries": ["my set/searches.tsv"],
        "qrels": ["my set/clicks-train.csv"],
        "dev": ["my set/clicks-valid.csv"],
        "test": ["my set/clicks-test.csv"],
        "corpus_id": "docid",
        "corpus_title": "title",
        "corpus_text": ["body"],
        "query_id": "qid",
        "query_text": "query",
        "qrels_query": "qid",
        "qrels_document": "docid",
        "qrels_grade": "relevance",
    },
    trec: {
        "corpus": ["my set/docs.jsonl"],
        "queries": ["my set/topics.jsonl"],
        "qrels": ["my set/labels.qrels"],
        "corpus_id": "id",
        "corpus_text": ["contents"],
        "query_id": "id",
        "query_text": "text",
    },
    pairs: {"pairs": ["my set/data.csv"], "pairs_query": "question", "pairs_positive": "answer"},
    triplets_in_parquet: {
        "pairs": ["my set/part-0.parquet"],
        "dev": ["my set/dev.parquet"],
        "pairs_query": "anchor",
        "pairs_positive": "positive",
        "pairs_negatives": ["negative"],
    },
    data_set_folder: {"path": "hub:my set"},
}


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_the_recipe_names_what_the_folder_holds_and_its_data_passes_the_check(make):
    make()
    path, layout = write_recipe(Path("my set"))
    assert path == Path("my-set.yaml")
    recipe = load_recipe(path)
    assert recipe.name == "my-set"
    shown = recipe.data.model_dump(mode="json", exclude_defaults=True)
    assert shown == FOLDERS[make]
    summary = check_collection(recipe.data)
    assert sum(summary.judged.values()) >= 60
    assert [split for split in ("dev", "test") if any(note.startswith(split) for note in summary.notes)] == (
        layout.missing or (["dev", "test"] if make is data_set_folder else [])
    )


def test_every_key_has_a_comment():
    tables()
    path, _ = write_recipe(Path("my set"), Path("other.yaml"))
    written = path.read_text()
    keys = [line for line in written.splitlines() if line and not line.startswith("#") and line != "data:"]
    assert all(" # " in line for line in keys)
    assert "  corpus_id: docid               # column of the document id\n" in written
    assert "train other.yaml" in written


def test_the_command_says_what_it_found_and_what_comes_next(monkeypatch, capsys):
    pairs()
    monkeypatch.setattr(sys, "argv", ["reranker", "init", "my set", "--output", "mine.yaml"])
    with pytest.raises(SystemExit) as ended:
        reranker_command()
    out = capsys.readouterr().out
    assert not ended.value.code
    assert "my set/data.csv: pairs for train (columns: question, answer)" in out
    assert "dev and test will be split off from train" in out
    assert "mine.yaml is written; next: reranker check mine.yaml" in out
    monkeypatch.setattr(sys, "argv", ["reranker", "check", "mine.yaml"])
    if "package:" in Path("mine.yaml").read_text():
        with pytest.raises(SystemExit) as ended:
            reranker_command()
        assert "mine.yaml can run" in capsys.readouterr().out


def test_where_the_packaged_model_is_not_installed_the_schema_s_default_stands(monkeypatch):
    monkeypatch.setattr("trainer.commands.init.find_spec", lambda name: None)
    beir()
    recipe = load_recipe(write_recipe(Path("my set"))[0])
    default = Recipe.model_validate({"name": "a", "data": {"path": "b"}})
    assert recipe.reranker == default.reranker
    assert recipe.retriever == default.retriever


def call(*words: str) -> int:
    sys.argv = ["reranker", "init", *words]
    with pytest.raises(SystemExit) as ended:
        reranker_command()
    return int(ended.value.code or 0)


def test_nothing_is_written_over(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    beir()
    Path("my-set.yaml").write_text("mine")
    assert call("my set") == 2
    assert (
        "my-set.yaml: is there already and is not written over; name another with --output" in capsys.readouterr().err
    )
    assert Path("my-set.yaml").read_text() == "mine"


def test_columns_with_other_names_are_named_in_an_incomplete_recipe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    lines("articles.csv", ["Article Number", "Headline", "Body (HTML)"], [("d1", "a", "b")])
    lines("corpus.jsonl", ["_id", "text"], DOCUMENTS)
    lines("searches.csv", ["Who", "Query"], [("q1", "why")])
    lines("clicks.tsv", ["visitor", "corpus id", "clicks"], [("q1", "d1", 3)])
    lines("other.csv", ["left", "right"], [("a", "b")])
    assert call("my set") == 0
    told = [line.removeprefix("init").strip() for line in capsys.readouterr().out.splitlines()]
    lacks = "a column with a usual name for"
    assert told[:6] == [
        "my set/articles.csv: not recognised (columns: Article Number, Headline, Body (HTML)); for corpus it lacks "
        f"{lacks}: document id (data.corpus_id), document's text (data.corpus_text)",
        "my set/clicks.tsv: not recognised (columns: visitor, corpus id, clicks); for qrels it lacks "
        f"{lacks}: query id (data.qrels_query), grade (data.qrels_grade)",
        "my set/corpus.jsonl: corpus (columns: _id, text)",
        "my set/other.csv: not recognised (columns: left, right)",
        f"my set/searches.csv: not recognised (columns: Who, Query); for queries it lacks {lacks}: query id "
        "(data.query_id)",
        "no collection is recognised, so the recipe is incomplete: fill in query_id, qrels_query, qrels_grade",
    ]
    data = load_recipe(Path("my-set.yaml")).data
    assert data.corpus == (Path("my set/articles.csv"), Path("my set/corpus.jsonl"))
    assert (data.query_text, data.query_id) == ("Query", "FILL-IN")
    assert "  query_id: FILL-IN" in Path("my-set.yaml").read_text()
    assert "# query id: one of visitor, corpus id, clicks\n" in Path("my-set.yaml").read_text()
    with pytest.raises(DataError, match="no column 'FILL-IN', which data.query_id names; columns here: Who, Query"):
        check_collection(data)


def test_an_incomplete_recipe_names_missing_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    lines("corpus.jsonl", ["_id", "text"], DOCUMENTS)
    assert call("my set") == 0
    written = Path("my-set.yaml").read_text()
    assert "queries: FILL-IN               # a file with query id, query's text" in written
    assert "qrels: FILL-IN                 # a file with query id, document id, grade" in written
    told = "\n".join(faults_of(load_recipe(Path("my-set.yaml")).data))
    assert "FILL-IN: no such file (data.queries)" in told
    assert "FILL-IN: no such file (data.qrels)" in told


def faults_of(section: Data) -> list[str]:
    with pytest.raises(DataError) as caught:
        check_collection(section)
    return caught.value.faults


def test_an_incomplete_recipe_can_be_filled_in():
    lines("articles.csv", ["number", "headline", "body (html)"], [(name, "", text) for name, text in DOCUMENTS])
    lines("searches.csv", ["who", "query"], QUERIES)
    lines("clicks.tsv", ["who", "what", "clicks"], QRELS)
    path, _ = write_recipe(Path("my set"))
    text = path.read_text()
    for key, name in (
        *(("corpus_id", "number"), ("corpus_text", "body (html)"), ("query_id", "who")),
        *(("qrels_query", "who"), ("qrels_document", "what"), ("qrels_grade", "clicks")),
    ):
        assert f"  {key}: FILL-IN" in text
        text = text.replace(f"  {key}: FILL-IN", f"  {key}: {name}")
    path.write_text(text)
    assert "FILL-IN" not in text
    assert sum(check_collection(load_recipe(path).data).judged.values()) >= 60


@pytest.mark.parametrize("name", ["notes.docx", "broken.csv"])
def test_a_folder_without_anything_to_read_is_told_with_what_is_needed(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    Path("my set", name).write_bytes(b"PK\x03\x04" if name == "broken.csv" else b"")
    assert call("my set") == 2
    told = capsys.readouterr().err
    assert told.startswith("my set: no collection is recognised; needed are corpus.jsonl, queries.jsonl and")
    assert name in told
    assert not Path("my-set.yaml").exists()
    assert call("nowhere") == 2
    assert "nowhere: no such folder; name one with corpus.jsonl" in capsys.readouterr().err


def test_labelled_pairs_are_not_taken_for_judgements():
    lines("pairs.csv", ["query", "document", "label"], [("how does it work", "like this", 1)])
    keys = {"pairs": ["my set/pairs.csv"], "pairs_query": "query", "pairs_positive": "document", "pairs_label": "label"}
    recipe = load_recipe(write_recipe(Path("my set"))[0])
    assert recipe.data.model_dump(mode="json", exclude_defaults=True) == keys


def test_tables_of_ms_marco_without_head_lines_are_recognised():
    rows = [(number, text) for number, (_, text) in enumerate(DOCUMENTS)]
    Path("my set/collection.tsv").write_text("".join(f"{number}\t{text}\n" for number, text in rows))
    Path("my set/queries.train.tsv").write_text("".join(f"{n}\t{text}\n" for n, (_, text) in enumerate(QUERIES)))
    Path("my set/qrels.train.tsv").write_text("".join(f"{n}\t0\t{n % len(rows)}\t1\n" for n in range(len(QUERIES))))
    recipe = load_recipe(write_recipe(Path("my set"))[0])
    assert check_collection(recipe.data).documents == len(rows)


def test_columns_that_differ_between_train_and_test_are_all_named():
    lines("docs.csv", ["docid", "body"], DOCUMENTS)
    lines("queries.csv", ["qid", "query"], QUERIES)
    lines("clicks.csv", ["qid", "docid", "score"], QRELS[:50])
    lines("judged-test.csv", ["query_id", "docid", "relevance"], QRELS[50:])
    recipe = load_recipe(write_recipe(Path("my set"))[0])
    assert recipe.data.qrels_query == ("qid", "query_id")
    assert recipe.data.qrels_grade == ("score", "relevance")
    assert sum(check_collection(recipe.data).judged.values()) == len(QRELS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_recipe_that_cannot_be_written_is_told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    beir()
    Path("closed").mkdir(mode=0o500)
    assert call("my set", "--output", "closed/r.yaml") == 2
    assert "closed/r.yaml: cannot be written" in capsys.readouterr().err


def test_a_recipe_for_a_folder_that_is_not_there_is_told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    beir()
    assert call("my set", "--output", "no-such-folder/r.yaml") == 2
    assert "no-such-folder/r.yaml: cannot be written: No such file or directory" in capsys.readouterr().err
