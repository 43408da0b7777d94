"""The student of a distillation: a standard checkpoint trained on the scores of the tuned model.

The interaction head learns from few labels, but its export contains a modeling file, and many servers load only the
standard `ForSequenceClassification`. A fresh classifier needs more examples than there are labels; the tuned model
scores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from trainer.model import Reranker, with_classifier
from trainer.model_files.references import kind_of, locate
from trainer.recipe import Recipe


def student_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe for the student's training: section `train` with the keys of `distil`, and no frozen layers."""
    section = recipe.distil
    assert section is not None
    own = {key: getattr(section, key) for key in ("loss", "epochs", "queries_per_step", "learning_rate")}
    plain = {"head_learning_rate": None, "frozen_layers": 0, "adapter": "none"}
    settings = recipe.train.model_copy(update=own | plain)
    return recipe.model_copy(update={"train": settings})


def has_fresh_classifier(recipe: Recipe) -> bool:
    """Return whether the student starts with a fresh classifier."""
    assert recipe.distil is not None
    return recipe.distil.model is None or kind_of(locate(recipe.distil.model)) == "encoder"


def load_student(recipe: Recipe, tuned: Path) -> Reranker:
    """Return the model of `distil.model`, else the tuned encoder with a fresh classifier."""
    section = recipe.distil
    assert section is not None
    if section.model is not None:
        student = Reranker.load(
            section.model,
            head="classifier",
            max_length=recipe.reranker.max_length or Reranker.load(tuned, head="trained").max_length,
            trust_remote_code=section.trust_remote_code,
        )
        student.mixture = student.fusion = student.calibration = None  # fitted to the weights before this training
        student.passages = recipe.passages
        return student
    student = Reranker.load(tuned, head="trained", max_length=recipe.reranker.max_length)
    return _with_fresh_classifier(student, locate(recipe.reranker.model))


def _with_fresh_classifier(tuned: Reranker, base: Path) -> Reranker:
    """Return the encoder of an interaction head as a standard model; other weights are the base's, or initialised.

    The tokenizer keeps the pair template with which the encoder was trained, and saves it for every server.
    """
    assert tuned.is_interaction
    settings = dict(tuned.model.config.encoder)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.num_labels = 1
    model: Any = with_classifier(base, trust_remote_code=False, config=config)
    state = tuned.model.encoder.state_dict()
    differing = model.base_model.load_state_dict(state, strict=False)
    new = [name for name in differing.missing_keys if "pooler" not in name]
    assert [*differing.unexpected_keys, *new] == []
    student = Reranker(model.to(tuned.model.device).eval(), tuned.tokenizer, tuned.max_length)
    student.passages = tuned.passages
    return student
