"""Checks of a model's files before it is loaded: configuration, headers of the weights, tokenizer.

They take a tenth of a second, so `check` runs them for every model of a recipe and every load runs them again.
Problems that only show in the loaded model (a tensor that no file holds) are found by `weights`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from trainer.errors import ModelError, one_line
from trainer.model_files.architectures import (
    CLASSIFIER,
    INTERACTION,
    UNSUPPORTED,
    brings_code,
    is_decoder,
    longest_text,
)
from trainer.model_files.decoders import NO_PROMPTING, Prompting, template_of, token_ids
from trainer.model_files.modules import fault_of_modules
from trainer.model_files.references import (
    BaseKind,
    architecture_of,
    kind_of,
    modules_of,
    name_of,
    read_config,
    read_json,
)
from trainer.model_files.tokenizer_file import REFETCH, highest_id, read_tokenizer

Head = Literal["auto", "classifier", "interaction", "trained"]  # trained: the model must have a trained head
Shapes = dict[str, tuple[int, ...]]  # of every tensor in the files, by name

GIT_LFS = b"version https://git-lfs"
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:word_embeddings|tok_embeddings|token_embeddings|embed_tokens|wte|shared|embeddings)\.weight$"
)
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_WIDTHS = ("embedding_size", "input_embedding_size", "hidden_size", "dim", "d_model", "emb_dim", "n_embd")


class ModelProblems:
    """The problems of one model, each as a line that begins with the model's name."""

    def __init__(self, folder: Path) -> None:
        self._name = name_of(folder)
        self.lines: list[str] = []

    def add(self, problem: str) -> None:
        """Add one problem."""
        self.lines.append(f"model {self._name}: {problem}")

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Add the messages of a ModelError that the block raises, and suppress the error."""
        try:
            yield
        except ModelError as error:
            self.lines += error.faults


def require_cross_encoder(
    folder: Path, head: Head, trust_remote_code: bool, prompting: Prompting = NO_PROMPTING
) -> BaseKind:
    """Return the kind of a cross-encoder's base; raises ModelError with all problems of its files."""
    if problems := faults_of_cross_encoder(folder, head, trust_remote_code, prompting=prompting):
        raise ModelError(problems)
    return kind_of(folder)


def faults_of_cross_encoder(
    folder: Path,
    head: Head,
    trust_remote_code: bool,
    max_length: int | None = None,
    *,
    trust: str = "trust_remote_code",
    weights: bool = True,
    prompting: Prompting = NO_PROMPTING,
) -> list[str]:
    """Return the problems of a folder from which a cross-encoder is to be loaded.

    `trust` is the recipe's key that allows the model's own code, `prompting` the recipe's settings of a decoder. With
    `weights=False` the weights are not checked, since they are not downloaded yet.
    """
    problems = ModelProblems(folder)
    with problems.collecting():
        config = read_config(folder)
        with problems.collecting():
            kind = kind_of(folder)
            if fault := fault_of_modules(folder, kind):
                problems.add(fault)
            _check_head(config, kind, head, problems.add)
            if kind == "decoder" and not problems.lines:
                with problems.collecting():
                    template_of(folder, config.get("model_type"), prompting)
                with problems.collecting():
                    _require_tokens(folder, config.get("model_type"), prompting)
        if brings_code(config) and not trust_remote_code:
            problems.add(_untrusted("auto_map in config.json", trust))
        inner = config.get("encoder")
        encoder = inner if isinstance(inner, dict) else config
        if max_length and (longest := longest_text(encoder)) and max_length > longest:
            problems.add(f"reads {longest} tokens at most, but reranker.max_length is {max_length}; lower it")
        _check_contents(folder, encoder, weights, problems)
    return problems.lines


