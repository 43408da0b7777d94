"""The context of a run that its stages share: recipe, run folder, processes, and results of earlier stages.

Imports inside run down, like the package's own:

    models                              load, score, evaluate and select the models of a run
    endpoints                           scores by endpoints, compared with the human labels
    result                              the result of a run, for Python
    run                                 Run, and the shape of a stage
    inputs                              inputs of a stage for its fingerprint
"""

from typing import TYPE_CHECKING

from trainer.context.inputs import content as content
from trainer.context.inputs import endpoint as endpoint
from trainer.context.inputs import file as file
from trainer.context.inputs import prompt as prompt
from trainer.context.inputs import settings as settings
from trainer.context.run import Notes as Notes
from trainer.context.run import RoundStage as RoundStage
from trainer.context.run import Run as Run
from trainer.context.run import Stage as Stage
from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.context.endpoints import EndpointTeacher as EndpointTeacher
    from trainer.context.endpoints import pair_scorer as pair_scorer
    from trainer.context.endpoints import score_rows as score_rows
    from trainer.context.models import BETWEEN as BETWEEN
    from trainer.context.models import base_ranks as base_ranks
    from trainer.context.models import changes_signals as changes_signals
    from trainer.context.models import dev_measure as dev_measure
    from trainer.context.models import embed as embed
    from trainer.context.models import first_stage_weights as first_stage_weights
    from trainer.context.models import has_fresh_head as has_fresh_head
    from trainer.context.models import keep_best as keep_best
    from trainer.context.models import lists_for_fit as lists_for_fit
    from trainer.context.models import load as load
    from trainer.context.models import load_base as load_base
    from trainer.context.models import load_base_to_train as load_base_to_train
    from trainer.context.models import may_run_code as may_run_code
    from trainer.context.models import measure as measure
    from trainer.context.models import score as score
    from trainer.context.models import score_before as score_before
    from trainer.context.models import teacher as teacher
    from trainer.context.result import RunResult as RunResult

__getattr__ = face(__name__)
