"""Trainings with several seeds: mean and spread by hand, the choice repeated, and a run that is killed between them."""

import json
import re
import shutil
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from trainer.data import build_collection
from trainer.errors import RecipeError
from trainer.evaluation import gate, statistics
from trainer.evaluation.fusion import Weights, choose_weight, fused_choice
from trainer.evaluation.gate import DevChoice, best_mean, compare, resamples
from trainer.evaluation.release import decide_release
from trainer.evaluation.results import Results, show
from trainer.evaluation.seeds import SeedResult, SeedScores, average, describe_seeds, spread
from trainer.evaluation.statistics import paired_p
from trainer.evaluation.two_stage import evaluate
from trainer.model.fusion import Kind
from trainer.pipeline import open_run, run
from trainer.recipe import Data, load_recipe
from trainer.retriever import Candidates
from trainer.training import loop

QUERIES = 30


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(gate, "RESAMPLES", 400)
    monkeypatch.setattr(statistics, "RESAMPLES", 499)


def candidates_of(collection, split, documents):
    documents = np.array(documents, dtype=np.int32)
    scores = np.tile(np.arange(documents.shape[1], 0, -1, dtype=np.float32), (len(documents), 1))
    queries = np.array(collection.answerable(split), dtype=np.int32)[: len(documents)]
    ranks = np.zeros((*documents.shape, 0), dtype=np.int16)
    positive = np.ones(len(documents), dtype=np.float32)
    return Candidates(queries, documents, scores, scores, positive, ranks, engines=np.array([]))


@pytest.fixture
def by_hand(beir, tmp_path):
    """Two test queries with one relevant document each, document 0 for the first and 1 for the second."""
    collection = build_collection(Data(path=beir), tmp_path / "data")
    first, second = collection.answerable("test")[:2]
    return replace(collection, qrels={**collection.qrels, "test": {first: {0: 1}, second: {1: 1}}})


# Mean and spread.


def test_each_query_is_averaged_over_the_seeds_before_the_test(by_hand, tmp_path, capsys):
    found = candidates_of(by_hand, "test", [[5, 0, 6], [5, 6, 1]])  # reciprocal ranks 1/2 and 1/3
    up, as_found = [[0, 9, 1], [0, 1, 9]], [[3, 2, 1], [3, 2, 1]]  # reciprocal ranks 1 and 1; 1/2 and 1/3
    half = [[0, 9, 1], [3, 2, 1]]  # 1 and 1/3
    seeds = [
        SeedScores(seed, seed == 2, np.zeros(0), dev, np.array(scores, dtype=np.float32))
        for seed, dev, scores in ((1, 0.5, as_found), (2, 0.75, up), (3, 0.625, half))
    ]
    scores = {"tuned": seeds[1].test}
    results = evaluate(by_hand, "test", found, scores, ["RR@10", "R@3"], 1, tmp_path, seeds=seeds)

    first, second = (1 / 2 + 1 + 1) / 3, (1 / 3 + 1 + 1 / 3) / 3
    assert list(results.systems) == ["first_stage", "tuned", "seeds", "ceiling"]
    assert results.systems["seeds"]["RR@10"].mean == pytest.approx((first + second) / 2)
    assert results.systems["tuned"]["RR@10"].mean == 1  # the headline is of the exported model alone
    row = next(row for row in results.comparisons if (row["system"], row["metric"]) == ("seeds", "RR@10"))
    assert row["difference"] == pytest.approx((first + second) / 2 - 5 / 12)
    assert (row["wins"], row["losses"]) == (2, 0)  # queries, and not pairs of query and seed
    assert row["p"] == paired_p([first, second], [1 / 2, 1 / 3], 1)
    means = [5 / 12, 1, 2 / 3]
    assert [(one.seed, one.dev, one.exported) for one in results.seeds] == [
        (1, 0.5, False),
        (2, 0.75, True),
        (3, 0.625, False),
    ]
    assert [one.means["RR@10"] for one in results.seeds] == pytest.approx(means)
    deviation = (sum((value - sum(means) / 3) ** 2 for value in means) / 2) ** 0.5
    assert spread(results.seeds, "RR@10") == pytest.approx((sum(means) / 3, deviation))

    assert Results.load(tmp_path) == results
    show(results)
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 trainings: RR@10 seed 1 0.4167 (dev 0.5000), seed 2 1.0000 (dev 0.7500), seed 3 0.6667" in printed
    assert f"mean {sum(means) / 3:.4f}, standard deviation {deviation:.4f}; seed 2 was the best on dev" in printed
    assert "mean of seeds" in printed

    # Anyone can compute the row again from the runs that are left.
    qrels = by_hand.named_qrels("test")
    again = []
    for seed in (1, 2, 3):
        ranking = list(ir_measures.read_trec_run(str(tmp_path / f"seed-{seed}.trec")))
        again.append(ir_measures.calc_aggregate([ir_measures.parse_measure("RR@10")], qrels, ranking))
    assert [next(iter(one.values())) for one in again] == pytest.approx(means)


