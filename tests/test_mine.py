"""Hard negatives: what is kept, what is passed over and why, and that every candidate is accounted for."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from trainer.data import build_collection
from trainer.groups import read_groups, write_groups
from trainer.mine import mine, write_report
from trainer.recipe import Data, Mine
from trainer.retriever import NOTHING, Candidates

EVERYTHING = Mine(negatives_per_positive=1000, max_share_of_positive=None)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Forty documents; each test brings judgements of its own."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "qrels").mkdir()
    documents = [{"_id": f"d{row}", "title": "", "text": f"passage number {row}"} for row in range(40)]
    queries = [{"_id": f"q{row}", "text": f"question number {row}"} for row in range(20)]
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for row, split in enumerate(("train", "dev", "test")):
        (folder / "qrels" / f"{split}.tsv").write_text(f"q{row}\td{row}\t1\n")
    return build_collection(Data(path=folder), folder / "data")


@pytest.fixture
def judged(collection):
    """`judged({query row: {document row: grade}})` is the collection with these train judgements."""
    return lambda qrels: replace(collection, qrels={**collection.qrels, "train": qrels})


def found(*lists, queries=None, similarities=None, positive=None):
    """Candidates of the given document rows, whose similarities fall by 0.01 from 0.9 unless they are given."""
    depth = max(map(len, lists))
    documents = np.array([[*rows, *[NOTHING] * (depth - len(rows))] for rows in lists], dtype=np.int32)
    scores = np.tile(np.arange(depth, 0, -1, dtype=np.float32), (len(lists), 1))
    if similarities is None:
        similarities = np.tile(0.9 - 0.01 * np.arange(depth), (len(lists), 1))
    return Candidates(
        queries=np.array(range(len(lists)) if queries is None else queries, dtype=np.int32),
        documents=documents,
        scores=scores,
        similarities=np.where(documents == NOTHING, np.nan, np.array(similarities)).astype(np.float32),
        positive_similarity=np.array([1.0] * len(lists) if positive is None else positive, dtype=np.float32),
    )


def anything(seed):
    """Random judgements and candidates, and a section to mine them with."""
    rng = np.random.default_rng(seed)
    qrels, lists = {}, []
    for query in range(20):
        judged = rng.choice(40, size=rng.integers(1, 12), replace=False).tolist()
        qrels[query] = dict(zip(judged, rng.integers(0, 3, size=len(judged)).tolist(), strict=True))
        qrels[query][judged[0]] = 1
        lists.append(rng.permutation(40)[: rng.integers(1, 31)].tolist())
    depth = max(map(len, lists))
    candidates = found(
        *lists,
        similarities=np.sort(rng.uniform(-1, 1, size=(20, depth)), axis=1)[:, ::-1],
        positive=np.where(rng.random(20) < 0.2, np.nan, rng.uniform(-1, 1, size=20)),
    )
    first_rank = int(rng.integers(1, 8))
    section = Mine(
        negatives_per_positive=int(rng.integers(1, 12)),
        first_rank=first_rank,
        last_rank=first_rank + int(rng.integers(0, 25)),
        max_share_of_positive=[None, 0.5, 0.95, 1.0][rng.integers(4)],
        pick=["top", "random"][rng.integers(2)],
    )
    return section, qrels, candidates


def by_query(groups, attribute):
    """{query: rows of all its groups}, each once."""
    rows = {}
    for group in groups:
        rows.setdefault(group.query, {}).update(dict.fromkeys(getattr(group, attribute)))
    return {query: list(found) for query, found in rows.items()}


def negatives(section, collection, candidates, seed=1):
    """The negatives of the first query."""
    return by_query(mine(section, collection, candidates, seed)[0], "negatives").get(0, [])


@pytest.mark.parametrize("seed", range(12))
def test_a_positive_is_never_a_negative_and_nothing_filtered_out_comes_back(judged, seed):
    section, qrels, candidates = anything(seed)
    groups, _ = mine(section, judged(qrels), candidates, seed)

    assert groups
    assert all(len(group.documents) == len(set(group.documents)) for group in groups)
    for query, rows in by_query(groups, "negatives").items():
        assert not {row for row, grade in qrels[query].items() if grade > 0} & set(rows)
        positive, listed = candidates.positive_similarity[query], candidates.found(query)
        for row in rows:
            if row in qrels[query]:  # judged not relevant: whatever its rank
                continue
            place = listed.index(row)
            assert section.first_rank <= place + 1 <= section.last_rank
            if section.max_share_of_positive is not None and not np.isnan(positive):
                gap = (1 - section.max_share_of_positive) * abs(positive)
                assert candidates.similarities[query, place] <= positive - gap + 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_every_candidate_is_counted_once_as_a_negative_or_with_the_reason_why_not(judged, seed):
    section, qrels, candidates = anything(seed)
    groups, report = mine(section, judged(qrels), candidates, seed)

    assert report.candidates == np.sum(candidates.documents != NOTHING)
    assert report.candidates == sum(report.passed_over.values()) + len(report.negative_ranks)
    assert report.negatives == len(report.negative_ranks) + report.judged_negatives
    assert report.negatives == sum(map(len, by_query(groups, "negatives").values()))
    assert report.queries == 20 == report.queries_without_negative + len(by_query(groups, "negatives"))
    positives = {query: sum(grade > 0 for grade in grades.values()) for query, grades in qrels.items()}
    got = {query: len(rows) for query, rows in by_query(groups, "negatives").items()}
    short = sum(got.get(query, 0) < section.negatives_per_positive * count for query, count in positives.items())
    assert report.queries_with_fewer_negatives == short


def test_reasons_are_counted_by_hand(judged):
    # Ranks: 1 outside, 2 positive, 3 too similar, 4 and 5 kept, 6 not needed any more, 7 outside.
    section = Mine(negatives_per_positive=2, first_rank=2, last_rank=6, max_share_of_positive=0.9)
    candidates = found([10, 0, 11, 12, 13, 14, 15], similarities=[[0.99, 0.95, 0.92, 0.9, 0.5, 0.4, 0.3]])
    groups, report = mine(section, judged({0: {0: 1}}), candidates, seed=1)

    assert [group.negatives for group in groups] == [[12, 13]]
    assert report.passed_over["outside the rank window"] == 2
    assert report.passed_over["judged relevant"] == 1
    assert report.passed_over["above 90% of the positive"] == 1
    assert report.negative_ranks == [4, 5]
    assert (report.candidates, report.negatives, report.queries_with_fewer_negatives) == (7, 2, 0)


@pytest.mark.parametrize(("first", "last", "kept"), [(1, 1000, [10, 11, 12, 13]), (2, 3, [11, 12]), (9, 9, [])])
def test_the_window_counts_ranks_from_one_and_holds_both_ends(judged, first, last, kept):
    section = EVERYTHING.model_copy(update={"first_rank": first, "last_rank": last})
    assert negatives(section, judged({0: {0: 1}}), found([10, 11, 12, 13])) == kept


@pytest.mark.parametrize(
    ("share", "positive", "kept"),
    [
        (0.75, 0.8, [12, 13, 14]),  # at most 0.6
        (1.0, 0.5, [12, 13, 14]),  # as similar as the positive is still let in
        (0.5, -0.5, [14]),  # at most -0.5 - 0.25: a share of a negative similarity would lie above it
        (0.5, 0.0, [13, 14]),
        (None, 0.0, [10, 11, 12, 13, 14]),
        (0.75, np.nan, [10, 11, 12, 13, 14]),  # nothing to compare with
    ],
)
def test_candidates_too_similar_to_the_positive_are_passed_over(judged, share, positive, kept):
    section = EVERYTHING.model_copy(update={"max_share_of_positive": share})
    candidates = found([10, 11, 12, 13, 14], similarities=[[0.9, 0.625, 0.5, -0.5, -0.75]], positive=[positive])
    groups, report = mine(section, judged({0: {0: 1}}), candidates, seed=1)
    assert groups[0].negatives == kept
    assert sum(report.passed_over.values()) == 5 - len(kept)
    assert report.queries_without_threshold == (share is not None and np.isnan(positive))


def test_documents_judged_not_relevant_come_first_whatever_their_rank_or_similarity(judged):
    section = Mine(negatives_per_positive=4, first_rank=2, last_rank=5, max_share_of_positive=0.5)
    candidates = found([10, 11, 12, 13, 14], similarities=[[0.9, 0.8, 0.3, 0.2, 0.1]])
    collection = judged({0: {0: 1, 10: 0, 30: 0, 13: 0}})
    groups, report = mine(section, collection, candidates, seed=1)
    assert groups[0].negatives == [10, 30, 13, 12]  # first of the list, not retrieved, in the window, mined
    assert (report.negatives, report.judged_negatives, report.negative_ranks) == (4, 3, [3])


def test_no_more_judged_documents_are_taken_than_were_asked_for(judged):
    collection = judged({0: {0: 1, 30: 0, 31: 0, 32: 0}})
    assert negatives(Mine(negatives_per_positive=2), collection, found([10, 11])) == [30, 31]


def test_top_takes_the_best_ranks_and_random_draws_from_all_that_are_left(judged):
    collection, candidates = judged({0: {0: 1}}), found([*range(10, 30)])
    top = negatives(Mine(negatives_per_positive=5), collection, candidates)
    section = Mine(negatives_per_positive=5, pick="random")
    draws = [negatives(section, collection, candidates, seed) for seed in range(40)]

    assert top == [10, 11, 12, 13, 14]
    assert all(len(set(draw)) == 5 and draw == sorted(draw) for draw in draws)  # without repetition, hardest first
    assert set().union(*draws) == set(range(10, 30))
    assert len(set(map(tuple, draws))) > 30


def test_random_picks_can_be_repeated_and_do_not_depend_on_other_queries(judged):
    section = Mine(negatives_per_positive=3, pick="random")
    qrels = {query: {query: 1} for query in range(5)}
    lists = [np.random.default_rng(query).permutation(range(10, 40)).tolist() for query in range(5)]
    whole = by_query(mine(section, judged(qrels), found(*lists), 13)[0], "negatives")
    again = by_query(mine(section, judged(qrels), found(*lists), 13)[0], "negatives")
    other_seed = by_query(mine(section, judged(qrels), found(*lists), 14)[0], "negatives")
    some = found(lists[4], lists[1], queries=[4, 1])
    alone = by_query(mine(section, judged({4: qrels[4], 1: qrels[1]}), some, 13)[0], "negatives")

    assert whole == again
    assert whole != other_seed
    assert alone == {4: whole[4], 1: whole[1]}


def test_fewer_negatives_than_asked_are_counted_and_none_at_all_make_no_group(judged):
    qrels = {0: {0: 1}, 1: {1: 1}, 2: {2: 1}, 3: {3: 0}}
    candidates = found([10, 11, 12], [1, 13], [2], queries=[0, 1, 2])
    groups, report = mine(Mine(negatives_per_positive=3), judged(qrels), candidates, seed=1)
    assert {group.query: group.negatives for group in groups} == {0: [10, 11, 12], 1: [13]}
    assert report.queries == 3
    assert report.queries_with_fewer_negatives == 2
    assert report.queries_without_negative == 1
    assert report.queries_without_positive == 1


def test_positives_go_from_the_highest_grade_down_with_their_grades(judged):
    groups, _ = mine(Mine(), judged({0: {5: 1, 6: 3, 7: 0, 8: 2}}), found([10, 11]), seed=1)
    assert [(group.positives, group.grades) for group in groups] == [([6, 8, 5], [3, 2, 1])]
    assert groups[0].documents == [6, 8, 5, 7, 10, 11]


@pytest.mark.parametrize(("positives", "sizes"), [(4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3])])
def test_more_than_four_positives_give_several_groups(judged, positives, sizes):
    qrels = {0: {row: 1 + row % 2 for row in range(positives)}}
    groups, _ = mine(Mine(negatives_per_positive=2), judged(qrels), found([*range(10, 40)]), seed=1)
    assert [len(group.positives) for group in groups] == sizes
    assert sorted(by_query(groups, "positives")[0]) == list(range(positives))
    assert sorted(row for group in groups for row in group.negatives) == list(range(10, 10 + 2 * positives))
    for group in groups:
        assert group.grades == [qrels[0][row] for row in group.positives]
        assert group.negatives == sorted(group.negatives)
    assert max(len(group.negatives) for group in groups) - min(len(group.negatives) for group in groups) <= 1


def test_no_positive_is_lost_where_negatives_are_fewer_than_groups(judged):
    groups, _ = mine(Mine(), judged({0: dict.fromkeys(range(9), 1)}), found([10, 0, 1]), seed=1)
    assert sorted(by_query(groups, "positives")[0]) == list(range(9))
    assert all(1 <= len(group.positives) <= 4 and group.negatives == [10] for group in groups)


def test_groups_are_read_as_they_were_written(judged, tmp_path):
    section, qrels, candidates = anything(3)
    groups, _ = mine(section, judged(qrels), candidates, seed=1)
    write_groups(groups, tmp_path)
    assert read_groups(tmp_path) == groups


@pytest.mark.parametrize("seed", range(4))
def test_the_report_is_written_for_programs_and_for_people(judged, tmp_path, seed):
    section, qrels, candidates = anything(seed)
    section = section.model_copy(update={"max_share_of_positive": 0.9})
    collection = judged(qrels)
    groups, report = mine(section, collection, candidates, seed)
    write_report(report, groups, collection, tmp_path)

    written = json.loads((tmp_path / "report.json").read_text())
    counts = {name: value for name, value in asdict(report).items() if name not in ("passed_over", "negative_ranks")}
    assert written == {**counts, "passed_over": dict(report.passed_over)}
    text = (tmp_path / "report.md").read_text()
    for name, count in counts.items():
        assert f"| {name.replace('_', ' ')} | {count} |" in text
    for reason, count in report.passed_over.items():
        assert f"| {reason} | {count} | {count / report.candidates:.1%} |" in text
    shown = groups[0]
    assert f"**question number {shown.query}**" in text
    assert f"- positive ({shown.grades[0]}): `d{shown.positives[0]}` passage number {shown.positives[0]}\n" in text
    assert f"- negative: `d{shown.negatives[0]}` passage number {shown.negatives[0]}\n" in text


def test_a_report_without_any_negative_can_be_written(judged, tmp_path):
    collection = judged({0: {0: 1}})
    groups, report = mine(Mine(), collection, found([0]), seed=1)
    write_report(report, groups, collection, tmp_path)
    assert groups == []
    assert json.loads((tmp_path / "report.json").read_text())["queries_without_negative"] == 1


def test_the_summary_names_the_reasons(judged):
    candidates = found([0, 10, 11])
    _, report = mine(Mine(negatives_per_positive=1), judged({0: {0: 1}}), candidates, seed=1)
    assert report.summary.startswith("1 negatives for 1 queries; passed over: ")
    assert "1 judged relevant" in report.summary
