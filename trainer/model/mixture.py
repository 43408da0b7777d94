"""The mixture of a standard checkpoint: its logit and lexical signals, for exact matches that the model overlooks.

    score = logit + constant + sum of weight * signal

The interaction head computes these signals itself. A standard checkpoint stays as it is, so that every library reads
it; this one adds the signals, with the weights of `mixture.json`. They are fitted in `trainer/training/mixture.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from trainer.errors import ModelError
from trainer.model.batching import PairEncoder, Tokens
from trainer.model.interaction import word_signals
from trainer.runtime.numbers import is_finite_number
from trainer.runtime.run_folder import read_record, write_json

FILE = "mixture.json"  # in the model folder
VERSION = 1
COMPARED = 1 << 24  # tokens of a query with those of a document at once: 16 MB
NO_QUERY, NO_DOCUMENT = -1, -2  # padding, which matches nothing


@dataclass(frozen=True)
class Weights:
    """The weight of each lexical signal, in logits per unit (`interaction.word_signals`), and a constant."""

    bm25: float
    bm25_by_idf: float
    matched_idf: float
    log_length: float
    constant: float


NAMES = [field.name for field in fields(Weights)]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Lexical signals that are added to a standard checkpoint's logit.

    `idf` (vocabulary,) float32 is that of each token in the corpus, `average_length` the mean number of tokens of a
    document as it is read.
    """

    weights: Weights
    idf: np.ndarray
    average_length: float

    def signals(self, pairs: Sequence[tuple[Tokens, Tokens]], encoder: PairEncoder) -> np.ndarray:
        """Return the lexical signals (pairs, 4) float32 of tokenised pairs, as far as the encoder reads their texts."""
        lengths = np.array([encoder.lengths(*pair) for pair in pairs], dtype=np.int64).reshape(-1, 2)
        at_once = max(1, COMPARED // max(1, int(lengths.max(axis=0, initial=0).prod())))
        parts = [np.empty((0, len(NAMES) - 1), dtype=np.float32)]
        for start in range(0, len(pairs), at_once):
            some = slice(start, start + at_once)
            parts.append(self._compare(pairs[some], lengths[some]).numpy())
        return np.concatenate(parts)

    def of(self, pairs: Sequence[tuple[Tokens, Tokens]], encoder: PairEncoder) -> np.ndarray:
        """Return what is added to the logits (pairs,) float32 of tokenised pairs."""
        *weights, constant = asdict(self.weights).values()
        return self.signals(pairs, encoder) @ np.array(weights, dtype=np.float32) + np.float32(constant)

    def _compare(self, pairs: Sequence[tuple[Tokens, Tokens]], lengths: np.ndarray) -> Tensor:
        """Return the signals (pairs, 4) of pairs whose texts are read up to these lengths (pairs, 2)."""
        queries, documents = (
            _padded([pair[text][:length] for pair, length in zip(pairs, lengths[:, text], strict=True)], padding)
            for text, padding in enumerate((NO_QUERY, NO_DOCUMENT))
        )
        frequency = (queries[:, :, None] == documents[:, None, :]).sum(dim=2).float()
        idf = torch.from_numpy(self.idf)[queries.clamp(min=0)] * (queries != NO_QUERY)
        length = torch.from_numpy(lengths[:, 1:]).float()
        return word_signals(idf, frequency, length, self.average_length)

    def save(self, folder: Path) -> None:
        """Write mixture.json into a model folder."""
        idf = [round(value, 4) for value in self.idf.tolist()]
        content = {"version": VERSION, "weights": asdict(self.weights), "average_length": self.average_length}
        write_json(folder / FILE, content | {"idf": idf})

    @classmethod
    def load(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Mixture | None:
        """Return the mixture in a model folder, None without the file; raises ModelError if it does not fit."""
        content = read_record(folder / FILE)
        if content is None:
            return None
        weights, idf, average = (content.get(name) for name in ("weights", "idf", "average_length"))
        if (
            content.get("version") == VERSION
            and isinstance(weights, dict)
            and weights.keys() == set(NAMES)
            and isinstance(idf, list)
            and len(idf) > largest_id(tokenizer)
            and all(map(is_finite_number, [*weights.values(), *idf, average]))
            and average > 0  # pyright: ignore[reportOptionalOperand]
        ):
            return cls(Weights(**weights), np.array(idf, dtype=np.float32), average)  # pyright: ignore[reportArgumentType]
        raise ModelError(
            f"{folder / FILE}: not a mixture of version {VERSION}, which has `weights` ({', '.join(NAMES)}), `idf` "
            "(a number for each of the model's tokens) and `average_length`; export the model again, or delete the "
            "file to score by the model's logit"
        )


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id of a token; some vocabularies have gaps, so that it is not their size."""
    return max(tokenizer.get_vocab().values())


def has_mixture(folder: Path) -> bool:
    """Return whether a model folder has a mixture."""
    return (folder / FILE).is_file()


def rounded(idf: Tensor) -> np.ndarray:
    """Return idf (vocabulary,) float32 with the four decimals that mixture.json keeps."""
    return np.array([round(value, 4) for value in idf.tolist()], dtype=np.float32)


def _padded(texts: Sequence[Tokens], padding: int) -> Tensor:
    """Return the ids of texts (texts, longest) int64."""
    ids = [torch.from_numpy(text.astype(np.int64)) for text in texts]
    return pad_sequence(ids, batch_first=True, padding_value=padding)
