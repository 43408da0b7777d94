"""Likely false negatives: candidates without a judgement that look relevant, listed for a person to label.

`suspected_false_negatives.jsonl` has one line for each (query, document) pair, the most likely first. A person sets
`relevant` (true, false or a grade) and passes the file as `data.judgements`; `reranker review` does so in the terminal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import Collection
from trainer.mining.filter import LIKELY_FALSE_NEGATIVE, USABLE
from trainer.mining.report import names
from trainer.mining.sample import Mined
from trainer.recipe import Mine

FILE = "suspected_false_negatives.jsonl"


def write_likely_false_negatives(section: Mine, mined: Mined, collection: Collection, folder: Path) -> int:
    """Write the likely false negatives of the rank window and return the number of pairs.

    These are the candidates filtered out as such, and negatives with a higher score than the query's best positive.
    """
    verdicts, candidates, lead = mined.verdicts, mined.verdicts.candidates, _lead(mined)
    reasons = names(section) | {USABLE: "used as a negative, but scored above the positive"}
    likely = np.isin(verdicts.reasons, LIKELY_FALSE_NEGATIVE) | mined.chosen & (lead > 0)
    pairs = np.argwhere(likely & verdicts.window)
    # The lead is unknown for near-duplicates of a positive; they are listed first.
    pairs = pairs[np.argsort(-np.nan_to_num(lead[tuple(pairs.T)], nan=np.inf), kind="stable")]
    with (folder / FILE).open("w", encoding="utf-8") as file:
        for index, rank in pairs.tolist():
            query, row = int(candidates.queries[index]), int(candidates.documents[index, rank])
            grades = collection.qrels["train"][query]
            best = max(collection.positives("train", query), key=lambda row: grades[row])
            document, positive = collection.documents[row], collection.documents[best]
            line = {
                "query_id": collection.query_ids[query],
                "document_id": document["id"],
                "relevant": None,
                "why": reasons[int(verdicts.reasons[index, rank])],
                "rank": rank + 1,
                "similarity": _number(candidates.similarities[index, rank]),
                "positive_similarity": _number(candidates.positive_similarity[index]),
                "teacher": _number(verdicts.teacher[index, rank]),
                "positive_teacher": _number(verdicts.positive_teacher[index]),
                "query": collection.queries[query]["text"],
                "document": document["passage"],
                "positive": positive["passage"],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(pairs)


def _lead(mined: Mined) -> np.ndarray:
    """Return each candidate's score minus that of the query's best positive (queries, depth), NaN where unknown.

    Scores are the teacher's if there is one, because it reads both texts, else similarities.
    """
    verdicts, candidates = mined.verdicts, mined.verdicts.candidates
    if not np.isnan(verdicts.teacher).all():
        return verdicts.teacher - verdicts.positive_teacher[:, None]
    return candidates.similarities - candidates.positive_similarity[:, None]


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
