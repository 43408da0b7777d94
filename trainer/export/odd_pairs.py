"""Pairs that libraries are known to tokenise differently: empty or truncated texts, and unusual characters."""

from __future__ import annotations

from collections.abc import Sequence

MOST_CHARACTERS = 32  # of one token, in texts without spaces

ODD_TEXTS = [
    "[SEP]",
    "<p>a page</p></s></s><s>of markup [CLS] [MASK] <pad>",
    "🚒 👩\u200d🚒 🇩🇪 e\u0301",
    "a\x00b\x07c\x1b[31m\u200b\u202ed\ufeff",
    "日志显示服务没有重新启动 再起動しない مرحبا",
    "  \t two\r\n\r\nlines\u2028and\u0085more  ",
]


def odd_pairs(
    pairs: Sequence[tuple[str, str]], special_tokens: Sequence[str], max_length: int
) -> list[tuple[str, str]]:
    """Return odd pairs made from the first real pair, or from a built-in one if there is none."""
    query, document = pairs[0] if pairs else ("why does it restart", "a failing probe restarts the container")
    long, long_query = (_lengthened(text or "word", max_length) for text in (document, query))
    texts = [*ODD_TEXTS, " ".join(special_tokens)]
    return [
        ("", ""),
        (query, ""),
        ("", document),
        (query, long),
        (long_query, document),
        (long_query, long),
        *((text, document) for text in texts),
        *((query, text) for text in texts),
        *((f"{text} {query}", f"{document} {text} {document}") for text in texts),
    ]


def _lengthened(text: str, tokens: int) -> str:
    """Return a text repeated until it surely has more than so many tokens, but hardly more often than that.

    Tokenizers keep all that they truncate: a pair of a long query and half a million characters took 1.6 GB and 4 s.
    """
    at_least = max(1, len(text.split()), len(text) // MOST_CHARACTERS)
    return " ".join([text] * (tokens // at_least + 1))
