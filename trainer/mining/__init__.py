"""Hard negatives: what the first stage ranks high for a query and nobody judged relevant.

The candidates of the train queries and the qrels become groups: a query, its positives, its negatives. By
default a group is the candidates as they will be reranked; with `mine.groups: draws` negatives are drawn from a window
of ranks and from the whole corpus. A likely unlabelled positive is filtered out, counted with its reason and listed for
a person to label; nothing that was filtered out ever comes back to fill a group.

Imports inside run down, like the package's own:

    likely_false_negatives              unlabelled documents that are probably relevant, for a person to label
    report                              what was kept and what was filtered out, with examples
    sample  from_teacher                negatives from three rank windows; groups without labels
    filter                              a verdict on every candidate
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.mining.from_teacher import draw as draw
    from trainer.mining.from_teacher import groups as groups
    from trainer.mining.from_teacher import on_scale as on_scale
    from trainer.mining.from_teacher import with_own as with_own
    from trainer.mining.likely_false_negatives import write_suspects as write_suspects
    from trainer.mining.report import Report as Report
    from trainer.mining.sample import Mined as Mined
    from trainer.mining.sample import candidate_lists as candidate_lists
    from trainer.mining.sample import mine as mine

__getattr__ = face(__name__)
