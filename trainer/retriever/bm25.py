"""BM25 over words or, for languages written without spaces, over character bigrams."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import Stemmer
from bm25s.tokenization import Tokenizer, _infer_stopwords
from scipy.sparse import csr_matrix

from trainer.data.languages import UNSPACED_RUN, WORD
from trainer.recipe import UNSPACED
from trainer.retriever.candidates import NOTHING, RankedLists, sort_keys
from trainer.runtime.console import progress

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenizer
    from scipy.sparse import csr_matrix

K1, B = 1.2, 0.75  # Lucene's defaults
POSTINGS_AT_ONCE = 4_000_000  # postings (word, document) scored in one block: about 50 MB
_WORD_OR_RUN = re.compile(f"{UNSPACED_RUN.pattern}|[^\\W{UNSPACED_RUN.pattern[1:-2]}]{{2,}}")


@dataclass(frozen=True)
class Analyzer:
    """The text analysis of a language as named in `retriever.language`: word splitting, stop words, stemming.

    For a language without a stop word list or a stemmer (chinese, none) the two switches have no effect.
    """

    language: str
    drop_stop_words: bool = True
    stem: bool = True

    def tokenizer(self) -> Tokenizer:
        """Return a tokenizer with an empty vocabulary."""
        splitter, stemmer, stop_words = _rules(self.language)
        return Tokenizer(
            splitter=splitter,
            stemmer=stemmer if self.stem else None,  # type: ignore[arg-type]  None is its default
            stopwords=stop_words if self.drop_stop_words else [],
        )

    def variants(self) -> list[Analyzer]:
        """Return the distinct analyzers of this language, this one first."""
        _, stemmer, stop_words = _rules(self.language)
        drops = [self.drop_stop_words, *([not self.drop_stop_words] if stop_words else [])]
        stems = [self.stem, *([not self.stem] if stemmer else [])]
        return [replace(self, drop_stop_words=drop, stem=stem) for drop in drops for stem in stems]


class Bm25:
    """BM25 (Lucene's variant: Kamphuis et al., ECIR 2020) over N documents, for any k1 and b.

        idf(t) * tf / (tf + k1 * (1 - b + b * length / average length)), idf(t) = log(1 + (N - df + 0.5) / (df + 0.5))

    The documents are read once and stored as term counts: eight bytes for each distinct word of each document.
    """

    def __init__(self, documents: Iterable[str], analyzer: Analyzer) -> None:
        self._tokenizer = analyzer.tokenizer()
        counts = self._counts(documents, update_vocab=True)
        counts.sum_duplicates()
        self.lengths = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()  # (N,) number of words of each document
        self.counts: csr_matrix = counts.T.tocsr()  # (words, N)
        frequency = np.diff(self.counts.indptr)  # documents that contain each word
        self.idf = np.log(1 + (len(self.lengths) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)

    def _counts(self, texts: Iterable[str], update_vocab: bool) -> csr_matrix:
        """Return a 1 for each occurrence of a vocabulary word, in text order: (texts, words) float32, unmerged."""
        words, ends = array("i"), array("q", [0])
        for ids in self._tokenizer.streaming_tokenize(texts, update_vocab, allow_empty=False):  # type: ignore[arg-type]  any iterable
            words.extend(ids)
            ends.append(len(words))
        ones = np.ones(len(words), dtype=np.float32)
        known = max(self._tokenizer.get_vocab_dict().values(), default=-1) + 1
        return csr_matrix((ones, np.asarray(words), np.asarray(ends)), shape=(len(ends) - 1, known))

    def search(self, queries: Sequence[str], depth: int, k1: float = K1, b: float = B) -> RankedLists:
        """Return the top `depth` documents of every query; documents that share no word with it are left out."""
        depth = min(depth, len(self.lengths))
        rows = np.full((len(queries), depth), NOTHING, dtype=np.int32)
        scores = np.zeros((len(queries), depth), dtype=np.float32)
        products = self._products(self._counts(queries, update_vocab=False), self._weights(k1, b))
        with progress("search", total=len(queries)) as advance:
            for first, block in products:
                for index, (start, end) in enumerate(pairwise(block.indptr)):
                    keys = sort_keys(block.data[start:end], block.indices[start:end])
                    best = RankedLists.best(keys[None], depth)
                    rows[first + index, : end - start] = best.documents
                    scores[first + index, : end - start] = best.scores
                advance(block.shape[0])  # type: ignore[index]  a csr_matrix has a shape
        return RankedLists(rows, scores)

    def _weights(self, k1: float, b: float) -> csr_matrix:
        """Return the BM25 weight of each word in each document: (words, N) float32, sparse."""
        counts = self.counts
        saturated = _saturated(counts.data, self._length_norm(k1, b)[counts.indices])
        data = np.repeat(self.idf, np.diff(counts.indptr)) * saturated
        return csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)

    def _length_norm(self, k1: float, b: float) -> np.ndarray:
        """Return BM25's length normalisation k1 * (1 - b + b * length / average length) of each document (N,)."""
        return k1 * (1 - b + b * self.lengths / max(self.lengths.mean(), 1e-9))

    def _products(self, queries: csr_matrix, weights: csr_matrix) -> Iterator[tuple[int, csr_matrix]]:
        """Yield (index of the first query, scores (queries, N) sparse) of blocks of about POSTINGS_AT_ONCE postings."""
        postings = np.concatenate([[0], np.cumsum(np.diff(weights.indptr)[queries.indices])])[queries.indptr]
        cuts = np.flatnonzero(np.diff(postings[1:] // POSTINGS_AT_ONCE)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(postings) - 1]):
            yield start, queries[start:end] @ weights  # type: ignore[index]  a csr_matrix has rows

    def scorer(self, queries: Sequence[str], documents: np.ndarray) -> Callable[[float, float], np.ndarray]:
        """Return a function of k1 and b that gives the scores (Q, m) float32 of document rows (Q, m), 0 for NOTHING.

        The words that queries and documents share are counted once, so that each further k1 and b takes milliseconds.
        """
        pairs, counts, idf = [], [], []
        query_counts = self._counts(queries, update_vocab=False)
        for index, (start, end) in enumerate(pairwise(query_counts.indptr)):
            for word in query_counts.indices[start:end]:
                first, last = self.counts.indptr[word : word + 2]
                postings = self.counts.indices[first:last]
                positions = np.minimum(np.searchsorted(postings, documents[index]), len(postings) - 1)
                columns = np.flatnonzero(postings[positions] == documents[index])
                pairs.append(index * documents.shape[1] + columns)
                counts.append(self.counts.data[first + positions[columns]])
                idf.append(np.full(len(columns), self.idf[word]))
        empty = np.empty(0, dtype=np.float32)
        pair = np.concatenate([empty.astype(np.int64), *pairs])
        count, weight = np.concatenate([empty, *counts]), np.concatenate([empty, *idf])
        rows = documents.ravel()[pair]

        def score(k1: float, b: float) -> np.ndarray:
            weights = weight * _saturated(count, self._length_norm(k1, b)[rows])
            return np.bincount(pair, weights, documents.size).reshape(documents.shape).astype(np.float32)

        return score


def _saturated(counts: np.ndarray, length_norm: np.ndarray) -> np.ndarray:
    """Return BM25's saturated term frequencies, of the shape of the counts."""
    return counts / (counts + length_norm)


def _rules(language: str) -> tuple[Callable[[str], list[str]], Any, list[str]]:
    """Return the splitter, stemmer (or None) and stop words for Snowball's name of a language."""
    if language in UNSPACED:
        return _character_bigrams, None, []
    if language == "none":
        return WORD.findall, None, []
    stemmer = Stemmer.Stemmer(language).stemWord
    try:
        return WORD.findall, stemmer, list(_infer_stopwords("english" if language == "porter" else language))
    except ValueError:  # a stemmer, but no stop word list: their low idf has the same effect
        return WORD.findall, stemmer, []


def _character_bigrams(text: str) -> list[str]:
    """Return overlapping character bigrams of text without spaces, and words elsewhere (Latin names, numbers)."""
    tokens = []
    for run in _WORD_OR_RUN.findall(text):
        if len(run) > 1 and UNSPACED_RUN.match(run):
            tokens += [run[index : index + 2] for index in range(len(run) - 1)]
        else:
            tokens.append(run)
    return tokens
