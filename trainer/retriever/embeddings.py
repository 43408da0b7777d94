"""Embeddings on disk: float16 shards, each named by a hash of the texts that it embeds.

A shard holds the unit vectors of SHARD texts; its folder is named by a fingerprint of everything else that the vectors
depend on: weights, prompt, length. A stopped run therefore resumes with the missing shards, a changed document
recomputes one shard, another model or prompt all of them, and nothing is reused by name or path alone.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from trainer.errors import ModelError
from trainer.model_files import checks, references
from trainer.runtime import console
from trainer.runtime.console import progress
from trainer.runtime.launch import on_main
from trainer.runtime.linear import MANY, scoring_in, share_casts
from trainer.runtime.precision import Precision, bf16_speedup
from trainer.runtime.run_folder import json_sha256, remove, replacing

if TYPE_CHECKING:
    from accelerate import Accelerator
    from sentence_transformers import SentenceTransformer

MEASURED_TOKENS = 4096  # of the batch on which the precisions are timed
SHARD = 4096  # texts in one file: seven minutes of MiniLM on one slow core, 3 MB at 384 dimensions
OPEN_SHARDS = 64  # each takes a file descriptor, of which a process usually has 1,024
CHECKSUM = 16  # bytes at the end of each shard
Role = Literal["query", "document"]
Texts = Callable[[int, int], list[str]]  # of rows start to end; the corpus is never fully in memory


@dataclass(frozen=True)
class BiEncoder:
    """A bi-encoder's folder and its encoding settings; a prompt of None is the one saved with the model."""

    folder: Path
    max_length: int = 256
    query_prompt: str | None = None
    document_prompt: str | None = None
    precision: Precision = "fp32"
    trust_remote_code: bool = False

    def load(self, device: str) -> SentenceTransformer:
        """Return the model, ready to encode.

        Raises ModelError if a file or weight of the folder is missing or does not fit.
        """
        from sentence_transformers import SentenceTransformer
        from transformers import PreTrainedModel, PreTrainedTokenizerBase

        from trainer.model_files import weights

        if faults := checks.faults_of_bi_encoder(self.folder, self.trust_remote_code):
            raise ModelError(faults)
        with weights.loading(self.folder):
            options = {
                "use_safetensors": True,
                "ignore_mismatched_sizes": True,
            }  # weights.load compares the sizes below
            model = SentenceTransformer(
                str(self.folder), device=device, model_kwargs=options, trust_remote_code=self.trust_remote_code
            )
            encoder: Any = getattr(model[0], "model", None)  # None for static embeddings without a transformer
            longest = self.max_length
            if isinstance(encoder, PreTrainedModel):
                weights.load(
                    type(encoder), self.folder, config=encoder.config
                )  # loaded again, for the report on its weights
                if isinstance(model.tokenizer, PreTrainedTokenizerBase):  # and not an image processor
                    weights.require_rows(encoder, model.tokenizer, self.folder)
                longest = min(longest, weights.longest_text(encoder) or longest)
                share_casts(encoder)
                model[0].register_forward_hook(_in_float32)
            model.max_seq_length = min(longest, model.max_seq_length or longest)
            model.encode(["a"], show_progress_bar=False)  # fails here, before the corpus is read
        return model

    def fingerprint(self, role: Role) -> str:
        """Return a fingerprint of everything except the text that a vector depends on."""
        prompt = self.query_prompt if role == "query" else self.document_prompt
        precision = [] if self.precision == "fp32" else [self.precision]
        return json_sha256(references.fingerprint(self.folder), self.max_length, role, prompt, *precision)

    def bf16_speedup(self, device: str) -> float:
        """Return the speed-up of encoding in bf16 over fp32, measured on a batch of repeated words."""
        model = self.load(device)
        texts = [" ".join(["measure"] * self.max_length)] * max(1, MEASURED_TOKENS // self.max_length)
        within = partial(scoring_in, model, model.device, texts=MANY)
        return bf16_speedup(lambda: model.encode(texts, show_progress_bar=False), within)

    def encode(self, model: SentenceTransformer, texts: list[str], role: Role, batch_size: int) -> np.ndarray:
        """Return unit vectors (texts, dimensions) float16; texts of similar length share a batch."""
        encode, prompt = (
            (model.encode_query, self.query_prompt)
            if role == "query"
            else (model.encode_document, self.document_prompt)
        )
        with scoring_in(model, model.device, self.precision, len(texts)):
            vectors = encode(
                texts, prompt=prompt, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float16)


class Embeddings:
    """The embeddings of N texts in shards on disk, read as (N, dimensions) float32.

    At most OPEN_SHARDS files are open at once, whatever the number of shards.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._paths = list(shards)
        self._shard = lru_cache(OPEN_SHARDS)(self._open)
        shapes = [self._shard(shard).shape for shard in range(len(self._paths))]
        self._starts = np.cumsum([0, *(length for length, _ in shapes)])
        self.dimensions: int = shapes[0][1] if shapes else 0  # without texts there is no shard

    def _open(self, shard: int) -> np.ndarray:
        return np.load(self._paths[shard], mmap_mode="r")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, size: int = 8 * SHARD) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all vectors in blocks of `size`: (first row, vectors (n, dimensions) float32)."""
        for start in range(0, len(self), size):
            yield start, self.rows(np.arange(start, min(start + size, len(self))))

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of `rows` (n,) in that order: (n, dimensions) float32."""
        vectors = np.empty((len(rows), self.dimensions), dtype=np.float16)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            inside = shards == shard
            vectors[inside] = self._shard(int(shard))[rows[inside] - self._starts[shard]]
        return torch.from_numpy(vectors).float().numpy()  # 9 ms for 8,192 rows; 15 if NumPy converts where it assigns


class Replaced(Embeddings):
    """Embeddings in which some rows have other vectors: `others` holds those of `rows`, in that order."""

    def __init__(self, whole: Embeddings, rows: Sequence[int], others: Embeddings) -> None:
        self._whole, self._others = whole, others
        self._places = np.full(len(whole), -1, dtype=np.int64)
        self._places[list(rows)] = np.arange(len(rows))
        self.dimensions = whole.dimensions

    def __len__(self) -> int:
        return len(self._whole)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of `rows` (n,) in that order: (n, dimensions) float32."""
        vectors, places = self._whole.rows(rows), self._places[rows]
        vectors[places >= 0] = self._others.rows(places[places >= 0])
        return vectors


class VectorsInMemory(Embeddings):
    """The embeddings of a few texts, given as unit vectors (texts, dimensions) float16."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors.astype(np.float32)
        self.dimensions = vectors.shape[1]

    def __len__(self) -> int:
        return len(self._vectors)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of `rows` (n,) in that order: (n, dimensions) float32."""
        return self._vectors[rows]


class Shards:
    """The shard files of a list of texts under `cache`, including those that are not written yet."""

    def __init__(self, bi_encoder: BiEncoder, role: Role, texts: Texts, count: int, cache: Path) -> None:
        self.bi_encoder = bi_encoder
        self._role: Role = role
        self._texts = texts
        self._bounds = [(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
        self._cache = cache
        folder = cache / bi_encoder.fingerprint(role)[:16]
        self.paths = [folder / f"{_digest(texts(*bounds))}.npy" for bounds in self._bounds]
        self._missing: list[Path] | None = None

    def in_precision(self, precision: Precision) -> Shards:
        """Return the shards of the same texts in another precision, without reading the texts again."""
        other = copy(self)
        other.bi_encoder = replace(self.bi_encoder, precision=precision)
        folder = self._cache / other.bi_encoder.fingerprint(self._role)[:16]
        other.paths = [folder / path.name for path in self.paths]
        other._missing = None
        return other

    @property
    def missing(self) -> list[Path]:
        """The missing or damaged shards, once `find_missing` was called."""
        assert self._missing is not None
        return self._missing

    @property
    def is_complete(self) -> bool:
        """True if no shard is missing or damaged."""
        return all(map(_is_intact, dict.fromkeys(self.paths)))

    def find_missing(self, accelerator: Accelerator) -> list[Path]:
        """Return the missing or damaged shards, the same on all processes."""
        if self._missing is None:
            self._missing = on_main(accelerator, self._check_files)
        return self._missing

    def encode(self, accelerator: Accelerator, batch_size: int = 32) -> None:
        """Compute and write this process's share of the missing or damaged shards; every process calls it."""
        bounds = dict(zip(self.paths, self._bounds, strict=True))
        missing = self.find_missing(accelerator)[accelerator.process_index :: accelerator.num_processes]
        ours = [(path, bounds[path]) for path in missing]
        if not ours:
            return
        model = self.bi_encoder.load(str(accelerator.device))
        with progress("retrieve", total=sum(end - start for _, (start, end) in ours)) as advance:
            for path, (start, end) in ours:
                _write(path, self.bi_encoder.encode(model, self._texts(start, end), self._role, batch_size))
                advance(end - start, "embedded")

    def _check_files(self) -> list[Path]:
        """Return the shards to compute, with a warning if a file is damaged."""
        missing = [path for path in dict.fromkeys(self.paths) if not _is_intact(path)]
        damaged = [path for path in missing if path.exists()]
        for path in filter(
            Path.is_dir, damaged
        ):  # files are replaced later, so that no other run misses them meanwhile
            remove(path)
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            console.warn("retrieve", f"{damaged[0]}{more}: damaged embeddings; they are computed again")
        return missing

    def open(self) -> Embeddings:
        """Return the embeddings, once every process has encoded its share."""
        return Embeddings(self.paths)


def _in_float32(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Convert the token embeddings to float32, in which pooling and normalisation then compute."""
    return features | {"token_embeddings": features["token_embeddings"].float()}


def _write(path: Path, vectors: np.ndarray) -> None:
    """Write a shard as .npy followed by a checksum, which readers of .npy files ignore."""
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    content = buffer.getvalue()
    with replacing(path) as partial:
        partial.write_bytes(content + _checksum(path, content))


def _is_intact(path: Path) -> bool:
    """Return whether a shard is readable and matches its checksum."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return _checksum(path, content[:-CHECKSUM]) == content[-CHECKSUM:]


def _checksum(path: Path, content: bytes) -> bytes:
    """Return a checksum over content and name, so that a renamed shard of other texts or another model fails it."""
    name = f"{path.parent.name}/{path.name}".encode()
    return hashlib.blake2b(content, digest_size=CHECKSUM, key=hashlib.sha256(name).digest()).digest()


def _digest(texts: list[str]) -> str:
    """Return a hash of a list of texts; lengths are hashed too, so that ["ab", "c"] and ["a", "bc"] differ."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]
