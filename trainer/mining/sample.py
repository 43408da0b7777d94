"""Groups for training: a query, its positives, and negatives sampled from a rank window and from the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.data import Collection
from trainer.data.groups import Group
from trainer.mining.filter import NEGATIVE, POSITIVE, USABLE, Score, Verdicts, filter_candidates, relevant_or_self
from trainer.model.scores import standardised
from trainer.recipe import Mine
from trainer.retriever import NOTHING, Candidates

POSITIVES_PER_GROUP = 4  # a query with more positives gives several groups, so that groups have similar sizes
TRIES = 20  # random draws from the corpus for each negative; a small corpus may give fewer, which is reported


@dataclass(frozen=True)
class Mined:
    """Groups for training, with the verdicts and counts for the report."""

    groups: list[Group]
    verdicts: Verdicts
    wanted: np.ndarray  # (queries,) int32, number of negatives to sample
    sampled: np.ndarray  # (queries,) int32, number of negatives in the groups, including judged ones
    chosen: np.ndarray  # (queries, depth) bool, candidates that became negatives
    judged_negatives: int  # judged not relevant in the qrels
    corpus_negatives: int  # sampled from the corpus


def mine(
    section: Mine,
    collection: Collection,
    candidates: Candidates,
    seed: int,
    teacher: Score | None = None,
    by_teacher: bool = False,
) -> Mined:
    """Return the groups of all train queries with a positive and at least one negative, in the candidates' order.

    `teacher` scores pairs with a cross-encoder; with `by_teacher` its scores, not the ranks, order the rank window.
    """
    if section.groups == "lists":
        return _mine_lists(section, collection, candidates, seed, teacher)
    verdicts = filter_candidates(section, collection, candidates, teacher)
    groups: list[Group] = []
    wanted, sampled = (np.zeros(len(candidates.queries), dtype=np.int32) for _ in range(2))
    chosen = np.zeros(candidates.documents.shape, dtype=bool)
    from_qrels = from_corpus = 0
    for index, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        # Seeded by query, so that an added query does not change the negatives of the others.
        rng = np.random.default_rng([seed, query])
        positives = sorted(collection.positives("train", query), key=lambda row: -grades[row])
        wanted[index] = section.negatives_per_positive * len(positives)
        labelled = collection.judged_negatives("train", query)[: wanted[index]]
        missing = int(wanted[index]) - len(labelled)
        count = _stochastic_share(missing, section.random_share, rng)
        drawn = _from_corpus(collection, query, candidates.found(index), count, rng)
        picked = _pick(section, verdicts, index, missing - len(drawn), rng, by_teacher)
        negatives = [*labelled, *candidates.documents[index, picked].tolist(), *drawn]
        groups += _groups(query, positives, grades, negatives)
        sampled[index], chosen[index, picked] = len(negatives), True
        from_qrels, from_corpus = from_qrels + len(labelled), from_corpus + len(drawn)
    if teacher is not None:
        groups = _with_teacher(groups, teacher)
    return Mined(groups, verdicts, wanted, sampled, chosen, from_qrels, from_corpus)


def _mine_lists(
    section: Mine, collection: Collection, candidates: Candidates, seed: int, teacher: Score | None
) -> Mined:
    """Return the candidates of each train query as one group, for queries with a positive among them.

    `candidates` has the depth that will be reranked. Likely false negatives are left out, so that the loss does not
    change their scores.
    """
    all_ranks = {"first_rank": 1, "last_rank": candidates.documents.shape[1]}
    verdicts = filter_candidates(section.model_copy(update=all_ranks), collection, candidates, teacher)
    groups: list[Group] = []
    wanted, sampled = (np.zeros(len(candidates.queries), dtype=np.int32) for _ in range(2))
    chosen = np.zeros(candidates.documents.shape, dtype=bool)
    first = _first_stage(candidates)
    from_qrels = 0
    for index, query in enumerate(candidates.queries.tolist()):
        rng = np.random.default_rng([seed, query])
        reasons, documents = verdicts.reasons[index], candidates.documents[index]
        grades = collection.qrels["train"][query]
        positives = documents[reasons == POSITIVE].tolist()
        negative, usable = np.flatnonzero(reasons == NEGATIVE), np.flatnonzero(reasons == USABLE)
        size = section.list_size or len(reasons)
        drawn = _draw(usable, max(0, size - len(positives) - len(negative)), rng)
        picked = sorted([*negative.tolist(), *drawn])
        if positives and picked:
            wanted[index] = sampled[index] = len(picked)
            taken = [*np.flatnonzero(reasons == POSITIVE).tolist(), *picked]
            labels = [grades[row] for row in positives]
            scores = first[index, taken].tolist()
            groups.append(Group(query, positives, labels, documents[picked].tolist(), first=scores))
            chosen[index, picked] = reasons[picked] == USABLE
            from_qrels += len(negative)
    if teacher is not None:
        groups = _with_teacher(groups, teacher)
    return Mined(groups, verdicts, wanted, sampled, chosen, from_qrels, 0)


def candidate_lists(collection: Collection, candidates: Candidates) -> list[Group]:
    """Return the full candidate list of each train query with a retrieved positive as a group."""
    lists = []
    first = _first_stage(candidates)
    for index, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        scores = dict(zip(candidates.found(index), first[index].tolist(), strict=False))
        relevant = set(collection.positives("train", query))
        positives = [row for row in scores if row in relevant]
        if positives:
            group = Group(
                query, positives, [grades[row] for row in positives], [row for row in scores if row not in relevant]
            )
            lists.append(replace(group, first=[scores[row] for row in group.documents]))
    return lists


def _first_stage(candidates: Candidates) -> np.ndarray:
    """Return the first stage's scores (queries, depth) float64, standardised over each query's candidates."""
    return standardised(candidates.scores, candidates.documents != NOTHING)


def _pick(
    section: Mine, verdicts: Verdicts, index: int, count: int, rng: np.random.Generator, by_teacher: bool
) -> list[int]:
    """Return the positions of `count` negatives in one query's candidates."""
    usable = np.flatnonzero(verdicts.reasons[index] == USABLE)
    if by_teacher:
        usable = usable[np.argsort(-verdicts.teacher[index, usable], kind="stable")]
    choose = _draw if section.pick == "random" else _first
    return choose(usable, count, rng)


