"""Texts of a document that can serve as queries: title, headings, questions, docstrings, and sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

Kind = Literal["title", "question", "heading", "docstring", "sentence"]
KINDS: tuple[Kind, ...] = ("title", "question", "heading", "docstring", "sentence")

SENTENCE_LENGTHS = range(16, 151)  # characters, about three to twenty-five English words
TITLE_LENGTHS = range(3, 151)  # characters; a title or a heading may be a single word
MIN_LETTER_SHARE = 0.9  # of letters, digits and blanks in a sentence; lines of code and tables have fewer
# Sentences end at their punctuation and at the end of a line; docstrings also begin and end at their marks.
_END = re.compile(r"""(?<=[.!?])\s+|(?<=[。！？])|\s*\n\s*|(?=\"{3}|'{3}|/\*\*)""")
_EDGES = " \t\"'`*#|<>-–•.,:;。/"
_QUESTION = re.compile(r"[?？][\"'*_]*$")
_LABEL = re.compile(r"^(?:Q|Question|Frage)\s*\d*\s*[:.)]\s+")  # of a question in a list of questions and answers
_HEADING = re.compile(r"^(?:#{2,6}\s+\S|<h[1-6][^>]*>.*</h[1-6]>$)", re.IGNORECASE)
_TAG = re.compile(r"</?h[1-6][^>]*>", re.IGNORECASE)
_UNDERLINE = re.compile(r"^(?:={3,}|-{3,}|~{3,})$")  # of a heading on the line before
_DOCSTRING = re.compile(r"""^(\"{3}|'{3}|/\*\*)""")


class Extract(NamedTuple):
    """A text that can serve as a query, and the part of the passage that it was taken from."""

    kind: Kind
    text: str
    start: int
    end: int


class _Segment(NamedTuple):
    text: str
    start: int
    end: int


def extracts(title: str, passage: str) -> list[Extract]:
    """Return the title and the headings, questions, docstrings and sentences of a passage, in their order.

    `passage` is title and text, as models read them. The parts do not overlap. Code with a docstring has no sentences.
    """
    title = title.strip()
    begin = len(title) if passage.startswith(title) else 0
    found: list[Extract] = []
    if len(heading := " ".join(title.split())) in TITLE_LENGTHS:
        found.append(Extract("title", heading, 0, begin))
    segments = list(_segments(passage, begin))
    for index, segment in enumerate(segments):
        before = segments[index - 1].text if index else ""
        after = segments[index + 1].text if index + 1 < len(segments) else ""
        if (one := _extract(segment, before, after, passage)) is not None:
            found.append(one)
    is_code = any(one.kind == "docstring" for one in found)
    return [one for one in found if one.kind != "sentence" or not is_code]  # else lines of code pass for sentences


def without(passage: str, parts: Collection[Extract]) -> str:
    """Return a passage without the parts that were taken from it."""
    left, position = [], 0
    for part in sorted(parts, key=lambda one: one.start):
        left.append(passage[position : part.start].rstrip(" \t"))
        position = part.end
    left.append(passage[position:])
    return " ".join(left).strip()


def _segments(passage: str, begin: int) -> Iterator[_Segment]:
    """Yield the sentences and lines of a passage from a position on, without blanks at their ends."""
    ends = [(match.start(), match.end()) for match in _END.finditer(passage, begin)]
    for end, following in [*ends, (len(passage), len(passage))]:
        text = passage[begin:end]
        if stripped := text.strip():
            start = begin + text.index(stripped[0])
            yield _Segment(stripped, start, start + len(stripped))
        begin = following


def _extract(segment: _Segment, before: str, after: str, passage: str) -> Extract | None:
    """Return a segment as a query, None if it cannot be one."""
    kind = _kind(segment, before, after, passage)
    text = _TAG.sub("", _LABEL.sub("", segment.text)) if kind in ("heading", "question") else segment.text
    text = " ".join(text.strip(_EDGES).split())
    if len(text) not in (TITLE_LENGTHS if kind == "heading" else SENTENCE_LENGTHS) or not _is_prose(text):
        return None
    return Extract(kind, text, segment.start, segment.end)


def _kind(segment: _Segment, before: str, after: str, passage: str) -> Kind:
    if _HEADING.match(segment.text) or _UNDERLINE.match(after):
        return "heading"
    if _opens_docstring(segment, before, passage):
        return "docstring"
    return "question" if _QUESTION.search(segment.text) else "sentence"


def _opens_docstring(segment: _Segment, before: str, passage: str) -> bool:
    """Return whether a segment is the beginning of a docstring: after the marks, on their line or the next one."""
    mark = _DOCSTRING.match(segment.text)
    start = segment.start
    if mark is None and (mark := _DOCSTRING.fullmatch(before)):
        start = passage.rindex(mark[1], 0, start)
    # The marks that open and close a docstring of Python are the same.
    return mark is not None and passage.count(mark[1], 0, start) % 2 == 0


def _is_prose(text: str) -> bool:
    plain = sum(unicodedata.category(character)[0] in "LMNZ" for character in text)
    return plain >= MIN_LETTER_SHARE * len(text)
