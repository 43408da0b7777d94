"""What a run shows to people: a record per query, quality by depth, times, and the report."""

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trainer.commands.cli import reranker_command
from trainer.data import Collection, build_collection
from trainer.errors import RunError
from trainer.evaluation import statistics as numbers
from trainer.evaluation.two_stage import evaluate, mean_score
from trainer.model import Reranker
from trainer.recipe import Data
from trainer.reporting.charts import Axes, Series, line_chart, nice_ticks, sign
from trainer.reporting.depths import corpus_cost, depths_to, recommended, rerank_to
from trainer.reporting.latency import measure_latency
from trainer.reporting.queries import LOW, NOT_RETRIEVED, UNLABELLED, cut, read_queries
from trainer.reporting.write import write_details, write_report
from trainer.retriever import NOTHING, Candidates

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "</title><style>*{display:none}</style>",
    "\" onmouseover='alert(1)' {{ 7*7 }} {% raw %}",
    "\x00\x1b[31mred \u202egnp.exe",
    "w" * 10_000,
    "شبكة لا تعمل بعد التحديث",
    "🔥🚒 容器总是重启",
    "| a | b | [link](javascript:alert(1)) `code` <b>",
]


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(numbers, "RESAMPLES", 199)


def found(documents, queries):
    """Candidates as a first stage leaves them."""
    documents = np.array(documents, dtype=np.int32)
    scores = np.tile(np.arange(documents.shape[1], 0, -1, dtype=np.float32), (len(documents), 1))
    ranks = np.zeros((*documents.shape, 0), dtype=np.int16)
    positive = np.ones(len(documents), dtype=np.float32)
    return Candidates(np.array(queries, dtype=np.int32), documents, scores, scores, positive, ranks, np.array([]))


def finished(run: Path, collection_folder: Path, candidates: Candidates, scores: dict, qrels: dict | None = None):
    """Leave in `run` what a run of these scores leaves; returns the collection."""
    shutil.copytree(collection_folder, run / "data")
    collection = Collection.open(run / "data")
    if qrels is not None:
        collection = replace(collection, qrels={**collection.qrels, "test": qrels})
    folder = run / "evaluate"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"name": run.name, "seed": 3}))
    evaluate(collection, "test", candidates, scores, ["nDCG@10", "RR@10"], 3, folder)
    write_details(collection, folder, 3)
    return collection


@pytest.fixture(scope="module")
def data_folder(shared_beir, tmp_path_factory):
    """The tiny collection as Arrow files."""
    folder = tmp_path_factory.mktemp("reporting") / "data"
    build_collection(Data(path=shared_beir), folder)
    return folder


@pytest.fixture
def random_run(tmp_path, data_folder):
    """A finished evaluation of random candidates and scores, a short list among them."""
    rng = np.random.default_rng(2)
    queries = Collection.open(data_folder).answerable("test")
    documents = np.array([rng.permutation(40)[:15] for _ in queries], dtype=np.int32)
    documents[2, 10:] = NOTHING
    scores = {name: rng.normal(size=(len(queries), 12)).astype(np.float32) for name in ("base", "tuned")}
    for values in scores.values():
        values[documents[:, :12] == NOTHING] = -np.inf
    candidates = found(documents, queries)
    return tmp_path / "run", finished(tmp_path / "run", data_folder, candidates, scores), candidates, scores


# Records of queries. Four test queries (rows 0 to 3) with these judgements, first stages and scores of the model.
QRELS = {0: {0: 1, 9: 1}, 1: {5: 1}, 2: {7: 2, 8: 0}, 3: {3: 1}}
FOUND = [[3, 1, 0, 4], [6, 7, 8, 9], [8, 1, 7, 2], [6, 3, 1, 2]]
SCORES = [[0.1, 0.2, 0.9, 0.2], [4, 3, 2, 1], [4, 1, 3, 2], [4, 3, 2, 1]]