def _stochastic_share(count: int, share: float, rng: np.random.Generator) -> int:
    """Return `count * share` rounded stochastically to an integer, so that its mean is exact."""
    return int(count * share + rng.random()) if 0 < share < 1 else round(count * share)


def _first(pool: np.ndarray, count: int, _: np.random.Generator) -> list[int]:
    """Return the first `count` of the pool."""
    return pool[:count].tolist()


def _draw(pool: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` random elements of the pool without repetition, in the pool's order."""
    chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False)
    return pool[np.sort(chosen)].tolist()


def _from_corpus(
    collection: Collection, query: int, retrieved: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
    """Return random documents: not retrieved, not judged, and no near-duplicates of a positive or of the query."""
    if not count:
        return []
    alike = collection.first_alike
    positives = {int(alike[row]) for row in relevant_or_self(collection, query)}
    taken, drawn = {*retrieved, *collection.qrels["train"][query]}, []
    for row in rng.integers(len(alike), size=count * TRIES).tolist():
        if len(drawn) == count:
            break
        if row not in taken and int(alike[row]) not in positives:
            taken.add(row)
            drawn.append(row)
    return drawn


def _groups(query: int, positives: list[int], grades: Mapping[int, int], negatives: list[int]) -> list[Group]:
    """Return groups of at most POSITIVES_PER_GROUP positives, with positives and negatives distributed round-robin."""
    count = -(-len(positives) // POSITIVES_PER_GROUP)
    # If there are fewer negatives than groups, the last groups all get the hardest negative.
    parts = [(positives[start::count], negatives[start::count] or negatives[:1]) for start in range(count)]
    return [Group(query, own, [grades[row] for row in own], others) for own, others in parts if others]


def _with_teacher(groups: list[Group], teacher: Score) -> list[Group]:
    """Return the groups with the teacher's logit of every document, for distillation.

    Documents to which it gives no score are left out, and groups without a positive or a negative that has one.
    """
    scores = iter(teacher([(group.query, row) for group in groups for row in group.documents]).tolist())
    scored = [replace(group, teacher=[next(scores) for _ in group.documents]) for group in groups]
    known = (group if all(score == score for score in group.teacher or ()) else _known(group) for group in scored)
    return [group for group in known if group.positives and group.negatives]


def _known(group: Group) -> Group:
    """Return a group without the documents whose score by the teacher is NaN."""
    teacher = group.teacher or []
    kept = [index for index, score in enumerate(teacher) if score == score]
    size = len(group.positives)
    return replace(
        group,
        positives=[group.positives[index] for index in kept if index < size],
        grades=[group.grades[index] for index in kept if index < size],
        negatives=[group.negatives[index - size] for index in kept if index >= size],
        teacher=[teacher[index] for index in kept],
        first=group.first and [group.first[index] for index in kept],
    )
