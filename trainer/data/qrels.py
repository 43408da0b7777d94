"""The reader of a section's files, and the judgements of all splits, with clicks, splits and reviews applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.data.click_log import add_labels
from trainer.data.earlier_splits import EarlierSplits
from trainer.data.pairs import PairReader
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, SplitQrels
from trainer.data.reviews import overrule
from trainer.data.sources import find_sources
from trainer.data.splits import require_positives, split_off
from trainer.recipe import Data


def reader_of(section: Data) -> Reader:
    """Return the reader of a section's files; raises DataError with all missing ones."""
    sources = find_sources(section)
    return PairReader(sources, section) if sources.pairs else Reader(sources, section)


def needed_splits(section: Data) -> Sequence[str]:
    """Return the splits that must have a query with a relevant document."""
    return SPLITS if section.needs_splits else ()


def split_qrels(
    reader: Reader,
    section: Data,
    texts: Mapping[str, str],
    needed: Sequence[str],
    earlier: EarlierSplits | None = None,
) -> tuple[SplitQrels, list[str]]:
    """Return the judgements of all three splits with reviewed labels applied, and notes on splitting and reviews.

    Raises DataError with all problems; a split of `needed` without a positive is one.
    """
    qrels = reader.qrels()
    given = {split: tables[0].name for split, tables in reader.sources.judged.items()}
    if reader.sources.clicks:
        given.setdefault("train", reader.sources.clicks[0].name)
        add_labels(reader, qrels, texts)
    notes = reader.notes() + split_off(qrels, texts, section, earlier)
    if section.judgements is not None:
        notes.append(overrule(section.judgements, qrels, reader))
    reader.faults.stop()  # these problems may be the reason why a split is empty
    if earlier is not None:
        notes.append(earlier.note(qrels, texts))
        if problem := earlier.conflict(qrels, texts):
            reader.faults.add("splits of the base model", "reranker.model", problem)
    require_positives(qrels, given, section, reader.faults, needed)
    reader.faults.stop()
    return {split: qrels[split] for split in SPLITS}, notes
