"""The model with its tokenizer: load, score, rank, save.

`Reranker.load` takes any base: a ready reranker keeps its classifier, an encoder gets the interaction head (or a
fresh classifier where the recipe insists). Scores are raw float32 logits; only their order means anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.errors import ModelError
from trainer.model import packing
from trainer.model.batching import (
    TOKENS_OF_A_LEARNING_START,
    TOKENS_OF_A_START,
    TOKENS_PER_BUCKET,
    PairEncoder,
    Tokens,
    buckets,
    prefetch,
)
from trainer.model.fusion import FILE as FUSION_FILE
from trainer.model.fusion import Fusion, first_stage_numbers
from trainer.model.interaction import InteractionForSequenceClassification
from trainer.model.loading import load_cross_encoder, longest_input
from trainer.model_files.checks import Head
from trainer.model_files.references import locate
from trainer.runtime.console import progress, warn
from trainer.runtime.precision import (
    Precision,
    autocast,
    best_device,
    bf16_speedup,
    faster,
    has_flash_attention,
    keep_logits_exact,
    resolve,
)
from trainer.runtime.run_folder import remove

Compute = Callable[[Any, packing.Batch, bool], Tensor]  # of a model, a batch, and whether it runs packed
MEASURED_PAIRS = 12  # on which precisions are compared
ALL_AT_ONCE = 1 << 40  # tokens: where nothing is padded, nothing is gained by another bucket


@dataclass(frozen=True)
class Ranked:
    """One document of an answer: its place in the given list, its text and its score."""

    index: int
    document: str
    score: float


class Reranker:
    """A cross-encoder with its tokenizer; `model(**inputs).logits` is (pairs, 1).

    `precision` is what it computes in, `packed` whether pairs run without padding; nothing outside changes either.
    """

    precision: Precision
    packed: bool

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        precision: Precision = "fp32",
    ) -> None:
        self.model: Any = model  # a PreTrainedModel; its wrapped .to() defeats type checkers
        self.tokenizer = tokenizer
        self.pairs = PairEncoder(tokenizer, max_length)
        packing.prepare(model)
        keep_logits_exact(model)
        self.compute_in(precision)
        self.tokens_per_bucket = TOKENS_PER_BUCKET.get(model.device.type, 4096)
        self.fusion: Fusion | None = None  # the first stage's weights beside these scores, where they are known
        self._warned = False

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        head: Head = "auto",
        max_length: int | None = None,
        layers: Sequence[int] | None = None,
        device: str | None = None,
        precision: Precision | Literal["auto"] = "fp32",
        trust_remote_code: bool = False,
    ) -> Reranker:
        """Load a base or a trained model; raises ModelError with what to do.

        `head` is auto, classifier or interaction, or trained for a model that must bring its own; `layers` are those
        that a fresh interaction head compares; `max_length` defaults to what the model was saved with, `device` to the
        best one here. `precision` is fp32, bf16, fp16, or auto: the fastest on this device, found by a few seconds of
        measuring on a CPU that has bf16.
        """
        folder = locate(str(reference))
        model, tokenizer = load_cross_encoder(folder, head, layers, trust_remote_code)
        longest = longest_input(model, tokenizer)
        saved = min(tokenizer.model_max_length, longest)
        if max_length is not None and max_length > longest:
            raise ModelError(f"reranker.max_length: {max_length} tokens, but {reference} reads {longest} at most")
        reranker = cls(model.to(device or best_device()).eval(), tokenizer, max_length or saved)
        reranker.fusion = Fusion.load(folder)
        reranker.compute_in(resolve(precision, reranker.device) or faster(reranker.bf16_speedup()))
        return reranker

    def compute_in(self, precision: Precision) -> None:
        """Set the precision of scoring and training; the weights stay float32."""
        self.precision = precision
        self.packed = packing.can_pack(self.model) and has_flash_attention(self.device, precision)

    def read_at_most(self, max_length: int) -> None:
        """Cut pairs at so many tokens from here on."""
        self.pairs = PairEncoder(self.tokenizer, max_length)

    def bf16_speedup(self, training: bool = False) -> float:
        """Measure how many times as fast this model scores, or learns, in bf16 as in fp32, on pairs of random tokens.

        The pairs have many lengths and come in buckets as real ones do: bf16 gains less in small batches.
        """
        ids = np.random.default_rng(0).integers(self.model.config.vocab_size, size=self.max_length, dtype=np.int32)
        lengths = np.linspace(self.max_length / 4, self.max_length, MEASURED_PAIRS).astype(int).tolist()
        pairs = [(ids[:8], ids[:length]) for length in lengths]
        cut = self.buckets([self.pairs.size(pair) for pair in pairs], training=training)
        batches = [self.pairs.pad([pairs[position] for position in positions]) for positions in cut]

        def compute() -> None:
            with torch.set_grad_enabled(training):
                total = torch.cat([packing.logits(self.model, batch, packed=False) for batch in batches]).sum()
            if training:
                total.backward()

        speedup = bf16_speedup(compute, self.device)
        self.model.zero_grad()
        return speedup

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Tokens of query and document together."""
        return self.pairs.max_length

    @property
    def is_interaction(self) -> bool:
        """Whether the interaction head scores (else the standard classifier)."""
        return isinstance(self.model, InteractionForSequenceClassification)

    def buckets(self, sizes: Sequence[int], most: int | None = None, training: bool = False) -> list[list[int]]:
        """Positions of pairs of these sizes, cut for the device and the layout, to at most so many tokens each."""
        starts = TOKENS_OF_A_LEARNING_START if training else TOKENS_OF_A_START
        start = ALL_AT_ONCE if self.packed else starts.get(self.model.device.type, 4096)
        return buckets(sizes, min(self.tokens_per_bucket, most or self.tokens_per_bucket), start)

    def score(self, query: str, documents: Sequence[str]) -> np.ndarray:
        """Relevance logits (documents,) float32."""
        asked = self.pairs.tokenize([query])[0]
        return self.score_tokens([(asked, tokens) for tokens in self.pairs.tokenize(documents)])

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        first_stage_scores: Sequence[float] | np.ndarray | None = None,
        first_stage: Literal["order"] | None = None,
        top_k: int | None = None,
    ) -> list[Ranked]:
        """Return the documents best first; equal scores keep their order.

        With `first_stage_scores` (one for each document) or `first_stage="order"` (the documents stand in the first
        stage's order) each score is the fusion of the model's with the first stage's, else the model's alone. Raises
        ValueError for what does not fit, ModelError where the model has no weights for a fusion.
        """
        if isinstance(documents, str) or not all(isinstance(document, str) for document in documents):
            raise ValueError("documents must be a list of texts; put a single text in a list")
        if top_k is not None and top_k < 0:
            raise ValueError(f"top_k must be 0 or more, not {top_k}")
        if first_stage not in (None, "order"):
            raise ValueError(f'first_stage must be "order" or None, not {first_stage!r}')
        if first_stage_scores is not None and first_stage is not None:
            raise ValueError('give first_stage_scores or first_stage="order", not both')
        first = first_stage_numbers(len(documents), first_stage_scores, first_stage == "order")
        fusion = self._fusion_for(first is not None)
        scores = self.score(query, documents)
        if fusion is not None and first is not None:
            scores = fusion.apply(scores, *first)
        best: list[int] = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [Ranked(index, documents[index], float(scores[index])) for index in best]

    def _fusion_for(self, is_asked: bool) -> Fusion | None:
        """Return the weights of the fusion; raises ModelError where it is asked for and there are none.

        Warns once where it is not asked for, but this model is better than the first stage only with it.
        """
        if is_asked and self.fusion is None:
            raise ModelError(
                f"rank: this model has no {FUSION_FILE}, so its scores cannot be fused with the first stage's; rank "
                "without them, or export the model with `train`"
            )
        if not is_asked and self.fusion is not None and not self.fusion.alone and not self._warned:
            self._warned = True
            warnings.warn(
                "this model was shown to be better than the first stage only with the first stage's scores beside its "
                "own; pass first_stage_scores to rank()",
                stacklevel=3,
            )
        return self.fusion

    def score_tokens(self, pairs: Sequence[tuple[Tokens, Tokens]], note: str | None = None) -> np.ndarray:
        """Logits (pairs,) float32 of tokenised pairs, in buckets of nearly one length; `note` shows progress."""
        return self.score_chunks([pairs], len(pairs), note)

    def score_chunks(
        self, chunks: Iterable[Sequence[tuple[Tokens, Tokens]]], total: int, note: str | None = None
    ) -> np.ndarray:
        """The same for `total` pairs that come in chunks; the next chunk is made while one is scored."""
        return self._over_chunks(chunks, total, packing.logits, note)

    def signals(self, pairs: Sequence[tuple[Tokens, Tokens]], note: str | None = None) -> np.ndarray:
        """Return the signals that the interaction head mixes: (pairs, signals) float32."""
        return self._over_chunks([pairs], len(pairs), packing.signals, note)

    @torch.no_grad()  # under inference_mode autocast would cast every weight again in every bucket
    def _over_chunks(
        self, chunks: Iterable[Sequence[tuple[Tokens, Tokens]]], total: int, compute: Compute, note: str | None
    ) -> np.ndarray:
        """`compute` of every pair, in the order of the pairs.

        Results stay on the device until the end, so that a GPU computes while the next batch is put together.
        """
        if not total:
            return np.empty(0, dtype=np.float32)
        training = self.model.training
        self.model.eval()
        with progress(note or "score", total=total if note else 0) as advance, autocast(self.device, self.precision):
            parts = [self._over_buckets(pairs, compute, advance) for pairs in prefetch(chunks)]
        self.model.train(training)
        return torch.cat(parts).cpu().numpy()

    def _over_buckets(
        self, pairs: Sequence[tuple[Tokens, Tokens]], compute: Compute, advance: Callable[..., None]
    ) -> Tensor:
        """`compute` of one chunk's pairs, in smaller buckets from where the memory did not suffice."""
        sizes = [self.pairs.size(pair) for pair in pairs]
        waiting = self.buckets(sizes)
        parts, order = [], []
        while waiting:
            batch = self.pairs.pad([pairs[at] for at in waiting[0]])
            try:
                parts.append(compute(self.model, batch, self.packed))
            except torch.OutOfMemoryError:
                self._shrink_buckets([sizes[at] for at in waiting[0]])
                left = sum(waiting, [])
                waiting = [[left[at] for at in places] for places in self.buckets([sizes[at] for at in left])]
                continue
            advance(len(waiting[0]))
            order += waiting.pop(0)
        return torch.cat(parts)[torch.tensor(order).argsort().to(self.model.device)]

    def _shrink_buckets(self, sizes: Sequence[int]) -> None:
        """After the memory did not suffice for a bucket of such pairs; raises ModelError where it was a single one."""
        if len(sizes) == 1:
            raise ModelError(
                f"reranker.max_length: memory does not suffice for one pair of {sizes[0]} tokens; lower it"
            )
        self.tokens_per_bucket = len(sizes) * max(sizes) // 2
        warn("score", f"out of memory: going on with {self.tokens_per_bucket} tokens in a batch")

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write weights (the model's own unless they are given), configuration, tokenizer and the fusion it has.

        A kill leaves what was there before, or what is new; between two renames what was there before is the hidden
        `.NAME.old`, which the next save puts back first.
        """
        partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left_over in (partial, old):
            remove(left_over)
        partial.mkdir(parents=True)
        self.tokenizer.model_max_length = self.max_length
        for local in ("is_local", "local_files_only"):  # how it was loaded here, which is nobody else's business
            self.tokenizer.init_kwargs.pop(local, None)
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # whoever tokenized with a length left it there
        backend.no_padding()
        self.model.save_pretrained(partial, state_dict=weights)
        self.tokenizer.save_pretrained(partial)
        if self.fusion is not None:
            self.fusion.save(partial)
        readable = (partial / "config.json").stat().st_mode  # as the umask has it
        for path in partial.glob("*.safetensors"):
            path.chmod(readable)  # safetensors writes files that only their owner can read
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        remove(old)


@dataclass(frozen=True)
class Batches:
    """What one forward pass reads; a plain list data parallelism would move to the GPU, and packing wait for it."""

    parts: list[packing.Batch]


class ScoringModel(nn.Module):
    """The model over several batches in one call, so that data parallelism sees one forward per pass."""

    def __init__(self, reranker: Reranker) -> None:
        super().__init__()
        self.model = reranker.model
        self.packed = reranker.packed
        self.precision: Precision = reranker.precision

    def forward(self, batches: Batches) -> Tensor:
        """Logits (pairs of all batches,) float32."""
        with autocast(self.model.device, self.precision):
            return torch.cat([packing.logits(self.model, batch, self.packed) for batch in batches.parts])