def faults_of_bi_encoder(
    folder: Path, trust_remote_code: bool, *, trust: str = "trust_remote_code", weights: bool = True
) -> list[str]:
    """Return the problems of a folder from which a bi-encoder is to be loaded; parameters as for a cross-encoder."""
    problems = ModelProblems(folder)
    with problems.collecting():
        config = read_config(folder)
        modules = modules_of(folder)
        foreign = [name for name, _ in modules if not name.startswith("sentence_transformers.")]
        if (foreign or brings_code(config)) and not trust_remote_code:
            problems.add(_untrusted(f"modules.json: {foreign[0]}" if foreign else "auto_map in config.json", trust))
        for name, path in modules:
            if weights and name.endswith(".Dense") and not (folder / path / "model.safetensors").is_file():
                problems.add(
                    f"its module {path} holds no model.safetensors; pickled weights can run code, so convert them"
                )
        _check_contents(folder, config, weights, problems)
    return problems.lines


def _untrusted(where: str, trust: str) -> str:
    return f"has Python code of its own ({where}), which is not run by default; read it, then set {trust}: true"


def _check_head(config: dict[str, Any], kind: BaseKind, head: Head, add: Callable[[str], None]) -> None:
    """Add the reason why this model cannot be a cross-encoder, or not with this head; one problem at most."""
    encoder = config.get("encoder", {}) if kind == "interaction" else config
    family, architecture = encoder.get("model_type"), architecture_of(config)
    own_code, fresh = brings_code(config), kind == "encoder"
    if kind == "decoder" and head == "interaction":
        add("is a decoder, which cannot have the interaction head; use reranker.head: auto")
    elif kind == "reranker" and head == "interaction":
        add("has a trained classifier, which the interaction head would discard; use reranker.head: auto")
    elif fresh and head == "trained":
        add("is an encoder without a trained head, so its scores are meaningless; name a reranker")
    elif own_code:
        if fresh and head != "classifier":
            add("is built by code of its own, so it cannot have the interaction head; use reranker.head: classifier")
    elif reason := _why_unsupported(config, family, architecture, fresh):
        add(reason)
    elif kind in ("encoder", "interaction") and head != "classifier" and family not in INTERACTION:
        add(f"is a {family} model, which cannot have the interaction head; use reranker.head: classifier")


def _why_unsupported(config: dict[str, Any], family: object, architecture: str, fresh: bool) -> str | None:
    """Return the reason why a model of this family cannot be a cross-encoder, or not with a fresh head; else None."""
    name = architecture or family
    if not isinstance(family, str):
        return f"config.json names no model_type; {REFETCH}"
    if family in UNSUPPORTED:
        return f"is a {family} model, which cannot be a reranker here: {UNSUPPORTED[family]}; use another base"
    if is_decoder(config, architecture) and fresh:
        return f"is a decoder ({name}); a fresh head needs an encoder, such as BERT or ModernBERT"
    if fresh and architecture.endswith("EncoderModel"):
        return f"is half of an encoder-decoder ({name}), for which there is no classifier; use an encoder"
    return None


def _require_tokens(folder: Path, family: object, prompting: Prompting) -> None:
    """Raise ModelError if a decoder has no tokens whose logits make a score."""
    if os.path.lexists(folder / "tokenizer.json"):
        token_ids(folder, family, prompting, read_tokenizer(folder).get_vocab(with_added_tokens=True))


def _check_contents(folder: Path, config: dict[str, Any], weights: bool, problems: ModelProblems) -> None:
    """Add the problems of the weights, of the tokenizer, and of both together."""
    rows = config.get("vocab_size")
    if weights:
        with problems.collecting():
            shapes = read_headers(folder)
            _check_shapes(config, shapes, problems.add)
            rows = next((shape[0] for shape in _embeddings(shapes)), rows)
    with problems.collecting():
        highest = highest_id(folder)
        if isinstance(rows, int) and highest >= rows:
            problems.add(
                f"its tokenizer gives ids up to {highest}, but its embedding has {rows} rows; use the tokenizer that "
                "belongs to the weights, or resize the embedding (resize_token_embeddings) and save both again"
            )


