"""The model of the server: tokenise texts and score pairs, in the same way as training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.model import Reranker
from trainer.model.batching import Role, Tokens
from trainer.model.windows import Pair, Windowed
from trainer.runtime.linear import prepare


class Engine:
    """A loaded reranker with its public name.

    `tokenize` and `score` share no mutable state, so that one thread can tokenise while another one computes.
    """

    def __init__(self, reranker: Reranker, name: str) -> None:
        self._reranker = reranker
        if reranker.engine == "torch":
            prepare(reranker.model, reranker.device, reranker.precision)  # for good: these weights never change
        self.name = name
        self.max_length = reranker.max_length
        self.tokens_per_batch = reranker.tokens_per_bucket
        self.device = str(reranker.device)
        self.precision = reranker.precision
        self.engine = reranker.engine
        self.fusion = reranker.fusion
        self.calibration = reranker.calibration

    def tokenize(self, texts: Sequence[str], role: Role) -> list[Tokens]:
        """Return the token ids of each text, without truncation and special tokens."""
        return self._reranker.pairs.tokenize(texts, role)

    def cut(self, pairs: Sequence[Pair]) -> Windowed:
        """Return the pairs as they are scored: one for each window of a long document, if the model reads windows."""
        return self._reranker.cut(pairs)

    def length(self, pair: Pair) -> int:
        """Return the number of tokens of a joined pair before truncation, including special tokens."""
        return len(pair[0]) + len(pair[1]) + self._reranker.pairs.num_special

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return scores (pairs,) float32 of pairs from `cut`, computed in buckets of similar length."""
        return self._reranker.score_windows(pairs)
