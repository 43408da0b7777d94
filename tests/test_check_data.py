"""The check before any compute: what only mining or training would find out, and that a collection is read once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import load_recipe
from trainer.check import CACHE, check
from trainer.errors import TrainerError

ENGLISH = "the engine of the old car was not running because there is no oil in it and it was too cold for all of us"
GERMAN = "der Motor ist nicht an und es ist kein Benzin in dem Tank, weil wir das nicht mit in die Stadt genommen haben"
JAPANESE = "このエンジンは寒いときには動かないので、まずオイルを確認してください。" * 4


@pytest.fixture
def told(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Everything that the check prints for the tiny recipe with some keys."""

    def told(*overrides: str) -> str:
        check(load_recipe(recipe_file, overrides), tmp_path / "runs")
        return " ".join(capsys.readouterr().out.split())

    return told


def documents(beir: Path, texts: list[str]) -> None:
    """Put texts in the place of the first documents, which keep their ids."""
    path = beir / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [row | {"text": text} for row, text in zip(rows, texts, strict=False)] + rows[len(texts) :]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))


def test_documents_in_several_languages_are_a_warning(told, beir):
    documents(beir, [f"{ENGLISH} {n}" for n in range(20)] + [f"{GERMAN} {n}" for n in range(12)])
    documents(beir, [f"{JAPANESE} {n}" for n in range(5)])
    assert "the documents are in several languages (english" in (said := told())
    assert "german 38%" in said  # of 32 texts that are long enough: 15 English, 12 German, 5 Japanese
    assert "japanese 16%" in said
    assert "several languages" not in told("retriever.language=german")


def test_a_few_foreign_documents_and_short_ones_are_no_second_language(told, beir):
    documents(beir, [f"{ENGLISH} {n}" for n in range(30)] + [f"{GERMAN} {n}" for n in range(2)] + ["und nicht"] * 8)
    assert "several languages" not in told()


def test_documents_that_are_mostly_cut_are_a_warning(told):
    assert "100% of 40 documents are longer than" in (said := told("reranker.max_length=8"))
    assert "raise it, or have long documents read in windows (section passages)" in said
    assert "0% of 40 documents are longer than" in (said := told("reranker.max_length=64"))
    assert "read in windows" not in said


def test_fewer_documents_than_negatives_are_a_warning(told):
    # 40 documents, two positives a query, nothing repeats
    assert "for some train query only 38 of the 40 documents are neither" in told("mine.negatives_per_positive=39")
    assert "for some train query only" not in told("mine.negatives_per_positive=38")


def only_positives(beir: Path, keep: int) -> None:
    """The first documents alone, every one of them relevant for each query that is judged."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        lines = (beir / name).read_text().splitlines(keepends=True)
        (beir / name).write_text("".join(lines[:keep] if name == "corpus.jsonl" else lines))
    names = [json.loads(line)["_id"] for line in (beir / "corpus.jsonl").read_text().splitlines()]
    for split, number in (("train", 0), ("dev", 3), ("test", 4)):
        lines = [f"q-probe-{number}\t{name}\t1\n" for name in names]
        (beir / "qrels" / f"{split}.tsv").write_text("".join(lines))


def faults(recipe_file: Path, *overrides: str) -> list[str]:
    with pytest.raises(TrainerError) as caught:
        check(load_recipe(recipe_file, overrides), recipe_file.with_name("runs"))
    return caught.value.faults


@pytest.mark.parametrize("keep", [1, 3])
def test_a_collection_without_any_negative_is_refused(recipe_file, beir, keep):
    only_positives(beir, keep)
    assert faults(recipe_file) == [
        f"data: no train query can have a negative: each of the {keep} documents is relevant for it or a duplicate of "
        "a relevant one; give more documents"
    ]


def test_a_first_rank_beyond_the_corpus_is_refused(recipe_file, beir):
    for path in (beir / "qrels").glob("*.tsv"):
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith("\t0\n")))
    keys = ("mine.first_rank=41", "mine.last_rank=50")
    assert faults(recipe_file, *keys) == [
        "mine.first_rank: 41 is beyond the 40 documents, so no query can have a negative; lower it"
    ]
    check(load_recipe(recipe_file, [*keys, "mine.random_share=1"]), recipe_file.with_name("runs"))


def test_metrics_that_count_from_grade_1_are_named(told):
    said = told("data.relevant_from=2", "evaluate.metrics=[nDCG@10, RR@10, AP(rel=2), R(rel=1)@5]")
    assert "RR@10, R(rel=1)@5 count grades below data.relevant_from 2 as relevant; write rel=2" in said
    assert "count grades below" not in told()


def test_a_missing_path_is_reported_with_the_other_errors_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here.csv").touch()
    Path("r.yaml").write_text(
        "name: r\ndata:\n  pairs: [here.csv, 'no/*.csv']\n  dev: gone.csv\n  judgements: j.jsonl\n"
        "train:\n  epochs: -1\n"
    )
    with pytest.raises(TrainerError) as caught:
        load_recipe("r.yaml")
    assert caught.value.faults == [
        "r.yaml:3: data.pairs: no such file or folder: 'no/*.csv'",
        "r.yaml:4: data.dev: no such file or folder: 'gone.csv'",
        "r.yaml:5: data.judgements: no such file or folder: 'j.jsonl'",
        "r.yaml:7: train.epochs: input should be greater than or equal to 0, got -1",
    ]


# Once


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each reading of a collection."""
    from trainer.data import check_collection

    counted: list[int] = []
    monkeypatch.setattr("trainer.check.check_collection", lambda *given: counted.append(1) or check_collection(*given))
    return counted


def test_a_collection_that_did_not_change_is_read_once(recipe_file, beir, tmp_path, reads, capsys):
    runs = tmp_path / "runs"
    first = check(load_recipe(recipe_file), runs, keep=True)
    said = capsys.readouterr().out
    assert check(load_recipe(recipe_file, ["train.epochs=5"]), runs, keep=True) == first
    assert capsys.readouterr().out == said
    assert len(reads) == 1
    queries = beir / "queries.jsonl"
    queries.write_text(queries.read_text() + '{"_id": "new", "text": "new"}\n')
    assert check(load_recipe(recipe_file), runs, keep=True).queries == first.queries + 1
    assert check(load_recipe(recipe_file, ["data.relevant_from=2"]), runs).queries == first.queries + 1
    assert len(reads) == 3


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"fingerprint": 1}', '{"fingerprint": "X", "summary": {}}']
)
def test_a_damaged_cache_of_an_earlier_check_is_written_again(recipe_file, tmp_path, content, reads):
    kept = tmp_path / "runs" / "tiny" / CACHE
    first = check(load_recipe(recipe_file), tmp_path / "runs", keep=True)
    fingerprint = json.loads(kept.read_text())["fingerprint"]
    kept.write_text(content.replace('"X"', json.dumps(fingerprint)))
    assert check(load_recipe(recipe_file), tmp_path / "runs", keep=True) == first
    assert len(reads) == 2
    assert json.loads(kept.read_text())["fingerprint"] == fingerprint


def test_the_check_alone_writes_no_files(recipe_file, tmp_path):
    check(load_recipe(recipe_file), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
