"""The context of a run that its stages share: recipe, run folder, processes, and results of earlier stages.

Imports inside run down, like the package's own:

    models                              load, score, evaluate and select the models of a run
    result                              the result of a run, for Python
    run                                 Run, and the shape of a stage
    inputs                              inputs of a stage for its fingerprint
"""

from trainer.context.inputs import content, settings
from trainer.context.run import Notes, Run, Stage

__all__ = ["Notes", "Run", "Stage", "content", "settings"]
