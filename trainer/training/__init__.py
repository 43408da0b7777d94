"""Training: from groups to the best checkpoint on dev.

Imports inside run down, like the package's own:

    interpolate                         interpolation between the start and the trained model, chosen on dev
    loop                                the training loop: steps, dev scores, the best model, early stopping
    gradients                           gradients of one step, within the memory of the device
    optimizer  head_init  student       AdamW and its rates; fitting a fresh head; the student of a distillation
    schedule  checkpoints  losses       batches and learning rate of each step; atomic checkpoints; losses
    parallel                            one device, data parallelism (DDP) or sharded models (FSDP2)
"""

from trainer.training.checkpoints import FITTED, Progress
from trainer.training.head_init import probe, start_head
from trainer.training.interpolate import choose
from trainer.training.loop import Measure, train_reranker
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
    "train_reranker",
]
