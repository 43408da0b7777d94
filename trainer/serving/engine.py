"""The model behind the server: texts to tokens, pairs to logits, both as in training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.model import Reranker
from trainer.model.batching import Tokens

Pair = tuple[Tokens, Tokens]


class Engine:
    """A loaded reranker under the name that clients see.

    `tokenize` and `score` share nothing that changes, so that one thread may tokenise while another computes.
    """

    def __init__(self, reranker: Reranker, name: str) -> None:
        self._reranker = reranker
        self.name = name
        self.max_length = reranker.max_length
        self.tokens_per_batch = reranker.tokens_per_bucket
        self.device = str(reranker.device)
        self.precision = reranker.precision
        self.fusion = reranker.fusion

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, whole and without special tokens."""
        return self._reranker.pairs.tokenize(texts)

    def length(self, pair: Pair) -> int:
        """Return the tokens of a joined pair before it is cut to `max_length`, special tokens included."""
        return len(pair[0]) + len(pair[1]) + self._reranker.pairs.num_special

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return logits (pairs,) float32, computed in buckets of nearly one length."""
        return self._reranker.score_tokens(pairs)
