"""The forecast of a run: minutes and disk of each stage, and the memory of training, from a short measurement.

A stage predicts its own cost from counts that are known before (queries, documents, depth, epochs) and from the speed
of the recipe's models here, on texts of the user's collection.

Imports inside run down, like the package's own:

    plan                                the forecast of all remaining stages: made, shown, kept beside the real minutes
    memory                              the memory of training against that of the device
    work                                what a stage's cost is computed from: counts and speeds
    speeds                              the models' speeds, measured once for each model and machine
    measure                             a cross-encoder timed in scoring and training
    here  records                       this machine; what is known of the speed of a model
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.forecast.plan import FILE as FILE
    from trainer.forecast.plan import Forecast as Forecast
    from trainer.forecast.plan import keep as keep
    from trainer.forecast.plan import predict as predict
    from trainer.forecast.plan import read_predicted as read_predicted
    from trainer.forecast.plan import show as show
    from trainer.forecast.speeds import Speeds as Speeds
    from trainer.forecast.work import FLOAT32 as FLOAT32
    from trainer.forecast.work import Cost as Cost
    from trainer.forecast.work import Work as Work

__getattr__ = face(__name__)