@pytest.fixture
def by_hand(tmp_path, data_folder):
    finished(tmp_path / "run", data_folder, found(FOUND, list(QRELS)), {"tuned": np.array(SCORES)}, QRELS)
    return {record["id"]: record for record in read_queries(tmp_path / "run" / "evaluate")}, tmp_path / "run"


def test_a_record_tells_ranks_scores_and_causes(by_hand):
    records, _ = by_hand
    first, missing, low, unlabelled = records.values()
    assert first["first_relevant"] == {"first_stage": 3, "tuned": 1, "ceiling": 1}
    ideal = 1 + 1 / np.log2(3)  # two relevant documents, one of them retrieved
    assert first["scores"]["first_stage"] == pytest.approx(0.5 / ideal)
    assert first["scores"]["tuned"] == pytest.approx(1 / ideal)
    assert (first["relevant"], first["missed"], first["cause"]) == (2, 1, None)
    assert missing["cause"] == NOT_RETRIEVED
    assert missing["first_relevant"]["tuned"] is None
    assert low["cause"] == LOW  # a document judged not relevant is at the top
    assert low["first_relevant"]["tuned"] == 2
    assert unlabelled["cause"] == UNLABELLED  # both rank an unjudged document first
    assert unlabelled["unjudged"] == {"first_stage": 3, "tuned": 3, "ceiling": 3}


def test_a_record_holds_both_lists_and_what_was_missed(by_hand):
    records, _ = by_hand
    first = next(iter(records.values()))
    shown = [(one["grade"], one["before"], one["after"]) for one in first["documents"]]
    assert shown == [(1, 3, 1), (None, 2, 2), (None, 4, 3), (None, 1, 4), (1, None, None)]


def test_records_agree_with_the_table(random_run):
    run, _, _, _ = random_run
    results = json.loads((run / "evaluate" / "results.json").read_text())
    records = list(read_queries(run / "evaluate"))
    for system, values in results["systems"].items():
        mean = np.mean([record["scores"][system] for record in records])
        assert mean == pytest.approx(values["nDCG@10"]["mean"], abs=1e-9)


def test_details_are_the_same_every_time(random_run):
    run, collection, _, _ = random_run
    before = {path.name: path.read_bytes() for path in (run / "evaluate").iterdir()}
    write_details(collection, run / "evaluate", 3)
    assert {path.name: path.read_bytes() for path in (run / "evaluate").iterdir()} == before


def test_the_depth_curve_equals_reranking_fewer_candidates(random_run):
    run, collection, candidates, scores = random_run
    curve = json.loads((run / "evaluate" / "depths.json").read_text())
    assert curve["depths"] == [5, 10, 12]
    for index, depth in enumerate(curve["depths"]):
        expected = mean_score(collection, "test", candidates, "nDCG@10", scores["tuned"][:, :depth])
        assert curve["systems"]["tuned"][index] == pytest.approx(expected, abs=1e-9)
    assert curve["systems"]["ceiling"] == sorted(curve["systems"]["ceiling"])
    assert all(
        low <= mean <= high for mean, (low, high) in zip(curve["systems"]["tuned"], curve["intervals"], strict=True)
    )


def test_documents_below_the_depth_keep_the_order_of_the_first_stage():
    assert rerank_to([1, 2, 3, 4, 5], [4, 1, 3, 2, 5], 3) == [1, 3, 2, 4, 5]
    assert rerank_to([1, 2], [2, 1], 5) == [2, 1]


def test_the_last_depth_is_the_number_of_reranked_candidates():
    assert depths_to(50) == [5, 10, 20, 50]
    assert depths_to(3) == [3]


def test_the_recommended_depth_is_the_smallest_that_is_not_significantly_worse():
    rng = np.random.default_rng(0)
    good = rng.uniform(0.4, 0.8, size=200)
    noise = rng.normal(scale=0.1, size=200)
    assert recommended([5, 10, 20], [good - 0.2, good + noise - noise.mean(), good + 0.001], 1) == 10
    assert recommended([5, 10], [good, good - 0.2], 1) == 5  # deeper is worse
    assert recommended([5, 10], [good, good], 1) == 5


