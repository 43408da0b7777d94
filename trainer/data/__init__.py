"""The collection: documents, queries and relevance judgements (qrels).

`check_collection` reads every line once, without heavy imports, and reports all problems with file and line.
`build_collection` runs the same checks while it writes Arrow files; `Collection` memory-maps these, so a corpus may be
larger than memory. The rest of the code uses row numbers; ids are restored when results are written.

Imports inside run down, like the package's own:

    groups  pseudo_queries      training examples of a query; texts of the corpus as queries
    generated  guard            queries made from documents; other collections, on which models are only measured
    collection                  check, build and memory-map the collection
    audit                       counts and warnings about a collection
    qrels  memory               judgements of all splits; a collection from dicts
    reviews  pairs  click_log   reviewed labels; pairs of texts without ids; clicks by file and line
    reader                      rows to documents, queries and judgements
    sources  layout             the files or data set in the recipe; recognition of a folder's files
    hub  columns                data sets of the Hub; the columns of each role
    tables                      files to rows
    lines  splits  lengths      text files to lines; dev and test split off; texts over the length limit
    earlier_splits              the splits of the run that the base model came from
    self_documents  values      documents that are queries too; texts of pairs
    clicks  extracts            labels from clicks; texts of a document that can serve as queries
    records  faults             shared types; problems by kind
    near_duplicates             documents with (nearly) the same text
    languages                   the language of texts
"""

from trainer.data.audit import Summary
from trainer.data.collection import Collection, build_collection, check_collection
from trainer.data.earlier_splits import EarlierSplits
from trainer.data.faults import Faults
from trainer.data.guard import check_guard_sets, guard_sets, guard_split
from trainer.data.layout import Layout, recognise
from trainer.data.lengths import MAX_AUTO_LENGTH, covering_length, describe_lengths
from trainer.data.lines import read_lines
from trainer.data.records import SPLITS, Judgement, Record, trec_id
from trainer.data.sources import fingerprint_data
from trainer.data.tables import trec_fields

__all__ = [
    "SPLITS",
    "Collection",
    "EarlierSplits",
    "Faults",
    "Judgement",
    "Layout",
    "Record",
    "Summary",
    "build_collection",
    "check_collection",
    "check_guard_sets",
    "MAX_AUTO_LENGTH",
    "covering_length",
    "describe_lengths",
    "fingerprint_data",
    "guard_sets",
    "guard_split",
    "read_lines",
    "recognise",
    "trec_fields",
    "trec_id",
]
