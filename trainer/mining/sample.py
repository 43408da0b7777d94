"""Groups for training: a query, its positives, and negatives drawn from a window of ranks and from the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.data import Collection
from trainer.data.groups import Group
from trainer.mining.filter import NEGATIVE, POSITIVE, USABLE, Judged, Score, judge, relevant_or_self
from trainer.model.scores import standardised
from trainer.recipe import Mine
from trainer.retriever import NOTHING, Candidates

POSITIVES_PER_GROUP = 4  # a query with more positives gives several groups, so that no group outgrows the others
TRIES = 20  # draws from the whole corpus for one negative; where a corpus is so small, fewer are found and reported


@dataclass(frozen=True)
class Mined:
    """Groups for training, and what there is to report of them."""

    groups: list[Group]
    judged: Judged
    asked: np.ndarray  # (queries,) negatives wanted
    got: np.ndarray  # (queries,) negatives found, those of the qrels included
    chosen: np.ndarray  # bool (queries, depth), candidates that became negatives
    judged_negatives: int  # of the qrels
    corpus_negatives: int  # drawn from the whole corpus


def mine(
    section: Mine,
    collection: Collection,
    candidates: Candidates,
    seed: int,
    teacher: Score | None = None,
    by_teacher: bool = False,
) -> Mined:
    """Return groups for all train queries with a positive and at least one negative, in the order of the candidates.

    `teacher` scores pairs with a cross-encoder; `by_teacher` takes candidates in the order of its scores, not by rank.
    """
    if section.groups == "lists":
        return _mine_lists(section, collection, candidates, seed, teacher)
    judged = judge(section, collection, candidates, teacher)
    groups: list[Group] = []
    asked, got = (np.zeros(len(candidates.queries), dtype=np.int32) for _ in range(2))
    chosen = np.zeros(candidates.documents.shape, dtype=bool)
    from_qrels = from_corpus = 0
    for place, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        # Drawn by query, not by order of work, so that one more query changes nobody else's negatives.
        rng = np.random.default_rng([seed, query])
        positives = sorted(collection.positives("train", query), key=lambda row: -grades[row])
        asked[place] = section.negatives_per_positive * len(positives)
        known = collection.judged_negatives("train", query)[: asked[place]]
        wanted = int(asked[place]) - len(known)
        drawn = _from_corpus(collection, query, candidates.found(place), _part(wanted, section.random_share, rng), rng)
        picked = _pick(section, judged, place, wanted - len(drawn), rng, by_teacher)
        negatives = [*known, *candidates.documents[place, picked].tolist(), *drawn]
        groups += _groups(query, positives, grades, negatives)
        got[place], chosen[place, picked] = len(negatives), True
        from_qrels, from_corpus = from_qrels + len(known), from_corpus + len(drawn)
    if teacher is not None:
        groups = _with_teacher(groups, teacher)
    return Mined(groups, judged, asked, got, chosen, from_qrels, from_corpus)


def _mine_lists(
    section: Mine, collection: Collection, candidates: Candidates, seed: int, teacher: Score | None
) -> Mined:
    """Return the candidates of each train query as one group, where a positive is among them.

    `candidates` are as many as will be reranked. Likely false negatives are left out, so that the loss moves them
    neither way.
    """
    everywhere = {"first_rank": 1, "last_rank": candidates.documents.shape[1]}
    judged = judge(section.model_copy(update=everywhere), collection, candidates, teacher)
    groups: list[Group] = []
    asked, got = (np.zeros(len(candidates.queries), dtype=np.int32) for _ in range(2))
    chosen = np.zeros(candidates.documents.shape, dtype=bool)
    first = _first_stage(candidates)
    known = 0
    for place, query in enumerate(candidates.queries.tolist()):
        rng = np.random.default_rng([seed, query])
        reasons, documents = judged.reasons[place], candidates.documents[place]
        grades = collection.qrels["train"][query]
        positives = documents[reasons == POSITIVE].tolist()
        no, open_ = np.flatnonzero(reasons == NEGATIVE), np.flatnonzero(reasons == USABLE)
        size = section.list_size or len(reasons)
        picked = sorted([*no.tolist(), *_draw(open_, max(0, size - len(positives) - len(no)), rng)])
        if positives and picked:
            asked[place] = got[place] = len(picked)
            taken = [*np.flatnonzero(reasons == POSITIVE).tolist(), *picked]
            rows = [grades[row] for row in positives]
            scores = first[place, taken].tolist()
            groups.append(Group(query, positives, rows, documents[picked].tolist(), first=scores))
            chosen[place, picked] = reasons[picked] == USABLE
            known += len(no)
    if teacher is not None:
        groups = _with_teacher(groups, teacher)
    return Mined(groups, judged, asked, got, chosen, known, 0)


def candidate_lists(collection: Collection, candidates: Candidates) -> list[Group]:
    """The train queries' candidates whole, as groups: what a reranker will see, with what was judged relevant in it."""
    lists = []
    first = _first_stage(candidates)
    for place, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        scores = dict(zip(candidates.found(place), first[place].tolist(), strict=False))
        relevant = set(collection.positives("train", query))
        positives = [row for row in scores if row in relevant]
        if positives:
            group = Group(
                query, positives, [grades[row] for row in positives], [row for row in scores if row not in relevant]
            )
            lists.append(replace(group, first=[scores[row] for row in group.documents]))
    return lists


