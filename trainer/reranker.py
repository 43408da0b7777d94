"""The cross-encoder: load, score, rank, save.

`Reranker.load` takes any base: a ready reranker keeps its classifier, an encoder gets the interaction head (or a
fresh classifier where the recipe insists). Scores are raw float32 logits; only their order means anything.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import gather_object
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trainer import packing
from trainer.batches import TOKENS_OF_A_START, TOKENS_PER_BUCKET, PairEncoder, Tokens, ahead, buckets
from trainer.console import progress, warn
from trainer.data import Collection
from trainer.errors import ModelError
from trainer.interaction import InteractionConfig, InteractionForSequenceClassification
from trainer.models import kind_of, locate
from trainer.retriever import NOTHING, Candidates

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names

AutoConfig.register("interaction", InteractionConfig, exist_ok=True)
AutoModelForSequenceClassification.register(InteractionConfig, InteractionForSequenceClassification, exist_ok=True)

Compute = Callable[[Any, packing.Batch, bool], Tensor]  # of a model, a batch, and whether it runs packed
ALL_AT_ONCE = 1 << 40  # tokens: where nothing is padded, nothing is gained by another bucket
CHUNK = 32768  # pairs that are tokenised together; the next ones are while they are scored


@dataclass(frozen=True)
class Ranked:
    """One document of an answer: its place in the given list, its text and its score."""

    index: int
    document: str
    score: float


class Reranker:
    """A cross-encoder with its tokenizer; `model(**inputs).logits` is (pairs, 1)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.model: Any = model  # a PreTrainedModel; its wrapped .to() defeats type checkers
        self.tokenizer = tokenizer
        self.pairs = PairEncoder(tokenizer, max_length)
        packing.prepare(model)
        self.packed = packing.can_pack(model) and _has_flash_attention(model.device)
        self.tokens_per_bucket = TOKENS_PER_BUCKET.get(model.device.type, 4096)

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        head: str = "auto",
        max_length: int | None = None,
        layers: Sequence[int] | None = None,
        trust_remote_code: bool = False,
    ) -> Reranker:
        """Load a base or a trained model onto the best device here; raises ModelError with what to do.

        `head` is auto, classifier or interaction; `layers` are those that a fresh interaction head compares;
        `max_length` defaults to what the model was saved with.
        """
        folder = locate(str(reference))
        kind = kind_of(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        for plain in (tokenizer.backend_tokenizer.no_truncation, tokenizer.backend_tokenizer.no_padding):
            plain()  # settings of the base's own training that would cut our pairs at its length
        try:
            if kind == "encoder" and head != "classifier":
                model = _with_interaction(folder, tokenizer, layers, trust_remote_code)
                tokenizer = _framed(tokenizer)
            else:
                if kind == "reranker" and head == "interaction":
                    raise ModelError(
                        f"reranker.head: {reference} has a trained classifier; interaction would discard it"
                    )
                options = {"num_labels": 1} if kind == "encoder" else {}
                model = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code, **options
                )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {reference}: transformers cannot load it: {str(error).splitlines()[0]}") from None
        longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        saved = min(tokenizer.model_max_length, longest)
        if max_length is not None and max_length > longest:
            raise ModelError(f"reranker.max_length: {max_length} tokens, but {reference} reads {longest} at most")
        model: Any = model
        return cls(model.to(_device()).eval(), tokenizer, max_length or saved)

    @property
    def max_length(self) -> int:
        """Tokens of query and document together."""
        return self.pairs.max_length

    @property
    def is_interaction(self) -> bool:
        """Whether the interaction head scores (else the standard classifier)."""
        return isinstance(self.model, InteractionForSequenceClassification)

    def buckets(self, sizes: Sequence[int], most: int | None = None) -> list[list[int]]:
        """Positions of pairs of these sizes, cut for the device and the layout, to at most so many tokens each."""
        start = ALL_AT_ONCE if self.packed else TOKENS_OF_A_START.get(self.model.device.type, 4096)
        return buckets(sizes, min(self.tokens_per_bucket, most or self.tokens_per_bucket), start)

    def score(self, query: str, documents: Sequence[str]) -> np.ndarray:
        """Relevance logits (documents,) float32."""
        asked = self.pairs.tokenize([query])[0]
        return self.score_tokens([(asked, tokens) for tokens in self.pairs.tokenize(documents)])

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """The documents best first; equal scores keep their order."""
        scores = self.score(query, documents)
        best: list[int] = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [Ranked(index, documents[index], float(scores[index])) for index in best]

    def score_tokens(self, pairs: Sequence[tuple[Tokens, Tokens]], note: str | None = None) -> np.ndarray:
        """Logits (pairs,) float32 of tokenised pairs, in buckets of nearly one length; `note` shows progress."""
        return self.score_chunks([pairs], len(pairs), note)

    def score_chunks(
        self, chunks: Iterable[Sequence[tuple[Tokens, Tokens]]], total: int, note: str | None = None
    ) -> np.ndarray:
        """The same for `total` pairs that come in chunks; the next chunk is made while one is scored."""
        return self._over_chunks(chunks, total, packing.logits, note)

    def features(self, pairs: Sequence[tuple[Tokens, Tokens]], note: str | None = None) -> np.ndarray:
        """What the interaction head mixes: (pairs, layers, 3) float32."""
        return self._over_chunks([pairs], len(pairs), packing.features, note)

    @torch.inference_mode()
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
        with progress(note or "score", total=total if note else 0) as advance, autocast(self.model.device):
            parts = [self._over_buckets(pairs, compute, advance) for pairs in ahead(chunks)]
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
        """Weights (the model's own unless they are given), configuration and tokenizer, whole or not at all."""
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        self.tokenizer.model_max_length = self.max_length
        for local in ("is_local", "local_files_only"):  # how it was loaded here, which is nobody else's business
            self.tokenizer.init_kwargs.pop(local, None)
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()  # whoever tokenized with a length left it there
        backend.no_padding()
        self.model.save_pretrained(partial, state_dict=weights)
        self.tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner can read
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)


