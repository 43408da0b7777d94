"""A model as an ONNX graph, with the weights in a second file if one file would be too large.

With `fused` the attention of each layer is one operator of ONNX Runtime, `com.microsoft.MultiHeadAttention`, which adds
any bias to the attention scores, also the interaction head's. It is written while the model is traced, through
transformers' attention interface, because the fusions of ONNX Runtime's optimizer recognise neither torch's attention
nor a bias. Architectures with an attention of their own are traced as they are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import symbolic_helper
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Batch = dict[str, Tensor]  # a padded batch (pairs, length) int64, as the model's forward takes it
FUSED = "fused in ONNX"  # the attention's name in transformers
MASKED = torch.finfo(torch.float16).min  # added to the scores of padding
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


class _Attention(torch.autograd.Function):
    """Attention (pairs, length, hidden) as a single node of the graph; the result here only has the right shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int, scale: float) -> Tensor:
        del ctx, key, value, bias, heads, scale
        return query.clone()

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, bias: Any, heads: int, scale: float) -> Any:
        """Return the node for the exporter; the biases of the projections and the padding mask are left out."""
        none = symbolic_helper._optional_input_placeholder_tensor(g)
        inputs = (query, key, value, none, none, bias)
        node = g.op("com.microsoft::MultiHeadAttention", *inputs, num_heads_i=heads, scale_f=scale)
        node.setType(query.type())
        return node


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention, with the signature of transformers' attention functions; torch's where heads are shared."""
    if attention_mask is None or query.shape[1] != key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    heads, width = int(query.shape[1]), int(query.shape[3])
    if attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, MASKED)
    hidden = [states.transpose(1, 2).flatten(2) for states in (query, key, value)]
    mixed = _Attention.apply(*hidden, attention_mask, heads, scaling or width**-0.5)
    return mixed.unflatten(2, (heads, width)), None  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _fused_attention(model: nn.Module) -> Iterator[None]:
    """Let the model's layers use the fused attention inside the context, where they can use torch's.

    MPNet's layers and Gemma 2's, which cannot, would read the mask of another attention, or lose their soft cap.
    """
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part._supports_sdpa]
    configs = {id(part.config): part.config for part in parts}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = FUSED
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def write_graph(
    model: nn.Module, example: Batch, path: Path, *, fused: bool = False, largest_file: int | None = None
) -> None:
    """Write a graph with dynamic batch and length and output `logits` (batch, 1) of a float32 model on the CPU.

    Above `largest_file` bytes (2 GiB by default) all weights go to one file `model.onnx_data` next to it; without this
    the exporter would write a file for each weight. Exceptions of the exporter are not caught.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as temporary, _fused_attention(model) if fused else nullcontext():
        written = Path(temporary) / path.name
        _trace(model, example, written)
        files = list(Path(temporary).iterdir())
        if len(files) == 1 and written.stat().st_size <= (largest_file or LARGEST_FILE):
            written.replace(path)
            path.chmod(0o644)
        else:
            onnx.save_model(
                onnx.load(str(written)), str(path), save_as_external_data=True, location=f"{path.name}_data"
            )


def _trace(model: nn.Module, example: Batch, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter gives the model back in the mode of the module that it was given, whose default is training.
    graph = _Graph(model, list(example)).eval()
    with warnings.catch_warnings():  # the exporter's own; the graph is verified by its scores
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in example} | {"logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


AttentionInterface.register(FUSED, _attend)
AttentionMaskInterface.register(FUSED, sdpa_mask)
