"""Suspected labels: candidates that look relevant though nobody judged them, for a person to look at.

`suspected_false_negatives.jsonl` has one line a pair, the most suspicious first. A person sets `relevant` (true, false
or a grade) and hands the file back as `data.judgements`; `reranker review` does it in the terminal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import Collection
from trainer.mining.filter import SUSPICIOUS, USABLE
from trainer.mining.report import names
from trainer.mining.sample import Mined
from trainer.recipe import Mine

FILE = "suspected_false_negatives.jsonl"


def write_suspects(section: Mine, mined: Mined, collection: Collection, folder: Path) -> int:
    """Write the likely positives within the window of ranks; returns how many pairs that are.

    What was passed over as one, and what became a negative although it lies above the query's best positive.
    """
    judged, candidates, lead = mined.judged, mined.judged.candidates, _lead(mined)
    called = names(section) | {USABLE: "a negative, yet above the positive"}
    suspicious = np.isin(judged.reasons, SUSPICIOUS) | mined.chosen & (lead > 0)
    places = np.argwhere(suspicious & judged.window)
    # What has no lead is a duplicate of a positive, and comes first.
    places = places[np.argsort(-np.nan_to_num(lead[tuple(places.T)], nan=np.inf), kind="stable")]
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for place, rank in places.tolist():
            query, row = int(candidates.queries[place]), int(candidates.documents[place, rank])
            grades = collection.qrels["train"][query]
            best = max(collection.positives("train", query), key=lambda row: grades[row])
            document, positive = collection.documents[row], collection.documents[best]
            line = {
                "query_id": collection.query_ids[query],
                "document_id": document["id"],
                "relevant": None,
                "why": called[int(judged.reasons[place, rank])],
                "rank": rank + 1,
                "similarity": _number(candidates.similarities[place, rank]),
                "positive_similarity": _number(candidates.positive_similarity[place]),
                "teacher": _number(judged.teacher[place, rank]),
                "positive_teacher": _number(judged.positive_teacher[place]),
                "query": collection.queries[query]["text"],
                "document": document["passage"],
                "positive": positive["passage"],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(places)


def _lead(mined: Mined) -> np.ndarray:
    """How far each candidate lies above the query's best positive (queries, depth), NaN where that is unknown.

    By the teacher where there is one, which saw both texts; else by similarity.
    """
    judged, candidates = mined.judged, mined.judged.candidates
    if not np.isnan(judged.teacher).all():
        return judged.teacher - judged.positive_teacher[:, None]
    return candidates.similarities - candidates.positive_similarity[:, None]


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
