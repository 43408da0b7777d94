"""The collection: documents, queries and relevance judgements (qrels).

`check_collection` reads every line once, without heavy imports, and lists every fault with file and line.
`build_collection` does the same on its way to Arrow files; `Collection` maps those into memory, so a corpus larger
than memory is no problem. Everything behind this package speaks in row numbers; ids come back at the very end.

Imports inside run down, like the package's own:

    groups  pseudo_queries      training examples of a query; texts of the corpus as queries
    collection                  check it, build it, map it
    audit                       what makes numbers doubtful
    memory                      a collection from dicts
    reviews  pairs              people's corrections; texts without ids
    reader                      rows to documents, queries and judgements
    sources  layout             the files or the data set that the recipe names; what a folder holds
    hub  columns                data sets; which column is which
    tables                      files to rows
    lines  splits  lengths      text files to lines; dev and test where there are none; what is too long to be read
    self_documents  values      documents that are queries too; texts of pairs
    records  faults  twins      what all speak of; documents that are alike
    languages                   the language of texts
"""

from trainer.data.audit import Summary
from trainer.data.collection import Collection, build_collection, check_collection
from trainer.data.faults import Faults
from trainer.data.layout import Layout, recognise
from trainer.data.lengths import LONGEST_BY_ITSELF, covering_length, describe_lengths
from trainer.data.lines import read_lines
from trainer.data.records import SPLITS, Judgement, Record, trec_id
from trainer.data.sources import fingerprint_data
from trainer.data.tables import trec_fields

__all__ = [
    "SPLITS",
    "Collection",
    "Faults",
    "Judgement",
    "Layout",
    "Record",
    "Summary",
    "build_collection",
    "check_collection",
    "LONGEST_BY_ITSELF",
    "covering_length",
    "describe_lengths",
    "fingerprint_data",
    "read_lines",
    "recognise",
    "trec_fields",
    "trec_id",
]
