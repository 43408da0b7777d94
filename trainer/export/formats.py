"""The formats of an exported folder besides safetensors: each written, compared with the float32 model, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import inference
from trainer.export.parity import Parity, reason_of
from trainer.export.readers import score_onnx
from trainer.inference import Format, Quality
from trainer.model import Reranker
from trainer.model.engines import computed_by
from trainer.runtime import console


@dataclass(frozen=True)
class DevMetric:
    """The metric on the dev lists: its name, its value by the float32 model, and a function that measures a model."""

    name: str
    float32: float
    measure: Callable[[Reranker], float]


def add_formats(
    reranker: Reranker, names: Sequence[Format], folder: Path, parity: Parity, dev: DevMetric | None
) -> None:
    """Write the formats of a float32 model into a folder, and keep those that pass their gate.

    `parity` gets the measurements, and the reasons of the formats that fail; the folder gets the record of the others.
    """
    for name in names:
        quality, fault = _passing(reranker, name, folder, parity, dev)
        if quality is not None:
            parity.formats[name] = quality
            if name in inference.EXACT:
                parity.differences[name] = quality.difference
        else:
            parity.left_out[name] = fault
            inference.remove(name, folder)
    if parity.formats:
        inference.record(parity.formats, folder)


def _passing(
    reranker: Reranker, name: Format, folder: Path, parity: Parity, dev: DevMetric | None
) -> tuple[Quality | None, str]:
    """Write a format that passes its gate, and return its quality; None if there is none, and the last reason."""
    fault = ""
    for share in (0.0,) if name in inference.EXACT else inference.FLOAT32_SHARES:
        if fault:
            console.stage("export", f"{name}: {fault}; again with {share:.0%} of the products in float32")
        try:
            quality = _written(reranker, name, folder, parity, dev, share)
        except Exception as error:  # exporters and runtimes raise anything
            return None, reason_of(error)
        fault = quality.fault(exact=name in inference.EXACT)
        if not fault:
            return quality, ""
    return None, fault


def _written(
    reranker: Reranker, name: Format, folder: Path, parity: Parity, dev: DevMetric | None, float32_share: float
) -> Quality:
    """Write a format, and return its quality: over all pairs and, if it has fewer bits, in the dev metric."""
    device = reranker.device
    batch = reranker.pairs.pad(reranker.pairs.tokenize_pairs(parity.pairs[: parity.real]))
    try:
        inference.write(name, reranker.model.to("cpu"), batch, folder, float32_share)
    finally:
        reranker.model.to(device)
    scores = score_onnx(folder, parity.pairs, inference.FILES[name])
    by_dev = {}
    if dev is not None and name not in inference.EXACT:
        by_dev = {"dev": _measured(reranker, name, folder, dev), "dev_float32": dev.float32}
    size = inference.size(name, folder)
    return Quality.of(scores, parity.expected, size, parity.real, **by_dev, float32_share=float32_share)


def _measured(reranker: Reranker, name: Format, folder: Path, dev: DevMetric) -> float:
    """Return the dev metric of a format, computed as the engine of its name does."""
    session = inference.Session(folder / inference.FILES[name])
    engine, logits = reranker.engine, reranker.compute_logits
    reranker.compute_with(name, computed_by(session))
    try:
        return dev.measure(reranker)
    finally:
        reranker.compute_with(engine, logits)


def report(formats: Mapping[Format, Quality]) -> None:
    """Print the quality of each format that does not only differ by rounding."""
    for name, quality in formats.items():
        if name in inference.EXACT:
            continue
        words = f"largest score difference {quality.difference:.1e}, Kendall's tau {quality.tau:.3f}"
        if quality.dev is not None:
            words += f", dev metric {quality.dev:.4f} instead of {quality.dev_float32:.4f}"
        if quality.float32_share:
            words += f", {quality.float32_share:.0%} of the products in float32"
        console.stage("export", f"{name}: {words}; {quality.size / 1e6:.1f} MB")


def table(formats: Mapping[Format, Quality], metric: str) -> str:
    """Return the Markdown table of the formats, for the model card; empty without formats."""
    if not formats:
        return ""
    lines = [
        f"| format | file | MB | largest score difference | Kendall's tau | dev {metric} (float32) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, quality in formats.items():
        dev = "as float32" if quality.dev is None else f"{quality.dev:.4f} ({quality.dev_float32:.4f})"
        if quality.dev is None and name not in inference.EXACT:
            dev = "not measured"
        file = inference.FILES[name].as_posix()
        kind = f"{name}, {quality.float32_share:.0%} of the products in float32" if quality.float32_share else name
        cells = [kind, f"`{file}`", f"{quality.size / 1e6:.1f}", f"{quality.difference:.1e}", f"{quality.tau:.3f}", dev]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["", *lines, ""])
