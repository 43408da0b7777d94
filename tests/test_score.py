"""Bulk reranking: the order of the library, whatever the blocks, and no block scored twice."""

import gzip
import json
import shutil
import sys

import numpy as np
import pytest

from trainer.commands import score as module
from trainer.commands.score import score
from trainer.errors import DataError, ModelError, RecipeError, RunError
from trainer.model import Calibration, Reranker
from trainer.model.calibration import Platt
from trainer.recipe import Data

TEXTS = [
    "kernel kills the process when memory runs out",
    "certificate expired",
    "",
    "why does the disk show free space",
    "restart only one replica " * 30,
]


@pytest.fixture
def lists(tmp_path):
    """JSON lines of both spellings, texts and objects, an empty list among them."""
    lines = [
        {"id": 7, "query": "why does the kernel kill", "documents": TEXTS, "note": "kept"},
        {
            "query": "disk",
            "passages": [{"title": "disk", "text": text, "_id": place} for place, text in enumerate(TEXTS)],
        },
        {"query": "nothing", "documents": []},
        {"query": "certificate", "documents": [*TEXTS[::-1], TEXTS[0]]},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_the_order_is_the_librarys_whatever_the_blocks(tiny, lists, tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    output = tmp_path / "out.jsonl"
    score(str(tiny["reranker"]), lists, output)
    first, second, empty, last = read(output)
    model = Reranker.load(tiny["reranker"])
    ranked = model.rank("why does the kernel kill", TEXTS)
    assert first["documents"] == [one.document for one in ranked]
    assert first["index"] == [one.index for one in ranked]
    assert first["scores"] == pytest.approx([one.score for one in ranked], abs=1e-5)
    assert (first["id"], first["note"]) == (7, "kept")
    titled = model.rank("disk", [f"disk {text}".strip() for text in TEXTS])
    assert [document["_id"] for document in second["passages"]] == [one.index for one in titled]
    assert empty == {"query": "nothing", "documents": [], "scores": [], "index": []}
    assert last["index"].index(4) < last["index"].index(5)  # the same text twice: equal scores keep their order
    assert not (tmp_path / ".out.jsonl.parts").exists()


@pytest.fixture
def calibrated(tiny, tmp_path):
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny["reranker"], folder)
    Calibration({1: Platt(2.0, -60.0)}).save(folder)  # all probabilities are tiny
    return folder


def test_probabilities_take_the_place_of_scores_and_keep_the_order(tiny, calibrated, lists, tmp_path):
    score(str(tiny["reranker"]), lists, tmp_path / "scores.jsonl")
    score(str(calibrated), lists, tmp_path / "probabilities.jsonl", probabilities=True)
    plain, probable = read(tmp_path / "scores.jsonl"), read(tmp_path / "probabilities.jsonl")
    assert [line["index"] for line in plain] == [line["index"] for line in probable]
    model = Reranker.load(calibrated)
    expected = model.probability([(plain[0]["query"], text) for text in plain[0]["documents"]])
    assert probable[0]["scores"] == pytest.approx(expected, rel=1e-4)
    assert 0 < max(probable[0]["scores"]) < 1e-20


def test_probabilities_in_a_trec_run_order_the_documents_too(tiny, calibrated, shared_beir, tmp_path):
    run = tmp_path / "in.trec"
    run.write_text("".join(f"q-disk-4 Q0 disk-{number} {number + 1} {-number} tag\n" for number in range(5)))
    files = tmp_path / "plain.trec", tmp_path / "probable.trec"
    score(str(tiny["reranker"]), run, files[0], Data(path=shared_beir))
    score(str(calibrated), run, files[1], Data(path=shared_beir), probabilities=True)
    plain, probable = ([line.split() for line in path.read_text().splitlines()] for path in files)
    assert [row[2] for row in plain] == [row[2] for row in probable]
    numbers = [float(row[4]) for row in probable]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) >= len({row[4] for row in plain})  # nothing ties that did not before


