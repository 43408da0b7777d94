"""Hard negatives: documents that the first stage ranks high for a query and that are not labelled relevant.

The candidates of the train queries and the qrels become groups: a query, its positives, its negatives. By default a
group is the candidates as they will be reranked; with `mine.groups: draws` negatives are sampled from a rank window and
from the corpus. Likely false negatives are filtered out, counted by reason and listed for a person to label; a document
that was filtered out is never used to fill a group.

Imports inside run down, like the package's own:

    likely_false_negatives              unlabelled documents that are probably relevant, for a person to label
    report                              counts, histograms and examples of a mining run
    sample  from_teacher                groups with sampled negatives; groups in a teacher's order, without labels
    filter                              a verdict on every candidate
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.mining.from_teacher import groups_by_teacher as groups_by_teacher
    from trainer.mining.from_teacher import rescale_to_logits as rescale_to_logits
    from trainer.mining.from_teacher import sample_queries as sample_queries
    from trainer.mining.from_teacher import with_source_documents as with_source_documents
    from trainer.mining.likely_false_negatives import write_likely_false_negatives as write_likely_false_negatives
    from trainer.mining.report import Report as Report
    from trainer.mining.sample import Mined as Mined
    from trainer.mining.sample import candidate_lists as candidate_lists
    from trainer.mining.sample import mine as mine

__getattr__ = face(__name__)
