"""The section `data`: one of three ways to name documents, queries and relevance judgements (qrels)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from trainer.recipe.section import Section, contradiction

HUB = "hub:"
FILES = ("corpus", "queries", "qrels", "pairs", "dev", "test")  # keys that name files or globs
READING = ("judgements", "relevant_from", "repeated", "unknown_ids", "self_documents", "separator")  # with any way in


class Data(Section):
    """The collection: documents, queries and relevance judgements. One way in: path, corpus or pairs."""

    path: Path | None = None
    """Folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), or hub:OWNER/NAME, or hub:FOLDER."""
    corpus: tuple[Path, ...] | None = None
    """Files or globs of the documents (.jsonl, .csv, .tsv, .parquet; text may be .gz); with queries and qrels."""
    queries: tuple[Path, ...] | None = None
    """Files or globs of the queries; with corpus and qrels."""
    qrels: tuple[Path, ...] | None = None
    """Files or globs of the judgements to train on (also TREC: .qrels, .trec, .txt); with corpus and queries."""
    pairs: tuple[Path, ...] | None = None
    """Files or globs of query, positive and maybe negatives as texts, without ids; equal texts are one."""
    dev: tuple[Path, ...] | None = None
    """Files like qrels or pairs that choose the checkpoint; null: split off."""
    test: tuple[Path, ...] | None = None
    """Files like qrels or pairs that are measured once at the end; null: split off."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the train queries that become dev where there is none; chosen by a hash of their text."""
    test_share: float = Field(default=0.2, ge=0, lt=1, validate_default=True)
    """Share of the train queries that become test where there is none."""
    judgements: Path | None = None
    """JSONL of reviewed labels (query_id, document_id, relevant: true, false, null or a grade) that overrule qrels."""
    relevant_from: int = Field(default=1, ge=1)
    """Lowest grade that counts as relevant in training, mining and splits; metrics see all grades as they are."""
    repeated: Literal["error", "sum", "max"] = "error"
    """Grade of what is judged more than once, as in click logs: the sum or the highest; error: grades must agree."""
    unknown_ids: Literal["error", "skip"] = "error"
    """skip: judgements of documents or queries that are not in the files are left out and counted."""
    self_documents: Literal["exclude", "keep"] = "exclude"
    """exclude: a document with the id or the text of a query is no candidate and no negative of it, unless relevant."""
    separator: str | None = None
    """What separates the fields of .csv and .tsv files; null: told from the head line."""
    corpus_id: str | tuple[str, ...] | None = None
    """Column of the document id; null, here and below: the usual names; a list: each file's first that is there."""
    corpus_title: str | tuple[str, ...] | None = None
    """Column of the title, where there is one."""
    corpus_text: tuple[str, ...] | None = None
    """Column of the text, or several that are joined by a space."""
    query_id: str | tuple[str, ...] | None = None
    """Column of the query id."""
    query_text: str | tuple[str, ...] | None = None
    """Column of the query's text."""
    qrels_query: str | tuple[str, ...] | None = None
    """Column of the query id in the judgements."""
    qrels_document: str | tuple[str, ...] | None = None
    """Column of the document id in the judgements."""
    qrels_grade: str | tuple[str, ...] | None = None
    """Column of the grade: 0 and below not relevant, 1 and more relevant."""
    pairs_query: str | tuple[str, ...] | None = None
    """Column of the query's text in pairs (or of messages, as chat models take them)."""
    pairs_positive: str | tuple[str, ...] | None = None
    """Column of the relevant text (or of a list of texts, of objects with title and text, or of messages)."""
    pairs_negatives: tuple[str, ...] | None = None
    """Columns of texts (or of lists of them) that are not relevant."""
    pairs_label: str | tuple[str, ...] | None = None
    """Column of the grade of each pair (or of a list of them); null: a usual name unless pairs_positive is given."""
    _temporary: object | None = PrivateAttr(None)

    @field_validator(*FILES, "corpus_text", "pairs_negatives", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("*")
    @classmethod
    def _a_list_is_not_empty(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("names nothing; name at least one, or remove the key")
        return value

    @field_validator("separator")
    @classmethod
    def _a_separator_is_one_mark(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator.isalnum() or separator in "\"'\r\n\0._-"):
            raise ValueError(f'is one mark such as ";", "," or "\\t", got {separator!r}')
        return separator

    @field_validator("test_share")
    @classmethod
    def _something_is_left_to_train_on(cls, test_share: float, info: ValidationInfo) -> float:
        dev_share = info.data.get("dev_share", 0)
        if test_share + dev_share >= 1:
            raise ValueError(f"{test_share} and dev_share {dev_share} leave nothing to train on; lower them")
        return test_share

    @model_validator(mode="after")
    def _one_way_in(self) -> Data:
        ways = [key for key in ("path", "corpus", "pairs") if getattr(self, key) is not None]
        if not ways and (self.queries or self.qrels):
            ways = ["corpus"]
        if not ways:
            raise contradiction(
                "path", "names no collection; give path: FOLDER, or corpus, queries and qrels, or pairs: FILE"
            )
        if len(ways) > 1:
            raise contradiction(ways[1], f"{' and '.join(ways)} are {len(ways)} ways in; keep one of them")
        missing = [key for key in ("corpus", "queries", "qrels") if getattr(self, key) is None]
        if ways == ["corpus"] and missing:
            raise contradiction(
                missing[0], f"is missing: corpus, queries and qrels belong together; name its file{_also(missing)}"
            )
        for key in type(self).model_fields:
            if key not in self._keys_of(ways[0]) and getattr(self, key) != type(self).model_fields[key].default:
                raise contradiction(key, f"is not read with {ways[0]}{_INSTEAD.get(key, '')}; remove one of them")
        return self

    def _keys_of(self, way: str) -> set[str]:
        """Return the keys that are read with this way in."""
        always = {way, "dev_share", "test_share", *READING}
        of_pairs = {key for key in type(self).model_fields if key.startswith("pairs_")}
        of_ids = {key for key in type(self).model_fields if key.startswith(("corpus_", "query_", "qrels_"))}
        return (
            always
            | {
                "path": of_ids | (of_pairs if self.hub else set()),
                "corpus": of_ids | {"queries", "qrels", "dev", "test"},
                "pairs": of_pairs | {"dev", "test"},
            }[way]
        )

    def keep(self, files: object) -> None:
        """Hold the temporary files of a collection from memory, so that they last as long as this section."""
        self._temporary = files

    @property
    def is_temporary(self) -> bool:
        """Whether `path` leads to temporary files, which end with this section."""
        return self._temporary is not None

    def moved(self, path: Path) -> Data:
        """Return the section with a path to files that stay."""
        section = self.model_copy(update={"path": path})
        section._temporary = None
        return section

    @property
    def hub(self) -> str | None:
        """Return OWNER/NAME or the folder of a data set that the `datasets` library loads, where `path` names one."""
        return str(self.path)[len(HUB) :] if self.path and str(self.path).startswith(HUB) else None

    @property
    def title(self) -> str:
        """Return a name of the collection that shows no folder of this machine, for the model card."""
        if self.path is not None:
            return self.hub if self.hub and not Path(self.hub).is_dir() else self.path.name
        first = (self.corpus or self.pairs or (Path("data"),))[0]
        return first.name.split(".")[0] if self.pairs else first.resolve().parent.name


_INSTEAD = {
    "dev": ", which brings its own splits",
    "test": ", which brings its own splits",
}


def _also(missing: Sequence[str]) -> str:
    return f" (also missing: {', '.join(missing[1:])})" if missing[1:] else ""