def _first_stage(candidates: Candidates) -> np.ndarray:
    """Return the first stage's scores (queries, depth), standardised over each query's candidates."""
    return standardised(candidates.scores, candidates.documents != NOTHING)


def _pick(
    section: Mine, judged: Judged, place: int, count: int, rng: np.random.Generator, by_teacher: bool
) -> list[int]:
    """Return the positions in one query's candidates that become negatives."""
    usable = np.flatnonzero(judged.reasons[place] == USABLE)
    if by_teacher:
        usable = usable[np.argsort(-judged.teacher[place, usable], kind="stable")]
    choose = _draw if section.pick == "random" else _first
    return choose(usable, count, rng)


def _part(count: int, share: float, rng: np.random.Generator) -> int:
    """A share of a count as a whole number, rounded up or down by chance so that it is right on average."""
    return int(count * share + rng.random()) if 0 < share < 1 else round(count * share)


def _first(pool: np.ndarray, count: int, _: np.random.Generator) -> list[int]:
    return pool[:count].tolist()


def _draw(pool: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """`count` of the pool without repetition, in its order."""
    chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False)
    return pool[np.sort(chosen)].tolist()


def _from_corpus(
    collection: Collection, query: int, found: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Documents of the whole corpus that were not retrieved, not judged and not like a positive or the query itself."""
    alike = collection.first_alike
    positives = {int(alike[row]) for row in relevant_or_self(collection, query)}
    taken, drawn = {*found, *collection.qrels["train"][query]}, []
    for row in rng.integers(len(alike), size=count * TRIES).tolist():
        if len(drawn) == count:
            break
        if row not in taken and int(alike[row]) not in positives:
            taken.add(row)
            drawn.append(row)
    return drawn


def _groups(query: int, positives: list[int], grades: Mapping[int, int], negatives: list[int]) -> list[Group]:
    """Share positives and negatives out over as many groups as the positives need, dealt like cards."""
    count = -(-len(positives) // POSITIVES_PER_GROUP)
    # Where there are fewer negatives than groups, the last groups share the hardest one.
    shares = [(positives[start::count], negatives[start::count] or negatives[:1]) for start in range(count)]
    return [Group(query, good, [grades[row] for row in good], bad) for good, bad in shares if bad]


def _with_teacher(groups: list[Group], teacher: Score) -> list[Group]:
    """The groups with the teacher's score of every document, for distillation."""
    scores = iter(teacher([(group.query, row) for group in groups for row in group.documents]).tolist())
    return [replace(group, teacher=[next(scores) for _ in group.documents]) for group in groups]
