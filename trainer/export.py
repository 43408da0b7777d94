"""The serving folder: what transformers, sentence-transformers and ONNX servers load, checked before it is kept.

Standard classifiers, distilled ones among them, leave in the standard `ForSequenceClassification` layout; the
interaction head leaves with its own modeling file. Each format is scored against the trained model on real pairs; one
that differs is not kept.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer import console, models
from trainer.batches import Tokens
from trainer.errors import ExportError
from trainer.recipe import Data, Recipe
from trainer.report import Results
from trainer.reranker import Reranker
from trainer.runs import read_json, write_json

# Largest difference of a float32 logit that is rounding and not another model; logits here reach about 30.
TOLERANCE = 1e-3
OPSET = 17  # what the TorchScript exporter writes with the fewest surprises; old runtimes read it
MODELING_FILE = "interaction.py"


def export(
    reranker: Reranker,
    recipe: Recipe,
    results: Results,
    pairs: Sequence[tuple[Tokens, Tokens]],
    folder: Path,
) -> dict[str, float]:
    """Write the serving folder; returns the largest score difference of each format to the trained model.

    `pairs` are real, tokenised (query, document) pairs of mixed length. Raises ExportError where a format does not
    give the trained model's scores.
    """
    model = folder / "model"
    reranker.save(model)
    _finish_config(model, reranker)
    if reranker.is_interaction:
        shutil.copyfile(Path(__file__).with_name(MODELING_FILE), model / MODELING_FILE)
    expected = reranker.score_tokens(pairs)
    differences = {"safetensors": _difference(Reranker.load(model).score_tokens(pairs), expected)}
    if "onnx" in recipe.export.formats:
        path = model / "onnx" / "model.onnx"
        _write_onnx(reranker, pairs, path)
        differences["onnx"] = _difference(score_onnx(path, reranker, pairs), expected)
    for name, difference in differences.items():
        console.stage("export", f"{name}: largest score difference to the trained model {difference:.1e}")
    wrong = {name: difference for name, difference in differences.items() if not difference <= TOLERANCE}
    if wrong:
        shutil.rmtree(model)
        named = ", ".join(f"{name} by {difference:.1e}" for name, difference in wrong.items())
        raise ExportError(
            f"export: scores are not the trained model's: {named}, more than {TOLERANCE} of rounding; nothing kept. "
            "Take the format out of export.formats, or report it"
        )
    (model / "README.md").write_text(card(reranker, recipe, results), encoding="utf-8")
    return differences


def _difference(scores: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(scores - expected).max())


def _finish_config(folder: Path, reranker: Reranker) -> None:
    """Say in config.json what servers look for there.

    vLLM and sentence-transformers read the activation: none, so that what they return is the logit (a float32 sigmoid
    cannot tell logits above 17 apart). `auto_map` is how transformers finds the modeling file beside the weights.
    """
    config = read_json(folder / "config.json")
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config.pop("_name_or_path", None)
    if reranker.is_interaction:
        module = Path(MODELING_FILE).stem
        config["auto_map"] = {
            "AutoConfig": f"{module}.InteractionConfig",
            "AutoModelForSequenceClassification": f"{module}.InteractionForSequenceClassification",
        }
    write_json(folder / "config.json", config)


class _Graph(nn.Module):
    """Positional tensors in, logits out: what an ONNX graph can hold."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def _write_onnx(reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]], path: Path) -> None:
    """One file with dynamic batch and length, output `logits` (batch, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = reranker.pairs.pad(pairs[:2])
    device = reranker.model.device
    graph = _Graph(reranker.model.to("cpu").eval(), list(example))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # the exporter's own deprecation and tracing notices; the scores decide
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
    reranker.model.to(device)


def score_onnx(path: Path, reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]]) -> np.ndarray:
    """Logits (pairs,) of an exported graph under ONNX Runtime, alone and in padded batches."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores = []
    for start, end in [(0, 1), *((start, start + 8) for start in range(1, len(pairs), 8))]:
        inputs = reranker.pairs.pad(pairs[start:end])
        scores.append(session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0])
    return np.concatenate(scores).squeeze(1)