def test_one_training_leaves_no_row_and_no_key(by_hand, tmp_path):
    found = candidates_of(by_hand, "test", [[5, 0, 6], [5, 6, 1]])
    results = evaluate(by_hand, "test", found, {"tuned": np.zeros((2, 3))}, ["RR@10"], 1, tmp_path)
    assert list(results.systems) == ["first_stage", "tuned", "ceiling"]
    assert not {"seeds", "guard"} & json.loads((tmp_path / "results.json").read_text()).keys()


def test_the_average_is_by_query():
    assert average([{"m": {"a": 1.0, "b": 0.0}}, {"m": {"a": 0.0, "b": 0.5}}]) == {"m": {"a": 0.5, "b": 0.25}}


def test_two_equal_seeds_have_no_spread():
    rows = [SeedResult(seed, seed == 1, 0.5, {"nDCG@10": 0.25}) for seed in (1, 2)]
    assert spread(rows, "nDCG@10") == (0.25, 0.0)
    assert describe_seeds(rows, "nDCG@10").endswith("standard deviation 0.0000; seed 1 was the best on dev")


# The gate.


def test_the_choice_among_seeds_and_then_of_the_weight_is_repeated():
    rng = np.random.default_rng(5)
    alone = rng.random((3, QUERIES))
    alone = alone[np.argsort(-alone.mean(axis=1))]  # the chosen seed first
    fusions = [Weights((1.0, 0.5)[:number], rng.random((number, QUERIES))) for number in (2, 1, 2)]
    choice = fused_choice(alone, fusions)
    counts = next(iter(resamples(QUERIES, 2)))
    starts, expected = [0, 2, 3], []
    for row in counts:
        seed = int(np.argmax(alone @ row))
        expected.append(starts[seed] + int(choose_weight(fusions[seed].values, row[None])[0]))
    assert len({starts[0] <= one < starts[1] for one in expected}) == 2  # other seeds are chosen in some resamples
    assert choice.choose(choice.values, counts).tolist() == expected
    assert choice.chosen == fusions[0].chosen_index


def test_more_seeds_make_the_verdict_more_careful(beir, tmp_path):
    collection = build_collection(Data(path=beir), tmp_path / "data")
    rng = np.random.default_rng(4)
    documents = [rng.permutation(40)[:12] for _ in collection.answerable("dev")]
    dev = candidates_of(collection, "dev", documents)
    scores = [rng.normal(size=dev.documents.shape).astype(np.float32) for _ in range(6)]
    scores.sort(key=lambda one: -np.mean(list(dev_values(collection, dev, one))))
    kinds: tuple[Kind, ...] = ("scores", "order")
    weights: dict[Kind, Weights] = {
        kind: Weights((0.0,), np.array([dev_values(collection, dev, scores[0])])) for kind in kinds
    }
    dev_scores = {"fitted": rng.normal(size=dev.documents.shape), "tuned": scores[0]}

    def decide(others):
        return decide_release(collection, dev, "nDCG@10", dev_scores, [], weights, 3, tmp_path, other_seeds=others)[0]

    one, many = decide([]), decide(scores[1:])
    for mode in ("alone", "fused"):
        assert many.findings[mode].difference < one.findings[mode].difference
        assert many.findings[mode].low < one.findings[mode].low
    # By hand, in the mode alone: the best of seven models in each resample.
    values = np.array([dev_values(collection, dev, s) for s in (dev_scores["fitted"], *scores)])
    first = np.array(dev_values(collection, dev, None))
    expected = compare(DevChoice(values, 1, best_mean), "first_stage", first, resamples(values.shape[1], 3))
    assert many.findings["alone"] == expected


