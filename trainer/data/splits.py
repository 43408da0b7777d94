"""dev and test split off train, by a hash of the query's text.

The split of a query depends on its text alone: equal texts are in the same split, and more queries, another order or
another seed do not move a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from trainer.data.earlier_splits import EarlierSplits
from trainer.data.faults import Faults
from trainer.data.records import SPLITS, SplitQrels, has_positive
from trainer.recipe import Data


def split_off(
    qrels: SplitQrels, texts: Mapping[str, str], section: Data, earlier: EarlierSplits | None = None
) -> list[str]:
    """Move queries from train to the splits that are missing, and return a note for each.

    dev gets the lowest hashes and test the highest, so that giving one of them does not change the other. A query
    that is in `earlier` splits keeps its split.
    """
    train = qrels.setdefault("train", {})
    missing = [split for split in SPLITS if split not in qrels]
    before = len(train)
    if not before:  # a corpus without train queries, see the stage generate
        qrels.update({split: {} for split in missing})
        return []
    for split in missing:
        qrels[split] = {}
    for query in list(train):
        split = earlier.split_of(texts[query]) if earlier else None
        if split is None:
            split = split_by_hash(texts[query], section)
        if split in missing:
            qrels[split][query] = train.pop(query)
    return [
        f"{split} is split off: {len(qrels[split])} of {before} train queries, chosen by a hash of their text "
        f"(data.{split}_share {getattr(section, f'{split}_share')})"
        for split in missing
    ]


def split_by_hash(text: str, section: Data) -> str:
    """Return the split of a text by its hash, as large as the recipe's shares say."""
    position = hash_position(text)
    if position < section.dev_share:
        return "dev"
    return "test" if position >= 1 - section.test_share else "train"


def hash_position(text: str) -> float:
    """Return the hash of a normalised text as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def require_positives(
    qrels: SplitQrels, given: Mapping[str, str], section: Data, faults: Faults, needed: Sequence[str] = SPLITS
) -> None:
    """Add a problem for each split of `needed` without a positive; `given` has the file of each split with one."""
    for split in needed:
        if any(has_positive(grades, section.relevant_from) for grades in qrels[split].values()):
            continue
        if split in given:
            message = f"no judgement above {section.relevant_from - 1}, so {split} has no relevant document"
            faults.add("no positive", given[split], message)
        else:
            share = getattr(section, f"{split}_share")
            message = (
                f"a share of {share} leaves no query with a positive; give more queries, raise data.{split}_share, "
                f"or give the judgements of {split} in a file"
            )
            faults.add("no positive", f"{split} is split off", message)