def read_headers(folder: Path) -> Shapes:
    """Return the shape of every tensor in the weights, from the headers of their files.

    Raises ModelError if a file is missing, truncated, unreadable or a Git LFS pointer.
    """
    shapes: Shapes = {}
    for path in weight_files(folder):
        shapes |= read_header(path)
    if not shapes:
        raise ModelError(f"model {name_of(folder)}: its safetensors files hold no tensor; {REFETCH}")
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights: model.safetensors, or the shards in its index."""
    name, index = name_of(folder), folder / "model.safetensors.index.json"
    names = {path.name for path in folder.iterdir()}
    if "model.safetensors" in names:
        return [folder / "model.safetensors"]
    if index.name not in names:
        others = sorted(file for file in names if file.endswith(".safetensors"))
        remedy = "merge the adapter into its base" if others == ["adapter_model.safetensors"] else REFETCH
        raise ModelError(
            f"model {name}: holds no model.safetensors and no {index.name} (found: {', '.join(others)}); {remedy}"
        )
    content = read_json(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelError(f"model {name}: {index.name} names no files (weight_map); {REFETCH}")
    wanted = sorted(set(shards.values()))
    if missing := [shard for shard in wanted if shard not in names]:
        raise ModelError(
            f"model {name}: {len(missing)} of its {len(wanted)} weight files are missing ({missing[0]}); {REFETCH}"
        )
    return [folder / shard for shard in wanted]


def read_header(path: Path) -> Shapes:
    """Return the shape of every tensor in a safetensors file."""
    name = f"model {name_of(path.parent)}: {path.name}"
    try:
        with path.open("rb") as file:
            begin = file.read(len(GIT_LFS))
    except OSError as error:
        raise ModelError(f"{name} cannot be read ({error.strerror}); check its permissions, or {REFETCH}") from None
    if begin == GIT_LFS:
        raise ModelError(
            f"{name} is a Git LFS pointer and not the weights; run `git lfs pull` in the cloned repository"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{name} ({path.stat().st_size} bytes) is truncated or not safetensors ({one_line(error)[:200]}); {REFETCH}"
        ) from None


def is_embedding(name: str) -> bool:
    """Return whether a tensor has the name of a token embedding."""
    return bool(_EMBEDDING.search(name))


def _embeddings(shapes: Shapes) -> list[tuple[int, ...]]:
    """Return the shapes (rows, width) of the token embeddings."""
    return [shape for name, shape in shapes.items() if is_embedding(name) and len(shape) == 2]


def _check_shapes(config: dict[str, Any], shapes: Shapes, add: Callable[[str], None]) -> None:
    """Add a problem for each number in config.json that contradicts the weights."""
    wrapped = next((name for name in shapes if name.startswith(("module.", "_orig_mod."))), None)
    if wrapped is not None:
        add(
            f"its weights were saved from inside a wrapper (DataParallel, torch.compile), under names such as "
            f"{wrapped}; save the wrapped model itself"
        )
    if config.get("model_type") not in CLASSIFIER or config.get("is_encoder_decoder"):
        return  # other architectures count and name their layers differently
    layers = {int(match[1]) for name in shapes if (match := _LAYER.search(name))}
    count = next((config[key] for key in _LAYERS if isinstance(config.get(key), int)), None)
    if layers and count is not None and layers != set(range(count)):
        held = f"the layers {_ranges(sorted(layers))}"
        add(f"config.json says {count} layers (0 to {count - 1}), but the weights hold {held}; {REFETCH}")
    widths = {config[key] for key in _WIDTHS if isinstance(config.get(key), int)}
    for rows, width in _embeddings(shapes)[:1]:
        if isinstance(vocabulary := config.get("vocab_size"), int) and vocabulary != rows:
            add(f"config.json says a vocabulary of {vocabulary}, but the weights hold {rows} tokens; {REFETCH}")
        if widths and width not in widths:
            add(f"config.json says a width of {max(widths)}, but the weights are {width} wide; {REFETCH}")


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a text of ranges, e.g. `0 to 2, 4`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