def half_precision(device: torch.device) -> torch.dtype | None:
    """What models compute in: as Accelerate was told, or without it bf16 on GPUs that have it; None: fp32."""
    if is_initialized():
        return HALVES.get(AcceleratorState().mixed_precision)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


def autocast(device: torch.device) -> torch.autocast:
    """Half precision where it is used on the device."""
    half = half_precision(device)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def _has_flash_attention(device: torch.device) -> bool:
    """Whether torch's kernel for sequences of varying length runs: NVIDIA from Ampere on, in half precision."""
    if device.type != "cuda" or half_precision(device) is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _with_interaction(
    folder: Path, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int] | None, trust_remote_code: bool
) -> InteractionForSequenceClassification:
    """An encoder under a fresh interaction head; layers above the deepest compared one are cut off."""
    encoder = AutoModel.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    depth = encoder.config.num_hidden_layers
    chosen = tuple(layers) if layers else tuple(round(share * depth) for share in (0, 1 / 3, 2 / 3, 1))
    if not chosen or min(chosen) < 0 or max(chosen) > depth:
        raise ModelError(
            f"reranker.layers: {list(chosen)} is not within 0..{depth}, the hidden layers of {folder.name}"
        )
    separator: Any = tokenizer.sep_token_id
    if separator is None or separator not in tokenizer("a")["input_ids"]:
        raise ModelError(f"reranker.head: the tokenizer of {folder.name} has no separator token; use head: classifier")
    settings = encoder.config.to_dict() | {"num_hidden_layers": max(max(chosen), 1)}
    settings.pop("_name_or_path", None)  # a path of this machine
    if "layer_types" in settings and settings["layer_types"]:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    config = InteractionConfig(
        encoder=settings,
        layers=chosen,
        separator_id=separator,
        special_ids=tuple(tokenizer.all_special_ids),
    )
    model = InteractionForSequenceClassification(config)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name in model.encoder.state_dict()}
    model.encoder.load_state_dict(state)
    model.start_head(torch.ones(len(model.token_weights)))
    return model


