"""BM25 over words or, for languages that are written without spaces, over pairs of characters."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.languages import UNSPACED_RUN, WORD
from trainer.recipe import UNSPACED
from trainer.retriever.candidates import NOTHING, Ranking, sort_keys

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

K1, B = 1.2, 0.75  # Lucene's
POSTINGS_AT_ONCE = 20_000_000  # (word, document) pairs whose scores are in memory together: about 240 MB
_WORD_OR_RUN = re.compile(f"{UNSPACED_RUN.pattern}|[^\\W{UNSPACED_RUN.pattern[1:-2]}]{{2,}}")


class Bm25:
    """BM25 (Lucene's variant) over N documents, with the stemmer and stop words of a language as in the recipe.

    Documents are read once and kept as counts: eight bytes for each different word of each document.
    """

    def __init__(self, documents: Iterable[str], language: str) -> None:
        from bm25s.tokenization import Tokenizer

        splitter, stemmer, stopwords = _analyzer(language)
        self._tokenizer = Tokenizer(splitter=splitter, stemmer=stemmer, stopwords=stopwords)
        counts = self._counts(documents, update_vocab=True)
        counts.sum_duplicates()
        self.lengths = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()  # (N,) words of each document
        self.counts: csr_matrix = counts.T.tocsr()  # (words, N)

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

    def weights(self, k1: float = K1, b: float = B) -> csr_matrix:
        """Return what each word of a query adds to the score of each document: (words, N) float32."""
        from scipy.sparse import csr_matrix

        counts, documents = self.counts, len(self.lengths)
        holding = np.diff(counts.indptr)
        rarity = np.log(1 + (documents - holding + 0.5) / (holding + 0.5)).astype(np.float32)
        damping = k1 * (1 - b + b * self.lengths / max(self.lengths.mean(), 1e-9))
        data = np.repeat(rarity, holding) * (counts.data / (counts.data + damping[counts.indices]))
        return csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)

    def search(self, queries: Sequence[str], depth: int, k1: float = K1, b: float = B) -> Ranking:
        """Return the best `depth` documents of every query; those without a word in common are not listed."""
        depth = min(depth, len(self.lengths))
        rows = np.full((len(queries), depth), NOTHING, dtype=np.int32)
        scores = np.zeros((len(queries), depth), dtype=np.float32)
        for first, found in self._products(self._counts(queries, update_vocab=False), self.weights(k1, b)):
            for place, (start, end) in enumerate(pairwise(found.indptr)):
                keys = sort_keys(found.data[start:end], found.indices[start:end])
                best = Ranking.best(keys[None], depth)
                rows[first + place, : end - start] = best.documents
                scores[first + place, : end - start] = best.scores
        return Ranking(rows, scores)

    def _products(self, queries: csr_matrix, weights: csr_matrix) -> Iterator[tuple[int, csr_matrix]]:
        """Yield the scores of all documents, (queries, N) sparse, of so many queries that memory holds them.

        Each comes with the place of its first query.
        """
        postings = np.concatenate([[0], np.cumsum(np.diff(weights.indptr)[queries.indices])])[queries.indptr]
        cuts = np.flatnonzero(np.diff(postings[1:] // POSTINGS_AT_ONCE)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(postings) - 1]):
            yield start, queries[start:end] @ weights  # type: ignore[index]  a csr_matrix has rows


def search_bm25(queries: Sequence[str], documents: Iterable[str], depth: int, language: str) -> Ranking:
    """Return the best `depth` documents of every query; those without a word in common are not listed."""
    return Bm25(documents, language).search(queries, depth)


def _analyzer(language: str) -> tuple[Callable[[str], list[str]], Any, list[str]]:
    """Splitter, stemmer and stop words by Snowball's name of the language."""
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
