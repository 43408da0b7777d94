"""Training: groups in, the best checkpoint on dev out.

Imports inside run down, like the package's own:

    interpolate                         the start, the trained model, or one between them: dev chooses
    loop                                steps, dev scores, the best state, and when it ends
    gradients                           a step's groups to gradients, in the memory that there is
    optimizer  head_init  student       AdamW with its rates; a fresh head; a student
    schedule  checkpoints  losses       which groups in which step, at which rate; atomic checkpoints; losses
    parallel                            one device, several with a copy of the model, or several with a share of it
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.training.checkpoints import FITTED as FITTED
    from trainer.training.checkpoints import Progress as Progress
    from trainer.training.head_init import probe as probe
    from trainer.training.head_init import start_head as start_head
    from trainer.training.interpolate import choose as choose
    from trainer.training.loop import Measure as Measure
    from trainer.training.loop import train as train
    from trainer.training.optimizer import default_rate as default_rate
    from trainer.training.schedule import evaluation_steps as evaluation_steps
    from trainer.training.schedule import rate_factor as rate_factor
    from trainer.training.schedule import steps as steps
    from trainer.training.student import has_fresh_classifier as has_fresh_classifier
    from trainer.training.student import load_student as load_student
    from trainer.training.student import student_recipe as student_recipe

__getattr__ = face(__name__)
