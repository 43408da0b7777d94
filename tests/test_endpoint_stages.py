"""Stages that use endpoints: teachers of mining and distillation, the judge, and runs that are killed."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai")

import loopback
from loopback import (
    CONCURRENCY,
    GradeServer,
    Loopback,
    RerankServer,
    kill_after,
    logit_of,
    number_of,
    score_all,
    served,
    without_waits,
)

from trainer import evaluation
from trainer.check import check
from trainer.context import Run
from trainer.data import Collection, build_collection
from trainer.data.groups import Group
from trainer.endpoints import Store
from trainer.endpoints.grades import request_for_score
from trainer.endpoints.rerank import pair_key
from trainer.errors import RecipeError, RunError
from trainer.evaluation import agreement
from trainer.mining.filter import UNSCORED, USABLE, filter_candidates
from trainer.mining.from_teacher import groups_by_teacher
from trainer.mining.sample import _with_teacher
from trainer.pipeline import run
from trainer.recipe import CHAT, RERANK, Data, Mine, load_recipe, read_endpoint
from trainer.retriever import NOTHING, Candidates
from trainer.stages.judge import Judge

KEY = "sk-secret-0123456789"
PATIENT = "endpoints.least_auc=null"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits that the tests need not sit through, and a key that must be found nowhere."""
    without_waits(monkeypatch)
    for name in ("TEACHER_API_KEY", "JUDGE_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def tei() -> Iterator[RerankServer]:
    with served(RerankServer()) as server:
        yield server


@pytest.fixture
def chat() -> Iterator[GradeServer]:
    with served(GradeServer()) as server:
        yield server


def groups_of(runs: Path) -> list[dict[str, Any]]:
    return json.loads((runs / "tiny" / "mine" / "groups.json").read_text())


def done_of(runs: Path, stage: str) -> dict[str, Any]:
    return json.loads((runs / "tiny" / stage / "done.json").read_text())


def hidden_in(folder: Path, text: str) -> list[str]:
    """The files of a folder that hold a text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# Mining.


def test_our_own_server_as_teacher_gives_the_scores_of_the_model(recipe_file, tiny, tmp_path, listening):
    from trainer.model import Reranker
    from trainer.serving.app import create_app
    from trainer.serving.engine import Engine
    from trainer.serving.settings import Settings

    local = [f"mine.teacher={tiny['reranker']}", "train.loss=margin_mse"]
    run(load_recipe(recipe_file, local), tmp_path / "local", until="mine")
    expected = groups_of(tmp_path / "local")
    reranker = Reranker.load(tiny["reranker"], device="cpu", max_length=32)
    address = listening(create_app(Engine(reranker, "tiny"), Settings()))
    for route in ("rerank", "v1/rerank", "score"):
        overrides = [f"mine.teacher=rerank:{address}/{route}", "train.loss=margin_mse", PATIENT]
        run(load_recipe(recipe_file, overrides), tmp_path / route, until="mine")
        groups = groups_of(tmp_path / route)
        assert [group["negatives"] for group in groups] == [group["negatives"] for group in expected]
        for ours, theirs in zip(groups, expected, strict=True):
            np.testing.assert_allclose(ours["teacher"], theirs["teacher"], atol=1e-5)


def test_a_teacher_is_compared_with_people_first_and_refused_if_it_disagrees(recipe_file, tei, tmp_path, capsys):
    teacher = f"mine.teacher=rerank:{tei.url}"
    tei.logit = lambda query, document: -logit_of(query, document)
    with pytest.raises(RunError, match=r"mine.teacher: http.* is refused as a teacher: .*AUC 0\.\d+ .*least_auc"):
        run(load_recipe(recipe_file, [teacher]), tmp_path, until="mine")
    assert not (tmp_path / "tiny" / "mine" / "done.json").exists()
    assert len(tei.scored) == 2 + 2 * 24  # the form was tried; then a relevant document of each query and another one
    capsys.readouterr()
    run(load_recipe(recipe_file, [teacher, PATIENT]), tmp_path, until="mine")
    noted = done_of(tmp_path, "mine")["agreement"]
    assert (noted["measure"], noted["queries"], noted["split"]) == ("AUC", 24, "train")
    assert noted["low"] <= noted["value"] <= noted["high"]
    assert noted["value"] < 0.7
    assert f"AUC {noted['value']:.2f}" in " ".join(capsys.readouterr().out.split())
    assert {count for pair, count in tei.scored.items() if pair[0] != "a query"} == {1}
    assert not hidden_in(tmp_path, KEY)


def test_grades_filter_likely_false_negatives(recipe_file, chat, tmp_path):
    chat.grade = lambda query, document: "3" if number_of(document) % 2 else "1"
    overrides = [f"mine.teacher=chat:m@{chat.url}/v1", "endpoints.least_kappa=null"]
    run(load_recipe(recipe_file, overrides), tmp_path, until="mine")
    report = json.loads((tmp_path / "tiny" / "mine" / "report.json").read_text())
    assert report["passed_over"]["teacher score within 0.0 of the positive's"]
    assert done_of(tmp_path, "mine")["agreement"]["measure"] == "kappa"
    assert all(0 <= score <= 3 for group in groups_of(tmp_path) for score in group["teacher"])
    assert set(chat.scored.values()) == {1}


def test_a_run_goes_on_where_a_limit_stopped_it(recipe_file, tei, tmp_path):
    recipe = load_recipe(recipe_file, [f"mine.teacher=rerank:{tei.url}", PATIENT, "endpoints.max_requests=20"])
    starts = 0
    while not (tmp_path / "tiny" / "mine" / "done.json").exists():
        starts += 1
        before = len(tei.requests)
        try:
            run(recipe, tmp_path, until="mine")
        except RunError as error:
            assert "of 48 pairs are scored" in str(error) or "pairs are scored and kept" in str(error)  # noqa: PT017
        assert len(tei.requests) - before <= 20
    assert starts == 3  # 24 queries in the sample, then their candidates
    assert {count for pair, count in tei.scored.items() if pair[0] != "a query"} == {1}


def test_check_names_costs_and_missing_keys(recipe_file, tmp_path, capsys, monkeypatch):
    overrides = ["mine.teacher=rerank:m@http://localhost:9/v1", "endpoints.prices=[1.0, 2.0]"]
    overrides += ["evaluate.judge=chat:j@http://localhost:9/v1"]
    check(load_recipe(recipe_file, overrides), tmp_path)
    told = " ".join(capsys.readouterr().out.split())
    assert "mine.teacher: m: at most 24 requests, about" in told
    assert "evaluate.judge: j: at most 160 requests, about" in told
    assert told.count("costs: at most") == 2
    overrides[0] = "mine.teacher=rerank:m@https://api.cohere.com/v2/rerank"
    monkeypatch.delenv("COHERE_API_KEY", raising=False)
    with pytest.raises(RunError, match=r"mine.teacher: api.cohere.com needs a key; .*COHERE_API_KEY"):
        check(load_recipe(recipe_file, overrides), tmp_path)


# Scores that a teacher does not give.


def some_candidates(documents: Sequence[Sequence[int]], queries: Sequence[int] = (0,)) -> Candidates:
    rows = np.array(documents, dtype=np.int32)
    flat = np.zeros(rows.shape, dtype=np.float32)
    empty = np.full(len(rows), np.nan, dtype=np.float32)
    return Candidates(
        queries=np.array(queries, dtype=np.int32),
        documents=rows,
        scores=flat,
        similarities=np.full(rows.shape, np.nan, dtype=np.float32),
        ranks=np.zeros((*rows.shape, 1), dtype=np.int16),
        engines=np.array(["bm25"]),
        positive_similarity=empty,
    )


def test_candidates_without_a_score_are_neither_negatives_nor_in_a_students_list():
    names = {f"d{number}": f"text {number} words{number}" for number in range(5)}
    qrels = {split: {split: {"d0": 1}} for split in ("train", "dev", "test")}
    collection = Collection.from_memory(names, {split: f"words0 {split}" for split in qrels}, qrels)
    scores = {0: 1.0, 1: np.nan, 2: 0.5, 3: 2.0}

    def teacher(rows: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.array([scores[row] for _, row in rows], dtype=np.float32)

    candidates = some_candidates([[0, 1, 2, 3, NOTHING]])
    verdicts = filter_candidates(Mine(), collection, candidates, teacher)
    assert verdicts.reasons[0, 1] == UNSCORED
    assert verdicts.reasons[0, 2] == USABLE
    (group,) = groups_by_teacher(candidates, candidates.scored(teacher))
    assert group.documents == [3, 0, 2]
    assert group.teacher == [2.0, 1.0, 0.5]
    assert groups_by_teacher(candidates, np.array([[np.nan, 1.0, np.nan, np.nan, -np.inf]])) == []


def test_groups_lose_documents_without_a_score_and_keep_the_others_values():
    groups = [
        Group(0, [1, 2], [2, 1], [3, 4], first=[0.1, 0.2, 0.3, 0.4]),
        Group(1, [1], [1], [3]),
        Group(2, [2], [1], [1], first=[0.5, 0.6]),
    ]

    def teacher(rows: Sequence[tuple[int, int]]) -> np.ndarray:
        return np.array([np.nan if row in (1, 4) else row for _, row in rows], dtype=np.float32)

    kept = _with_teacher(groups, teacher)
    assert kept == [Group(0, [2], [1], [3], teacher=[2.0, 3.0], first=[0.2, 0.3])]


# The whole way, with a judge.


def test_a_stage_without_its_key_is_named(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match="evaluate.judge: the recipe names no judge"):
        run(load_recipe(recipe_file), tmp_path, until="judge")


def test_a_judge_grades_what_nobody_judged_and_changes_no_figure_from_people(
    recipe_file, beir, chat, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(agreement, "FEWEST", 5)
    chat.grade = lambda query, document: f"{number_of(query + document) % 4}"
    recipe = load_recipe(recipe_file, [f"evaluate.judge=chat:org/judge@{chat.url}/v1"])
    folder = tmp_path / "runs" / "tiny"
    collection = build_collection(Data(path=beir), folder / "data")
    queries = collection.answerable("test")
    lists = some_candidates([[(7 * query + rank) % 40 for rank in range(12)] for query in queries], queries)
    (folder / "evaluate").mkdir()
    scores = {"tuned": -np.tile(np.arange(12, dtype=np.float32), (len(queries), 1))[:, ::-1]}
    measured = evaluation.evaluate(collection, "test", lists, scores, ["nDCG@10"], 0, folder / "evaluate")
    of_people = (folder / "evaluate" / "results.json").read_bytes()
    stage = Judge()
    (folder / "judge").mkdir()
    line = stage.run(Run(recipe, folder, [stage]), folder / "judge").line
    judged = evaluation.JudgedResults.load(folder / "judge")
    evaluation.show_judged(judged, measured.label)
    told = " ".join(capsys.readouterr().out.split())
    assert (folder / "evaluate" / "results.json").read_bytes() == of_people
    assert set(judged.systems) == {"first_stage", "tuned"}
    assert {name: one.human for name, one in judged.systems.items()} == {
        name: pytest.approx(measured.systems[name]["nDCG@10"].mean) for name in judged.systems
    }
    labels = {(query, document) for query in queries for document in collection.qrels["test"][query]}
    graded = [json.loads(text) for text in (folder / "judge" / "grades.jsonl").read_text().splitlines()]
    assert judged.holes == judged.graded == len(graded) > 0
    assert len(chat.scored) == judged.graded + 2 * judged.agreement.queries  # nothing that people judged, but a sample
    names = {(collection.query_ids[query], collection.document_ids[document]) for query, document in labels}
    assert not names & {(one["query_id"], one["document_id"]) for one in graded}
    assert judged.relevant == sum(one["grade"] >= 2 for one in graded)
    assert (judged.agreement.measure, judged.agreement.split) == ("kappa", "test")
    assert "org/judge graded" in told
    assert "org/judge graded" in line
    asked = len(chat.requests)
    stage.run(Run(recipe, folder, [stage]), folder / "judge")
    assert len(chat.requests) == asked
    assert not hidden_in(tmp_path, KEY)


@pytest.mark.slow
def test_teachers_and_judge_are_in_report_and_card_and_the_headline_is_from_people(
    recipe_file, tei, chat, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(agreement, "FEWEST", 5)
    chat.grade = lambda query, document: f"{number_of(query + document) % 4}"
    chat.chances = lambda query, document: {"0": 0.1, "1": 0.2, "2": 0.3, "3": 0.4}
    common = ["train.epochs=1", f"mine.teacher=rerank:{tei.url}", PATIENT, "endpoints.least_kappa=null"]
    common += [f"distil={{queries: 30, depth: 6, teacher: 'chat:grader@{chat.url}/v1'}}"]
    judged = [*common, f"evaluate.judge=chat:org/judge@{chat.url}/v1"]
    folder, headline = tmp_path / "tiny", tmp_path / "tiny" / "evaluate" / "results.json"
    run(load_recipe(recipe_file, common), tmp_path, until="evaluate")
    of_people = headline.read_bytes()
    capsys.readouterr()
    result = run(load_recipe(recipe_file, judged), tmp_path, force=True)
    told = capsys.readouterr().out
    assert headline.read_bytes() == of_people
    systems = json.loads(of_people)["systems"]
    graded = json.loads((folder / "judge" / "results.json").read_text())
    assert graded["holes"] == graded["graded"] > 0
    assert graded["agreement"]["split"] == "test"
    assert set(graded["systems"]) >= {"first_stage", "tuned", "distilled", "fused"}
    for system, row in graded["systems"].items():
        assert row["human"] == pytest.approx(systems[system]["nDCG@10"]["mean"])
    lines = (folder / "judge" / "grades.jsonl").read_text().splitlines()
    assert len(lines) == graded["graded"]
    card = (folder / "export" / "model" / "README.md").read_text()
    for text in (told, card, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert "graded" in text
        assert "org/judge" in text
    report = (folder / "report.md").read_text()
    assert "## Teachers by endpoint" in report
    assert "## With grades of a language model" in report
    assert {stage: done_of(tmp_path, stage)["agreement"]["measure"] for stage in ("mine", "distil")} == {
        "mine": "AUC",
        "distil": "kappa",
    }
    assert tei.url not in card
    assert chat.url not in card
    assert not hidden_in(tmp_path, KEY)
    assert KEY not in told
    assert result.folder == folder
    asked = len(chat.requests) + len(tei.requests)
    run(load_recipe(recipe_file, judged), tmp_path, force=True)
    assert len(chat.requests) + len(tei.requests) == asked
    assert {count for pair, count in chat.scored.items()} <= {1, 2}  # once for each of two models


# Kills.


@pytest.fixture
def forking(monkeypatch) -> Any:
    return loopback.forking(monkeypatch, "loopback", "openai", "trainer.endpoints.scorer")


def kill_often(server: Loopback, reference: str, folder: Path, forking: Any, kills: int) -> None:
    """Kill the process at random moments; what is stored is never asked again, and in the end everything is there."""
    pairs = [(f"query {number % 150}", f"document {number}") for number in range(900)]
    server.delay = 0.02
    server.trouble = lambda texts, attempt: (429, "busy") if number_of(texts[-1]) % 7 == 0 and attempt == 1 else None
    endpoint = read_endpoint(reference, (CHAT, RERANK))
    keys = {
        pair: request_for_score(endpoint, *pair, 16).key if endpoint.kind == CHAT else pair_key(endpoint, *pair)
        for pair in pairs
    }
    path = folder / "killed" / ".endpoints" / f"{reference.partition(':')[0]}.jsonl"
    work = partial(score_all, reference, folder / "killed", pairs)
    rng = np.random.default_rng(3)
    killed = 0
    for _ in range(kills):
        stored = set(Store(path).answers)
        most = max(2, (len(pairs) - len(stored)) // 20)
        before, goal = server.scored.copy(), sum(server.scored.values()) + int(rng.integers(1, most))
        killed += kill_after(forking, work, lambda: sum(server.scored.values()), goal, rng)
        assert not {pair for pair in server.scored - before if keys.get(pair) in stored}
        assert stored <= set(Store(path).answers)
    assert killed >= kills // 2
    lost = sum(server.scored.values()) - len(Store(path).answers) - 2 * kills * reference.startswith("rerank")
    assert 0 <= lost <= 4 * CONCURRENCY * kills
    score_all(reference, folder / "killed", pairs)
    score_all(reference, folder / "undisturbed", pairs)
    interrupted, whole = (
        {key: (answer.text, answer.ending) for key, answer in Store(one).answers.items()}
        for one in (path, folder / "undisturbed" / path.relative_to(folder / "killed"))
    )
    assert set(interrupted) == set(keys.values())
    assert interrupted == whole


@pytest.mark.parametrize("kind", ["rerank", "chat"])
@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_what_is_stored_is_not_asked_again_after_a_kill(kind, kills, tmp_path, forking, monkeypatch):
    with served(RerankServer() if kind == "rerank" else GradeServer()) as server:
        path = "/rerank" if kind == "rerank" else "/v1"
        kill_often(server, f"{kind}:m@{server.url}{path}", tmp_path, forking, kills)
    assert not hidden_in(tmp_path, KEY)