def test_latency_is_measured_on_single_queries(tiny, random_run):
    _, collection, candidates, _ = random_run
    seconds = itertools.count(0, 0.001)  # every look at the clock takes a millisecond
    measured = measure_latency(Reranker.load(tiny["reranker"]), collection, candidates, clock=lambda: next(seconds))
    assert [row["depth"] for row in measured["by_depth"]] == [5, 10, 15]
    assert all(row["p50_ms"] == pytest.approx(1) and row["queries"] == 8 for row in measured["by_depth"])
    assert measured["by_depth"][0]["pairs_per_second"] == pytest.approx(5000)
    assert "fp32" in measured["machine"]


def test_a_slow_model_is_not_timed_for_long(tiny, random_run):
    _, collection, candidates, _ = random_run
    seconds = itertools.count(0, 3.0)
    measured = measure_latency(Reranker.load(tiny["reranker"]), collection, candidates, clock=lambda: next(seconds))
    assert sum(row["queries"] for row in measured["by_depth"]) <= 2


@pytest.mark.parametrize(("value", "text"), [(0.05, "+0.050"), (-0.05, "−0.050"), (0.0001, "0.000"), (-0.0, "0.000")])
def test_differences_have_a_sign(value, text):
    assert sign(value) == text


def test_close_ticks_have_different_labels():
    chart = line_chart([Series("dev", [(0, 0.6906), (35, 0.6933)], "gain")], Axes("steps", "dev", [(0, "0")]), "dev")
    labels = re.findall(r'class="tick">(0\.\d+)<', chart)
    assert len(labels) > 6
    assert max(labels.count(label) for label in labels) == 2  # a wide and a narrow drawing


def test_ticks_are_round_and_inside():
    assert nice_ticks(0.66, 0.79) == pytest.approx([0.66, 0.68, 0.70, 0.72, 0.74, 0.76, 0.78])
    assert len(nice_ticks(0.0, 1e-6)) > 1