def _framed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer, joining a pair as two framed texts: `[CLS] query [SEP] [CLS] document [SEP]`.

    An encoder that only ever read single texts rests its attention on the special tokens around them; without a [CLS]
    of its own the document's states are worse (measured in docs/results.md). The class is the plain one, because those
    of single architectures put their own frame back when they are loaded.
    """
    single: Any = tokenizer("a", return_special_tokens_mask=True)
    texts = [place for place, special in enumerate(single["special_tokens_mask"]) if not special]
    names: Any = tokenizer.convert_ids_to_tokens(single["input_ids"])
    before, behind = names[: texts[0]], names[texts[-1] + 1 :]
    frame = [[*before, f"${text}", *behind] for text in "AB"]
    ids = [(name, single["input_ids"][place]) for place, name in enumerate(names) if place not in texts]
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=frame[0], pair=frame[0] + frame[1], special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],  # the head finds the texts by the separator
        **tokenizer.special_tokens_map,
    )


class TokenizedCollection:
    """Tokens of the queries and documents that are needed, each made once."""

    def __init__(self, collection: Collection, pairs: PairEncoder) -> None:
        self._collection = collection
        self._pairs = pairs
        self._queries: dict[int, Tokens] = {}
        self._documents: dict[int, Tokens] = {}

    def pairs(self, rows: Sequence[tuple[int, int]]) -> list[tuple[Tokens, Tokens]]:
        """Token pairs for (query row, document row) pairs."""
        self._add(self._queries, {query for query, _ in rows}, self._collection.query_texts)
        self._add(self._documents, {document for _, document in rows}, self._collection.passages)
        return [(self._queries[query], self._documents[document]) for query, document in rows]

    def documents(self, limit: int) -> list[Tokens]:
        """Tokens of the first `limit` documents."""
        rows = range(min(limit, len(self._collection.documents)))
        self._add(self._documents, set(rows), self._collection.passages)
        return [self._documents[row] for row in rows]

    def _add(self, known: dict[int, Tokens], rows: set[int], texts: Callable[[Sequence[int]], list[str]]) -> None:
        if new := sorted(rows - known.keys()):
            known |= dict(zip(new, self._pairs.tokenize(texts(new)), strict=True))


def score_rows(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    rows: Sequence[tuple[int, int]],
    accelerator: Accelerator,
    note: str | None = None,
) -> np.ndarray:
    """Logits (pairs,) float32 of (query row, document row) pairs, shared out over all processes."""
    ours = rows[accelerator.process_index :: accelerator.num_processes]
    chunks = (tokenized.pairs(ours[start : start + CHUNK]) for start in range(0, len(ours), CHUNK))
    part = reranker.score_chunks(chunks, len(ours), note)
    parts = gather_object([part]) if accelerator.num_processes > 1 else [part]
    scores = np.empty(len(rows), dtype=np.float32)
    for index, numbers in enumerate(parts):
        scores[index :: accelerator.num_processes] = numbers
    return scores


def rerank(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    candidates: Candidates,
    accelerator: Accelerator,
    note: str | None = None,
) -> np.ndarray:
    """Scores (queries, depth) float32 of all candidates, -inf where there is none."""
    places = np.argwhere(candidates.documents != NOTHING)
    rows = [(int(candidates.queries[query]), int(candidates.documents[query, rank])) for query, rank in places]
    scores = np.full(candidates.documents.shape, -np.inf, dtype=np.float32)
    scores[tuple(places.T)] = score_rows(reranker, tokenized, rows, accelerator, note)
    return scores


def rarity(tokenized: Sequence[Tokens], vocabulary: int) -> Tensor:
    """Inverse document frequency (vocabulary,): log((documents + 1) / (frequency + 1/2)), at least 0.05."""
    frequency = np.zeros(vocabulary)
    for tokens in tokenized:
        frequency[np.unique(tokens)] += 1
    return torch.tensor(np.maximum(np.log((len(tokenized) + 1) / (frequency + 0.5)), 0.05), dtype=torch.float32)


class ScoringModel(nn.Module):
    """The model over several batches in one call, so that data parallelism sees one forward per pass."""

    def __init__(self, reranker: Reranker) -> None:
        super().__init__()
        self.model = reranker.model
        self.packed = reranker.packed

    def forward(self, batches: list[packing.Batch]) -> Tensor:
        """Logits (pairs of all batches,) float32."""
        with autocast(self.model.device):  # Accelerate adds that itself, but not to a sharded model
            return torch.cat([packing.logits(self.model, batch, self.packed) for batch in batches])
