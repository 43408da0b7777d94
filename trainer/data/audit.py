"""What makes numbers doubtful without making them impossible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping


def warnings(qrels: Mapping[str, Mapping[str, Mapping[str, int]]], query_texts: Mapping[str, str]) -> list[str]:
    """What makes numbers doubtful without making them impossible."""
    found = []
    home: dict[str, str] = {}
    shared: dict[tuple[str, str], int] = defaultdict(int)
    for split, judged in qrels.items():
        for query in judged:
            first = home.setdefault(query_texts[query], split)
            if first != split:
                shared[first, split] += 1
    for (first, second), count in shared.items():
        found.append(f"{count} query texts stand in {first} and in {second}: what is learned there is measured here")
    for split in ("dev", "test"):
        count = sum(any(grade > 0 for grade in grades.values()) for grades in qrels[split].values())
        if count < 50:
            found.append(f"{count} {split} queries can hardly tell two models apart; 100 or more do")
    return found
