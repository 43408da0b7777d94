"""Evaluation of the first stage and of rerankers: on dev for the release gate, on test for the results table.

Imports inside run down, like the package's own:

    release                             the verdict on the exported model, from dev
    fusion                              the weight of first-stage scores: fitted on train, checked on dev
    two_stage  calibration              systems measured on a split, as a table and as TREC runs
    unjudged  holes                     measures that take unjudged documents into account; a judge's grades of them
    results  agreement                  results.json, and the table on the terminal; endpoints against human labels
    guard  seeds                        the verdict on guard sets; trainings with several seeds
    gate  statistics  metrics           the release gate; intervals and paired tests; values of ir_measures

Names are imported when they are first used, so that a finished run shows its table without importing torch.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.evaluation.calibration import calibrate as calibrate
    from trainer.evaluation.fusion import describe as describe
    from trainer.evaluation.fusion import fuse_with_first_stage as fuse_with_first_stage
    from trainer.evaluation.gate import GUARD_METRIC as GUARD_METRIC
    from trainer.evaluation.gate import LOST as LOST
    from trainer.evaluation.gate import WORSE as WORSE
    from trainer.evaluation.gate import Release as Release
    from trainer.evaluation.gate import advice as advice
    from trainer.evaluation.gate import made_warning as made_warning
    from trainer.evaluation.gate import passes as passes
    from trainer.evaluation.guard import GUARD_VALUES as GUARD_VALUES
    from trainer.evaluation.guard import judge_guard_sets as judge_guard_sets
    from trainer.evaluation.guard import with_guard_sets as with_guard_sets
    from trainer.evaluation.holes import HOLES_DEPTH as HOLES_DEPTH
    from trainer.evaluation.holes import Grades as Grades
    from trainer.evaluation.holes import JudgedResults as JudgedResults
    from trainer.evaluation.holes import holes_of as holes_of
    from trainer.evaluation.holes import judge_systems as judge_systems
    from trainer.evaluation.holes import show_judged as show_judged
    from trainer.evaluation.release import decide_release as decide_release
    from trainer.evaluation.results import Results as Results
    from trainer.evaluation.results import show as show
    from trainer.evaluation.seeds import SeedScores as SeedScores
    from trainer.evaluation.two_stage import evaluate as evaluate
    from trainer.evaluation.two_stage import mean_score as mean_score
    from trainer.evaluation.two_stage import query_scores as query_scores

__getattr__ = face(__name__)
