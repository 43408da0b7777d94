"""What the stages of one run share: the recipe, the run folder, the processes, and what earlier stages left.

Imports inside run down, like the package's own:

    models                              models of a run: loaded, measured, asked as a teacher; the best one kept
    result                              what a run led to, for Python
    run                                 Run, and the shape of a stage
    inputs                              what a stage's fingerprint is made of
"""

from trainer.context.inputs import content, settings
from trainer.context.run import Notes, Run, Stage

__all__ = ["Notes", "Run", "Stage", "content", "settings"]
