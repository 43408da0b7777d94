"""Training: from groups to the best checkpoint on dev.

Imports inside run down, like the package's own:

    interpolate                         interpolation between the start and the trained model, chosen on dev
    loop                                the training loop: steps, dev scores, the best model, early stopping
    gradients                           gradients of one step, within the memory of the device
    fit                                 what is fitted before the first step
    mixture                             lexical signals beside the logit of a standard checkpoint
    optimizer  head_init  student       AdamW and its rates; fitting a fresh head; the student of a distillation
    adapter                             LoRA: its layers, merged weights and files
    schedule  checkpoints  losses       batches and learning rate of each step; atomic checkpoints; losses
    windows                             the windows of long documents that training reads
    parallel                            one device, data parallelism (DDP) or sharded models (FSDP2)
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.training.adapter import ADAPTER_FOLDER as ADAPTER_FOLDER
    from trainer.training.checkpoints import FITTED as FITTED
    from trainer.training.checkpoints import Progress as Progress
    from trainer.training.head_init import probe as probe
    from trainer.training.head_init import start_head as start_head
    from trainer.training.interpolate import choose as choose
    from trainer.training.loop import Measure as Measure
    from trainer.training.loop import TrainingJob as TrainingJob
    from trainer.training.loop import train_reranker as train_reranker
    from trainer.training.optimizer import default_rate as default_rate
    from trainer.training.schedule import BETWEEN as BETWEEN
    from trainer.training.schedule import evaluation_steps as evaluation_steps
    from trainer.training.schedule import rate_factor as rate_factor
    from trainer.training.schedule import steps as steps
    from trainer.training.student import has_fresh_classifier as has_fresh_classifier
    from trainer.training.student import load_student as load_student
    from trainer.training.student import student_recipe as student_recipe

__getattr__ = face(__name__)
