"""Which libraries and servers load an exported folder, by the rules of each one's parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.export.contents import Contents
from trainer.export.engines import elasticsearch_faults, vespa_faults, vespa_note
from trainer.export.libraries import (
    fastembed_faults,
    infinity_faults,
    sentence_transformers_faults,
    transformers_faults,
)
from trainer.export.parity import Loading
from trainer.export.tei import candle_faults, onnx_faults
from trainer.export.vllm import vllm_faults

TRUST = "with `trust_remote_code=True`"
SIGMOID = "scores are sigmoids of the logits, unless `raw_scores` is true"


@dataclass(frozen=True)
class Target:
    """A library or server: its faults for a folder, what to know about its scores, and whether it runs its code."""

    name: str
    faults: Callable[[Contents], list[str]]
    note: str | Callable[[Contents], str] = ""
    runs_code: bool = False


TARGETS = (
    Target("transformers", transformers_faults, runs_code=True),
    Target("sentence-transformers", sentence_transformers_faults, runs_code=True),
    Target("Text Embeddings Inference (ONNX)", onnx_faults, f"the CPU image; {SIGMOID}"),
    Target("Text Embeddings Inference (candle)", candle_faults, f"the GPU images; GELU is approximated; {SIGMOID}"),
    Target("vLLM", vllm_faults, "`vllm serve FOLDER --runner pooling`"),
    Target("Infinity", infinity_faults, f"the engine torch; {SIGMOID}", runs_code=True),
    Target("fastembed", fastembed_faults, "`TextCrossEncoder.add_custom_model` with `onnx/model.onnx`"),
    Target("Elasticsearch", elasticsearch_faults, "`eland_import_hub_model --task-type text_similarity`"),
    Target("Vespa", vespa_faults, vespa_note),
)


def loadings(folder: Path, left_out: Mapping[str, str]) -> list[Loading]:
    """Return for each target whether it loads a folder.

    `left_out` are the readers and formats that failed when they were run, with reasons.
    """
    contents = Contents(folder)
    return [_loading(target, contents, left_out) for target in TARGETS]


def _loading(target: Target, contents: Contents, left_out: Mapping[str, str]) -> Loading:
    reasons = [left_out[target.name]] if target.name in left_out else target.faults(contents)
    if reasons:
        return Loading(target.name, tuple(dict.fromkeys(reasons)))
    note = target.note if isinstance(target.note, str) else target.note(contents)
    notes = [TRUST] * (target.runs_code and contents.brings_code) + [note] * bool(note)
    return Loading(target.name, note="; ".join(notes))


def in_a_line(loaded: Sequence[Loading]) -> str:
    """Return the names of the targets that load a folder, and of those that do not."""
    loads, refuses = ([found.name for found in loaded if bool(found.reasons) == refused] for refused in (False, True))
    line = f"loads in {', '.join(loads) or 'nothing'}"
    return f"{line}; does not load in {', '.join(refuses)} (README.md says why)" if refuses else line


def as_table(loaded: Sequence[Loading], brings_code: bool) -> str:
    """Return a Markdown table of the targets; for a model with its own code, also what to do about the others."""
    rows = [f"| {found.name} | {'no' if found.reasons else 'yes'} | {_cell(found)} |" for found in loaded]
    table = "\n".join(["| | loads | |", "| --- | --- | --- |", *rows])
    if not brings_code:
        return table
    return f"""{table}

The model has a head of its own. What runs its code or its ONNX graph serves it, as does `reranker serve`. For all
others add a section `distil:` to the recipe, which trains a standard classifier on this model's scores."""


def _cell(found: Loading) -> str:
    return "; ".join(found.reasons).replace("|", "\\|").replace("\n", " ") or found.note
