"""ONNX Runtime on the CPU: a graph that computes the logits of padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ERRORS = 3  # level of the log: else a warning for each node that could be faster


class Session:
    """An opened graph, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_mem_pattern = False  # it would keep a plan of memory for each shape of a batch
        options.log_severity_level = ERRORS
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [tensor.name for tensor in self._session.get_inputs()]

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (pairs,) float32 of a padded batch (pairs, length) int64."""
        (logits,) = self.outputs(["logits"], batch)
        return torch.from_numpy(logits)[:, 0]

    def outputs(self, names: Sequence[str], batch: Mapping[str, Tensor]) -> list[Any]:
        """Return outputs of the graph by their names, as arrays, for a padded batch (pairs, length) int64."""
        return list(self._session.run(list(names), {name: batch[name].numpy() for name in self._names}))
