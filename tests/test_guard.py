"""Guard sets: what `check` says of them, the judgement by hand, and a run with one."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.check import check
from trainer.data import build_collection, check_guard_sets, guard_sets, guard_split
from trainer.errors import DataError, RecipeError, TrainerError
from trainer.evaluation import gate
from trainer.evaluation.fusion import Weights, try_weights
from trainer.evaluation.gate import (
    KEPT,
    LOST,
    UNCLEAR,
    WORSE,
    Finding,
    GuardFinding,
    Release,
    advice,
)
from trainer.evaluation.guard import judge, with_guard_sets
from trainer.evaluation.release import decide_release
from trainer.evaluation.results import Results
from trainer.model import Fusion
from trainer.model.fusion import Kind
from trainer.pipeline import open_run, run
from trainer.recipe import Data, Evaluate, Retriever, load_recipe
from trainer.retriever import Candidates
from trainer.stages.guard import first_stage

ZEROS = [0.0] * 40


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(gate, "RESAMPLES", 500)


@pytest.fixture
def other_set(tmp_path) -> Path:
    """A folder with test judgements alone, as many public sets are published; one document is the tiny set's too."""
    folder = tmp_path / "elsewhere"
    (folder / "qrels").mkdir(parents=True)
    texts = ["kernel kills the process at night", "a disk runs out of space", "rollback keeps the old tag"]
    texts += ["liveness probe restarts the container when its endpoint fails check the log first"]
    documents = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(texts)]
    documents[3]["title"] = "probe"
    queries = [{"_id": "q0", "text": "kernel kills"}, {"_id": "q1", "text": "disk space"}, {"_id": "q2", "text": "tag"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q1\td1\t2", "q2\td2\t1", "q2\tgone\t1", "q1\td0\t0"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


# The judgement.


def test_a_loss_is_the_difference_of_the_means_and_its_interval_decides():
    before, after = [0.8, 0.6, 1.0, 0.4], [0.7, 0.6, 0.5, 0.4]
    found = judge("s", [0.1, 0.2, 0.3, 0.4], before, after, allowed=0.02, seed=1)
    assert (found.set, found.queries) == ("s", 4)
    assert (found.first_stage, found.before, found.after) == pytest.approx((0.25, 0.7, 0.55))
    assert found.loss == pytest.approx(0.15)
    assert found.low < 0.02 < 0.15 < found.high  # two of four queries lose
    assert found.judged == UNCLEAR


@pytest.mark.parametrize(
    ("loss", "allowed", "expected"),
    [
        (0.05, 0.02, LOST),
        (0.05, 0.05, KEPT),
        (0.05, 0.06, KEPT),
        (0.0, 0.0, KEPT),
        (-0.1, 0.0, KEPT),
        (0.001, 0.0, LOST),
    ],
)
def test_equal_losses_of_all_queries_leave_nothing_to_chance(loss, allowed, expected):
    found = judge("s", ZEROS, [0.5] * 40, [0.5 - loss] * 40, allowed, seed=1)
    assert found.loss == pytest.approx(loss, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((loss, loss), abs=1e-12)
    assert found.judged == expected


def test_one_query_and_few_noisy_queries_say_nothing():
    assert judge("s", [0.0], [1.0], [0.0], 0.02, seed=1).judged == UNCLEAR
    changes = np.random.default_rng(3).normal(size=30)
    changes = (changes - changes.mean()) * 0.3
    found = judge("s", [0.0] * 30, [0.5] * 30, (0.5 - 0.03 + changes).tolist(), 0.02, seed=1)
    assert found.judged == UNCLEAR
    assert found.low < 0.02 < found.high
    error = 0.3 / np.sqrt(29)
    assert found.high - found.loss == pytest.approx(2.462 * error, rel=0.25)  # Student's, of .99 and 29 degrees


def finding(judged: Any, loss: float = 0.05) -> GuardFinding:
    return GuardFinding("scifact", 40, 0.3, 0.5, 0.5 - loss, loss, loss - 0.01, loss + 0.01, 0.02, judged)


@pytest.mark.parametrize(("judged", "verdict"), [(LOST, WORSE), (KEPT, "better"), (UNCLEAR, "better")])
def test_only_a_clear_loss_changes_the_verdict(judged, verdict):
    release = with_guard_sets(Release(verdict="better"), [finding(KEPT), finding(judged)])
    assert (release.verdict, len(release.guard)) == (verdict, 2)


def test_the_sentence_names_the_set_and_the_figures():
    gain = {"alone": Finding("better", "first_stage", 0.1, 0.05)}
    lost = Release(verdict=WORSE, findings=gain, guard=(finding(LOST),)).sentence
    assert lost.endswith(
        "; on the guard set scifact the model loses 0.0500 nDCG@10 over 40 queries, clearly more than 0.02 "
        "(evaluate.max_guard_drop): 99 % lower bound +0.0400"
    )
    unclear = Release(verdict="better", findings=gain, guard=(finding(UNCLEAR, -0.01),)).sentence
    assert "the model gains 0.0100 nDCG@10 over 40 queries, and a loss of more than 0.02" in unclear
    assert "is not ruled out: 99 % upper bound +0.0000" in unclear
    assert "scifact" not in Release(verdict="better", findings=gain, guard=(finding(KEPT),)).sentence
    assert "max_guard_drop" in advice(WORSE, lost_guard=True)
    assert "max_guard_drop" not in advice(WORSE)


# The recipe and the check.


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/scifact", "b/nfcorpus"], ["scifact", "nfcorpus"]),
        (["a/scifact/beir", "a/nfcorpus/beir"], ["scifact/beir", "nfcorpus/beir"]),
        (["hub:mteb/scifact", "mteb2/scifact"], ["mteb/scifact", "mteb2/scifact"]),
        ("a/scifact", ["scifact"]),
    ],
)
def test_sets_are_named_by_the_end_of_their_paths(given, names):
    assert list(guard_sets(Evaluate(guard=given))) == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.guard=[]", r"evaluate.guard: is an empty list"),
        ("evaluate.guard=[x, x]", r"evaluate.guard: names x twice"),
        ("evaluate.max_guard_drop=-0.1", r"evaluate.max_guard_drop: input should be greater than or equal to 0"),
        ("evaluate.guard=5", r"evaluate.guard: is a list, e.g. \[5\], got 5"),
        ("evaluate.guard={a: b}", r"evaluate.guard: is a list"),
    ],
)
def test_faults_of_the_keys(recipe_file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [override])


