"""BM25 over words or, for languages that are written without spaces, over pairs of characters."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.languages import UNSPACED_RUN, WORD
from trainer.recipe import UNSPACED
from trainer.retriever.candidates import NOTHING, Ranking, sort_keys

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenizer
    from scipy.sparse import csr_matrix

K1, B = 1.2, 0.75  # Lucene's
POSTINGS_AT_ONCE = 4_000_000  # (word, document) pairs whose scores are in memory together: about 50 MB
_WORD_OR_RUN = re.compile(f"{UNSPACED_RUN.pattern}|[^\\W{UNSPACED_RUN.pattern[1:-2]}]{{2,}}")


@dataclass(frozen=True)
class Analyzer:
    """How texts become words: by the rules of a language, as `retriever.language` names it.

    Where the language has no list of stop words or no stemmer, as chinese or none, the switches change nothing.
    """

    language: str
    drop_stop_words: bool = True
    stem: bool = True

    def tokenizer(self) -> Tokenizer:
        """Return a tokenizer without vocabulary."""
        from bm25s.tokenization import Tokenizer

        splitter, stemmer, stop_words = _rules(self.language)
        return Tokenizer(
            splitter=splitter,
            stemmer=stemmer if self.stem else None,  # type: ignore[arg-type]  None is its default
            stopwords=stop_words if self.drop_stop_words else [],
        )

    def variants(self) -> list[Analyzer]:
        """Return the analyzers of this language that differ, this one first."""
        _, stemmer, stop_words = _rules(self.language)
        drops = [self.drop_stop_words, *([not self.drop_stop_words] if stop_words else [])]
        stems = [self.stem, *([not self.stem] if stemmer else [])]
        return [replace(self, drop_stop_words=drop, stem=stem) for drop in drops for stem in stems]


class Bm25:
    """BM25 (Lucene's variant) over N documents, for any k1 and b.

    Documents are read once and kept as counts: eight bytes for each different word of each document.
    """

    def __init__(self, documents: Iterable[str], analyzer: Analyzer) -> None:
        self._tokenizer = analyzer.tokenizer()
        counts = self._counts(documents, update_vocab=True)
        counts.sum_duplicates()
        self.lengths = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()  # (N,) words of each document
        self.counts: csr_matrix = counts.T.tocsr()  # (words, N)
        holding = np.diff(self.counts.indptr)
        self.rarity = np.log(1 + (len(self.lengths) - holding + 0.5) / (holding + 0.5)).astype(np.float32)

    def _counts(self, texts: Iterable[str], update_vocab: bool) -> csr_matrix:
        """Return the known words of each text in their order, 1 for each time: (texts, words) float32."""
        from scipy.sparse import csr_matrix

        words, ends = array("i"), array("q", [0])
        for found in self._tokenizer.streaming_tokenize(texts, update_vocab, allow_empty=False):  # type: ignore[arg-type]  any iterable
            words.extend(found)
            ends.append(len(words))
        ones = np.ones(len(words), dtype=np.float32)
        known = max(self._tokenizer.get_vocab_dict().values(), default=-1) + 1
        return csr_matrix((ones, np.asarray(words), np.asarray(ends)), shape=(len(ends) - 1, known))

    def search(self, queries: Sequence[str], depth: int, k1: float = K1, b: float = B) -> Ranking:
        """Return the best `depth` documents of every query; those without a word in common are not listed."""
        depth = min(depth, len(self.lengths))
        rows = np.full((len(queries), depth), NOTHING, dtype=np.int32)
        scores = np.zeros((len(queries), depth), dtype=np.float32)
        for first, found in self._products(self._counts(queries, update_vocab=False), self._weights(k1, b)):
            for place, (start, end) in enumerate(pairwise(found.indptr)):
                keys = sort_keys(found.data[start:end], found.indices[start:end])
                best = Ranking.best(keys[None], depth)
                rows[first + place, : end - start] = best.documents
                scores[first + place, : end - start] = best.scores
        return Ranking(rows, scores)

    def _weights(self, k1: float, b: float) -> csr_matrix:
        """Return what each word of a query adds to the score of each document: (words, N) float32."""
        from scipy.sparse import csr_matrix

        counts = self.counts
        shares = _saturated(counts.data, self._damping(k1, b)[counts.indices])
        data = np.repeat(self.rarity, np.diff(counts.indptr)) * shares
        return csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)

    def _damping(self, k1: float, b: float) -> np.ndarray:
        return k1 * (1 - b + b * self.lengths / max(self.lengths.mean(), 1e-9))

    def _products(self, queries: csr_matrix, weights: csr_matrix) -> Iterator[tuple[int, csr_matrix]]:
        """Yield the scores of all documents, (queries, N) sparse, of so many queries that memory holds them.

        Each comes with the place of its first query.
        """
        postings = np.concatenate([[0], np.cumsum(np.diff(weights.indptr)[queries.indices])])[queries.indptr]
        cuts = np.flatnonzero(np.diff(postings[1:] // POSTINGS_AT_ONCE)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(postings) - 1]):
            yield start, queries[start:end] @ weights  # type: ignore[index]  a csr_matrix has rows

    def scorer(self, queries: Sequence[str], documents: np.ndarray) -> Callable[[float, float], np.ndarray]:
        """Return a function of k1 and b that scores document rows (Q, m), NOTHING as 0; float32.

        What queries and documents share is counted once, so that each further k1 and b costs milliseconds.
        """
        pairs, counts, rarity = [], [], []
        asked = self._counts(queries, update_vocab=False)
        for place, (start, end) in enumerate(pairwise(asked.indptr)):
            for word in asked.indices[start:end]:
                first, last = self.counts.indptr[word : word + 2]
                holding = self.counts.indices[first:last]
                spots = np.minimum(np.searchsorted(holding, documents[place]), len(holding) - 1)
                columns = np.flatnonzero(holding[spots] == documents[place])
                pairs.append(place * documents.shape[1] + columns)
                counts.append(self.counts.data[first + spots[columns]])
                rarity.append(np.full(len(columns), self.rarity[word]))
        nothing = np.empty(0, dtype=np.float32)
        pair = np.concatenate([nothing.astype(np.int64), *pairs])
        count, weight = np.concatenate([nothing, *counts]), np.concatenate([nothing, *rarity])
        rows = documents.ravel()[pair]

        def score(k1: float, b: float) -> np.ndarray:
            added = weight * _saturated(count, self._damping(k1, b)[rows])
            return np.bincount(pair, added, documents.size).reshape(documents.shape).astype(np.float32)

        return score


def _saturated(counts: np.ndarray, damping: np.ndarray) -> np.ndarray:
    return counts / (counts + damping)


def _rules(language: str) -> tuple[Callable[[str], list[str]], Any, list[str]]:
    """Return splitter, stemmer and stop words by Snowball's name of the language."""
    import Stemmer
    from bm25s.tokenization import _infer_stopwords

    if language in UNSPACED:
        return _pairs_of_characters, None, []
    if language == "none":
        return WORD.findall, None, []
    stemmer = Stemmer.Stemmer(language).stemWord
    try:
        return WORD.findall, stemmer, list(_infer_stopwords("english" if language == "porter" else language))
    except ValueError:  # a stemmer, but no list of stop words: BM25 weighs them down by itself
        return WORD.findall, stemmer, []


def _pairs_of_characters(text: str) -> list[str]:
    """Overlapping pairs of characters of each run without spaces, and words of the rest (Latin names, numbers)."""
    tokens = []
    for run in _WORD_OR_RUN.findall(text):
        if len(run) > 1 and UNSPACED_RUN.match(run):
            tokens += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            tokens.append(run)
    return tokens
