"""Explanations of metrics for people who do not know them."""

from __future__ import annotations

MEANINGS = {
    "nDCG": "Quality of the order, from 0 to 1: relevant documents count more the higher their rank and their grade; "
    "1 is the best possible order of all judged documents.",
    "RR": "1 divided by the rank of the first relevant document: 1 at rank 1, 0.5 at rank 2, 0 where there is none.",
    "R": "The share of the relevant documents that are retrieved.",
    "P": "The share of the listed documents that are relevant.",
    "AP": "The mean of the precision at the rank of each relevant document.",
    "Success": "1 if a relevant document is listed, else 0.",
    "Judged": "The share of the listed documents that have a judgement.",
}


def meaning_of(metric: str) -> str:
    """Return a metric's meaning for people who do not know it; `@k` cuts the list after k documents."""
    name, _, depth = metric.partition("@")
    meaning = MEANINGS.get(name.partition("(")[0], "See ir_measures (ir-measur.es) for its definition.")
    return f"{meaning} Only the first {depth} documents count." if depth else meaning
