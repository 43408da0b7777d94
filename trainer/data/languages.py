"""The language of texts, told from their script and their stop words."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer; Korean puts spaces between words but joins particles to them.
UNSPACED_RUN = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff]+"
)
WORD = re.compile(r"(?u)\b\w\w+\b")
WITH_STOP_WORDS = (
    *("english", "german", "dutch", "french", "spanish", "portuguese", "italian", "russian"),
    *("swedish", "norwegian", "turkish", "danish"),
)
SAMPLE = 500  # texts from which the language is told
LIKELY = 0.1  # share of words that have to be a language's stop words; running text has 0.3 to 0.5


def detect_language(texts: Sequence[str]) -> str:
    """The language of a sample of texts as `retriever.language` names it, `none` where no list of stop words fits.

    Scripts without spaces tell themselves; else the language whose stop words make up the largest share of the words.
    """
    from bm25s.tokenization import _infer_stopwords

    sample = [text.lower() for text in texts[:SAMPLE]]
    letters = sum(character.isalpha() for text in sample for character in text)
    unspaced = sum(len(run) for text in sample for run in UNSPACED_RUN.findall(text))
    if unspaced > letters / 2:
        kana = sum("\u3040" <= character <= "\u30ff" for text in sample for character in text)
        return "japanese" if kana > unspaced / 20 else "chinese"  # both are cut into pairs of characters
    words = [word for text in sample for word in WORD.findall(text)]
    shares = {}
    for language in WITH_STOP_WORDS:
        listed = set(_infer_stopwords(language))
        shares[language] = sum(word in listed for word in words) / max(1, len(words))
    best = max(shares, key=lambda language: shares[language])
    return best if shares[best] >= LIKELY else "none"
