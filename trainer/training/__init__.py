"""Training: groups in, the best checkpoint on dev out.

Imports inside run down, like the package's own:

    interpolate                         the start, the trained model, or one between them: dev chooses
    loop                                steps, dev scores, the best state, and when it ends
    gradients                           a step's groups to gradients, in the memory that there is
    optimizer  head_init  student       AdamW with its rates; a fresh head; a student
    schedule  checkpoints  losses       which groups in which step, at which rate; atomic checkpoints; losses
    parallel                            one device, several with a copy of the model, or several with a share of it
"""

from trainer.training.checkpoints import FITTED, Progress
from trainer.training.head_init import probe, start_head
from trainer.training.interpolate import choose
from trainer.training.loop import Measure, train
from trainer.training.optimizer import default_rate
from trainer.training.schedule import evaluation_steps, rate_factor, steps

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