def test_faults_of_all_sets_are_reported_at_once_with_those_of_the_collection(recipe_file, other_set, beir, tmp_path):
    (other_set / "qrels" / "test.tsv").unlink()
    empty = tmp_path / "empty"
    shutil.copytree(other_set, empty)
    (empty / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    (beir / "corpus.jsonl").write_text("{}\n")
    sets = f"[{tmp_path / 'nowhere'}, {other_set}, {empty}]"
    with pytest.raises(TrainerError) as raised:
        check(load_recipe(recipe_file, [f"evaluate.guard={sets}"]), tmp_path / "runs")
    text = str(raised.value)
    assert f"evaluate.guard: {tmp_path / 'nowhere'}: no such folder; evaluate.guard names a folder" in text
    assert f"evaluate.guard: {other_set / 'qrels'}: holds none of test.tsv, dev.tsv and train.tsv" in text
    assert f"evaluate.guard: {empty}: no query has a relevant document" in text
    assert f"{beir / 'corpus.jsonl'}: no column" in text


def test_a_line_that_cannot_be_read_is_a_fault_of_the_set(recipe_file, other_set, tmp_path):
    with (other_set / "corpus.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"evaluate.guard: .*elsewhere/corpus.jsonl:5"):
        check(load_recipe(recipe_file, [f"evaluate.guard={other_set}"]), tmp_path / "runs")


def test_shared_texts_are_warned_about(recipe_file, beir, other_set, tmp_path, capsys):
    recipe = load_recipe(recipe_file, [f"evaluate.guard=[{beir}, {other_set}]"])
    for _ in range(2):  # the second time from the record
        check(recipe, tmp_path / "runs", keep=True)
        printed = " ".join(capsys.readouterr().out.split())
        assert "guard set tiny-set: 8 test queries, 40 documents" in printed
        assert "guard set tiny-set: 40 of its 40 documents and 8 of its 8 queries are in the run's own coll" in printed
        assert "guard set elsewhere: 3 test queries, 4 documents" in printed
        assert "guard set elsewhere: 1 of its 4 documents and 0 of its 3 queries are in the run's own coll" in printed
    record = tmp_path / "runs" / "tiny" / "check_guard.json"
    record.write_text(record.read_text().replace('"queries": 3', '"queries": 7'))
    check(recipe, tmp_path / "runs", keep=True)
    assert "elsewhere: 7 test queries" in capsys.readouterr().out  # it was read
    (other_set / "queries.jsonl").write_text((other_set / "queries.jsonl").read_text() + '{"_id": "q3", "text": "x"}\n')
    check(recipe, tmp_path / "runs", keep=True)
    assert "elsewhere: 3 test queries" in capsys.readouterr().out
    record.write_text("[1]")
    check(recipe, tmp_path / "runs", keep=True)
    assert "elsewhere: 3 test queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "measured"),
    [(["dev"], "dev"), (["train"], "train"), (["train", "dev"], "dev"), (["train", "test"], "test")],
)
def test_one_split_is_enough_and_test_comes_first(other_set, beir, tmp_path, splits, measured):
    (other_set / "qrels" / "test.tsv").rename(tmp_path / "judgements.tsv")
    lines = (tmp_path / "judgements.tsv").read_text().splitlines(keepends=True)
    for number, split in enumerate(splits):  # no query is in two splits
        own = [line for line in lines[1:] if line.startswith(f"q{number}") or (len(splits) == 1 and line[1] != "0")]
        with gzip.open(other_set / "qrels" / f"{split}.tsv.gz", "wt") as file:
            file.write("".join([lines[0], *own]))
    section = Evaluate(guard=(other_set,))
    overlap = check_guard_sets(section, Data(path=beir), tmp_path / "check.json", keep=False)["elsewhere"]
    assert overlap.split == measured
    collection = build_collection(guard_sets(section)["elsewhere"], tmp_path / "built")
    assert guard_split(collection) == measured
    assert len(collection.answerable(measured)) == overlap.queries
    assert not (tmp_path / "check.json").exists()


@pytest.mark.parametrize(
    ("given", "kind", "bi_encoder"),
    [
        ({"kind": "hybrid", "language": "german"}, "hybrid", True),
        ({"kind": "dense"}, "dense", True),
        ({"kind": "bm25"}, "bm25", False),
        ({"kind": "run", "run": "x.trec"}, "bm25", False),
        ({"kind": "run", "run": "x.trec", "fuse_run": True}, "hybrid", True),
    ],
)
def test_the_engines_of_the_run_retrieve_without_its_own_trec_run(given, kind, bi_encoder):
    section = first_stage(Retriever(**given))
    assert (section.kind, section.run, section.language) == (kind, None, "auto")
    assert bool(section.bi_encoder) == bool(Retriever(**given).bi_encoder) == bi_encoder


# A run.


def test_a_run_measures_its_guard_sets_and_only_a_loss_refuses(exported, other_set, tmp_path, capsys, monkeypatch):
    runs, words = tmp_path / "runs", [f"evaluate.guard=[{other_set}]", "export.formats=[]"]
    shutil.copytree(exported[1], runs)
    plain, guarded = load_recipe(exported[0]), load_recipe(exported[0], words)
    folder = runs / "exported"
    before = {
        stage.folder: open_run(plain, runs).records[stage.folder].fingerprint for stage in open_run(plain, runs).stages
    }
    after = {name: record.fingerprint for name, record in open_run(guarded, runs).records.items()}
    assert {name for name in before if before[name] != after[name]} == {"evaluate", "export"}
    assert "guard" not in json.loads((folder / "evaluate" / "results.json").read_text())

    run(guarded, runs, until="evaluate")
    printed = capsys.readouterr().out
    assert "guard     elsewhere: 3 queries, 4 documents" in printed
    measured = json.loads((folder / "guard" / "1" / "values.json").read_text())
    assert (measured["set"], measured["split"], measured["documents"]) == ("elsewhere", "test", 4)
    results = Results.load(folder / "evaluate")
    (found,) = results.guard
    assert found.queries == 3
    assert found.first_stage == pytest.approx(np.mean(measured["values"]["first_stage"]))
    assert found.loss == pytest.approx(np.mean(measured["values"]["before"]) - np.mean(measured["values"]["after"]))
    assert found.sentence in " ".join(printed.split())

    assert measured["values"]["first_stage"][0] == 1.0  # BM25 finds the document with both words
    for name in ("report.html", "report.md"):
        assert "elsewhere" in (folder / name).read_text()

    # The same run with the values of a model that forgot.
    forgot = {"first_stage": [0.5] * 40, "before": [0.75] * 40, "after": [0.65, 0.75] * 20}
    (folder / "guard" / "1" / "values.json").write_text(json.dumps(measured | {"values": forgot}))
    open_run(guarded, runs).records["guard"].finish("")
    refused = run(guarded, runs, until="export").refused
    assert "worse: on dev, " in str(refused)
    assert "; on the guard set elsewhere the model loses 0.0500 nDCG@10 over 40 queries, clearly more than" in str(
        refused
    )
    assert "max_guard_drop, or export it anyway with --force" in str(refused)
    capsys.readouterr()

    # More is allowed: the sets are not measured again.
    refused = run(load_recipe(exported[0], [*words, "evaluate.max_guard_drop=0.2"]), runs, until="export", force=True)
    printed = " ".join(capsys.readouterr().out.split())
    assert "a loss of more than 0.2 (evaluate.max_guard_drop) is ruled out" in printed
    assert not refused.refused
    card = (folder / "export" / "model" / "README.md").read_text()
    assert "- On the guard set elsewhere the model loses 0.0500 nDCG@10 over 40 queries" in card
    assert '"guard": [\n      "elsewhere"\n    ]' in card
    assert str(other_set.parent) not in card


def test_a_loss_on_a_guard_set_refuses_a_model_that_is_better_on_dev(beir, tmp_path):
    collection = build_collection(Data(path=beir), tmp_path / "data")
    queries, rng = collection.answerable("dev"), np.random.default_rng(1)
    documents = np.array([rng.permutation(40) for _ in queries], dtype=np.int32)
    perfect = np.array(
        [
            [collection.qrels["dev"][query].get(row, 0) for row in rows.tolist()]
            for query, rows in zip(queries, documents, strict=True)
        ],
        dtype=np.float32,
    )
    scores = np.tile(np.arange(40, 0, -1, dtype=np.float32), (len(queries), 1))
    ranks, positive = np.zeros((*documents.shape, 0), dtype=np.int16), np.ones(len(queries), dtype=np.float32)
    dev = Candidates(np.array(queries), documents, scores, scores, positive, ranks, engines=np.array([]))
    kinds: tuple[Kind, ...] = ("scores", "order")
    weights: dict[Kind, Weights] = {kind: try_weights(collection, dev, "nDCG@10", perfect, 0.0, kind) for kind in kinds}
    release, _ = decide_release(collection, dev, "nDCG@10", {"tuned": perfect}, [], weights, 1, tmp_path)
    verdicts = [with_guard_sets(release, [finding(judged)]).verdict for judged in (KEPT, UNCLEAR, LOST)]
    assert verdicts == ["better", "better", WORSE]
    fusion = Fusion.load(tmp_path)
    assert fusion
    assert fusion.alone  # the model is used alone, as its findings on dev say