def _public_data(section: Data) -> dict[str, Any]:
    """The data section without the places of its files on this machine; a set on the Hub keeps its name."""
    shown = section.model_dump(mode="json", exclude_defaults=True)
    for key, value in dict(section).items():
        if isinstance(value, Path):
            on_hub = key == "path" and section.hub == section.title
            shown[key] = str(value) if on_hub else section.title if key == "path" else value.name
        elif isinstance(value, tuple) and isinstance(value[0], Path):
            shown[key] = [path.name for path in value]
    return shown


def _public_name(reference: str) -> str:
    """A model reference without the folders of this machine."""
    hidden = models.is_local(reference) and not reference.startswith("package:")
    return Path(reference).name if hidden else reference


def _fusion(results: Results) -> str:
    """How to put the first stage's score beside the model's, where that was better on dev."""
    if not results.first_stage_weight:
        return ""
    return f"""
`tuned + first` puts the first stage's score beside the model's: both are standardised over the candidates of a query
(mean 0, variance 1) and added, the first stage's {results.first_stage_weight:g} times. The weight was chosen on dev.
"""


def _lineage(recipe: Recipe) -> str:
    """Which of the models in the table this one is, where it learned from the other."""
    if recipe.distil is None:
        return ""
    return """
This is the distilled model: a standard classifier, taught on queries without labels by the tuned model, which is not
in this folder.
"""


def card(reranker: Reranker, recipe: Recipe, results: Results) -> str:
    """The model card: what it is, what was measured, how to use it, the recipe."""
    from huggingface_hub import EvalResult, ModelCardData

    metric = results.metrics[0]
    base = (recipe.distil and recipe.distil.model) or recipe.reranker.model
    measured = results.systems["distilled" if recipe.distil else "tuned"][metric]
    data = ModelCardData(
        pipeline_tag="text-ranking",
        library_name="sentence-transformers",
        tags=["cross-encoder", "reranker", "sentence-transformers", "text-embeddings-inference"],
        base_model=None if models.is_local(base) else base,
        model_name=recipe.name,
        eval_results=[
            EvalResult(
                task_type="text-ranking",
                dataset_type=recipe.data.title,
                dataset_name=recipe.data.title,
                dataset_split=results.split,
                metric_type=metric.lower().replace("@", "_at_"),
                metric_name=metric,
                metric_value=round(measured.mean, 4),
            )
        ],
    )
    table = [f"| {' | '.join(results.columns())} |", f"|{' --- |' * len(results.columns())}"]
    table += [f"| {' | '.join(row)} |" for row in results.rows()]
    trust = ", trust_remote_code=True" if reranker.is_interaction else ""
    shown = recipe.model_dump(mode="json", exclude_none=True)
    shown["data"] = _public_data(recipe.data)
    for section, key in (("retriever", "model"), ("mine", "teacher"), ("reranker", "model"), ("distil", "model")):
        if key in shown.get(section, {}):
            shown[section][key] = _public_name(shown[section][key])
    if recipe.retriever.run is not None:
        shown["retriever"]["run"] = recipe.retriever.run.name
    shown.pop("push", None)
    return f"""---
{data.to_yaml()}
---

# {recipe.name}

A cross-encoder that reorders what a first stage retrieved, fine-tuned on {recipe.data.title} with
domain-reranker from {_public_name(base)}. It reads query and document together, up to
{reranker.max_length} tokens, and returns one logit; only the order of the logits means anything.

## Measured

{results.split}: {results.queries} queries; the first stage's best {results.depth} candidates were reranked.
Intervals are bootstrapped over queries; `gain` is the difference to the first stage in {metric}, `p` that of a paired
sign-flip permutation test. Positives that the first stage missed count as missed; `ceiling` is the perfect order of
what it found.

{chr(10).join(table)}
{_lineage(recipe)}{_fusion(results)}
## Use

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER_OR_REPOSITORY"{trust})
print(model.rank("a query", ["a document", "another document"]))
```

`onnx/model.onnx`, where it is present, takes {" and ".join(reranker.tokenizer.model_input_names)} and returns `logits`.

## Recipe

```json
{json.dumps(shown, indent=2)}
```
"""
