"""The speeds of a recipe's models on this machine, measured within seconds on texts of the user's collection.

A measurement is kept by model, settings, texts and machine in `.speeds.json` among the runs, so that it is made once.
It measures wall-clock time: on a busy machine it predicts the minutes that a run takes beside the other work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from trainer.data import Summary, covering_length
from trainer.forecast.here import devices, machine, pace
from trainer.forecast.records import Clock, PairSpeed, TextSpeed, Training
from trainer.model_files import references
from trainer.model_files.decoders import Prompting
from trainer.runtime.run_folder import json_sha256, read_record, write_json

if TYPE_CHECKING:
    from trainer.model import Reranker
    from trainer.model.batching import Tokens
    from trainer.model_files.checks import Head
    from trainer.recipe import Recipe, Retriever
    from trainer.runtime.precision import Precision

Speed = TypeVar("Speed", PairSpeed, TextSpeed)
FILE = ".speeds.json"  # among the runs
VERSION = 2  # of the measurement; raised when earlier ones no longer hold
MOST_PAIRS = 1024  # of the sample


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
        settings += Prompting.of_model(section, reference).parts

        def measure() -> PairSpeed:
            from trainer.forecast.measure import measure_reranker

            begun = self.clock()
            reranker = _load(reference, head, trust, self.recipe)
            load = self.clock() - begun
            pairs = self._pairs(reranker)
            precision = self._precision(reranker, references.locate(reference), use)
            return measure_reranker(reranker, pairs, precision, training, load, self.clock)

        speed = self._kept(PairSpeed, settings, measure)
        shared = {name: getattr(speed, name) / devices() for name in ("exact", "score", "learn")}
        return speed._replace(**shared)

    def of_bi_encoder(self, section: Retriever) -> TextSpeed:
        """Return the speed of the first stage's bi-encoder."""
        assert section.bi_encoder is not None
        settings = [self._fingerprint(section.bi_encoder), section.max_length, section.document_prompt, self._texts()]
        settings.append(self.recipe.train.precision)
        speed = self._kept(TextSpeed, settings, lambda: self._measure_bi_encoder(section))
        return speed._replace(document=speed.document / devices(), query=speed.query / devices())

    @property
    def pace(self) -> float:
        """How many times as long plain Python takes here as on the machine of the constants, measured each time."""
        return pace(self.clock)

    def _kept(self, kind: type[Speed], settings: Sequence[Any], measure: Callable[[], Speed]) -> Speed:
        """Return a measurement from the cache, or make it and keep it."""
        path = self.runs / FILE
        key = json_sha256(VERSION, *settings, machine())[:16]
        kept = (read_record(path) or {}).get(key)
        if isinstance(kept, dict) and kept.keys() == set(kind._fields):
            return kind(**kept)
        speed = measure()
        write_json(path, (read_record(path) or {}) | {key: speed._asdict()})
        return speed

    def _measure_bi_encoder(self, section: Retriever) -> TextSpeed:
        from trainer.forecast.measure import seconds_per_item
        from trainer.retriever.retrieve import bi_encoder_of
        from trainer.runtime.precision import best_device

        assert section.bi_encoder is not None
        encoder, device = bi_encoder_of(section), best_device()
        speedup = partial(encoder.bf16_speedup, device)
        precision = self._choose("encoding", references.locate(section.bi_encoder), speedup)
        encoder = replace(encoder, precision=precision)
        begun = self.clock()
        model = encoder.load(device)
        load = self.clock() - begun

        def seconds(texts: Sequence[str], role: Literal["query", "document"]) -> float:
            def encode(count: int) -> None:
                encoder.encode(model, [texts[at % len(texts)] for at in range(count)], role, 32)

            return seconds_per_item(encode, self.clock)

        documents = self.summary.document_lengths.texts
        queries = self.summary.query_lengths.texts or documents  # a corpus whose queries are not made yet
        dimensions = encoder.encode(model, queries[:1], "query", 1).shape[1]
        return TextSpeed(load, seconds(documents, "document"), seconds(queries, "query"), dimensions)

    def _pairs(self, reranker: Reranker) -> list[tuple[Tokens, Tokens]]:
        """Return token pairs of the sample, and set the length that `max_length: auto` will about choose."""
        queries = reranker.pairs.tokenize(self.summary.query_lengths.texts, "query")
        documents = reranker.pairs.tokenize(self.summary.document_lengths.texts)
        count = min(MOST_PAIRS, max(len(queries), len(documents)))
        queries = queries or [tokens[:16] for tokens in documents]  # a corpus whose queries are not made yet
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


def _load(reference: str, head: Head, trust: bool, recipe: Recipe) -> Reranker:
    from trainer.model import Reranker

    section = recipe.reranker
    layers = section.layers if reference == section.model else None
    options: dict[str, Any] = {"max_length": section.max_length, "layers": layers, "trust_remote_code": trust}
    if reference == section.model:
        options["prompting"] = Prompting.of(section)
    return Reranker.load(reference, head=head, **options)


def _settings(training: Training) -> dict[str, Any]:
    """Return the settings on which the speed of training depends."""
    keys = {"dropout", "frozen_layers", "tokens_per_pass", "gradient_checkpointing", "adapter", "adapter_rank"}
    return {**training.section.model_dump(include=keys), "fresh_head": training.fresh_head}
