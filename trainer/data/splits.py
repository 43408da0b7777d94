"""dev and test where the user gave none: queries leave train by a hash of their text.

The hash alone decides, so equal texts stay together, and more queries, another order or another seed move nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from trainer.data.faults import Faults
from trainer.data.records import SPLITS, Qrels, has_positive
from trainer.recipe import Data


def split_off(qrels: Qrels, texts: Mapping[str, str], section: Data) -> list[str]:
    """Move queries out of train to the splits that are missing; returns what was done, for the eye.

    dev is taken from the low end of the hashes and test from the high end, so that giving one of them does not
    change the other.
    """
    train = qrels.setdefault("train", {})
    missing = [split for split in SPLITS if split not in qrels]
    before = len(train)
    for split in missing:
        qrels[split] = {}
    for query in list(train):
        position = hash_position(texts[query])
        if "dev" in missing and position < section.dev_share:
            qrels["dev"][query] = train.pop(query)
        elif "test" in missing and position >= 1 - section.test_share:
            qrels["test"][query] = train.pop(query)
    return [
        f"{split} is split off: {len(qrels[split])} of {before} train queries, chosen by a hash of their text "
        f"(data.{split}_share {getattr(section, f'{split}_share')})"
        for split in missing
    ]


def hash_position(text: str) -> float:
    """A normalised text's place between 0 and 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def require_positives(
    qrels: Qrels, given: Mapping[str, str], section: Data, faults: Faults, needed: Sequence[str] = SPLITS
) -> None:
    """Note a fault for each split of `needed` in which no query has a positive; `given` has the files of splits."""
    for split in needed:
        if any(has_positive(grades, section.relevant_from) for grades in qrels[split].values()):
            continue
        if split in given:
            message = f"no judgement above {section.relevant_from - 1}, so {split} can teach or measure nothing"
            faults.add("no positive", given[split], message)
        else:
            share = getattr(section, f"{split}_share")
            message = (
                f"a share of {share} leaves no query with a positive; give more queries, raise data.{split}_share, "
                f"or give the judgements of {split} in a file"
            )
            faults.add("no positive", f"{split} is split off", message)
