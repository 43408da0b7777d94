"""The collection: documents, queries and relevance judgements (qrels).

`check_collection` reads every line once, without heavy imports, and lists every fault with file and line.
`build_collection` does the same on its way to Arrow files; `Collection` maps those into memory, so a corpus larger
than memory is no problem. Everything behind this package speaks in row numbers; ids come back at the very end.

Imports inside run down, like the package's own:

    collection                  check it, build it, map it
    audit                       what makes numbers doubtful
    reader                      rows to records and judgements
    sources                     the files that the recipe names
    records  faults
"""

from trainer.data.collection import Collection, Summary, build_collection, check_collection
from trainer.data.faults import Faults
from trainer.data.records import SPLITS, Judgement, Record
from trainer.data.sources import fingerprint_data

__all__ = [
    "SPLITS",
    "Collection",
    "Faults",
    "Judgement",
    "Record",
    "Summary",
    "build_collection",
    "check_collection",
    "fingerprint_data",
]