def test_a_model_without_a_calibration_has_no_probabilities(tiny, lists, tmp_path):
    with pytest.raises(ModelError, match=r"has no calibration\.json"):
        score(str(tiny["reranker"]), lists, tmp_path / "out.jsonl", probabilities=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_killed_run_goes_on_with_the_next_block(tiny, lists, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score(str(tiny["reranker"]), lists, whole)
    scored = []
    scores = module._scores

    def killed(reranker, block):
        scored.append(block[0].query)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return scores(reranker, block)

    monkeypatch.setattr(module, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        score(str(tiny["reranker"]), lists, output)
    assert not output.exists()
    (tmp_path / ".out.jsonl.parts" / ".000002.0123.partial").write_text("half a li")
    score(str(tiny["reranker"]), lists, output)
    assert len(scored) == len(set(scored)) + 1  # only the block that was interrupted is done again
    assert output.read_bytes() == whole.read_bytes()


def test_work_of_another_input_is_not_taken_over(tiny, lists, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    monkeypatch.setattr(module, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score(str(tiny["reranker"]), lists, output)
    lists.write_text(lists.read_text().replace("certificate", "inodes"))
    with pytest.raises(RecipeError, match="was begun with another input, model or option"):
        score(str(tiny["reranker"]), lists, output)


def test_every_fault_of_the_input_is_told_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"query": "a"}\nno JSON\n{"query": "a", "documents": [1]}\n[]\n{"query": "a", "passages": ["b"]}\n'
    )
    with pytest.raises(DataError) as raised:
        score("no/such model", path, tmp_path / "out.jsonl")
    assert [line.split(": ")[0].rpartition(":")[2] for line in raised.value.faults] == ["1", "2", "4", "3"]
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no list"):
        score("no/such model", path, tmp_path / "out.jsonl")


def test_a_trec_run_is_reordered_with_the_texts_of_a_collection(tiny, shared_beir, tmp_path):
    run = tmp_path / "in.trec"
    documents = [f"{name}-{number}" for name in ("disk", "cert", "queue") for number in range(3)]
    lines = [f"q-disk-4 Q0 {document} {rank} {-rank} tag\n" for rank, document in enumerate(documents)]
    run.write_text("".join([*reversed(lines), "q-cert-3 Q0 cert-0 1 0.5 tag\n"]))
    output = tmp_path / "out.trec"
    score(str(tiny["reranker"]), run, output, Data(path=shared_beir), max_length=32)
    rows = [line.split() for line in output.read_text().splitlines()]
    assert [row[0] for row in rows] == ["q-disk-4"] * 9 + ["q-cert-3"]
    corpus = {row["_id"]: f"{row['title']} {row['text']}" for row in read(shared_beir / "corpus.jsonl")}
    query = {row["_id"]: row["text"] for row in read(shared_beir / "queries.jsonl")}["q-disk-4"]
    ranked = Reranker.load(tiny["reranker"], max_length=32).rank(query, [corpus[name] for name in documents])
    assert [row[2] for row in rows[:9]] == [documents[one.index] for one in ranked]
    assert [row[3] for row in rows[:9]] == [str(rank) for rank in range(1, 10)]


def test_a_run_that_names_what_is_not_there_is_refused(tiny, shared_beir, tmp_path):
    run = tmp_path / "in.trec"
    run.write_text("q-disk-4 Q0 nowhere 1 0.5 tag\nq-disk-4 Q0 disk-0 2 x tag\nq-disk-4 Q0\n")
    with pytest.raises(DataError) as raised:
        score(str(tiny["reranker"]), run, tmp_path / "out", Data(path=shared_beir))
    assert len(raised.value.faults) == 2
    run.write_text("q-disk-4 Q0 nowhere 1 0.5 tag\n")
    run.write_text("q-disk-4 Q0 nowhere 1 0.5 tag\nnobody Q0 disk-0 1 0.5 tag\n")
    with pytest.raises(DataError) as raised:
        score(str(tiny["reranker"]), run, tmp_path / "out", Data(path=shared_beir))
    assert raised.value.faults == [
        "the run names unknown document ids: 'nowhere' (1 of 2); see --data",
        "the run names unknown query ids: 'nobody' (1 of 2); see --data",
    ]


def test_scores_that_are_no_numbers_end_it(tiny, lists, tmp_path, monkeypatch):
    def broken(self, pairs, note=None):
        return np.full(len(pairs), np.nan, dtype=np.float32)

    monkeypatch.setattr(Reranker, "score_tokens", broken)
    with pytest.raises(RunError, match="16 scores are not numbers"):
        score(str(tiny["reranker"]), lists, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_compressed_files_and_a_run_folder_as_the_model(exported, tmp_path):
    _, runs = exported
    lines = "".join(json.dumps({"query": "disk", "documents": ["a", "b disk", ""]}) + "\n" for _ in range(3))
    (tmp_path / "in.jsonl").write_text(lines)
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write(lines)
    score(str(runs / "exported"), tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz")
    score(str(runs / "exported" / "export" / "model"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == (tmp_path / "out.jsonl").read_bytes()


def test_odd_input_is_refused_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        '{"query": "a", "documents": ["b"]}\n{"query": "a\\ud83d", "documents": ["b"]}\n{"query": "c", "docu'
    )
    with pytest.raises(DataError) as raised:
        score("no/such model", path, tmp_path / "out.jsonl")
    assert sorted(fault.split(": ")[0] for fault in raised.value.faults) == [f"{path}:2", f"{path}:3"]
    path.write_text('{"query": "a", "documents": ["b", "\\ud83d\\ude00"]}\n')
    with pytest.raises(RecipeError, match="is the input too"):
        score("no/such model", path, path)
    (tmp_path / "in.trec").write_text("q Q0 d 1 0.5 tag\nq Q0 d 2 0.4 tag\nq Q0 e 3 0.3")
    with pytest.raises(DataError, match="listed for query 'q' already"):
        score("no/such model", tmp_path / "in.trec", tmp_path / "out", Data(path=tmp_path))


@pytest.mark.slow
def test_two_processes_share_the_blocks(tiny, lists, tmp_path, monkeypatch, started):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    score(str(tiny["reranker"]), lists, whole)
    code = (
        "import sys; from trainer.commands import score as module, cli; module.BLOCK = 1; "
        "sys.argv = ['reranker', *sys.argv[1:]]; cli.reranker_command()"
    )
    script = tmp_path / "start.py"
    script.write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    with started([*launch, "score", tiny["reranker"], lists, output]) as run:
        (ended,) = run.finish()
    assert ended.returncode == 0, ended.stderr
    assert read(output) == read(whole)
    assert ended.stdout.count("lists in") == 1
