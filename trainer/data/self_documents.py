"""Documents that are queries too, as in collections of questions in which each question is searched among the others.

Such a document is retrieved first for its own query and is never judged for it, so it would be the hardest negative and
lower the ranks of all positives. BEIR leaves out documents with the query's id in evaluation; here documents with its
text are left out too. Equal ids do not count if queries and documents are merely numbered from one, as in Cranfield:
if all equal ids are numbers, they count only if at least half of them have equal texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from trainer.data.records import SplitQrels, normalised
from trainer.recipe import Data

SAME_TEXTS = 0.5  # minimum share of equal numeric ids that have equal texts, for all of them to count
_EDGES = " .?!…。？！"


class DocumentTexts:
    """Keeps 16 bytes of each document that is added, and finds the documents with a query's text.

    Texts are compared in lower case, with single blanks and without final punctuation, both with and without the
    document's title.
    """

    def __init__(self) -> None:
        self._passages, self._texts = array("q"), array("q")

    def add(self, title: str, passage: str) -> None:
        """Add the next document; `passage` is its title and text."""
        key = hash(_key(passage))
        self._passages.append(key)
        text = passage[len(title) :] if title and passage.startswith(title) else ""
        self._texts.append(hash(_key(text)) if text.strip() else key)

    def find(self, texts: Mapping[str, str]) -> dict[str, list[int]]:
        """Return the document rows with the text of a query, for each query id that has any."""
        wanted: dict[int, list[str]] = {}
        for query, text in texts.items():
            wanted.setdefault(hash(_key(text)), []).append(query)
        matches: dict[str, list[int]] = {}
        for row, keys in enumerate(zip(self._passages, self._texts, strict=True)):
            for query in {query for key in keys for query in wanted.get(key, ())}:
                matches.setdefault(query, []).append(row)
        return matches


def _key(text: str) -> str:
    return normalised(text).strip(_EDGES) or text


def find_self_documents(
    texts: Mapping[str, str], read: DocumentTexts, document_ids: Iterable[str], qrels: SplitQrels, section: Data
) -> dict[str, list[int]]:
    """Return by judged query the rows of the documents that are the query itself, except those judged relevant for it.

    `texts` are those of all queries. The result is empty if the recipe keeps such documents.
    """
    if section.self_documents == "keep":
        return {}
    judged = {query: grades for queries in qrels.values() for query, grades in queries.items()}
    rows = {query: set(matches) for query, matches in read.find({query: texts[query] for query in judged}).items()}
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
    irrelevant = {
        query: sorted(row for row in matches if judged[query].get(names[row], 0) < section.relevant_from)
        for query, matches in rows.items()
    }
    return {query: matches for query, matches in irrelevant.items() if matches}
