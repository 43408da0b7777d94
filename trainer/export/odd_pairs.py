"""Pairs that libraries are known to tokenise differently: empty or truncated texts, and unusual characters."""

from __future__ import annotations

from collections.abc import Sequence

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
    long = " ".join([document or "word"] * max_length)  # a document has a token at least
    texts = [*ODD_TEXTS, " ".join(special_tokens)]
    return [
        ("", ""),
        (query, ""),
        ("", document),
        (query, long),
        (" ".join([query or "word"] * max_length), document),
        (" ".join([query or "word"] * max_length), long),
        *((text, document) for text in texts),
        *((query, text) for text in texts),
        *((f"{text} {query}", f"{document} {text} {document}") for text in texts),
    ]
