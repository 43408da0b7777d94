"""BM25 over words or, for languages that are written without spaces, over pairs of characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from trainer.recipe import UNSPACED
from trainer.retriever.candidates import NOTHING, Ranking

K1, B = 1.2, 0.75  # Lucene's
# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer; Korean puts spaces between words but joins particles to them.
_UNSPACED_RUN = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff]+"
)
_WORD = re.compile(r"(?u)\b\w\w+\b")
_WORD_OR_RUN = re.compile(f"{_UNSPACED_RUN.pattern}|[^\\W{_UNSPACED_RUN.pattern[1:-2]}]{{2,}}")
WITH_STOP_WORDS = (
    *("english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian"),
    *("swedish", "norwegian", "turkish", "danish"),
)
SAMPLE = 500  # texts from which the language is told
LIKELY = 0.1  # share of words that have to be a language's stop words; running text has 0.3 to 0.5


def search_bm25(queries: Sequence[str], documents: Iterable[str], depth: int, language: str) -> Ranking:
    """BM25 (bm25s, Lucene's variant) with the stemmer and stop words of a language; `language` as in the recipe.

    Documents without a word in common are not listed.
    """
    import bm25s
    from bm25s.tokenization import Tokenizer

    splitter, stemmer, stopwords = _analyzer(language)
    tokenizer = Tokenizer(splitter=splitter, stemmer=stemmer, stopwords=stopwords)
    ids = list(tokenizer.streaming_tokenize(documents))  # type: ignore[arg-type]  it takes any iterable
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index((ids, tokenizer.get_vocab_dict()), show_progress=False, create_empty_token=False)
    depth = min(depth, len(ids))
    nothing = np.zeros(len(ids), dtype=np.float32)
    empty = tokenizer.get_vocab_dict()[""]
    rows = np.empty((len(queries), depth), dtype=np.int32)
    scores = np.empty((len(queries), depth), dtype=np.float32)
    asked = tokenizer.streaming_tokenize(list(queries), update_vocab=False, allow_empty=False)
    for place, words in enumerate(asked):
        words = [word for word in words if word != empty]
        rows[place], scores[place] = top(index.get_scores_from_ids(words) if words else nothing, depth)
    return Ranking.ordered(np.where(scores > 0, rows, NOTHING), scores)


def top(scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the `depth` highest, unsorted; of equal ones at the cut the first rows stay."""
    least = np.partition(scores, -depth)[-depth]
    above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
    rows = np.concatenate([above, equal[: depth - len(above)]])
    return rows, scores[rows]


def detect_language(texts: Sequence[str]) -> str:
    """The language of a sample of texts as `retriever.language` names it, `none` where no list of stop words fits.

    Scripts without spaces tell themselves; else the language whose stop words make up the largest share of the words.
    """
    from bm25s.tokenization import _infer_stopwords

    sample = [text.lower() for text in texts[:SAMPLE]]
    letters = sum(character.isalpha() for text in sample for character in text)
    unspaced = sum(len(run) for text in sample for run in _UNSPACED_RUN.findall(text))
    if unspaced > letters / 2:
        kana = sum("\u3040" <= character <= "\u30ff" for text in sample for character in text)
        return "japanese" if kana > unspaced / 20 else "chinese"  # both are cut into pairs of characters
    words = [word for text in sample for word in _WORD.findall(text)]
    shares = {}
    for language in WITH_STOP_WORDS:
        listed = set(_infer_stopwords(language))
        shares[language] = sum(word in listed for word in words) / max(1, len(words))
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] >= LIKELY else "none"


def _analyzer(language: str) -> tuple[Callable[[str], list[str]], Any, list[str]]:
    """Splitter, stemmer and stop words by Snowball's name of the language."""
    import Stemmer
    from bm25s.tokenization import _infer_stopwords

    if language in UNSPACED:
        return _pairs_of_characters, None, []
    if language == "none":
        return _WORD.findall, None, []
    stemmer = Stemmer.Stemmer(language).stemWord
    try:
        return _WORD.findall, stemmer, list(_infer_stopwords("english" if language == "porter" else language))
    except ValueError:  # a stemmer, but no list of stop words: BM25 weighs them down by itself
        return _WORD.findall, stemmer, []


def _pairs_of_characters(text: str) -> list[str]:
    """Overlapping pairs of characters of each run without spaces, and words of the rest (Latin names, numbers)."""
    tokens = []
    for run in _WORD_OR_RUN.findall(text):
        if len(run) > 1 and _UNSPACED_RUN.match(run):
            tokens += [run[place : place + 2] for place in range(len(run) - 1)]
        else:
            tokens.append(run)
    return tokens
