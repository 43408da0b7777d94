"""Language detection by script and stop words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer; Korean puts spaces between words but joins particles to them.
UNSPACED_RUN = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff]+"
)
WORD = re.compile(r"(?u)\b\w\w+\b")
WITH_STOP_WORDS = (
    *("english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian"),
    *("swedish", "norwegian", "turkish", "danish"),
)
LANGUAGE_SAMPLE = 500  # texts from which the language is detected
MIN_SHARE = 0.1  # of words that are a language's stop words; running text has 0.3 to 0.5


@cache
def stop_words(language: str) -> frozenset[str]:
    """Return the stop words of a language of WITH_STOP_WORDS."""
    from bm25s.tokenization import _infer_stopwords

    return frozenset(_infer_stopwords(language))


def detect_language(texts: Sequence[str]) -> str:
    """Return the language of a sample of texts as a value of `retriever.language`, `none` if no stop words match.

    Scripts without spaces are recognised by their characters, other languages by the largest share of stop words.
    """
    sample = [text.lower() for text in texts[:LANGUAGE_SAMPLE]]
    letters = sum(character.isalpha() for text in sample for character in text)
    unspaced = sum(len(run) for text in sample for run in UNSPACED_RUN.findall(text))
    if unspaced > letters / 2:
        kana = sum("\u3040" <= character <= "\u30ff" for text in sample for character in text)
        return "japanese" if kana > unspaced / 20 else "chinese"  # both are tokenised into pairs of characters
    words = [word for text in sample for word in WORD.findall(text)]
    shares = {}
    for language in WITH_STOP_WORDS:
        listed = stop_words(language)
        shares[language] = sum(word in listed for word in words) / max(1, len(words))
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] >= MIN_SHARE else "none"
