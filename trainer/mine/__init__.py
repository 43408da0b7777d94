"""Hard negatives: what the first stage ranks high for a query and nobody judged relevant.

The candidates of the train queries and the qrels become groups: a query, its positives, its negatives. Negatives come
from three bands: the hard one (ranks that will be reranked, where most should come from), deeper ranks, and the whole
corpus. What looks like an unlabelled positive is passed over, counted with its reason and listed for a person to
judge; nothing that was passed over ever comes back to fill a group.

Imports inside run down, like the package's own:

    suspects                            likely positives, for a person to judge
    report                              what was kept and passed over
    draw                                negatives drawn from three bands
    judge                               what is said of every candidate
"""

from trainer.mine.draw import Mined, candidate_lists, mine
from trainer.mine.report import Report
from trainer.mine.suspects import write_suspects

__all__ = ["Mined", "Report", "candidate_lists", "mine", "write_suspects"]
