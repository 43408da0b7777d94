"""Documents that are queries too, as in collections of questions where each question is asked of all the others.

Such a document is found first for its own query and was never judged for it, so it would be the hardest negative of all
and push down every positive. BEIR leaves out documents with the query's id when it measures; a text says the same where
ids do not. Numbers say nothing where queries and documents are both counted from one, as in Cranfield: if the equal ids
are numbers, they count only where at least half of them come with equal texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from trainer.data.records import Qrels, normalised
from trainer.recipe import Data

SAME_TEXTS = 0.5  # share of equal numbers with equal texts from which on they name the same thing
_EDGES = " .?!…。？！"


class DocumentTexts:
    """Collects documents as they stream by, 16 bytes of each, and finds those that have a query's text.

    A text is compared in lower case, with single blanks and without the marks that end a sentence, both with and
    without the document's title.
    """

    def __init__(self) -> None:
        self._passages, self._texts = array("q"), array("q")

    def add(self, title: str, passage: str) -> None:
        """Take the next document; `passage` is its title and text."""
        key = hash(_key(passage))
        self._passages.append(key)
        text = passage[len(title) :] if title and passage.startswith(title) else ""
        self._texts.append(hash(_key(text)) if text.strip() else key)

    def find(self, texts: Mapping[str, str]) -> dict[str, list[int]]:
        """Return the document rows with the text of a query, for each query id that has any."""
        wanted: dict[int, list[str]] = {}
        for query, text in texts.items():
            wanted.setdefault(hash(_key(text)), []).append(query)
        found: dict[str, list[int]] = {}
        for row, keys in enumerate(zip(self._passages, self._texts, strict=True)):
            for query in {query for key in keys for query in wanted.get(key, ())}:
                found.setdefault(query, []).append(row)
        return found


def _key(text: str) -> str:
    return normalised(text).strip(_EDGES) or text


def find_self_documents(
    texts: Mapping[str, str], read: DocumentTexts, document_ids: Iterable[str], qrels: Qrels, section: Data
) -> dict[str, list[int]]:
    """Return the rows of the documents that are a judged query themselves, without those judged relevant for it.

    `texts` are those of all queries; empty where the recipe keeps such documents.
    """
    if section.self_documents == "keep":
        return {}
    judged = {query: grades for queries in qrels.values() for query, grades in queries.items()}
    rows = {query: set(found) for query, found in read.find({query: texts[query] for query in judged}).items()}
    wanted = set().union(*rows.values())
    names: dict[int, str] = {}
    by_id: dict[str, int] = {}
    for row, identity in enumerate(document_ids):
        if identity in judged:
            by_id[identity] = row
        if row in wanted or identity in judged:
            names[row] = identity
    same = sum(row in rows.get(query, ()) for query, row in by_id.items())
    if same >= len(by_id) * SAME_TEXTS or not all(map(str.isdecimal, by_id)):
        for query, row in by_id.items():
            rows.setdefault(query, set()).add(row)
    kept = {
        query: sorted(row for row in found if judged[query].get(names[row], 0) < section.relevant_from)
        for query, found in rows.items()
    }
    return {query: found for query, found in kept.items() if found}
