"""The section `data`: documents, queries and relevance judgements, given in one of three formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from trainer.recipe.section import Section, contradiction

HUB = "hub:"
FILES = ("corpus", "queries", "qrels", "clicks", "pairs", "dev", "test")  # keys that name files or globs
READING = ("judgements", "relevant_from", "repeated", "unknown_ids", "self_documents", "separator")  # for all formats


CLICKS = ("clicks_propensity", "clicks_evidence")
Share = Annotated[float, Field(gt=0, le=1)]


class Data(Section):
    """The collection: corpus, queries and relevance judgements, given by exactly one of path, corpus or pairs."""

    needs_splits: ClassVar[bool] = True  # whether train, dev and test must all have a query with a relevant document
    path: Path | None = None
    """Folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/*.tsv), or a data set: hub:OWNER/NAME or hub:FOLDER."""
    corpus: tuple[Path, ...] | None = None
    """Files or globs of the documents (.jsonl, .csv, .tsv, .parquet; text may be .gz); needs queries and qrels, or the
    section generate."""
    queries: tuple[Path, ...] | None = None
    """Files or globs of the queries; needs corpus and qrels."""
    qrels: tuple[Path, ...] | None = None
    """Files or globs of the train judgements (also TREC: .qrels, .trec, .txt); needs corpus and queries."""
    clicks: tuple[Path, ...] | None = None
    """Files or globs of a click log (query id, document id, clicks, and impressions or position), which becomes graded
    train judgements, besides those of qrels; needs corpus and queries."""
    clicks_propensity: Literal["estimate"] | Annotated[float, Field(ge=0, le=5)] | tuple[Share, ...] = "estimate"
    """How often people look at each position of the click log: estimate, from documents that were shown at several
    positions for a query; a number P for 1 / position^P; or a list with the share of looks at each position."""
    clicks_evidence: float = Field(default=5, ge=0)
    """Leave out pairs of the click log that were looked at less often (impressions times the share of looks)."""
    pairs: tuple[Path, ...] | None = None
    """Files or globs of pairs of texts (query, positive, optional negatives) without ids; equal texts are merged."""
    dev: tuple[Path, ...] | None = None
    """Files of dev judgements or pairs, which choose the checkpoint; null: dev queries are split off train."""
    test: tuple[Path, ...] | None = None
    """Files of test judgements or pairs, measured once at the end; null: test queries are split off train."""
    dev_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the train queries that become dev if no dev split is given; chosen by a hash of their text."""
    test_share: float = Field(default=0.2, ge=0, lt=1, validate_default=True)
    """Share of the train queries that become test if no test split is given."""
    judgements: Path | None = None
    """JSONL file of reviewed labels that override the qrels (query_id, document_id, relevant: true, false, null or a
    grade)."""
    relevant_from: int = Field(default=1, ge=1)
    """Lowest grade that counts as relevant in training, mining and splits; metrics use the original grades."""
    repeated: Literal["error", "sum", "max"] = "error"
    """Grade of a document judged several times for a query, as in click logs: sum or max; error: grades must agree."""
    unknown_ids: Literal["error", "skip"] = "error"
    """skip: leave out and count judgements of documents or queries that are not in the files; error: stop."""
    self_documents: Literal["exclude", "keep"] = "exclude"
    """exclude: a document with the id or text of a query is never its candidate or negative, unless relevant."""
    separator: str | None = None
    """Field separator of .csv and .tsv files; null: detected from the header line."""
    corpus_id: str | tuple[str, ...] | None = None
    """Column of the document id; a list: the first that a file has. null, here and below: the usual names."""
    corpus_title: str | tuple[str, ...] | None = None
    """Column of the document's title, if there is one."""
    corpus_text: tuple[str, ...] | None = None
    """Column of the document's text; several columns are joined by spaces."""
    query_id: str | tuple[str, ...] | None = None
    """Column of the query id."""
    query_text: str | tuple[str, ...] | None = None
    """Column of the query's text."""
    qrels_query: str | tuple[str, ...] | None = None
    """Column of the query id in the judgements."""
    qrels_document: str | tuple[str, ...] | None = None
    """Column of the document id in the judgements."""
    qrels_grade: str | tuple[str, ...] | None = None
    """Column of the relevance grade; 0 and below: not relevant (see relevant_from)."""
    clicks_query: str | tuple[str, ...] | None = None
    """Column of the query id in the click log."""
    clicks_document: str | tuple[str, ...] | None = None
    """Column of the document id in the click log."""
    clicks_count: str | tuple[str, ...] | None = None
    """Column of the number of clicks."""
    clicks_impressions: str | tuple[str, ...] | None = None
    """Column of the number of times that the document was shown; null: a usual name, or once in each row."""
    clicks_position: str | tuple[str, ...] | None = None
    """Column of the document's position in the list, from 1; null: a usual name, or unknown."""
    pairs_query: str | tuple[str, ...] | None = None
    """Column of the query's text in pairs (or of chat messages)."""
    pairs_positive: str | tuple[str, ...] | None = None
    """Column of the relevant text (or a list of texts, of objects with title and text, or chat messages)."""
    pairs_negatives: tuple[str, ...] | None = None
    """Columns of texts (or lists of texts) that are not relevant."""
    pairs_label: str | tuple[str, ...] | None = None
    """Column of the pair's grade (or a list of grades); null: a usual name, or none if pairs_positive is given."""
    _temporary: object | None = PrivateAttr(None)

    @field_validator(*FILES, "corpus_text", "pairs_negatives", mode="before")
    @classmethod
    def _wrap_single_value(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("*")
    @classmethod
    def _require_names(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("is an empty list; name at least one, or remove the key")
        return value

    @field_validator("separator")
    @classmethod
    def _require_single_character(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator.isalnum() or separator in "\"'\r\n\0._-"):
            raise ValueError(f'is a single character such as ";", "," or "\\t", got {separator!r}')
        return separator

    @field_validator("test_share")
    @classmethod
    def _leave_train_queries(cls, test_share: float, info: ValidationInfo) -> float:
        dev_share = info.data.get("dev_share", 0)
        if test_share + dev_share >= 1:
            raise ValueError(f"{test_share} and dev_share {dev_share} leave nothing to train on; lower them")
        return test_share

    @model_validator(mode="after")
    def _require_one_format(self) -> Data:
        formats = [key for key in ("path", "corpus", "pairs") if getattr(self, key) is not None]
        if not formats and (self.queries or self.qrels or self.clicks):
            formats = ["corpus"]
        if not formats:
            raise contradiction(
                "path", "names no collection; give path: FOLDER, or corpus, queries and qrels, or pairs: FILE"
            )
        if len(formats) > 1:
            raise contradiction(formats[1], f"{' and '.join(formats)} cannot be combined; keep one of them")
        if formats == ["corpus"]:
            self._require_queries_of_judgements()
        for key in type(self).model_fields:
            if key not in self._keys_of(formats[0]) and getattr(self, key) != type(self).model_fields[key].default:
                raise contradiction(key, f"is not used with {formats[0]}{_REASONS.get(key, '')}; remove one of them")
        return self

    def _require_queries_of_judgements(self) -> None:
        """Raise the error for a format of which only a part is given; the corpus alone may be enough, see `missing`."""
        judged = self.qrels or self.clicks or self.dev or self.test
        if self.corpus is None or bool(judged) != bool(self.queries):
            raise contradiction(
                self.missing[0],
                f"is missing: corpus, queries and qrels belong together; name its file{_also(self.missing)}",
            )

    @property
    def missing(self) -> list[str]:
        """The keys without which there are no train queries; with the section `generate` they may be missing."""
        if self.path is not None or self.pairs is not None:
            return []
        keys = ("corpus", "queries", *(() if self.clicks else ("qrels",)))
        return [key for key in keys if getattr(self, key) is None]

    def _keys_of(self, format_key: str) -> set[str]:
        """Return the keys that are used with a format, which is named by its first key."""
        always = {format_key, "dev_share", "test_share", *READING}
        of_pairs = {key for key in type(self).model_fields if key.startswith("pairs_")}
        of_ids = {key for key in type(self).model_fields if key.startswith(("corpus_", "query_", "qrels_"))}
        of_clicks = {key for key in type(self).model_fields if key.startswith("clicks")}
        return (
            always
            | {
                "path": of_ids | (of_pairs if self.hub else set()),
                "corpus": of_ids
                | {"queries", "qrels", "clicks", "dev", "test"}
                | (of_clicks if self.clicks else set()),
                "pairs": of_pairs | {"dev", "test"},
            }[format_key]
        )

    def keep(self, files: object) -> None:
        """Keep the temporary files of a collection from memory until this section is deleted."""
        self._temporary = files

    @property
    def is_temporary(self) -> bool:
        """Whether `path` names temporary files, which are deleted with this section."""
        return self._temporary is not None

    def moved(self, path: Path) -> Data:
        """Return the section with the path of permanent files."""
        section = self.model_copy(update={"path": path})
        section._temporary = None
        return section

    @property
    def hub(self) -> str | None:
        """OWNER/NAME or folder of a data set for the `datasets` library, None if `path` names none."""
        return str(self.path)[len(HUB) :] if self.path and str(self.path).startswith(HUB) else None

    @property
    def title(self) -> str:
        """Name of the collection without local folders, for model cards and trackers."""
        if self.path is not None:
            return self.hub if self.hub and not Path(self.hub).is_dir() else self.path.name
        first = (self.corpus or self.pairs or (Path("data"),))[0]
        return first.name.split(".")[0] if self.pairs else first.resolve().parent.name


class GuardSet(Data):
    """A collection that is only measured: `evaluate.guard`. The judgements of one split are enough."""

    needs_splits: ClassVar[bool] = False
    dev_share: float = 0.0
    test_share: float = 0.0
    repeated: Literal["error", "sum", "max"] = "max"  # a set of others cannot be mended, and a recipe has no key for it
    unknown_ids: Literal["error", "skip"] = "skip"


_REASONS = {
    "dev": ", which has its own splits",
    "test": ", which has its own splits",
}


def _also(missing: Sequence[str]) -> str:
    return f" (also missing: {', '.join(missing[1:])})" if missing[1:] else ""
