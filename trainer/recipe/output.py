"""The sections of what leaves a run: the exported folder, the upload, and the training numbers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from trainer.recipe.section import Section

REVISION = r"^\w+([./-]\w+)*$"  # a branch or tag of a Git repository


class Export(Section):
    """The exported model: a folder that transformers and sentence-transformers load, and further formats."""

    formats: tuple[Literal["onnx", "onnx-fused", "onnx-int8"], ...] = ("onnx",)
    """Additional formats for ONNX Runtime. onnx: float32; onnx-fused: float32, faster, for `reranker serve`;
    onnx-int8: smaller, and faster on many CPUs. A format whose scores, or for int8 whose order and dev metric, are not
    the trained model's is left out."""
    adapter: bool = False
    """Also export the LoRA adapter in the subfolder adapter, for the base model."""


class Push(Section):
    """Upload of the export folder to the Hugging Face Hub; runs only with this section."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository on the Hub, as OWNER/NAME; it is created if it does not exist."""
    private: bool = True
    """Create the repository as private, visible only to those you give access; an existing one must be private."""
    message: str = "Add reranker"
    """Commit message of the upload."""
    revision: str = Field("main", pattern=REVISION)
    """Branch of the repository that is uploaded to; it is created from the branch main if it does not exist."""
    tag: str | None = Field(None, pattern=REVISION)
    """Tag that the uploaded version gets, as v1.0; a tag that exists is never moved."""
    card: Literal["refuse", "keep", "replace"] = "refuse"
    """What happens to a README.md that someone else wrote or edited: nothing is uploaded, it is kept, or replaced."""


class Track(Section):
    """Tracking with Weights & Biases; `train/metrics.jsonl` is always written."""

    mode: Literal["off", "offline", "online"] = "off"
    """off: no tracking; offline: write files for `wandb sync`; online: send metrics during training."""
    project: str = "domain-reranker"
    """Name of the W&B project."""

    @field_validator("mode", mode="before")
    @classmethod
    def _undo_yaml_boolean(cls, mode: Any) -> Any:
        return "off" if mode is False else mode
