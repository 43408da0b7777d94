"""The cross-encoder with its tokenizer: load, score, rank, save.

A model that was saved with a head keeps it. An encoder without one gets a new interaction head, or a new classifier
if the recipe asks for that. Scores are float32 logits: they order the documents of a query and are no probabilities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.errors import ModelError
from trainer.model import engines, packing, windows
from trainer.model.arguments import as_pairs, as_texts, require_engine, require_options, require_top_k
from trainer.model.batching import TOKENS_PER_BUCKET, buckets, prefetch, shapes_for
from trainer.model.calibration import Calibration, require_calibration
from trainer.model.engines import Engine
from trainer.model.fusion import FILE as FUSION_FILE
from trainer.model.fusion import Fusion, first_stage_numbers
from trainer.model.interaction import InteractionForSequenceClassification
from trainer.model.loading import load_cross_encoder, longest_input
from trainer.model.mixture import Mixture
from trainer.model.prompt import pair_encoder
from trainer.model.windows import Pair, Windowed
from trainer.model_files.checks import Head
from trainer.model_files.decoders import NO_PROMPTING, Prompting
from trainer.model_files.references import locate
from trainer.recipe import Passages
from trainer.runtime.console import Advance, Note, shown, warn
from trainer.runtime.linear import scoring_in
from trainer.runtime.precision import Precision, faster, fastest, has_flash_attention, keep_logits_exact, usable_device
from trainer.runtime.run_folder import replacing_folder

Compute = Callable[[Any, packing.Batch, bool], Tensor]  # of a model, a batch, and whether it runs packed
Cut = tuple[list[list[int]], list[packing.Batch]]  # the positions of pairs in batches, and the batches
ALL_AT_ONCE = 1 << 40  # tokens: packed batches have no padding, so more buckets save nothing


@dataclass(frozen=True)
class Ranked:
    """One ranked document: its index in the given list, its text and its score."""

    index: int
    document: str
    score: float


class Reranker:
    """A cross-encoder with its tokenizer.

    Device, precision, engine and maximum length are attributes of the object. No environment variable, and no
    Accelerate that was started before or after, changes its scores. `packed` says whether pairs run without padding.
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
        self.model: Any = model  # a PreTrainedModel, whose wrapped .to() has no usable type
        self.tokenizer = tokenizer
        self.pairs = pair_encoder(tokenizer, max_length)
        packing.prepare(model)
        keep_logits_exact(model)
        self.compute_in(precision)
        self.tokens_per_bucket = TOKENS_PER_BUCKET.get(model.device.type, 4096)
        self.calibration: Calibration | None = None  # curves from scores to probabilities, if the model has them
        self.fusion: Fusion | None = None  # weights of first-stage scores, if the model has them
        self.mixture: Mixture | None = None  # lexical signals that are added to the logit, if the model has them
        self.passages: Passages | None = None  # windows in which long documents are read; None: they are truncated
        self._warned = False
        self.compute_with("torch", packing.logits)

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        device: str | torch.device | None = None,
        precision: Precision | Literal["auto"] | None = None,
        engine: Engine | Literal["auto"] = "torch",
        max_length: int | None = None,
        trust_remote_code: bool = False,
        head: Head = "auto",
        layers: Sequence[int] | None = None,
        prompting: Prompting = NO_PROMPTING,
    ) -> Reranker:
        """Load a model from a Hub id, a model folder, a run folder or `package:NAME/SUBFOLDER`.

        `device` defaults to the GPU if there is one. `precision` is fp32 (the default, in which models are
        evaluated), bf16, fp16, or auto: the fastest on this device, which a few seconds of measuring decide on a CPU
        with bf16 units. `engine` is torch; onnx, onnx-fused or onnx-int8, formats of an exported folder for ONNX
        Runtime on the CPU; or auto: the fastest of those that passed their gate, which is measured. `max_length`
        (tokens of query and document) defaults to what the model was saved with.

        Only training needs the last three: `head` is auto, classifier, interaction, or trained (refuse a model without
        a head); `layers` are the hidden layers that a new interaction head compares; `prompting` are the template, the
        instruction and the tokens of a decoder.

        Raises ModelError if the model cannot be loaded, MachineError if the machine lacks the device or precision, and
        TypeError or ValueError for invalid arguments.
        """
        require_options(reference, precision, max_length)
        target = usable_device(require_engine(engine, device, precision), precision)
        folder = locate(str(reference))
        model, tokenizer = load_cross_encoder(folder, head, layers, trust_remote_code, prompting)
        longest = longest_input(model, tokenizer)
        if max_length is not None and max_length > longest:
            raise ModelError(f"reranker.max_length: {max_length} tokens, but {reference} reads {longest} at most")
        reranker = cls(model.to(target).eval(), tokenizer, max_length or min(tokenizer.model_max_length, longest))
        reranker.mixture = Mixture.load(folder, tokenizer)
        reranker.fusion = Fusion.load(folder)
        reranker.calibration = Calibration.load(folder)
        reranker.passages = windows.load(folder)
        if precision == "auto":
            reranker.compute_in(fastest(reranker.device) or faster(reranker.bf16_speedup()))
        else:
            reranker.compute_in(precision or "fp32")
        reranker.compute_with(*engines.choose(reranker, engine, str(reference), folder))
        return reranker

    def compute_with(self, engine: Engine, logits: engines.Logits) -> None:
        """Set the engine of scoring, and the function that computes its logits; torch computes everything else."""
        self.engine: Engine = engine
        self.compute_logits = logits

    def compute_in(self, precision: Precision) -> None:
        """Set the precision of scoring and training; the weights stay float32."""
        self.precision = precision
        self.packed = packing.can_pack(self.model) and has_flash_attention(self.device, precision)
        joins = (self.device.type, precision) == ("cpu", "bf16") and packing.can_join(self.model)
        self.shapes = [shapes_for(self.device.type, precision, joins, training) for training in (False, True)]

    def read_at_most(self, max_length: int) -> None:
        """Truncate pairs to this many tokens from now on."""
        self.pairs = pair_encoder(self.tokenizer, max_length)

    def bf16_speedup(self, training: bool = False) -> float:
        """Return the speedup of bf16 over fp32 in scoring, or in training, measured on pairs of random tokens.

        The pairs have different lengths and share buckets like real ones, because bf16 gains less in small batches.
        """
        return engines.speedup_of_bf16(self, training)

    @property
    def device(self) -> torch.device:
        """Return the device on which the model computes."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Return the maximum number of tokens of a query and document together."""
        return self.pairs.max_length

    @property
    def is_interaction(self) -> bool:
        """Return whether the model has the interaction head, and not a standard classifier."""
        return isinstance(self.model, InteractionForSequenceClassification)

    def buckets(self, sizes: Sequence[int], most: int | None = None, training: bool = False) -> list[list[int]]:
        """Return the positions of pairs of these sizes in batches of at most `most` tokens, chosen for the device."""
        grid, start = self.shapes[training]
        most = min(self.tokens_per_bucket, most or self.tokens_per_bucket)
        return buckets(sizes, most, ALL_AT_ONCE if self.packed else start, grid, self.max_length)

    def pad(self, pairs: Sequence[Pair], training: bool = False) -> packing.Batch:
        """Return a padded batch of tokenised pairs, of a length that suits the device."""
        return self.pairs.pad(pairs, self.shapes[training].grid.length)

    def batches(self, pairs: Sequence[Pair], most: int | None = None, training: bool = False) -> Cut:
        """Return the positions of tokenised pairs in batches, as `buckets` does, and the padded batches."""
        cut = self.buckets([self.pairs.size(pair) for pair in pairs], most, training)
        return cut, [self.pad([pairs[position] for position in positions], training) for positions in cut]

    def score(self, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
        """Return the scores (pairs,) float32 of (query, document) pairs, by the model alone: without a first stage's.

        Raises TypeError unless `pairs` is a list of pairs of texts.
        """
        return self.score_tokens(self.pairs.tokenize_pairs(as_pairs(pairs)))

    def probability(self, pairs: Iterable[tuple[str, str]], *, grade: int | None = None) -> np.ndarray:
        """Return the probability (pairs,) float64 that each document would be judged relevant to its query.

        With `grade`: that it would be judged of this grade or a higher one. The probabilities are calibrated on dev,
        and in the order of the scores. Raises ModelError if the model has no calibration, or none of this grade.
        """
        return require_calibration(self.calibration).of(grade).probability(self.score(pairs))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        first_stage_scores: Sequence[float] | np.ndarray | None = None,
        first_stage: Literal["order"] | None = None,
    ) -> list[Ranked]:
        """Return the `top_k` best documents (None: all), best first; equal scores keep their order.

        With `first_stage_scores` (one for each document), or with `first_stage="order"` (the documents come in the
        first stage's order), each score is the fusion of the model's score with the first stage's. Otherwise it is the
        model's alone. Raises TypeError or ValueError for invalid arguments, and ModelError if the model has no
        weights for the fusion.
        """
        documents = as_texts(query, documents)
        require_top_k(top_k)
        if first_stage not in (None, "order"):
            raise ValueError(f'first_stage must be "order" or None, not {first_stage!r}')
        if first_stage_scores is not None and first_stage is not None:
            raise ValueError('give first_stage_scores or first_stage="order", not both')
        first = first_stage_numbers(len(documents), first_stage_scores, first_stage == "order")
        fusion = self._fusion_for(first is not None)
        scores = self.score([(query, document) for document in documents])
        if fusion is not None and first is not None:
            scores = fusion.apply(scores, *first)
        best: list[int] = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [Ranked(index, documents[index], float(scores[index])) for index in best]

    def _fusion_for(self, is_asked: bool) -> Fusion | None:
        """Return the weights of the fusion; raises ModelError if fusion is requested and the model has none.

        Warns once if fusion is not requested although the model is better than the first stage only with it.
        """
        if is_asked and self.fusion is None:
            raise ModelError(
                f"rank: this model has no {FUSION_FILE}, so its scores cannot be fused with the first stage's; rank "
                "without them, or export the model with `train`"
            )
        if not is_asked and self.fusion is not None and not self.fusion.alone and not self._warned:
            self._warned = True
            warnings.warn(
                "this model was shown to be better than the first stage only with the first stage's scores added to "
                "its own; pass first_stage_scores to rank()",
                stacklevel=3,
            )
        return self.fusion

    def cut(self, pairs: Sequence[Pair]) -> Windowed:
        """Return tokenised pairs as the model reads them: with `passages`, one for each window of a document."""
        return windows.whole(pairs) if self.passages is None else windows.cut(self.passages, pairs, self.pairs.room)

    def score_tokens(self, pairs: Sequence[Pair], note: str | None = None) -> np.ndarray:
        """Return scores (pairs,) float32 of tokenised pairs, in batches of similar lengths; `note` shows progress."""
        return self.score_chunks([pairs], len(pairs), note)

    def score_chunks(self, chunks: Iterable[Sequence[Pair]], total: int, note: Note = None) -> np.ndarray:
        """Return the scores of `total` pairs given in chunks; the next chunk is prepared while one is scored.

        With `passages`, the score of a document is that of its best window. The windows of a chunk share batches.
        """
        counted = windows.Counted(map(self.cut, chunks), self.added)
        logits = self._over_chunks(counted, total, self.compute_logits, note)
        return counted.best(logits)

    def score_windows(self, pairs: Sequence[Pair], note: str | None = None) -> np.ndarray:
        """Return the scores (pairs,) float32 of pairs from `cut`, each of which is one window of a document."""
        return self.logits(pairs, note) + self.added(pairs)

    def added(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return what lexical signals beside the model add to the logits (pairs,) float32; zeros without them."""
        return np.zeros(len(pairs), dtype=np.float32) if self.mixture is None else self.mixture.of(pairs, self.pairs)

    def logits(self, pairs: Sequence[Pair], note: str | None = None) -> np.ndarray:
        """Return the model's own logits (pairs,) float32 of pairs as they are, as other libraries compute them."""
        return self._over_chunks([windows.whole(pairs)], len(pairs), self.compute_logits, note)

    def signals(self, pairs: Sequence[Pair], note: str | None = None) -> np.ndarray:
        """Return the signals (pairs, signals) float32 that the interaction head mixes, of pairs as they are."""
        return self._over_chunks([windows.whole(pairs)], len(pairs), packing.signals, note)

    @torch.no_grad()  # under inference_mode autocast would cast every weight again in every bucket
    def _over_chunks(self, chunks: Iterable[Windowed], total: int, compute: Compute, note: Note) -> np.ndarray:
        """Return the result of `compute` for every window, in their order; `total` is the number of documents.

        Results stay on the device until the end, so that a GPU computes while the next batch is put together.
        """
        if not total:
            return np.empty(0, dtype=np.float32)
        training = self.model.training
        self.model.eval()
        with shown(note, total) as advance, scoring_in(self.model, self.device, self.precision, total):
            parts = [self._over_buckets(windowed, compute, advance) for windowed in prefetch(chunks)]
        self.model.train(training)
        return torch.cat(parts).cpu().numpy()

    def _over_buckets(self, windowed: Windowed, compute: Compute, advance: Advance) -> Tensor:
        """Return the result of `compute` for a chunk's windows; when memory runs out, continue in smaller buckets."""
        pairs, share = windowed.pairs, len(windowed.counts) / len(windowed.pairs)
        sizes = [self.pairs.size(pair) for pair in pairs]
        waiting = self.buckets(sizes)
        parts, order = [], []
        while waiting:
            batch = self.pad([pairs[at] for at in waiting[0]])
            try:
                parts.append(compute(self.model, batch, self.packed))
            except torch.OutOfMemoryError:
                self._shrink_buckets([sizes[at] for at in waiting[0]])
                left = sum(waiting, [])
                waiting = [[left[at] for at in places] for places in self.buckets([sizes[at] for at in left])]
                continue
            advance(len(waiting[0]) * share)
            order += waiting.pop(0)
        return torch.cat(parts)[torch.tensor(order).argsort().to(self.model.device)]

    def _shrink_buckets(self, sizes: Sequence[int]) -> None:
        """Halve the batch size after running out of memory; raises ModelError if the batch was a single pair."""
        if len(sizes) == 1:
            raise ModelError(f"reranker.max_length: out of memory with a single pair of {sizes[0]} tokens; lower it")
        self.tokens_per_bucket = len(sizes) * max(sizes) // 2
        warn("score", f"out of memory: continuing with {self.tokens_per_bucket} tokens in a batch")

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write weights (the model's own unless they are given), configuration, tokenizer and settings.

        The settings are mixture, fusion weights, calibration and windows. The folder is replaced as a whole.
        """
        self.tokenizer.model_max_length = self.max_length
        for local in ("is_local", "local_files_only"):  # settings of loading it here, not of the tokenizer
            self.tokenizer.init_kwargs.pop(local, None)
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # tokenizing with truncation leaves it switched on
        backend.no_padding()
        with replacing_folder(folder) as partial:
            self.model.save_pretrained(partial, state_dict=weights)
            self.tokenizer.save_pretrained(partial)
            for setting in filter(None, (self.mixture, self.fusion, self.calibration)):
                setting.save(partial)
            if self.passages is not None:
                windows.save(self.passages, partial)
            readable = (partial / "config.json").stat().st_mode  # which follows the umask
            for path in partial.glob("*.safetensors"):
                path.chmod(readable)  # safetensors writes files that only their owner can read
