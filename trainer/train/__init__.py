"""Training: groups in, the best checkpoint on dev out.

Imports inside run down, like the package's own:

    interpolate                         the start, the trained model, or one between them: dev chooses
    loop                                steps, dev scores, the best state, and when it ends
    gradients                           a step's groups to gradients, in the memory that there is
    model  head                         the model and its optimizer; a fresh head, fitted first
    schedule  checkpoints               which groups in which step, at which rate; what a killed run goes on from
    devices                             one, several with a model each, or several with a share of it
"""

from trainer.train.checkpoints import FITTED, Progress
from trainer.train.head import probe, start_head
from trainer.train.interpolate import choose
from trainer.train.loop import Measure, train
from trainer.train.model import default_rate
from trainer.train.schedule import evaluation_steps, rate_factor, steps

__all__ = [
    "FITTED",
    "Measure",
    "Progress",
    "choose",
    "default_rate",
    "evaluation_steps",
    "probe",
    "rate_factor",
    "start_head",
    "steps",
    "train",
]
