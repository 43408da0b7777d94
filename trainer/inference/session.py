"""ONNX Runtime on the CPU: a graph that computes the logits of padded batches."""

from __future__ import annotations

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

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits (pairs,) float32 of a padded batch (pairs, length) int64."""
        inputs = {name: batch[name].numpy() for name in self._names}
        logits: Any = self._session.run(["logits"], inputs)[0]
        return torch.from_numpy(logits)[:, 0]
