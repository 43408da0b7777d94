"""Hard negatives: documents that the first stage ranks high for a query and that are not labelled relevant.

The candidates of the train queries and the qrels become groups: a query, its positives, its negatives. Negatives are
sampled from the rank window (ranks that will be reranked, the source of most negatives), from deeper ranks and from the
corpus. Likely false negatives are filtered out, counted by reason and listed for a person to label; a document that was
filtered out is never used to fill a group.

Imports inside run down, like the package's own:

    likely_false_negatives              unlabelled documents that are probably relevant, for a person to label
    report                              counts, histograms and examples of a mining run
    sample  from_teacher                groups with sampled negatives; groups in a teacher's order, without labels
    filter                              a verdict on every candidate
"""

from trainer.mining.likely_false_negatives import write_likely_false_negatives
from trainer.mining.report import Report
from trainer.mining.sample import Mined, candidate_lists, mine

__all__ = ["Mined", "Report", "candidate_lists", "mine", "write_likely_false_negatives"]
