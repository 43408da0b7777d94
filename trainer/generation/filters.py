"""Filters of made queries; each drops queries for one reason, which the report counts with examples."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trainer.data.languages import MIN_SHARE, UNSPACED_RUN, WITH_STOP_WORDS, stop_words
from trainer.data.near_duplicates import WORDS
from trainer.retriever import NOTHING, Candidates, Embeddings

SHORTEST, LONGEST = 3, 300  # characters of a query
COPIED_WORDS = 8  # in a row that a query shares with its document
COPIED_WHOLE = 4  # words of a query that is a part of its document as a whole
CHARACTERS = 3  # that count as one word in scripts without spaces
FOREIGN_WORDS = 2  # stop words of another language, besides two for each of its document's, that make a query foreign
FEWEST = 5  # stop words of its language that a document needs for this
FOREIGN_SCRIPT = 0.05  # share of a document's letters below which it does not use a script
SIMILAR = 0.95  # cosine of two queries that ask the same
BLOCK = 1024  # queries that are compared at once
_MENTIONS = re.compile(r"\b(?:the|this) (?:document|passage|article)\b", re.IGNORECASE)

UNREADABLE = "no query in the answer"
LENGTH = "too short or too long"
MENTIONS = "speaks of the document"
COPIED = "copied from the document"
LANGUAGE = "another language than the document"
REAL = "repeats a judged query"
NOT_FOUND = "its document is not found"
DUPLICATE = "asks the same as another made query"
ELSEWHERE = "also in another document"
UNANSWERED = "judged not to be answered by its document"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORDS.findall(text.lower())


def fault_of(query: str, document: str) -> str | None:
    """Return the reason why a query is dropped by its text and its document's, None if it is kept."""
    if not SHORTEST <= len(query) <= LONGEST or not words_of(query) or not query.isprintable():
        return LENGTH
    if _MENTIONS.search(query) and not _MENTIONS.search(document):
        return MENTIONS
    if is_copied(query, document):
        return COPIED
    return LANGUAGE if is_foreign(query, document) else None


def is_copied(query: str, document: str) -> bool:
    """Return whether a query is a part of its document, or shares a long span of words with it."""
    words, text = words_of(query), f" {' '.join(words_of(document))} "
    unit = CHARACTERS if UNSPACED_RUN.search(query) else 1
    if len(words) >= COPIED_WHOLE * unit and f" {' '.join(words)} " in text:
        return True
    longest = COPIED_WORDS * unit
    spans = (words[start : start + longest] for start in range(len(words) - longest + 1))
    return any(f" {' '.join(span)} " in text for span in spans)


def is_foreign(query: str, document: str) -> bool:
    """Return whether a query uses a script that its document lacks, or stop words of another language."""
    used, known = _scripts(query), _scripts(document)
    letters = sum(known.values())
    if used and letters:
        script = max(used, key=lambda name: used[name])
        if known.get(script, 0) < FOREIGN_SCRIPT * letters:
            return True
    words = words_of(document)
    asked, read = _stop_words(words_of(query)), _stop_words(words)
    own = max(read, key=lambda language: read[language])
    other = max(asked, key=lambda language: asked[language])
    # Code and tables have a few stop words of any language.
    clear = read[own] >= max(FEWEST, MIN_SHARE * len(words)) and read[own] > 2 * read[other]
    return clear and asked[other] >= FOREIGN_WORDS + 2 * asked[own]


def _scripts(text: str) -> dict[str, int]:
    """Return the number of letters of each script; Japanese and Chinese characters are one."""
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text):
        name = unicodedata.name(letter, "").partition(" ")[0]
        name = "CJK" if name in ("HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH") else name
        counts[name] = counts.get(name, 0) + 1
    return counts


def _stop_words(words: Iterable[str]) -> Mapping[str, int]:
    """Return the number of words that are stop words of each language."""
    words = list(words)
    return {name: sum(word in stop_words(name) for word in words) for name in WITH_STOP_WORDS}


def repeats(texts: Sequence[str], real: Iterable[str]) -> list[bool]:
    """Return for each text whether a real query has the same words."""
    known = {" ".join(words_of(text)) for text in real}
    return [" ".join(words_of(text)) in known for text in texts]


def ranks_of(candidates: Candidates, documents: Sequence[int]) -> list[int]:
    """Return the rank of each query's document among its candidates, 0 if it is not among them."""
    own = np.asarray(documents, dtype=np.int64)[:, None]
    hits = (candidates.documents == own) & (candidates.documents != NOTHING)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).tolist()


def duplicates(texts: Sequence[str], ranks: Sequence[int], vectors: Embeddings | None) -> list[bool]:
    """Return for each query whether a better one asks the same.

    Of queries with the same words, or vectors with a cosine of 0.95 or more, the one is kept whose document the first
    stage ranks highest, so a document cannot displace another one's query by repeating it.
    """
    order = sorted(range(len(texts)), key=lambda index: (ranks[index] or len(texts), index))
    kept: list[int] = []
    seen: set[str] = set()
    dropped = [True] * len(texts)
    for index in order:
        words = " ".join(words_of(texts[index]))
        if words not in seen:
            seen.add(words)
            kept.append(index)
            dropped[index] = False
    if vectors is not None and kept:
        for index in _similar_to_earlier(vectors, kept):
            dropped[index] = True
    return dropped


def _similar_to_earlier(vectors: Embeddings, order: Sequence[int]) -> list[int]:
    """Return the rows of `order` that are similar to an earlier one that is not itself similar to one before it."""
    rows, similar = np.asarray(order), []
    kept = np.empty((0, vectors.dimensions), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        own = vectors.rows(block)
        near = (own @ kept.T >= SIMILAR).any(axis=1)
        inside = own @ own.T >= SIMILAR
        for place in range(len(block)):
            near[place] |= bool((inside[place, :place] & ~near[:place]).any())
        similar += block[near].tolist()
        kept = np.concatenate([kept, own[~near]])
    return similar