def dev_values(collection, candidates, scores):
    from trainer.evaluation.two_stage import query_scores

    return list(query_scores(collection, "dev", candidates, "nDCG@10", scores).values())


# The recipe.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[]", r"train.seeds: is an empty list; name at least one seed"),
        ("[1, 2, 1]", r"train.seeds: names 1 twice"),
        ("5", r"train.seeds: is a list, e.g. \[5\], got 5"),
        ("[-1]", r"train.seeds: input should be greater than or equal to 0, got -1"),
        ("[1.5]", r"train.seeds: input should be a valid integer, got 1.5"),
        ("[true]", r"train.seeds: input should be a valid integer, got True"),
        ("['1']", r"train.seeds: input should be a valid integer, got '1'"),
        ("[5000000000]", r"train.seeds: input should be less than or equal to 4294967295"),
        ("{a: 1}", r"train.seeds: is a list"),
    ],
)
def test_faults_of_the_key(recipe_file, given, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [f"train.seeds={given}"])


def stages(recipe_file, tmp_path, *words):
    """{folder: fingerprint} of the stages of a recipe."""
    opened = open_run(load_recipe(recipe_file, words), tmp_path / "runs")
    return {name: record.fingerprint for name, record in opened.records.items()}


def test_stages_and_fingerprints(recipe_file, tmp_path):
    plain = stages(recipe_file, tmp_path)
    assert list(plain) == ["data", "retrieve", "mine", "train", "evaluate", "export"]
    assert stages(recipe_file, tmp_path, "train.seeds=[13]") == plain  # the run's own seed
    several = stages(recipe_file, tmp_path, "train.seeds=[13, 2, 3]")
    assert list(several) == ["data", "retrieve", "mine", "train", "train-seed-2", "train-seed-3", "evaluate", "export"]
    assert several["train"] == plain["train"]  # a finished training is used again
    assert several["evaluate"] != plain["evaluate"]
    more = stages(recipe_file, tmp_path, "train.seeds=[13, 2, 3, 4]")
    assert {name for name in several if more[name] != several[name]} == {"evaluate", "export"}
    other = stages(recipe_file, tmp_path, "train.seeds=[2]")
    assert list(other)[3:] == ["train-seed-2", "evaluate", "export"]
    assert other["evaluate"] not in (plain["evaluate"], several["evaluate"])


def test_the_round_before_the_last_is_trained_once(recipe_file, tmp_path):
    words = ["mine.rounds=2", "train.seeds=[1, 13]", "distil={}"]
    names = list(stages(recipe_file, tmp_path, *words))
    assert names[2:] == ["mine", "train", "mine-2", "train-2-seed-1", "train-2-seed-13", "distil", "evaluate", "export"]
    opened = open_run(load_recipe(recipe_file, words), tmp_path / "runs")
    assert opened.trainings == {1: "train-2-seed-1", 13: "train-2-seed-13"}


# A run.


class Killed(BaseException):
    """What ends the run in the second training, as a kill would."""


