"""Export of a model as an ONNX graph, with the weights in a second file if one file would be too large."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from trainer.model.packing import Batch

OPSET = 17  # opset that the TorchScript exporter writes most reliably, and that old runtimes read
LARGEST_FILE = 2**31 - 1  # bytes: a protobuf message cannot be larger


class _Graph(nn.Module):
    """A model that takes positional tensors and returns logits, as an ONNX graph needs it."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def write_graph(model: nn.Module, example: Batch, path: Path, largest_file: int = LARGEST_FILE) -> None:
    """Write a graph with dynamic batch and length and output `logits` (batch, 1) of a float32 model on the CPU.

    Above `largest_file` bytes all weights go to one file `model.onnx_data` next to it; without this the exporter would
    write a file for each weight. Exceptions of the exporter are not caught.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as temporary:
        written = Path(temporary) / path.name
        _trace(model, example, written)
        files = list(Path(temporary).iterdir())
        if len(files) == 1 and written.stat().st_size <= largest_file:
            written.replace(path)
            path.chmod(0o644)
        else:
            onnx.save_model(
                onnx.load(str(written)), str(path), save_as_external_data=True, location=f"{path.name}_data"
            )


def _trace(model: nn.Module, example: Batch, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings()
    ):  # the exporter's deprecation and tracing warnings; the graph is verified by its scores
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(model.eval(), list(example)),
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in example} | {"logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
