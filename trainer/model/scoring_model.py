"""The model over several batches in one forward call, which data parallelism requires."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trainer.model import packing
from trainer.model.reranker import Reranker
from trainer.runtime.precision import Precision, autocast


@dataclass(frozen=True)
class Batches:
    """The batches of one forward pass; from a plain list data parallelism would move them to the GPU too early."""

    parts: list[packing.Batch]


class ScoringModel(nn.Module):
    """The model over several batches in one call, so that data parallelism sees one forward per pass."""

    def __init__(self, reranker: Reranker) -> None:
        super().__init__()
        self.model = reranker.model
        self.packed = reranker.packed
        self.precision: Precision = reranker.precision

    def forward(self, batches: Batches) -> Tensor:
        """Return the logits (pairs of all batches,) float32."""
        with autocast(self.model.device, self.precision):
            return packing.training_logits(self.model, batches.parts, self.packed)
