"""The measurement: a first stage and what reranks its candidates, on dev for the gate and on test for people.

Imports inside run down, like the package's own:

    release                             what dev shows of the model that leaves
    fusion                              the weight of first-stage scores: fitted on train, checked on dev
    two_stage  calibration              systems measured on a split, as a table and as TREC runs
    results                             what is kept and shown
    gate  statistics  metrics           the verdict; intervals and paired tests; values of ir_measures

Names are imported when they are first used, so that a finished run ends without loading torch.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.evaluation.fusion import describe as describe
    from trainer.evaluation.fusion import fuse as fuse
    from trainer.evaluation.gate import WORSE as WORSE
    from trainer.evaluation.gate import advice as advice
    from trainer.evaluation.gate import leaves as leaves
    from trainer.evaluation.release import judge_release as judge_release
    from trainer.evaluation.results import Results as Results
    from trainer.evaluation.results import show as show
    from trainer.evaluation.two_stage import evaluate as evaluate
    from trainer.evaluation.two_stage import mean_score as mean_score
    from trainer.evaluation.two_stage import query_scores as query_scores

__getattr__ = face(__name__)