def test_a_run_that_is_killed_in_the_second_training_goes_on_there(exported, tmp_path, monkeypatch, capsys):
    recipe = load_recipe(exported[0], ["train.seeds=[13, 5]"])
    runs, whole = tmp_path / "runs", tmp_path / "whole"
    shutil.copytree(exported[1], runs)
    shutil.copytree(exported[1], whole)
    folder = runs / "exported"
    before = (folder / "train" / "done.json").stat().st_mtime_ns
    step = loop._Stepper.step

    def killed_at_the_second_step(self, number, positions):
        if self.folder.name == "train-seed-5" and number == 1:
            raise Killed
        return step(self, number, positions)

    monkeypatch.setattr(loop._Stepper, "step", killed_at_the_second_step)
    with pytest.raises(Killed):
        run(recipe, runs, until="train")
    assert (folder / "train-seed-5" / "begun.json").is_file()
    assert not (folder / "train-seed-5" / "done.json").exists()
    monkeypatch.setattr(loop._Stepper, "step", step)
    capsys.readouterr()
    run(recipe, runs, until="evaluate")
    printed = capsys.readouterr().out
    assert "resumed at step 1 from checkpoint-0000001" in printed
    assert "(up to date)" in next(line for line in printed.splitlines() if line.startswith("train "))
    assert (folder / "train" / "done.json").stat().st_mtime_ns == before

    run(recipe, whole, until="evaluate")
    for name in ("train-seed-5/best/model.safetensors", "evaluate/seed-5.trec", "evaluate/seed-13.trec"):
        assert (folder / name).read_bytes() == (whole / "exported" / name).read_bytes()
    results = Results.load(folder / "evaluate")
    assert results == Results.load(whole / "exported" / "evaluate")
    assert [one.seed for one in results.seeds] == [13, 5]
    notes = [json.loads((folder / name / "done.json").read_text()) for name in ("train", "train-seed-5")]
    best = max(notes, key=lambda one: one["best_dev"])["best_dev"]
    chosen = next(one for one, note in zip(results.seeds, notes, strict=True) if note["best_dev"] == best)
    assert chosen.exported
    assert sum(one.exported for one in results.seeds) == 1
    assert results.systems[results.shipped]["nDCG@10"].mean == chosen.means["nDCG@10"]  # the headline is its figure
    training = json.loads((folder / "evaluate" / "done.json").read_text())["training"]
    assert training == ("train" if chosen.seed == 13 else f"train-seed-{chosen.seed}")
    losses = [
        re.findall(r'"loss": ([^,]+)', (folder / name / "metrics.jsonl").read_text())
        for name in ("train", "train-seed-5")
    ]
    assert losses[0] != losses[1]  # each has an order of its own
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for report in (page, text):
        assert "Seeds" in report
        assert "13 (best on dev)" in report or "5 (best on dev)" in report
        assert "Mean of the seeds" in report


@pytest.mark.slow
def test_two_processes_train_with_all_seeds_and_measure_guard_sets_like_one(command, recipe_file, beir, tiny, tmp_path):
    bi_encoder, other = tmp_path / "bi-encoder", tmp_path / "other"
    SentenceTransformer(str(tiny["bert"]), device="cpu").save(str(bi_encoder))
    shutil.copytree(beir, other)
    for split in ("train", "dev"):
        (other / "qrels" / f"{split}.tsv").unlink()
    words = ("train.seeds=[5, 6]", f"evaluate.guard={other}", f"retriever.model={bi_encoder}", "retriever.kind=hybrid")
    for processes in (1, 2):
        result = command(recipe_file, *words, "--force", "--runs", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stdout + result.stderr
    one, two = (Results.load(tmp_path / runs / "tiny" / "evaluate") for runs in "12")
    assert [(row.seed, row.exported) for row in one.seeds] == [(row.seed, row.exported) for row in two.seeds]
    for mine, theirs in zip(one.seeds, two.seeds, strict=True):
        assert mine.means == pytest.approx(theirs.means, abs=1e-4)
    for value in ("queries", "first_stage", "before", "after", "loss"):  # the first run has fewer resamples
        assert getattr(one.guard[0], value) == pytest.approx(getattr(two.guard[0], value), abs=1e-4)
    assert (tmp_path / "2" / "tiny" / "evaluate" / "seed-6.trec").is_file()
