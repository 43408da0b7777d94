"""The files of an exported folder, as the parsers of other libraries read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tokenizers import Tokenizer

from trainer.export.readers import GRAPH
from trainer.model_files.architectures import NOT_IN_TRANSFORMERS_4
from trainer.model_files.references import architecture_of, label_names, read_config

IDENTITY = "torch.nn.modules.linear.Identity"  # the activation of a model whose logits are its scores
WHOLE, NUMBER, TEXT, FLAG = "a whole number", "a number", "a text", "true or false"
Fields = Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """An exported folder; its files are read on first use."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_config(self.folder)

    @property
    def architecture(self) -> str:
        """The name of the model's class, empty if config.json names none."""
        return architecture_of(self.config)

    @property
    def family(self) -> str:
        """The `model_type` of config.json."""
        return str(self.config.get("model_type", ""))

    @property
    def faults_in_transformers_4(self) -> list[str]:
        """The reason for which a program that needs a transformers below 5 does not know the model; [] if it does."""
        encoder = self.config.get("encoder") or self.config  # of the interaction head, whose own code is in the folder
        name = encoder.get("model_type")
        return [f"it needs transformers 4, which has no {name}"] if name in NOT_IN_TRANSFORMERS_4 else []

    @property
    def labels(self) -> int:
        """The number of labels."""
        return len(label_names(self.config))

    @property
    def is_prompt(self) -> bool:
        """Whether pairs are joined by a chat template, as in a decoder."""
        return (self.folder / "chat_template.jinja").is_file()

    @property
    def brings_code(self) -> bool:
        """Whether the model needs Python code from its folder."""
        return "auto_map" in self.config

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        return self.json("tokenizer_config.json") or {}

    @cached_property
    def separators(self) -> tuple[list[int], list[int]]:
        """The ids and the types of the tokens that join a pair, from a pair of empty texts."""
        joined = Tokenizer.from_file(str(self.folder / "tokenizer.json")).encode("", "")
        return joined.ids, joined.type_ids

    @cached_property
    def tensors(self) -> dict[str, list[int]]:
        """The shape of each tensor in the safetensors files."""
        shapes: dict[str, list[int]] = {}
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, framework="np") as file:
                shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return shapes

    @cached_property
    def graph(self) -> tuple[list[str], list[str]] | None:
        """The names of the ONNX graph's inputs and outputs; None without a graph."""
        if not (self.folder / GRAPH).is_file():
            return None
        import onnx

        graph = onnx.load(str(self.folder / GRAPH), load_external_data=False).graph
        return [tensor.name for tensor in graph.input], [tensor.name for tensor in graph.output]

    @property
    def activation_faults(self) -> list[str]:
        """The fault of a config.json that does not say that the logits are the scores."""
        named = (self.config.get("sentence_transformers") or {}).get("activation_fn")
        return [] if named == IDENTITY else ["config.json names no activation, so that it would apply a sigmoid"]

    def graph_faults(self, filled: Set[str]) -> list[str]:
        """Return the faults of the ONNX graph for a program that fills these inputs and reads `logits`."""
        if self.graph is None:
            return ["there is no ONNX graph"]
        inputs, outputs = self.graph
        faults = [f"it does not fill the graph's input {name}" for name in sorted({*inputs} - filled)]
        return faults + ([] if "logits" in outputs else ["the graph has no output logits"])

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, None without the file."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def wrong(self, fields: Fields, optional: Fields | None = None, of: Mapping[str, Any] | None = None) -> list[str]:
        """Return a fault for each key of config.json that a parser of typed fields would not take.

        A key of `fields` must be there; one of `optional` may be missing or null. `of` is another file's content.
        """
        content = self.config if of is None else of
        wanted = {**fields, **{key: kind for key, kind in (optional or {}).items() if content.get(key) is not None}}
        return [
            f"config.json: {key} is {json.dumps(content[key])[:40] if key in content else 'missing'}, not {kind}"
            for key, kind in wanted.items()
            if not _is(content.get(key), kind)
        ]


def fields(whole: str = "", number: str = "", text: str = "", flag: str = "") -> Fields:
    """Return the kind of each of these keys, given as words."""
    kinds = {WHOLE: whole, NUMBER: number, TEXT: text, FLAG: flag}
    return {key: kind for kind, keys in kinds.items() for key in keys.split()}


def _is(value: Any, kind: str) -> bool:
    if kind == FLAG or isinstance(value, bool):
        return kind == FLAG and isinstance(value, bool)
    if kind == WHOLE:
        return isinstance(value, int) and value >= 0
    return isinstance(value, str if kind == TEXT else int | float)
