"""Hard negatives: what the first stage ranks high for a query and nobody judged relevant.

The candidates of the train queries and the qrels become groups: a query, its positives, its negatives. Whatever is
passed over is counted with its reason; nothing that was filtered out ever comes back to fill a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from trainer.batches import Group
from trainer.data import Collection
from trainer.recipe import Mine
from trainer.retriever import Candidates
from trainer.runs import write_json

POSITIVES_PER_GROUP = 4  # a query with more positives gives several groups, so that no group outgrows the others
NOT_NEEDED = "usable, but not needed"
EXAMPLES = 5  # of queries shown in the report


@dataclass
class Report:
    """What mining saw, kept and passed over. Counts are of candidates unless the name says otherwise."""

    queries: int = 0
    queries_without_positive: int = 0
    queries_with_fewer_negatives: int = 0
    queries_without_negative: int = 0
    queries_without_threshold: int = 0
    candidates: int = 0
    negatives: int = 0
    judged_negatives: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    negative_ranks: list[int] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        reasons = [f"{count} {reason}" for reason, count in self.passed_over.most_common() if reason != NOT_NEEDED]
        line = f"{self.negatives} negatives for {self.queries} queries"
        if self.queries_with_fewer_negatives:
            line += f" ({self.queries_with_fewer_negatives} got fewer than asked)"
        return f"{line}; passed over: {', '.join(reasons) or 'none'}"


def mine(section: Mine, collection: Collection, candidates: Candidates, seed: int) -> tuple[list[Group], Report]:
    """Groups for all train queries with a positive and at least one negative, in the order of the candidates."""
    report = Report(queries_without_positive=len(collection.qrels["train"]) - len(candidates.queries))
    groups: list[Group] = []
    for place, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        # Drawn by query, not by order of work, so that one more query changes nobody else's negatives.
        rng = np.random.default_rng([seed, query])
        positives = sorted((row for row, grade in grades.items() if grade > 0), key=lambda row: -grades[row])
        asked = section.negatives_per_positive * len(positives)
        judged = [row for row, grade in grades.items() if grade == 0][:asked]
        usable = _usable(section, candidates, place, grades, report)
        mined = usable[: asked - len(judged)] if section.pick == "top" else _draw(usable, asked - len(judged), rng)
        report.passed_over[NOT_NEEDED] += len(usable) - len(mined)
        negatives = judged + mined
        report.queries += 1
        report.negatives += len(negatives)
        report.judged_negatives += len(judged)
        report.queries_with_fewer_negatives += len(negatives) < asked
        report.queries_without_negative += not negatives
        ranks = {row: rank for rank, row in enumerate(candidates.found(place), start=1)}
        report.negative_ranks += [ranks[row] for row in mined]
        groups += _groups(query, positives, grades, negatives)
    return groups, report


def candidate_lists(collection: Collection, candidates: Candidates) -> list[Group]:
    """The train queries' candidates whole, as groups: what a reranker will see, with what was judged relevant in it."""
    lists = []
    for place, query in enumerate(candidates.queries.tolist()):
        grades = collection.qrels["train"][query]
        found = candidates.found(place)
        positives = [row for row in found if grades.get(row, 0) > 0]
        if positives:
            rest = [row for row in found if grades.get(row, 0) == 0]
            lists.append(Group(query, positives, [grades[row] for row in positives], rest))
    return lists


def _usable(section: Mine, candidates: Candidates, place: int, grades: Mapping[int, int], report: Report) -> list[int]:
    """Candidates of one query that may serve as negatives, best rank first; every other one is counted."""
    positive = candidates.positive_similarity[place]
    known = section.max_share_of_positive is not None and not np.isnan(positive)
    report.queries_without_threshold += section.max_share_of_positive is not None and bool(np.isnan(positive))
    # A share of a negative similarity would lie above it; the gap to it is what is meant.
    ceiling = positive - (1 - (section.max_share_of_positive or 1)) * abs(positive) if known else np.inf
    usable = []
    for rank, row in enumerate(candidates.found(place), start=1):
        report.candidates += 1
        if grades.get(row, 0) > 0:
            report.passed_over["judged relevant"] += 1
        elif row in grades:
            # Somebody looked and said no: it is taken already, whatever its rank or similarity.
            report.passed_over["judged not relevant"] += 1
        elif not section.first_rank <= rank <= section.last_rank:
            report.passed_over["outside the rank window"] += 1
        elif candidates.similarities[place, rank - 1] > ceiling:
            report.passed_over[f"above {section.max_share_of_positive:.0%} of the positive"] += 1
        else:
            usable.append(row)
    return usable


def _draw(usable: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` of them without repetition, in their order of rank."""
    chosen = rng.choice(len(usable), size=min(count, len(usable)), replace=False)
    return [usable[position] for position in sorted(chosen.tolist())]


def _groups(query: int, positives: list[int], grades: Mapping[int, int], negatives: list[int]) -> list[Group]:
    """Share positives and negatives out over as many groups as the positives need, dealt like cards."""
    count = -(-len(positives) // POSITIVES_PER_GROUP)
    # Where there are fewer negatives than groups, the last groups share the hardest one.
    shares = [(positives[start::count], negatives[start::count] or negatives[:1]) for start in range(count)]
    return [Group(query, good, [grades[row] for row in good], bad) for good, bad in shares if bad]


def write_report(report: Report, groups: list[Group], collection: Collection, folder: Path) -> None:
    """`report.md` for people, with examples to look at; `report.json` for programs."""
    counts = {name: value for name, value in asdict(report).items() if isinstance(value, int)}
    write_json(folder / "report.json", counts | {"passed_over": dict(report.passed_over)})
    ranks = np.quantile(report.negative_ranks, [0, 0.25, 0.5, 0.75, 1]).astype(int) if report.negative_ranks else []
    lines = ["# Mined negatives", "", "| what | count |", "| --- | ---: |"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in counts.items()]
    lines += ["", "## Passed over", "", "| reason | candidates | share |", "| --- | ---: | ---: |"]
    lines += [
        f"| {reason} | {count} | {count / max(1, report.candidates):.1%} |"
        for reason, count in report.passed_over.most_common()
    ]
    lines += ["", f"Ranks of the negatives (least, quartiles, most): {', '.join(map(str, ranks)) or 'none'}", ""]
    lines += ["## Look at some", ""]
    for group in groups[:: max(1, len(groups) // EXAMPLES)][:EXAMPLES]:
        lines += [f"**{collection.queries[group.query]['text']}**", ""]
        lines += [
            f"- positive ({grade}): {_short(collection, row)}"
            for row, grade in zip(group.positives, group.grades, strict=True)
        ]
        lines += [f"- negative: {_short(collection, row)}" for row in group.negatives[:3]] + [""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")


def _short(collection: Collection, row: int) -> str:
    document = collection.documents[row]
    return f"`{document['id']}` {' '.join(document['passage'].split())[:160]}"
