"""Click logs: propensities and labels from simulated clicks with known relevance, files with faults, and the stage."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from trainer.data import build_collection
from trainer.data.clicks import ClickLog, Shown, labels, propensities
from trainer.errors import DataError, RecipeError
from trainer.pipeline import run
from trainer.recipe import Data, load_recipe

PLACES = 10
LOOKS = np.array([1.0, 0.62, 0.5, 0.4, 0.33, 0.25, 0.21, 0.18, 0.15, 0.12])  # no power law
ATTRACTIONS = np.array([0.02, 0.1, 0.3, 0.6])  # of grades 0 to 3


def simulated(
    queries: int = 200, rankings: int = 3, shown: int = 150, looks: np.ndarray = LOOKS
) -> tuple[ClickLog, dict[str, np.ndarray]]:
    """Clicks on lists that an engine ranked, which knows little of the truth; and the true grades."""
    rng = np.random.default_rng(11)
    log, truth = ClickLog(), {}
    for query in range(queries):
        grades = rng.choice(4, PLACES, p=[0.5, 0.25, 0.15, 0.1])
        truth[f"q{query}"] = grades
        liked = rng.normal(size=PLACES)  # what the engine likes, whatever the truth is
        for _ in range(rankings):
            order = np.argsort(-(liked + rng.normal(scale=0.5, size=PLACES)))
            for place, document in enumerate(order.tolist()):
                clicks = int(rng.binomial(shown, looks[place] * ATTRACTIONS[grades[document]]))
                log.add(Shown(f"q{query}", f"d{document}", place + 1), shown, clicks)
    return log, truth


@pytest.fixture(scope="module")
def simulation() -> tuple[ClickLog, dict[str, np.ndarray]]:
    return simulated()


def test_propensities_are_recovered_within_a_tenth(simulation):
    log, _ = simulation
    known = propensities(log, "estimate")
    found = np.array([known.of(place) for place in range(1, PLACES + 1)])
    assert np.abs(found / LOOKS - 1).max() < 0.1, found
    assert known.origin == "estimated for 10 positions"


def dcg(values: np.ndarray) -> float:
    return float(((2.0**values - 1) / np.log2(np.arange(len(values)) + 2)).sum())


def ndcg(scores: dict[str, float], grades: np.ndarray) -> float:
    order = sorted(range(PLACES), key=lambda row: (-scores.get(f"d{row}", -1.0), row))
    return dcg(grades[order]) / dcg(np.sort(grades)[::-1])


def rates(log: ClickLog, known: Any = None) -> dict[str, dict[str, float]]:
    sums: dict[tuple[str, str], list[float]] = {}
    for shown, (impressions, clicks) in log.counts.items():
        pair = sums.setdefault(shown[:2], [0.0, 0.0])
        pair[0] += impressions * (known.of(shown.position) if known else 1)
        pair[1] += clicks
    found: dict[str, dict[str, float]] = {}
    for (query, document), (looks, clicks) in sums.items():
        found.setdefault(query, {})[document] = clicks / looks
    return found


def test_corrected_labels_rank_better_than_click_through_rates(simulation):
    log, truth = simulation
    corrected = labels(log, "estimate", 5).grades
    raw, by_looks = rates(log), rates(log, propensities(log, "estimate"))
    judged = [query for query, grades in truth.items() if grades.any()]

    def mean(found: Any) -> float:
        return float(np.mean([ndcg(found[query], truth[query]) for query in judged]))

    assert mean(by_looks) > mean(raw) + 0.02
    assert mean(corrected) > mean(raw)
    relevant = [
        (corrected[query][f"d{row}"], grade) for query in judged for row, grade in enumerate(truth[query].tolist())
    ]
    assert np.corrcoef(np.array(relevant).T)[0, 1] > 0.8


def test_given_propensities_are_used_as_they_are(simulation):
    log, _ = simulation
    by_list = propensities(log, tuple(LOOKS))
    assert [by_list.of(place) for place in range(1, 11)] == LOOKS.tolist()
    power = propensities(log, 0.5)
    assert power.of(4) == 0.5
    assert power.origin == "1 / position ^ 0.5 (given)"
    assert propensities(log, 0).of(7) == 1.0


def test_positions_that_nothing_connects_get_a_power_law():
    log = ClickLog()
    for place, clicks in ((1, 100), (2, 50), (9, 3)):
        log.add(Shown("q", f"d{place}", place), 1000, clicks)
    alone = propensities(log, "estimate")
    assert alone.of(2) == 0.5
    assert "because too few documents were shown at several positions" in alone.origin
    for place in (1, 2, 4):
        log.add(Shown("r", "d", place), 10_000, 4000 // place)
    both = propensities(log, "estimate")
    assert [both.of(place) for place in (1, 2, 4, 9)] == pytest.approx([1, 0.5, 0.25, 1 / 9], rel=0.01)
    assert both.origin == "estimated for 3 positions, 1 extrapolated with 1 / position ^ 1.00"


def test_positions_in_two_parts_are_not_compared():
    log = ClickLog()
    for query, places in (("a", (1, 2)), ("b", (3, 4))):
        for place in places:
            log.add(Shown(query, "d", place), 1000, 400 // place if query == "a" else 900 // place)
    known = propensities(log, "estimate")
    assert known.origin.startswith("estimated for 2 positions, 2 extrapolated")
    assert known.of(3) == pytest.approx(1 / 3, rel=0.01)


def test_rows_of_the_same_pair_are_added_up_and_thin_ones_left_out():
    log = ClickLog()
    for _ in range(4):
        log.add(Shown("q", "seen", 1), 1, 1)
        log.add(Shown("q", "ignored", 2), 3, 0)
    log.add(Shown("q", "rare", 1), 2, 2)
    clicked = labels(log, 0.0, evidence=3)
    assert clicked.grades == {"q": {"seen": 3, "ignored": 0}}
    counts = {name: clicked.record[name] for name in ("impressions", "clicks", "pairs", "thin", "labels", "positives")}
    assert counts == {"impressions": 18, "clicks": 6, "pairs": 3, "thin": 1, "labels": 2, "positives": 1}
    assert labels(log, 0.0, evidence=0).grades["q"]["rare"] == 3


def test_without_positions_nothing_is_corrected():
    log = ClickLog()
    log.add(Shown("q", "a", 0), 100, 40)
    log.add(Shown("q", "b", 0), 100, 25)
    log.add(Shown("q", "c", 0), 100, 0)
    clicked = labels(log, "estimate", 5)
    assert clicked.grades == {"q": {"a": 3, "b": 2, "c": 0}}
    assert "not corrected" in clicked.note


def test_a_query_without_clicks_has_no_relevant_document():
    log = ClickLog()
    log.add(Shown("q", "a", 1), 100, 0)
    assert labels(log, 1.0, 5).grades == {"q": {"a": 0}}


# Files.


def lines_of_log() -> Iterator[str]:
    yield "query_id,doc_id,position,impressions,clicks"
    for query in range(24):
        for document in range(4):
            for place in (1 + document, 4 - document):
                clicks = 60 // place if document == query % 4 else 8 // place
                yield f"r{query},d{document},{place},100,{clicks}"


@pytest.fixture
def files(tmp_path) -> dict[str, Any]:
    corpus = [{"_id": f"d{number}", "text": f"memory of the node number{number}"} for number in range(6)]
    queries = [{"_id": f"r{number}", "text": f"why does memory number{number}"} for number in range(30)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "clicks.csv").write_text("\n".join(lines_of_log()) + "\n")
    return {
        "corpus": tmp_path / "corpus.jsonl",
        "queries": tmp_path / "queries.jsonl",
        "clicks": tmp_path / "clicks.csv",
    }


def test_clicks_become_train_dev_and_test_judgements(files, tmp_path):
    collection = build_collection(Data(**files, dev_share=0.2, test_share=0.3), tmp_path / "arrow")
    splits = {split: {collection.query_ids[row] for row in grades} for split, grades in collection.qrels.items()}
    assert all(splits.values())
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 24
    for grades in collection.qrels.values():
        for query, own in grades.items():
            number = int(collection.query_ids[query][1:])
            assert own[number % 4] == 3
            assert all(grade < 2 for row, grade in own.items() if row != number % 4)
    record = json.loads((tmp_path / "arrow" / "clicks.json").read_text())
    assert record["pairs"] == record["labels"] == 96
    assert record["by_position"].keys() == {"1", "2", "3", "4"}


def test_what_people_judged_counts_more_and_dev_queries_stay_out_of_train(files, tmp_path):
    (tmp_path / "train.tsv").write_text("query-id\tcorpus-id\tscore\nr1\td1\t0\nr1\td5\t2\n")
    (tmp_path / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nr2\td2\t1\nr25\td3\t1\n")
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nr26\td1\t1\n")
    rows = [json.loads(line) for line in files["queries"].read_text().splitlines()]
    rows[25]["text"] = "Why does  memory number3"  # the text of r3
    files["queries"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"qrels": tmp_path / "train.tsv", "dev": tmp_path / "dev.tsv", "test": tmp_path / "test.tsv"}
    collection = build_collection(Data(**files, **more), tmp_path / "arrow")
    train = {collection.query_ids[row]: grades for row, grades in collection.qrels["train"].items()}
    assert len(train) == 22
    assert not {"r2", "r3"} & train.keys()
    assert train["r1"][1] == 0
    assert train["r1"][5] == 2
    assert train["r1"].keys() == {0, 1, 2, 3, 5}
    record = json.loads((tmp_path / "arrow" / "clicks.json").read_text())
    assert record["queries_of_dev_and_test"] == 2


def test_tsv_and_json_lines_and_columns_by_name_are_read(files, tmp_path):
    whole = build_collection(Data(**files), tmp_path / "a").qrels
    rows = [line.split(",") for line in lines_of_log()]
    (tmp_path / "log.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    assert build_collection(Data(**{**files, "clicks": tmp_path / "log.tsv"}), tmp_path / "b").qrels == whole
    names = dict(zip(("q", "d", "at", "n", "c"), range(5), strict=True))
    objects = [{name: row[at] if at < 2 else int(row[at]) for name, at in names.items()} for row in rows[1:]]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    columns = {"clicks_query": "q", "clicks_document": "d", "clicks_position": "at"}
    columns |= {"clicks_impressions": "n", "clicks_count": "c"}
    keys = {**files, **columns, "clicks": tmp_path / "log.jsonl"}
    assert build_collection(Data(**keys), tmp_path / "c").qrels == whole


FAULTS = """query_id,doc_id,position,impressions,clicks
r1,d1,1,10,11
r1,d2,1,10,-1
r1,d3,0,10,1
r1,d9,1,10,1
x1,d1,1,10,1
r1,d1,1.5,10,1
r1,d1,1,0,0
r1,d1,1,10,
r1,d1,first,10,1
r1,d1,1,1e400,1
r1,d1,1,10,2
"""


def test_all_faults_of_a_log_are_told_with_their_lines(files):
    files["clicks"].write_text(FAULTS)
    with pytest.raises(DataError) as error:
        build_collection(Data(**files), files["clicks"].with_name("arrow"))
    told = {int(fault.split(":")[1]): fault for fault in error.value.faults}
    assert set(told) == set(range(2, 12))
    assert "11 clicks, but only 10 impressions" in told[2]
    assert "\"clicks\" as clicks, a whole number from 0 on, got '-1'" in told[3]
    assert "\"position\" as a position, a whole number from 1 on, got '0'" in told[4]
    assert "document 'd9' is not in" in told[5]
    assert "query 'x1' is not in" in told[6]
    assert "\"impressions\" as impressions, a whole number from 1 on, got '0'" in told[8]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("query_id,doc_id,clicks\nr1,d1,1\n", "has neither impressions nor positions"),
        ("query_id,doc_id,position\nr1,d1,1\n", "no column for the number of clicks"),
        ("query_id,doc_id,position,clicks\n", "holds no clicks"),
        ("", "clicks.csv"),
        ("query_id,doc_id,position,clicks\nr1,d1,1,2\n", "2 clicks, but the row is one impression"),
        ("query_id,doc_id,position,clicks\nr1,d1,3,0\n", "no judgement above 0, so train has no relevant document"),
    ],
)
def test_a_log_that_cannot_be_used_says_why(files, text, told):
    files["clicks"].write_text(text)
    with pytest.raises(DataError) as error:
        build_collection(Data(**files), files["clicks"].with_name("arrow"))
    assert any(told in fault and "clicks.csv" in fault for fault in error.value.faults)


def test_a_position_beyond_the_given_propensities_is_a_fault(files):
    with pytest.raises(DataError, match=r"clicks.csv:5: position 3, but data.clicks_propensity has 2 numbers"):
        build_collection(Data(**files, clicks_propensity=(1, 0.5)), files["clicks"].with_name("arrow"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{corpus: a, clicks: b}", "data.queries: is missing"),
        ("{path: a, clicks: b}", "data.clicks: is not used with path"),
        ("{corpus: a, queries: a, qrels: a, clicks_evidence: 3}", "data.clicks_evidence: is not used with corpus"),
        ("{corpus: a, queries: a, clicks: b, clicks_propensity: [1, 0]}", "data.clicks_propensity"),
        ("{corpus: a, queries: a, clicks: b, clicks_propensity: guess}", "data.clicks_propensity"),
    ],
)
def test_a_recipe_with_clicks_that_cannot_work_says_why(tmp_path, data, told):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    (tmp_path / "r.yaml").write_text(f"name: a\ndata: {data}\n")
    with pytest.raises(RecipeError, match=told):
        load_recipe(tmp_path / "r.yaml")


def test_what_was_done_is_in_the_notes_of_the_stage_and_a_changed_log_redoes_it(files, recipe_file, beir, tmp_path):
    keys = "".join(f"  {key}: {path}\n" for key, path in files.items())
    recipe_file.write_text(recipe_file.read_text().replace(f"  path: {beir}\n", keys))
    run(load_recipe(recipe_file), tmp_path / "runs", until="data")
    path = tmp_path / "runs" / "tiny" / "data" / "done.json"
    before = json.loads(path.read_text())
    assert before["clicks"]["pairs"] == 96
    assert "click log: " in before["clicks"]["note"]
    files["clicks"].write_text(files["clicks"].read_text() + "r5,d5,1,100,90\n")
    run(load_recipe(recipe_file), tmp_path / "runs", until="data")
    assert json.loads(path.read_text())["clicks"]["pairs"] == 97
