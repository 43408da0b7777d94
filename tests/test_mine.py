"""Hard negatives: what is kept, what is passed over and why, and that every candidate is accounted for."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from trainer.data import build_collection
from trainer.data.groups import read_groups, write_groups
from trainer.mining import Report, candidate_lists, mine, write_likely_false_negatives
from trainer.recipe import Data
from trainer.recipe import Mine as MineSection
from trainer.retriever import NOTHING, Candidates

Mine = partial(MineSection, groups="draws")
HIGHEST = Mine(pick="top", last_rank=1000)
EVERYTHING = HIGHEST.model_copy(update={"negatives_per_positive": 1000, "max_share_of_positive": None})


def top(**settings):
    """A section that takes the highest ranks left of all."""
    return Mine(**{"pick": "top", "last_rank": 1000} | settings)


def run(section, collection, candidates, seed):
    """Groups and the report of them."""
    mined = mine(section, collection, candidates, seed)
    return mined.groups, Report.of(mined, collection, section)


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
        ranks=np.where(documents == NOTHING, 0, np.arange(1, depth + 1))[:, :, None].astype(np.int16),
        engines=np.array(["dense"]),
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
    return by_query(run(section, collection, candidates, seed)[0], "negatives").get(0, [])


@pytest.mark.parametrize("seed", range(12))
def test_a_positive_is_never_a_negative_and_nothing_filtered_out_comes_back(judged, seed):
    section, qrels, candidates = anything(seed)
    groups, _ = run(section, judged(qrels), candidates, seed)

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
    groups, report = run(section, judged(qrels), candidates, seed)

    assert report.candidates == np.sum(candidates.documents != NOTHING)
    assert report.candidates == sum(report.passed_over.values()) + report.negatives - report.judged_negatives
    assert report.negatives == sum(map(len, by_query(groups, "negatives").values()))
    assert report.queries == 20 == report.queries_without_negative + len(by_query(groups, "negatives"))
    positives = {query: sum(grade > 0 for grade in grades.values()) for query, grades in qrels.items()}
    got = {query: len(rows) for query, rows in by_query(groups, "negatives").items()}
    short = sum(got.get(query, 0) < section.negatives_per_positive * count for query, count in positives.items())
    assert report.queries_with_fewer_negatives == short


def test_reasons_are_counted_by_hand(judged):
    # Ranks: 1 outside, 2 positive, 3 too similar, 4 and 5 kept, 6 not needed any more, 7 outside.
    section = top(negatives_per_positive=2, first_rank=2, last_rank=6, max_share_of_positive=0.9)
    candidates = found([10, 0, 11, 12, 13, 14, 15], similarities=[[0.99, 0.95, 0.92, 0.9, 0.5, 0.4, 0.3]])
    groups, report = run(section, judged({0: {0: 1}}), candidates, seed=1)

    assert [group.negatives for group in groups] == [[12, 13]]
    assert report.passed_over["outside the rank window"] == 2
    assert report.passed_over["judged relevant"] == 1
    assert report.passed_over["above 90% of the positive"] == 1
    assert list(report.negative_ranks.values()) == [4, 4.25, 4.5, 4.75, 5]
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
def test_candidates_too_similar_to_the_positive_are_filtered_out(judged, share, positive, kept):
    section = EVERYTHING.model_copy(update={"max_share_of_positive": share})
    candidates = found([10, 11, 12, 13, 14], similarities=[[0.9, 0.625, 0.5, -0.5, -0.75]], positive=[positive])
    groups, report = run(section, judged({0: {0: 1}}), candidates, seed=1)
    assert groups[0].negatives == kept
    assert sum(report.passed_over.values()) == 5 - len(kept)
    assert report.queries_without_threshold == (share is not None and np.isnan(positive))


def test_documents_judged_not_relevant_come_first_whatever_their_rank_or_similarity(judged):
    section = top(negatives_per_positive=4, first_rank=2, last_rank=5, max_share_of_positive=0.5)
    candidates = found([10, 11, 12, 13, 14], similarities=[[0.9, 0.8, 0.3, 0.2, 0.1]])
    collection = judged({0: {0: 1, 10: 0, 30: 0, 13: 0}})
    groups, report = run(section, collection, candidates, seed=1)
    assert groups[0].negatives == [10, 30, 13, 12]  # first of the list, not retrieved, in the window, mined
    assert (report.negatives, report.judged_negatives, set(report.negative_ranks.values())) == (4, 3, {3})


def test_no_more_judged_documents_are_taken_than_were_asked_for(judged):
    collection = judged({0: {0: 1, 30: 0, 31: 0, 32: 0}})
    assert negatives(top(negatives_per_positive=2), collection, found([10, 11])) == [30, 31]


def test_top_takes_the_best_ranks_and_random_draws_from_all_that_are_left(judged):
    collection, candidates = judged({0: {0: 1}}), found([*range(10, 30)])
    highest = negatives(top(negatives_per_positive=5), collection, candidates)
    section = top(negatives_per_positive=5, pick="random")
    draws = [negatives(section, collection, candidates, seed) for seed in range(40)]

    assert highest == [10, 11, 12, 13, 14]
    assert all(len(set(draw)) == 5 and draw == sorted(draw) for draw in draws)  # without repetition, hardest first
    assert set().union(*draws) == set(range(10, 30))
    assert len(set(map(tuple, draws))) > 30


def test_random_picks_can_be_repeated_and_do_not_depend_on_other_queries(judged):
    section = top(negatives_per_positive=3, pick="random")
    qrels = {query: {query: 1} for query in range(5)}
    lists = [np.random.default_rng(query).permutation(range(10, 40)).tolist() for query in range(5)]
    whole = by_query(run(section, judged(qrels), found(*lists), 13)[0], "negatives")
    again = by_query(run(section, judged(qrels), found(*lists), 13)[0], "negatives")
    other_seed = by_query(run(section, judged(qrels), found(*lists), 14)[0], "negatives")
    some = found(lists[4], lists[1], queries=[4, 1])
    alone = by_query(run(section, judged({4: qrels[4], 1: qrels[1]}), some, 13)[0], "negatives")

    assert whole == again
    assert whole != other_seed
    assert alone == {4: whole[4], 1: whole[1]}


def test_fewer_negatives_than_asked_are_counted_and_none_at_all_make_no_group(judged):
    qrels = {0: {0: 1}, 1: {1: 1}, 2: {2: 1}, 3: {3: 0}}
    candidates = found([10, 11, 12], [1, 13], [2], queries=[0, 1, 2])
    groups, report = run(top(negatives_per_positive=3), judged(qrels), candidates, seed=1)
    assert {group.query: group.negatives for group in groups} == {0: [10, 11, 12], 1: [13]}
    assert report.queries == 3
    assert report.queries_with_fewer_negatives == 2
    assert report.queries_without_negative == 1
    assert report.queries_without_positive == 1


def test_positives_go_from_the_highest_grade_down_with_their_grades(judged):
    groups, _ = run(HIGHEST, judged({0: {5: 1, 6: 3, 7: 0, 8: 2}}), found([10, 11]), seed=1)
    assert [(group.positives, group.grades) for group in groups] == [([6, 8, 5], [3, 2, 1])]
    assert groups[0].documents == [6, 8, 5, 7, 10, 11]


@pytest.mark.parametrize(("positives", "sizes"), [(4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3])])
def test_more_than_four_positives_give_several_groups(judged, positives, sizes):
    qrels = {0: {row: 1 + row % 2 for row in range(positives)}}
    groups, _ = run(top(negatives_per_positive=2), judged(qrels), found([*range(10, 40)]), seed=1)
    assert [len(group.positives) for group in groups] == sizes
    assert sorted(by_query(groups, "positives")[0]) == list(range(positives))
    assert sorted(row for group in groups for row in group.negatives) == list(range(10, 10 + 2 * positives))
    for group in groups:
        assert group.grades == [qrels[0][row] for row in group.positives]
        assert group.negatives == sorted(group.negatives)
    assert max(len(group.negatives) for group in groups) - min(len(group.negatives) for group in groups) <= 1


def test_no_positive_is_lost_where_negatives_are_fewer_than_groups(judged):
    groups, _ = run(HIGHEST, judged({0: dict.fromkeys(range(9), 1)}), found([10, 0, 1]), seed=1)
    assert sorted(by_query(groups, "positives")[0]) == list(range(9))
    assert all(1 <= len(group.positives) <= 4 and group.negatives == [10] for group in groups)


def test_groups_are_read_as_they_were_written(judged, tmp_path):
    section, qrels, candidates = anything(3)
    groups, _ = run(section, judged(qrels), candidates, seed=1)
    write_groups(groups, tmp_path)
    assert read_groups(tmp_path) == groups


@pytest.mark.parametrize("seed", range(4))
def test_the_report_is_written_for_programs_and_for_people(judged, tmp_path, seed):
    section, qrels, candidates = anything(seed)
    section = section.model_copy(update={"max_share_of_positive": 0.9})
    collection = judged(qrels)
    mined = mine(section, collection, candidates, seed)
    report = Report.of(mined, collection, section)
    report.write(mined, collection, tmp_path)

    assert json.loads((tmp_path / "report.json").read_text()) == asdict(report)
    text = (tmp_path / "report.md").read_text()
    for name, value in asdict(report).items():
        if isinstance(value, int):
            assert f"| {name.replace('_', ' ')} | {value} |" in text
    for reason, count in report.passed_over.items():
        assert f"| {reason} | {count} | {count / report.candidates:.1%} |" in text
    shown = mined.groups[0]
    assert f"**question number {shown.query}**" in text
    assert f"- positive ({shown.grades[0]}): **d{shown.positives[0]}** passage number {shown.positives[0]}\n" in text
    assert f"- negative: **d{shown.negatives[0]}** passage number {shown.negatives[0]}\n" in text


def test_the_report_has_the_quantiles_and_histograms_of_positives_and_negatives(judged, tmp_path):
    candidates = found([0, 10, 11, 12], similarities=[[0.9, 0.5, 0.4, 0.3]], positive=[0.9])
    collection = judged({0: {0: 1}})
    mined = mine(top(negatives_per_positive=3), collection, candidates, seed=1)
    report = Report.of(mined, collection, HIGHEST)
    assert list(report.similarities["positives"].values()) == pytest.approx([0.9] * 5)
    assert list(report.similarities["negatives"].values()) == pytest.approx([0.3, 0.35, 0.4, 0.45, 0.5])
    report.write(mined, collection, tmp_path)
    bars = [line for line in (tmp_path / "report.md").read_text().splitlines() if "+++" in line or "---  " in line]
    assert bars


def test_texts_are_escaped_in_the_report(judged, tmp_path):
    odd = "\x1b[2J <img src=x onerror=alert(1)> | `x` **b** [l](http://a)\n# title\n\u202eback"
    shown = r"\\x1b\[2J \<img src=x onerror=alert(1)\> \| \`x\` \*\*b\*\* \[l\](http://a) \# title \\u202eback"
    collection = judged({0: {0: 1}})
    documents = [{"id": f"{odd} {row}", "passage": odd} for row in range(40)]
    collection = replace(collection, documents=documents, queries=[{"text": odd}])
    mined = mine(HIGHEST, judged({0: {0: 1}}), found([0, 10, 11]), seed=1)
    Report.of(mined, collection, HIGHEST).write(mined, collection, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"**{shown}**\n" in text
    assert f"- positive (1): **{shown} 0** {shown}\n" in text
    assert not set("\x1b\u202e") & set(text)


def test_a_report_without_any_negative_can_be_written(judged, tmp_path):
    collection = judged({0: {0: 1}})
    mined = mine(HIGHEST, collection, found([0]), seed=1)
    Report.of(mined, collection, HIGHEST).write(mined, collection, tmp_path)
    assert mined.groups == []
    assert json.loads((tmp_path / "report.json").read_text())["queries_without_negative"] == 1


def test_the_screen_names_the_reasons(judged, capsys):
    candidates = found([0, 10, 11])
    _, report = run(top(negatives_per_positive=1), judged({0: {0: 1}}), candidates, seed=1)
    report.show()
    assert report.summary == "1 negatives for 1 queries"
    shown = capsys.readouterr().out
    assert "judged relevant" in shown
    assert "usable, but not needed" in shown


# The window of ranks and the corpus


def test_a_share_of_the_negatives_comes_from_the_whole_corpus(judged):
    section = Mine(negatives_per_positive=10, last_rank=8, random_share=0.2, pick="top")
    collection, candidates = judged({0: {0: 1}}), found([*range(1, 21)])
    mined = mine(section, collection, candidates, seed=3)
    (group,) = mined.groups
    assert group.negatives[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len([row for row in group.negatives if row > 20]) == 2 == mined.corpus_negatives
    assert len(set(group.negatives)) == 10
    report = Report.of(mined, collection, section)
    assert report.candidates == sum(report.passed_over.values()) + report.negatives - report.corpus_negatives


def test_shares_are_right_on_average_however_few_negatives_a_query_gets(judged):
    section = Mine(negatives_per_positive=3, random_share=0.25)
    qrels = {query: {query: 1} for query in range(20)}
    candidates = found(*[[*range(20, 35)] for _ in range(20)])
    counts = [mine(section, judged(qrels), candidates, seed).corpus_negatives for seed in range(20)]
    assert np.mean(counts) == pytest.approx(20 * 0.75, rel=0.1)


def test_nothing_from_outside_the_window_fills_a_group(judged):
    section = Mine(negatives_per_positive=6, last_rank=4, max_share_of_positive=0.5, pick="top")
    candidates = found([10, 11, 12, 13, 14], similarities=[[0.9, 0.4, 0.3, 0.2, 0.1]])
    collection = judged({0: {0: 1}})
    mined = mine(section, collection, candidates, seed=1)
    assert mined.groups[0].negatives == [11, 12, 13]
    assert Report.of(mined, collection, section).queries_with_fewer_negatives == 1


# What looks like a positive


def test_a_document_with_the_text_of_a_positive_is_never_a_negative(judged):
    collection = replace(judged({0: {0: 1, 20: 0}}), twins={10: 0, 12: 11, 14: 0})
    assert negatives(EVERYTHING, collection, found([10, 11, 12, 13])) == [20, 11, 12, 13]
    section = Mine(negatives_per_positive=30, random_share=1.0)
    assert not {10, 14} & set(negatives(section, collection, found([11])))


def teacher_of(scores):
    """A teacher that gives documents these scores, and remembers what it was asked."""

    def teacher(rows):
        teacher.asked += rows
        return np.array([scores.get(document, -9.0) for _, document in rows], dtype=np.float32)

    teacher.asked = []
    return teacher


def test_a_teacher_filters_out_candidates_it_scores_like_a_positive_and_scores_the_groups(judged):
    collection, candidates = judged({0: {0: 1, 1: 2}}), found([10, 11, 12, 1, 13, 14])
    teacher = teacher_of({0: 1.0, 1: 3.0, 10: 4.0, 11: 2.5, 12: 1.5, 13: 3.0})
    section = EVERYTHING.model_copy(update={"last_rank": 5, "teacher_margin": 0.5})
    mined = mine(section, collection, candidates, 1, teacher)
    (group,) = mined.groups
    assert (group.positives, group.negatives) == ([1, 0], [11, 12])  # 11 is 0.5 below the best positive
    assert group.teacher == [3.0, 1.0, 2.5, 1.5]
    report = Report.of(mined, collection, section)
    assert report.passed_over["teacher score within 0.5 of the positive's"] == 2
    assert set(teacher.asked) == {(0, row) for row in (0, 1, 10, 11, 12, 13)}  # 14 is outside the window


def test_a_second_round_orders_the_rank_window_by_the_reranker(judged):
    teacher = teacher_of({0: 9.0, 10: 1.0, 11: 3.0, 12: 2.0})
    section = top(negatives_per_positive=2)
    mined = mine(section, judged({0: {0: 1}}), found([10, 11, 12]), 1, teacher, by_teacher=True)
    assert mined.groups[0].negatives == [11, 12]


def test_likely_false_negatives_are_listed_with_their_texts_the_most_likely_first(judged, tmp_path):
    collection = replace(judged({0: {0: 1}, 1: {1: 1}}), twins={12: 0})
    candidates = found([10, 11, 12], [13, 14], similarities=[[0.96, 0.5, 0.9], [0.99, 0.3, 0]])
    section = top(max_share_of_positive=0.95)
    mined = mine(section, collection, candidates, seed=1)
    assert write_likely_false_negatives(section, mined, collection, tmp_path) == 3
    lines = [json.loads(line) for line in (tmp_path / "suspected_false_negatives.jsonl").read_text().splitlines()]
    assert [(line["query_id"], line["document_id"]) for line in lines] == [("q1", "d13"), ("q0", "d10"), ("q0", "d12")]
    assert [line["why"] for line in lines] == [
        "above 95% of the positive",
        "above 95% of the positive",
        "near-duplicate of a positive",
    ]
    assert all(line["relevant"] is None for line in lines)
    assert lines[1] == {
        "query_id": "q0",
        "document_id": "d10",
        "relevant": None,
        "why": "above 95% of the positive",
        "rank": 1,
        "similarity": 0.96,
        "positive_similarity": 1.0,
        "teacher": None,
        "positive_teacher": None,
        "query": "question number 0",
        "document": "passage number 10",
        "positive": "passage number 0",
    }


def test_a_negative_more_similar_than_the_positive_is_a_likely_false_negative(judged, tmp_path):
    collection = judged({0: {0: 1, 12: 0}})  # of 12 somebody said that it is not relevant
    candidates = found([10, 11, 12, 13, 14], similarities=[[1.1, 1.3, 1.2, 1.0, 1.4]])  # the positive has 1
    mined = mine(top(negatives_per_positive=4, last_rank=4), collection, candidates, seed=1)
    assert mined.groups[0].negatives == [12, 10, 11, 13]
    assert write_likely_false_negatives(top(), mined, collection, tmp_path) == 2
    lines = [json.loads(line) for line in (tmp_path / "suspected_false_negatives.jsonl").read_text().splitlines()]
    assert [line["document_id"] for line in lines] == ["d11", "d10"]
    assert {line["why"] for line in lines} == {"used as a negative, but scored above the positive"}


def test_teacher_scores_order_the_likely_false_negatives(judged, tmp_path):
    collection = judged({0: {0: 1}})
    teacher = teacher_of({0: 1.0, 10: 2.0, 11: 5.0, 12: 0.0})
    section = top(max_share_of_positive=0.95)
    mined = mine(section, collection, found([10, 11, 12], similarities=[[0.99, 0.5, 0.4]]), 1, teacher)
    write_likely_false_negatives(section, mined, collection, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "suspected_false_negatives.jsonl").read_text().splitlines()]
    assert [(line["document_id"], line["teacher"]) for line in lines] == [("d11", 5.0), ("d10", 2.0)]
    assert lines[0]["why"] == "teacher score within 0.0 of the positive's"


# Lists: the candidates as they will be reranked


def test_a_list_is_all_candidates_with_their_grades_and_without_likely_positives(judged):
    section = MineSection(max_share_of_positive=0.9)
    candidates = found([10, 0, 11, 1, 12, 13], similarities=[[0.95, 1.0, 0.5, 0.8, 0.4, 0.3]])
    (group,) = mine(section, judged({0: {0: 2, 1: 1, 11: 0}}), candidates, seed=1).groups
    assert (group.positives, group.grades) == ([0, 1], [2, 1])
    assert group.negatives == [11, 12, 13]  # 10 is more like the query than nine tenths of its best positive


def test_a_list_of_limited_size_keeps_judged_documents_and_samples_the_others(judged):
    section = MineSection(list_size=5)
    candidates = found([0, 20, 21, 22, 11, 23, 24, 25])
    draws = [mine(section, judged({0: {0: 1, 11: 0}}), candidates, seed).groups[0] for seed in range(30)]
    assert all(len(group.documents) == 5 and 0 in group.positives and 11 in group.negatives for group in draws)
    assert {row for group in draws for row in group.negatives} == {11, 20, 21, 22, 23, 24, 25}
    assert draws[3] == mine(section, judged({0: {0: 1, 11: 0}}), candidates, 3).groups[0]


def test_a_query_whose_positives_were_not_retrieved_has_no_list(judged):
    assert not mine(MineSection(), judged({0: {39: 1}}), found([1, 2, 3]), seed=1).groups


def test_every_candidate_of_lists_is_counted_once(judged):
    for seed in range(6):
        _, qrels, candidates = anything(seed)
        collection = judged(qrels)
        report = Report.of(mine(MineSection(), collection, candidates, seed), collection, MineSection())
        assert report.candidates == sum(report.passed_over.values()) + report.negatives - report.judged_negatives


def test_lists_keep_the_first_stage_s_scores_of_their_documents(judged):
    """Standardised over all candidates, also where the list is a draw from them."""
    collection = judged({0: {0: 2, 11: 0}})
    candidates = replace(found([10, 0, 11, 12]), scores=np.array([[4.0, 3.0, 1.0, 0.0]], dtype=np.float32))
    spread = np.std([4.0, 3.0, 1.0, 0.0])
    expected = {10: 2 / spread, 0: 1 / spread, 11: -1 / spread, 12: -2 / spread}
    whole, drawn = (
        mine(section, collection, candidates, 3).groups[0] for section in (MineSection(), MineSection(list_size=3))
    )
    assert len(drawn.documents) == 3
    for group in (whole, drawn, candidate_lists(collection, candidates)[0]):
        assert group.first == pytest.approx([expected[row] for row in group.documents])