class Page(HTMLParser):
    """Elements and texts of a page, with what a careless report would let through."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def hostile_run(tmp_path: Path, queries: int, run: str = "<b>run") -> Path:
    """A finished run over texts that would like to be code, with suspects and curves."""
    folder = tmp_path / "hostile"
    (folder / "qrels").mkdir(parents=True)

    def text(number: int) -> str:
        printable = HOSTILE[number % len(HOSTILE)].replace("\x00", "")
        return f"{printable} {number} " + "容器 <i>" * 60

    rows = [{"_id": f"d<{number}>", "title": "&amp;", "text": text(number)} for number in range(queries)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f'q"{number}', "text": text(number + 1)} for number in range(queries + 2)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    lines = [f'q"{number}\td<{number % queries}>\t1' for number in range(queries + 2)]
    head = "query-id\tcorpus-id\tscore"
    for split, part in (("train", lines[:1]), ("dev", lines[1:2]), ("test", lines[2:])):
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join([head, *part]) + "\n")
    build_collection(Data(path=folder), tmp_path / "built")
    rng = np.random.default_rng(1)
    test = Collection.open(tmp_path / "built").answerable("test")
    # The relevant document is the first of every other list, and the 13th of the others: there are losses and wins.
    starts = [2 + number - 12 * (number % 2) for number in range(len(test))]
    documents = np.array([[(start + step) % queries for step in range(20)] for start in starts])
    scores = {"tuned": rng.normal(size=documents.shape).astype(np.float32)}
    finished(tmp_path / run, tmp_path / "built", found(documents, test), scores)
    (tmp_path / run / "mine").mkdir()
    suspects = [
        {"query": text(n), "document": text(n), "positive": None, "why": "<u>\ud800", "rank": n} for n in range(60)
    ]
    written = "".join(json.dumps(row) + "\n" for row in suspects) + "no JSON\n[1]\n"
    (tmp_path / run / "mine" / "suspected_false_negatives.jsonl").write_text(written)
    (tmp_path / run / "train").mkdir()
    curve = [{"step": step, "loss": 1 / (step + 1)} for step in range(500)]
    curve += [{"step": step, "dev_score": step / 1000} for step in (0, 250, 499)]
    curve += [{"step": 3, "loss": "edited"}, {"step": 4, "loss": float("nan")}]
    (tmp_path / run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    return tmp_path / run


def test_texts_of_the_user_never_become_code(tmp_path):
    run = hostile_run(tmp_path, 24)
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not {"img", "b", "i", "u", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("style", "src")]
    assert all(value and value.startswith("#") for name, value in page.attributes if name == "href")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert any("</script><img src=x onerror=alert(1)>" in part for part in page.texts)
    assert any("{{ 7*7 }}" in part for part in page.texts)
    assert "|safe" not in (Path(write_report.__code__.co_filename).parent / "page" / "report.html").read_text()


def test_the_policy_allows_the_pages_own_script_and_nothing_else(tmp_path):
    from base64 import b64encode
    from hashlib import sha256

    text = write_report(hostile_run(tmp_path, 24)).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)[1]
        assert f"{tag}-src 'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'" in policy


def test_markdown_shows_hostile_texts_as_they_are(tmp_path):
    run = hostile_run(tmp_path, 24)
    write_report(run)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "<img" not in text.replace("\\<img", "")
    assert "\n## Largest losses\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5, 6, 7, 8, 9) for row in rows)


def test_a_thousand_queries_stay_below_three_megabytes(tmp_path):
    run = hostile_run(tmp_path, 24)
    path = run / "evaluate" / "queries.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(records) == 24
    many = [{**record, "id": f"{record['id']}-{copy}"} for copy in range(42) for record in records]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in many), encoding="utf-8")
    page = write_report(run)
    assert page.stat().st_size < 3_000_000
    text = page.read_text(encoding="utf-8")
    assert text.count('<details class="query" data-kind') == 1000
    assert "left out to keep this page small" in text
    assert "8 more are in evaluate/queries.jsonl" in " ".join(text.split())


def test_the_report_shows_verdict_counts_and_causes(by_hand):
    _, run = by_hand
    text = write_report(run).read_text(encoding="utf-8")
    words = " ".join(" ".join(Page(text).texts).split())
    assert "Cannot tell" in words  # four queries
    assert "2 better, 2 the same, 0 worse" in words
    assert "For 1 of 4 queries no relevant document is among the reranked candidates" in words
    assert "first relevant document from rank 3 to 1" in words


def test_the_report_shows_changes_p_values_and_what_can_be_detected(random_run):
    run, *_ = random_run
    results = json.loads((run / "evaluate" / "results.json").read_text())
    (compared,) = [
        row
        for row in results["comparisons"]
        if (row["system"], row["against"], row["metric"]) == ("tuned", "first_stage", "nDCG@10")
    ]
    changes = f"{compared['wins']} / {compared['unchanged']} / {compared['losses']}"
    for text in texts_of(run):
        assert changes in text
        assert f"{compared['p_adjusted']:.3f}" in text
        assert "adjusted for all 3 comparisons by nDCG@10 (Holm)" in text
        assert f"differences of {compared['detectable']:.3f}" in text
        assert f"{results['judged']['tuned']['bpref']['mean']:.3f}" in text
        assert f"{results['judged']['tuned']['Judged@10']['mean']:.0%}" in text.replace(" %", "%")


def texts_of(run: Path) -> list[str]:
    """The words of both reports."""
    page = Page(write_report(run).read_text(encoding="utf-8"))
    return [" ".join(text.split()) for text in (" ".join(page.texts), (run / "report.md").read_text(encoding="utf-8"))]


def test_causes_of_failures_are_counted_with_what_helps(by_hand):
    _, run = by_hand
    page, markdown = texts_of(run)
    assert "Not retrieved 1 rerank more candidates, or improve the first stage" in page
    assert "Probably unlabelled 1 judge the first document" in page
    assert "- retrieved but low: 1; more or better train queries like these" in markdown


CALIBRATED = {
    "sentence": "scores are calibrated on dev: calibration error on test 0.020, 0.400 without; AUC 0.812",
    "separates": True,
    "auc": {"mean": 0.812, "low": 0.77, "high": 0.85},
    "brier": {"mean": 0.081, "low": 0.07, "high": 0.09},
    "ece": {"mean": 0.02, "low": 0.01, "high": 0.04},
    "uncalibrated_brier": {"mean": 0.314, "low": 0.29, "high": 0.34},
    "uncalibrated_ece": {"mean": 0.4, "low": 0.38, "high": 0.42},
    "bins": [
        {"pairs": 50, "predicted": 0.012, "observed": 0.0, "low": 0.0, "high": 0.071},
        {"pairs": 50, "predicted": 0.4, "observed": 0.42, "low": 0.29, "high": 0.56},
    ],
    "thresholds": [
        {"probability": 0.05, "kept": 4.2, "precision": 0.31, "recall": 0.92, "empty": 0.0},
        {"probability": 0.9, "kept": 0.0, "precision": None, "recall": 0.0, "empty": 1.0},
    ],
}
CALIBRATED["grades"] = {"1": {**CALIBRATED}, "2": {**CALIBRATED, "auc": {"mean": None, "low": None, "high": None}}}


def with_calibration(run: Path, **content) -> Path:
    (run / "evaluate" / "calibration_test.json").write_text(json.dumps(CALIBRATED | content))
    return run


def test_the_calibration_is_shown_with_diagram_thresholds_and_grades(random_run):
    run = with_calibration(random_run[0])
    page, markdown = texts_of(run)
    for text in (page, markdown):
        assert "Scores are calibrated on dev: calibration error on test 0.020, 0.400 without; AUC 0.812." in text
        assert "0.812 [0.770, 0.850]" in text
        assert "0.290 to 0.560" in text
    assert "0.05 4.2 0.310 0.920 0 %" in page
    assert "0.90 0.0 – 0.000 100 %" in page
    assert "2 or higher –" in page
    assert "| 0.05 | 4.2 | 0.310 | 0.920 | 0 % |" in markdown
    assert "Do not filter by a threshold" not in page
    drawn = (run / "report.html").read_text(encoding="utf-8").count('class="dot gain"')
    (run / "evaluate" / "calibration_test.json").unlink()
    write_report(run)
    assert drawn - (run / "report.html").read_text(encoding="utf-8").count('class="dot gain"') == 4  # two, drawn twice
    assert "Calibration was not measured in this run." in texts_of(run)[0]


def test_the_report_says_that_no_threshold_separates_well_enough(random_run):
    sentence = "scores are calibrated on dev: …; no threshold separates relevant documents well enough (AUC 0.600)"
    page, markdown = texts_of(with_calibration(random_run[0], separates=False, sentence=sentence))
    assert "no threshold separates relevant documents well enough" in page
    assert "no threshold separates relevant documents well enough" in markdown
    assert "Do not filter by a threshold" in page


@pytest.mark.parametrize("content", ['{"sentence": "scores are not calibrated: too few"}', '{"separates": true}', "[]"])
def test_a_refused_calibration_and_files_of_earlier_versions_are_shown_without_a_diagram(random_run, content):
    run, *_ = random_run
    (run / "evaluate" / "calibration_test.json").write_text(content)
    page, markdown = texts_of(run)
    assert "documents below a probability are dropped" not in page
    assert ("Scores are not calibrated: too few." in page) == ("not calibrated" in content)
    assert ("Scores are not calibrated: too few." in markdown) == ("not calibrated" in content)


def test_the_cost_of_scoring_the_corpus_follows_from_the_speed_at_the_deepest_depth():
    by_depth = [
        {"depth": 5, "pairs_per_second": 40.0},
        {"depth": 50, "pairs_per_second": 100.0},
    ]
    assert corpus_cost({"corpus": 12_000, "by_depth": by_depth}) == (12_000, pytest.approx(120), pytest.approx(240))
    assert corpus_cost({"corpus": 12_000, "by_depth": []}) is None
    assert corpus_cost({"by_depth": by_depth}) is None  # measured by an earlier version


def test_a_run_ends_with_a_report_that_can_be_made_again(exported, monkeypatch, capsys):
    recipe, runs = exported
    page, text = (runs / "exported" / name for name in ("report.html", "report.md"))
    words = " ".join(" ".join(Page(page.read_text(encoding="utf-8")).texts).split())
    assert "ms per query (median" in words
    assert "dev nDCG@10 during training" in words
    assert "Recipe, with all defaults" in words
    assert "Scoring all 16 documents of the corpus instead would take about" in words
    assert "Scores are not calibrated: the reranked dev candidates hold only 8 relevant documents" in words
    lines = text.read_text(encoding="utf-8").splitlines()
    assert '      "name": "exported",' in lines
    assert any(line.startswith("| evaluate | ") for line in lines)
    assert json.loads((runs / "exported" / "evaluate" / "done.json").read_text())["latency"]["by_depth"]
    before = page.read_bytes(), text.read_bytes()
    for named in (recipe, runs / "exported"):
        page.unlink()
        monkeypatch.setattr("sys.argv", ["reranker", "report", str(named), "--runs", str(runs)])
        with pytest.raises(SystemExit) as ended:
            reranker_command()
        assert not ended.value.code
        assert (page.read_bytes(), text.read_bytes()) == before
    assert str(page) in capsys.readouterr().out


def test_a_damaged_record_is_reported_with_its_line(random_run):
    run, *_ = random_run
    with (run / "evaluate" / "queries.jsonl").open("a") as file:
        file.write('{"id": "cut')
    with pytest.raises(RunError, match=r"queries\.jsonl:9: is damaged; delete the file"):
        write_report(run)


def test_a_folder_in_place_of_the_page_and_an_edited_recipe_do_no_harm(random_run):
    run, *_ = random_run
    (run / "report.html").mkdir()
    (run / "evaluate" / "recipe.json").write_text('{"name": 7, "seed": "x"}')
    assert write_report(run).is_file()


def test_a_run_that_was_not_evaluated_has_no_report(tmp_path):
    with pytest.raises(RunError, match="has no finished evaluation"):
        write_report(tmp_path)


def test_an_older_evaluation_gets_its_details_when_the_report_is_made(random_run):
    run, *_ = random_run
    (run / "evaluate" / "depths.json").unlink()
    (run / "evaluate" / "queries.jsonl").unlink()
    assert write_report(run).is_file()
    assert (run / "evaluate" / "queries.jsonl").is_file()


@pytest.mark.parametrize("text", ["", " \n ", "a" * 599, "a" * 600, "a" * 601, " " * 5000 + "a", "\ud800"])
def test_texts_are_cut_to_a_bounded_length(text):
    shown = cut(text)
    assert len(shown) <= 602
    shown.encode()
    assert ("…" in shown) == (len(text) > 600 and text != "a" * 600)


def chromium() -> str:
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("no browser is installed")
    return browser


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view", "kind"),
    [("show=lost", "lost"), ("show=won", "won"), ("show=same&order=-gain", "same"), ("words=zzz", None)],
)
def test_a_browser_filters_without_an_error(tmp_path, view, kind):
    browser = chromium()
    page = write_report(hostile_run(tmp_path, 24, run="run"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    address = f"{page.as_uri()}#{view}"
    done = subprocess.run([browser, *flags, profile, address], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    rows = re.findall(r'<details class="query" data-kind="(\w+)"([^>]*)>', done.stdout)
    assert len(rows) == 24
    visible = [name for name, attributes in rows if " hidden" not in attributes]
    assert set(visible) == ({kind} if kind else set())
    assert f"Showing {len(visible)} of 24" in done.stdout
