"""The speeds of a recipe's models on this machine, measured within seconds on texts of the user's collection.

A measurement is kept by model, settings, texts and machine in `.speeds.json` among the runs, so that it is made once.
It takes wall time: on a busy machine it predicts the minutes that a run takes beside the other work.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from trainer.data import Summary, covering_length
from trainer.model_files import references
from trainer.runtime import processes
from trainer.runtime.run_folder import json_sha256, read_record, write_json

if TYPE_CHECKING:
    import torch

    from trainer.model import Reranker
    from trainer.model.batching import Tokens
    from trainer.model_files.checks import Head
    from trainer.recipe import Recipe, Retriever, Train
    from trainer.runtime.precision import Precision

Clock = Callable[[], float]
Result = TypeVar("Result")
FILE = ".speeds.json"  # among the runs
VERSION = 1  # of the measurement; raised when earlier ones no longer hold
SECONDS = 1.5  # least duration of a measurement that counts
FIRST, MOST = 4, 1024  # texts or pairs of the first round, and of the largest; each round has twice as many
PACE_SECONDS = 0.11  # of `_plain_work` on one idle core of the machine on which the seconds of Work.plain were taken

PACE_ROUNDS = 8  # about a second, so that a busy machine's scheduler does not decide


class PairSpeed(NamedTuple):
    """Seconds of a cross-encoder: for loading, for each pair, and for each optimizer step; and its size."""

    load: float
    exact: float  # scoring a pair in float32, as in evaluations
    score: float  # scoring a pair in the precision of training
    learn: float  # a pair forward and backward; 0 where the model is not trained
    step: float  # an optimizer step
    precision: str
    parameters: int
    trained: int  # parameters with a gradient
    activations: float  # bytes kept for the backward pass, for each token
    tokens: float  # mean tokens of a pair


class TextSpeed(NamedTuple):
    """Seconds of a bi-encoder: for loading, for each document and for each query; and its dimensions."""

    load: float
    document: float
    query: float
    dimensions: int


@dataclass(frozen=True)
class Training:
    """How a cross-encoder is trained in this run: section and kind of head."""

    section: Train
    fresh_head: bool


@dataclass(frozen=True)
class Speeds:
    """Measures and keeps the speeds of a recipe's models; `summary` has a sample of the collection's texts."""

    recipe: Recipe
    summary: Summary
    runs: Path
    clock: Clock = time.perf_counter

    def of_reranker(
        self, reference: str, head: Head, trust: bool, *, use: str, training: Training | None = None
    ) -> PairSpeed:
        """Return the speed of a cross-encoder; `use` names it in the cache of measured precisions."""
        section = self.recipe.reranker
        settings = [reference and self._fingerprint(reference), head, section.max_length, section.layers, use]
        settings += [self.recipe.train.precision, self._texts(), training and _settings(training)]

        def measure() -> PairSpeed:
            begun = self.clock()
            reranker = _load(reference, head, trust, self.recipe)
            load = self.clock() - begun
            pairs = self._pairs(reranker)
            precision = self._precision(reranker, references.locate(reference), use)
            return measure_reranker(reranker, pairs, precision, training, load, self.clock)

        speed = PairSpeed(**self._kept(settings, lambda: measure()._asdict()))
        shared = {name: getattr(speed, name) / devices() for name in ("exact", "score", "learn")}
        return speed._replace(**shared)

    def of_bi_encoder(self, section: Retriever) -> TextSpeed:
        """Return the speed of the first stage's bi-encoder."""
        assert section.bi_encoder is not None
        settings = [self._fingerprint(section.bi_encoder), section.max_length, section.document_prompt, self._texts()]
        settings.append(self.recipe.train.precision)
        speed = TextSpeed(**self._kept(settings, lambda: self._measure_bi_encoder(section)._asdict()))
        return speed._replace(document=speed.document / devices(), query=speed.query / devices())

    @property
    def pace(self) -> float:
        """How many times as long plain Python takes here as on the machine of the constants, measured each time."""
        begun = self.clock()
        for _ in range(PACE_ROUNDS):
            _plain_work()
        return (self.clock() - begun) / PACE_ROUNDS / PACE_SECONDS

    def _kept(self, settings: Sequence[Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a measurement from the cache, or make it and keep it."""
        path = self.runs / FILE
        key = json_sha256(VERSION, *settings, machine())[:16]
        kept = (read_record(path) or {}).get(key)
        if not isinstance(kept, dict):
            kept = measure()
            write_json(path, (read_record(path) or {}) | {key: kept})
        return kept

    def _measure_bi_encoder(self, section: Retriever) -> TextSpeed:
        from trainer.retriever import BiEncoder
        from trainer.runtime.precision import best_device

        assert section.bi_encoder is not None
        folder, device = references.locate(section.bi_encoder), best_device()
        options = (section.max_length, section.query_prompt, section.document_prompt)
        encoder = BiEncoder(folder, *options, trust_remote_code=section.trust_remote_code)
        speedup = partial(encoder.bf16_speedup, device)
        precision = self._choose("encoding", folder, speedup)
        encoder = BiEncoder(folder, *options, precision, section.trust_remote_code)
        begun = self.clock()
        model = encoder.load(device)
        load = self.clock() - begun

        def encode(texts: Sequence[str], role: Literal["query", "document"], count: int) -> None:
            encoder.encode(model, [texts[at % len(texts)] for at in range(count)], role, 32)

        documents, queries = self.summary.document_lengths.texts, self.summary.query_lengths.texts
        taken = (
            seconds_per_item(partial(encode, texts, role), self.clock)
            for texts, role in ((documents, "document"), (queries, "query"))
        )
        return TextSpeed(load, *taken, encoder.encode(model, queries[:1], "query", 1).shape[1])

    def _pairs(self, reranker: Reranker) -> list[tuple[Tokens, Tokens]]:
        """Return token pairs of the sample, and set the length that `max_length: auto` will about choose."""
        queries, documents = (
            reranker.pairs.tokenize(lengths.texts)
            for lengths in (self.summary.query_lengths, self.summary.document_lengths)
        )
        count = min(MOST, max(len(queries), len(documents)))
        pairs = [(queries[at % len(queries)], documents[at % len(documents)]) for at in range(count)]
        if self.recipe.reranker.max_length is None:
            full = [len(query) + len(document) + reranker.pairs.num_special for query, document in pairs]
            reranker.read_at_most(covering_length(full, reranker.max_length))
        return pairs

    def _precision(self, reranker: Reranker, folder: Path, use: str) -> Precision:
        return self._choose(use, folder, lambda: reranker.bf16_speedup(training=use == "training"))

    def _choose(self, use: str, folder: Path, measure: Callable[[], float]) -> Precision:
        """Return the precision that the stages will choose; they find the measurement in the same cache."""
        import torch

        from trainer.runtime.precision import Precisions, best_device

        device, measured = torch.device(best_device()), self.runs / ".precision.json"
        choices = Precisions(self.recipe.train.precision, device, measured)
        return choices.of("check", use, references.fingerprint(folder), measure)

    def _texts(self) -> str:
        """Return a hash of the sampled texts, whose lengths decide the seconds for each pair."""
        return json_sha256(self.summary.document_lengths.texts, self.summary.query_lengths.texts)

    def _fingerprint(self, reference: str) -> str:
        return references.fingerprint(references.locate(reference))


def measure_reranker(
    reranker: Reranker,
    pairs: Sequence[tuple[Tokens, Tokens]],
    precision: Precision,
    training: Training | None,
    load: float,
    clock: Clock = time.perf_counter,
) -> PairSpeed:
    """Return the speed of a loaded cross-encoder on token pairs; with `training` also that of training it."""

    def score(count: int) -> None:
        reranker.score_tokens([pairs[at % len(pairs)] for at in range(count)])

    reranker.compute_in("fp32")
    exact = fast = seconds_per_item(score, clock)
    reranker.compute_in(precision)
    if precision != "fp32":
        fast = seconds_per_item(score, clock)
    learn = step = activations = 0.0
    weights = reranker.model.parameters
    parameters = trained = sum(weight.numel() for weight in weights())
    if training is not None:
        learn, step, activations = _measure_training(reranker, pairs, training, clock)
        trained = sum(weight.numel() for weight in weights() if weight.requires_grad)
    tokens = float(np.mean([reranker.pairs.size(pair) for pair in pairs]))
    return PairSpeed(load, exact, fast, learn, step, precision, parameters, trained, activations, tokens)


def seconds_per_item(compute: Callable[[int], object], clock: Clock = time.perf_counter) -> float:
    """Return the seconds that `compute(count)` takes for each item, in rounds of twice as many items.

    The first round only warms up. A round of SECONDS is the last one; so is one for whose double memory runs out.
    """
    import torch

    compute(FIRST)
    count, rate = FIRST, 0.0
    while True:
        begun = clock()
        try:
            compute(count)
        except torch.OutOfMemoryError:
            if not rate:
                raise
            return rate
        rate = (clock() - begun) / count
        if rate * count >= SECONDS or count >= MOST:
            return rate
        count *= 2


def _measure_training(
    reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]], training: Training, clock: Clock
) -> tuple[float, float, float]:
    """Return seconds of a pair forward and backward, seconds of an optimizer step, and bytes kept for each token."""
    from trainer.training.optimizer import configure_model, make_optimizer

    section = training.section.model_copy(update={"compile": False})  # compiling takes longer than all of this
    configure_model(section, reranker)
    optimizer = make_optimizer(section, reranker, training.fresh_head)
    reranker.model.train()

    def learn(count: int) -> None:
        for start in range(0, count, size):
            _losses(reranker, [pairs[at % len(pairs)] for at in range(start, min(start + size, count))]).backward()

    tokens = [reranker.pairs.size(pair) for pair in pairs]
    size = max(1, int(section.tokens_per_pass / float(np.mean(tokens))))
    activations = _kept_bytes(reranker, pairs[:FIRST]) / sum(tokens[:FIRST])
    seconds = seconds_per_item(learn, clock)
    optimizer.step()  # makes its states
    begun = clock()
    optimizer.step()
    _wait(reranker.device)
    step = clock() - begun
    reranker.model.zero_grad()
    reranker.model.eval()
    return seconds, step, activations


def _losses(reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]]) -> torch.Tensor:
    """Return the sum of the scores of one training pass, with its graph."""
    import torch

    from trainer.model import packing
    from trainer.runtime.precision import autocast

    cut = reranker.buckets([reranker.pairs.size(pair) for pair in pairs], training=True)
    batches = [reranker.pairs.pad([pairs[at] for at in positions]) for positions in cut]
    with autocast(reranker.device, reranker.precision):
        return torch.cat([packing.logits(reranker.model, batch, reranker.packed) for batch in batches]).sum()


def _kept_bytes(reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    """Return the bytes that the forward pass of pairs keeps for its backward pass, without the weights."""
    import torch

    weights = {weight.untyped_storage().data_ptr() for weight in reranker.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _losses(reranker, pairs).backward()
    return sum(kept.values())


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _load(reference: str, head: Head, trust: bool, recipe: Recipe) -> Reranker:
    from trainer.model import Reranker

    section = recipe.reranker
    layers = section.layers if reference == section.model else None
    options: dict[str, Any] = {"max_length": section.max_length, "layers": layers, "trust_remote_code": trust}
    return Reranker.load(reference, head=head, **options)


def _settings(training: Training) -> dict[str, Any]:
    """Return the settings on which the speed of training depends."""
    keys = {"dropout", "frozen_layers", "tokens_per_pass", "gradient_checkpointing"}
    return {**training.section.model_dump(include=keys), "fresh_head": training.fresh_head}


def devices() -> int:
    """Return the number of devices that share the work: GPUs; processes on one CPU share its cores."""
    if not processes.several():
        return 1
    from trainer.runtime.precision import best_device

    return processes.count() if best_device() == "cuda" else 1


def machine() -> str:
    """Return a description of this machine for the key of a measurement, without importing torch."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    gpus = sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    torch = version("torch")
    return f"{platform.machine()} {processor()} {os.cpu_count()} {threads} {gpus} {visible} torch {torch}"


def processor() -> str:
    """Return the processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"


def _plain_work() -> int:
    """Do a fixed piece of work of the kind that takes the time of a run besides its models: texts and arrays."""
    words = [f"{number * 7919 % 100003:06d}" for number in range(100_000)]
    counts = {word: len(word) for word in sorted(words)}
    array = np.random.default_rng(0).random(1_000_000)
    array.sort()
    return len(counts) + int(array[-1])
