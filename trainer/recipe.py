"""The recipe: what the user asks for, checked whole before anything heavy is imported.

`load_recipe` reads the YAML, lays `section.key=value` overrides on top and returns a frozen `Recipe`, or raises one
RecipeError that lists every fault with `file:line`. Relative paths count from the recipe's folder, then from the
working directory (on the command line the other way round).

A recipe says *what*; `accelerate_config.yaml` says *where*.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from trainer.errors import RecipeError, did_you_mean

RERANK_DEPTH = 20  # candidates that are reranked unless the recipe says otherwise
OPTIONAL = ("distil", "push")  # sections whose stage only runs where they stand
PATHS = [("data", key) for key in ("path", "corpus", "queries", "qrels", "pairs", "dev", "test", "judgements")]
PATHS += [("retriever", "run")]
REFERENCES = [("retriever", "model"), ("mine", "teacher"), ("reranker", "model"), ("distil", "model")]  # or folders
LARGEST_NUMBER = 2**32 - 1  # of steps, tokens, documents; also NumPy's largest seed
LONGEST_TEXT = 4096  # characters of a value, which is what Linux allows a path
UNSPACED = ("chinese", "japanese", "thai", "lao", "khmer", "burmese")  # languages written without spaces


MOVED = {"evaluate.depth": "reranker.depth"}  # keys of older recipes, and where they went


class Section(BaseModel):
    """What all sections share: no unknown keys, no change after reading, docs under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_not_one(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"is a number, got {value}")
        return value

    @field_validator("*")
    @classmethod
    def _can_be_used(cls, value: Any) -> Any:
        if isinstance(value, int) and value > LARGEST_NUMBER:
            raise ValueError(f"is more than {LARGEST_NUMBER:,}")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str | Path) and "\0" in str(text):
                raise ValueError(f"holds a NUL character: {str(text)!r:.100}; remove it")
            if isinstance(text, str | Path) and len(str(text)) > LONGEST_TEXT:
                raise ValueError(f"has {len(str(text)):,} characters, more than {LONGEST_TEXT:,}: {str(text)!r:.100}")
        return value


HUB = "hub:"
FILES = ("corpus", "queries", "qrels", "pairs", "dev", "test")  # keys that name files or globs
READING = ("judgements", "relevant_from", "repeated", "unknown_ids", "self_documents", "separator")  # with any way in


class Data(Section):
    """What the user gives: a corpus, queries and relevance judgements. One way in: path, corpus or pairs."""

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
            raise _contradiction(
                "path", "names no collection; give path: FOLDER, or corpus, queries and qrels, or pairs: FILE"
            )
        if len(ways) > 1:
            raise _contradiction(ways[1], f"{' and '.join(ways)} are {len(ways)} ways in; keep one of them")
        missing = [key for key in ("corpus", "queries", "qrels") if getattr(self, key) is None]
        if ways == ["corpus"] and missing:
            raise _contradiction(
                missing[0], f"is missing: corpus, queries and qrels belong together; name its file{_also(missing)}"
            )
        for key in type(self).model_fields:
            if key not in self._keys_of(ways[0]) and getattr(self, key) != type(self).model_fields[key].default:
                raise _contradiction(key, f"is not read with {ways[0]}{_INSTEAD.get(key, '')}; remove one of them")
        return self

    def _keys_of(self, way: str) -> set[str]:
        """Keys that are read with this way in."""
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

    @property
    def hub(self) -> str | None:
        """OWNER/NAME or the folder of a data set that the `datasets` library loads, where `path` names one."""
        return str(self.path)[len(HUB) :] if self.path and str(self.path).startswith(HUB) else None

    @property
    def title(self) -> str:
        """What the collection is called where its place on this machine is nobody's business."""
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


class Retriever(Section):
    """The first stage. It finds candidates for mining, for dev and for test; it is not trained."""

    kind: Literal["dense", "bm25", "hybrid", "run"] = "hybrid"
    """dense: bi-encoder and FAISS; bm25; hybrid: both, fused; run: your own engine's TREC run."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Bi-encoder: Hub id, folder, or package:NAME/SUBFOLDER."""
    trust_remote_code: bool = False
    """Run the Python code that the bi-encoder's folder brings along. Only for folders whose code you have read."""
    depth: int = Field(default=50, ge=1, le=1000)
    """Candidates kept for each query; mining looks at the best 200 in any case."""
    max_length: int = Field(default=256, ge=8)
    """Tokens of a document that the bi-encoder reads."""
    query_prompt: str | None = None
    """Put before every query that the bi-encoder reads, e.g. "query: "; null: the prompt that the model brings."""
    document_prompt: str | None = None
    """Likewise before every document, e.g. "passage: "."""
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """flat: exact, from disk; ivf, hnsw: FAISS, approximate, in memory; auto: ivf where flat would take hours."""
    language: str = "auto"
    """BM25's stemmer and stop words, or pairs of characters (japanese, chinese, thai ...); none: plain words."""
    run: Path | None = Field(default=None, validate_default=True)
    """TREC run file with the queries of all splits (kind: run)."""
    fuse_run: bool = Field(default=False, validate_default=True)
    """Fuse the run with the bi-encoder and BM25 (kind: run)."""
    tune: Literal["auto", "on", "off"] = "auto"
    """Choose BM25's k1, b, stop words and stemming and the fusion's weights on the train queries; auto: from 50 on."""
    fusion: Literal["weighted", "rrf"] = "weighted"
    """weighted: sum of standardised scores with tuned weights, where tuned; rrf, and else: by reciprocal ranks."""

    @property
    def has_bm25(self) -> bool:
        """Whether BM25 is among the engines."""
        return self.kind in ("bm25", "hybrid") or self.fuse_run

    @property
    def is_fused(self) -> bool:
        """Whether there are several engines."""
        return self.kind == "hybrid" or self.fuse_run

    @field_validator("tune", mode="before")
    @classmethod
    def _on_and_off_are_words_here(cls, tune: Any) -> Any:
        return {True: "on", False: "off"}[tune] if isinstance(tune, bool) else tune  # YAML reads on and off as booleans

    @field_validator("fuse_run")
    @classmethod
    def _only_a_run_is_fused(cls, fuse_run: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("kind")
        if fuse_run and kind not in (None, "run"):
            raise ValueError(f"there is no run to fuse with kind: {kind}; take kind: run with a run file, or remove it")
        return fuse_run

    @field_validator("language")
    @classmethod
    def _language_has_a_stemmer(cls, language: str) -> str:
        import Stemmer

        if language not in (known := [*Stemmer.algorithms(), *UNSPACED, "auto", "none"]):
            raise ValueError(f"no stemmer for {language!r}{did_you_mean(language, known)}")
        return language

    @field_validator("run")
    @classmethod
    def _run_goes_with_its_kind(cls, run: Path | None, info: ValidationInfo) -> Path | None:
        kind = info.data.get("kind")
        if kind == "run" and run is None:
            raise ValueError("kind: run needs the TREC run file here, e.g. run: my_engine.trec")
        if kind not in (None, "run") and run is not None:
            raise ValueError(f"a run file is only read with kind: run, but kind is {kind}; remove one of them")
        return run


class Mine(Section):
    """Groups for training from the candidates of the train queries."""

    groups: Literal["lists", "draws"] = "lists"
    """lists: the candidates as they will be reranked, judged ones with their grades; draws: positives with some
    negatives, by the keys below."""
    list_size: int | None = Field(default=None, ge=2)
    """Documents of a list, the judged ones and a seeded draw of the others; null: all that are reranked."""
    negatives_per_positive: int = Field(default=7, ge=1)
    """Negatives that join each positive; a query's positives share one group (four at most, then a new group)."""
    first_rank: int = Field(default=1, ge=1)
    """First candidate rank of the hard band, where most negatives come from; above it unlabelled positives hide."""
    last_rank: int = Field(default=30, ge=1, validate_default=True)
    """Last candidate rank of the hard band."""
    pick: Literal["top", "random"] = "random"
    """The highest ranks left in the hard band, or a seeded draw from it."""
    bm25_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the hard band's negatives by BM25's own ranks, the rest by the bi-encoder's; null: fused ranks."""
    deeper_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the negatives drawn from below the hard band, down to rank 200."""
    random_share: float = Field(default=0.0, ge=0, le=1, validate_default=True)
    """Share of the negatives drawn from the whole corpus."""
    max_share_of_positive: float | None = Field(default=None, gt=0, le=1)
    """Passes over candidates whose similarity is above this share of the best positive's; null: none."""
    margin: float | None = Field(default=None, ge=0)
    """Passes over candidates whose similarity is not this much below the best positive's; null: none."""
    teacher: str | None = None
    """A cross-encoder (Hub id, folder, package:NAME/SUB) that scores candidates, for the check and for distillation."""
    teacher_trust_remote_code: bool = False
    """Run the Python code that the teacher's folder brings along. Only for folders whose code you have read."""
    teacher_margin: float | None = 0.0
    """Passes over candidates whose teacher score (a logit) is not this much below the best positive's; null: none."""
    rounds: Literal[1, 2] = 1
    """2: mine again after training, with the reranker of round 1 as teacher, and train anew from the base."""

    @field_validator("last_rank")
    @classmethod
    def _window_is_not_empty(cls, last_rank: int, info: ValidationInfo) -> int:
        first_rank = info.data.get("first_rank", 1)
        if last_rank < first_rank:
            raise ValueError(f"the window ends before it begins: first_rank is {first_rank}, last_rank {last_rank}")
        return last_rank

    @field_validator("random_share")
    @classmethod
    def _shares_leave_some_for_the_hard_band(cls, random_share: float, info: ValidationInfo) -> float:
        if (deeper := info.data.get("deeper_share", 0)) + random_share > 1:
            raise ValueError(f"deeper_share {deeper} and random_share {random_share} are more than all negatives")
        return random_share


class Reranker(Section):
    """The cross-encoder that is trained."""

    model: str = "cross-encoder/ms-marco-MiniLM-L6-v2"
    """A reranker, bi-encoder or raw encoder: Hub id, folder, or package:NAME/SUBFOLDER."""
    head: Literal["auto", "classifier", "interaction"] = "auto"
    """auto: the classifier where the base already is a reranker, else interaction, which learns from few labels."""
    depth: int | None = Field(default=None, ge=2)
    """Candidates that are reranked, in training lists as on dev and test; serve with as many. null: the best 20."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of query and document together; null or auto: as many as nine of ten pairs have, up to 512."""
    layers: tuple[int, ...] | None = None
    """Hidden layers that the interaction head compares (0 = embeddings); deeper ones are cut off; null: chosen."""
    trust_remote_code: bool = False
    """Run the Python code that the base's folder brings along. Only for folders whose code you have read."""

    @field_validator("max_length", mode="before")
    @classmethod
    def _auto_is_null(cls, max_length: Any) -> Any:
        return None if max_length == "auto" else max_length


class Train(Section):
    """The training loop."""

    loss: Literal[
        "listwise",
        "pointwise",
        "ranknet",
        "lambdarank",
        "ndcg2pp",
        "listmle",
        "plistmle",
        "adr_mse",
        "mse",
        "margin_mse",
        "kl",
    ] = "listwise"
    """listwise: few positives; pointwise: scores as probabilities; ranknet, lambdarank, ndcg2pp: several grades;
    listmle, plistmle, adr_mse: a whole order; mse, margin_mse, kl: a teacher's scores."""
    epochs: int = Field(default=1, ge=1)
    """Passes over all groups."""
    queries_per_step: int = Field(default=8, ge=1)
    """Groups in one optimizer step, over all devices together."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate of the encoder; null: chosen by head and size of the base."""
    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate of a fresh classifier; null: 1e-3. An interaction head is fitted before training and then stays."""
    fit_lists: int = Field(default=800, ge=1)
    """Candidate lists of train queries that a fresh interaction head is fitted to, at most."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises before it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, on matrices only."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In all layers while training; over one or two epochs it mostly costs time (on a CPU 1.4 times as much)."""
    frozen_layers: int = Field(default=0, ge=0)
    """Lowest layers (and embeddings) that stay as they are; with two thirds of them a step is 5/9 of the work."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    tokens_per_pass: int = Field(default=16384, ge=512)
    """Tokens in one forward and backward pass on a device; a step is as many passes as it needs. A larger group is read
    twice, piece by piece, with the same gradients (GradCache); where memory runs out, the number is halved."""
    gradient_checkpointing: bool = False
    """Layers are computed again on the way back instead of kept: less memory, one more forward pass."""
    compile: bool = False
    """torch.compile of the model: the first steps take long, those after them less time; for long runs on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of training, mining and dev on the way; auto: bf16 where the device computes it natively and faster, else fp32.
    The gate, the test table and the export are float32."""
    evaluations_per_epoch: int = Field(default=2, ge=1)
    """How often dev is reranked; the best of these (and the start) is kept."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row without a new best after which training ends; null: it goes on to the last step."""
    checkpoint_steps: int = Field(default=25, ge=1)
    """Steps between checkpoints that a killed run goes on from."""


class Distil(Section):
    """A standard checkpoint taught by the tuned model on queries that nobody judged, only where this section stands."""

    model: str | None = None
    """The student, an encoder or a reranker (Hub id, folder, package:NAME/SUB); null: the tuned model's encoder."""
    trust_remote_code: bool = False
    """Run the Python code that the student's folder brings along. Only for folders whose code you have read."""
    queries: int = Field(default=2000, ge=1)
    """Queries without labels: those of train first, the rest titles and sentences drawn from the corpus."""
    depth: int = Field(default=20, ge=2, le=200)
    """Candidates of each query that the teacher scores and the student learns to order."""
    teacher: Literal["tuned", "fused"] = "tuned"
    """tuned: the trained model; fused: with the first stage's score beside it, weighted on dev."""
    loss: Literal["mse", "margin_mse", "kl"] = "margin_mse"
    """What comes close to the teacher: mse: scores; margin_mse: differences of scores; kl: shares of each list."""
    epochs: int = Field(default=1, ge=1)
    """Passes over all queries."""
    queries_per_step: int = Field(default=16, ge=1)
    """Queries in one optimizer step, over all devices together."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak rate of the student's encoder; null: by size under a fresh classifier, gentle for a reranker."""


class Evaluate(Section):
    """The two-stage measurement: retrieve, rerank, measure."""

    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@50")
    """As ir_measures spells them; the first one chooses the checkpoint."""

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        from trainer.metrics import unknown_metrics

        if not metrics:
            raise ValueError("name at least one metric, e.g. [nDCG@10]")
        if unknown := unknown_metrics(metrics):
            raise ValueError(f"ir_measures knows no {', '.join(unknown)}; e.g. nDCG@10, RR@10, R@50, AP, P@5")
        return metrics


class Export(Section):
    """What leaves: always the folder that transformers and sentence-transformers load."""

    formats: tuple[Literal["onnx"], ...] = ("onnx",)
    """Further formats; each must give the trained model's scores or it is left out."""


class Push(Section):
    """Upload of the export folder to the Hugging Face Hub, only where this section stands."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """OWNER/NAME on the Hub; it is made where it does not exist."""
    private: bool = True
    """Only you and those you let in can see it."""
    message: str = "Add reranker"
    """Commit message."""


class Track(Section):
    """Weights & Biases; `train/metrics.jsonl` is written in any case."""

    mode: Literal["off", "offline", "online"] = "off"
    """off; offline: files for `wandb sync`; online: live."""
    project: str = "domain-reranker"
    """W&B project."""

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, mode: Any) -> Any:
        return "off" if mode is False else mode


class ModelReference(NamedTuple):
    """One model that a recipe names: by which key, and whether its own Python code may run, by which other key."""

    key: str
    name: str
    trust_key: str
    trust_remote_code: bool


class Recipe(Section):
    """One training run from collection to exported model. Sections stand in the order in which they run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Results go to runs/NAME."""
    seed: int = Field(default=13, ge=0, le=LARGEST_NUMBER)
    """Seed of every random number."""
    data: Data
    retriever: Retriever = Retriever()
    mine: Mine = Mine()
    reranker: Reranker = Reranker()
    train: Train = Train()
    distil: Distil | None = None
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    push: Push | None = None
    track: Track = Track()
    _tried: tuple[str, ...] = PrivateAttr(())

    @property
    def tried(self) -> tuple[str, ...]:
        """Where relative paths that lead nowhere were looked for, a sentence each."""
        return self._tried

    @field_validator("mine")
    @classmethod
    def _mine_from_engines_that_are_asked(cls, mine: Mine, info: ValidationInfo) -> Mine:
        retriever = info.data.get("retriever")
        if retriever and mine.bm25_share is not None and retriever.kind != "hybrid":
            raise _contradiction(
                "bm25_share", f"needs two engines, but retriever.kind is {retriever.kind}; take hybrid or remove it"
            )
        return mine

    @field_validator("train")
    @classmethod
    def _distil_only_from_a_teacher(cls, train: Train, info: ValidationInfo) -> Train:
        mine = info.data.get("mine")
        if mine and mine.teacher is None and train.loss in ("mse", "margin_mse", "kl"):
            raise _contradiction("loss", f"{train.loss} learns from a teacher's scores; name one as mine.teacher")
        return train

    @field_validator("distil")
    @classmethod
    def _distil_what_is_not_standard_already(cls, distil: Distil | None, info: ValidationInfo) -> Distil | None:
        reranker = info.data.get("reranker")
        if distil and reranker and reranker.head == "classifier":
            raise ValueError(
                "with reranker.head: classifier the tuned model is a standard checkpoint already; remove one of them"
            )
        return distil

    @field_validator("reranker")
    @classmethod
    def _rerank_no_deeper_than_retrieved(cls, reranker: Reranker, info: ValidationInfo) -> Reranker:
        retriever = info.data.get("retriever")
        if retriever and reranker.depth and reranker.depth > retriever.depth:
            raise _contradiction(
                "depth", f"{reranker.depth} is more than retriever.depth {retriever.depth} finds; lower it"
            )
        return reranker

    @property
    def bi_encoder(self) -> str | None:
        """The model that embeds, where the first stage has one."""
        section = self.retriever
        return section.model if section.kind in ("dense", "hybrid") or section.fuse_run else None

    @property
    def model_references(self) -> list[ModelReference]:
        """The models that a run of this recipe loads, each with the key that allows its own code."""
        retriever, mine, reranker, distil = self.retriever, self.mine, self.reranker, self.distil
        used = [
            ("retriever.model", self.bi_encoder, "retriever.trust_remote_code", retriever.trust_remote_code),
            ("mine.teacher", mine.teacher, "mine.teacher_trust_remote_code", mine.teacher_trust_remote_code),
            ("reranker.model", reranker.model, "reranker.trust_remote_code", reranker.trust_remote_code),
        ]
        if distil is not None:
            used.append(("distil.model", distil.model, "distil.trust_remote_code", distil.trust_remote_code))
        return [ModelReference(key, name, trust, allowed) for key, name, trust, allowed in used if name is not None]

    @property
    def rerank_depth(self) -> int:
        """Candidates of a query that are reranked, in training lists as on dev and test."""
        return self.reranker.depth or min(RERANK_DEPTH, self.retriever.depth)


def _contradiction(key: str, message: str) -> PydanticCustomError:
    """A fault of one key that only shows beside another section; pydantic places it on the section."""
    return PydanticCustomError("contradiction", "{message}", {"key": key, "message": message})


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `section.key=value`, with the value written as in YAML.

    Raises RecipeError with one line a fault, sorted by line, those of the command line last.
    """
    source = Source.read(Path(path))
    for override in overrides:
        source.override(override)
    source.find_paths()
    recipe = None
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        source.faults += [source.explain(details) for details in error.errors()]
    if recipe is None or source.faults:
        source.look_for_files()
        raise RecipeError([text for _, text in sorted(source.faults, key=lambda fault: fault[0])])
    recipe._tried = tuple(source.tried)
    return recipe


def schema_table(section: type[BaseModel]) -> list[list[str]]:
    """Rows [key, default, meaning] of one section, from the schema itself (README and `check --schema` show them)."""
    return [
        [
            name,
            "required" if field.is_required() else _plain(field.get_default()),
            " ".join((field.description or "").split()),  # a row is one line, a docstring may be two
        ]
        for name, field in section.model_fields.items()
    ]


def sections() -> dict[str, type[BaseModel]]:
    """The sections of a recipe by name, in the order in which they run."""
    found = {}
    for name, field in Recipe.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):  # the args of `Push | None`
            if isinstance(kind, type) and issubclass(kind, Section):
                found[name] = kind
    return found


def _plain(value: Any) -> str:
    """A default as one would write it in YAML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


COMMAND_LINE = 10**9  # sorts behind every line of the file
LARGEST = 1 << 20  # bytes of a recipe; a larger file is something else
DEEPEST = 20  # levels of lists and mappings in each other; a recipe needs four
TOO_DEEP = f"nested more than {DEEPEST} levels deep"
REPEATED = 5000  # values that aliases may repeat; without a limit a few lines can be billions
LONGEST_MESSAGE, LONGEST_VALUE = 600, 100  # characters


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without dates: no recipe holds one, and `name: 2026-01-31` is a name."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 the name in PyYAML
        """Stop at a bracket too deep: the time that PyYAML takes grows with the square of the depth."""
        if self.flow_level > DEEPEST:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class Source:
    """The recipe's raw values together with the line on which each key stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.lines: dict[tuple[str, ...], int] = {}
        self.faults: list[tuple[int, str]] = []
        self.tried: list[str] = []

    @classmethod
    def read(cls, path: Path) -> Source:
        """Parse the YAML safely; what is not even a mapping ends here, duplicate keys are noted as faults."""
        source = cls(path)
        text = _read_text(path)
        try:
            root = _compose(text)
        except yaml.MarkedYAMLError as error:
            line = (error.problem_mark.line + 1) if error.problem_mark else 1
            raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}; check indentation and colons") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise RecipeError(f"{path}:{line}: not valid YAML: {error.reason}; remove the character") from None
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe is a mapping that begins with `name:`")
        source.values = source._mapping(root, ())
        return source

    def _mapping(self, node: yaml.MappingNode, place: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault(line, place, "a key is one word, not a list or a mapping")
                continue
            key = str(key_node.value)
            here = (*place, key)
            if here in self.lines:
                self._fault(line, here, f"given twice, first on line {self.lines[here]}; keep one")
            self.lines[here] = line
            if isinstance(value_node, yaml.MappingNode) and not place:  # nothing nests below a section
                values[key] = self._mapping(value_node, here)
            else:
                values[key] = self._value(value_node, line, here)
            if values[key] is None and not place and key in sections() and key not in OPTIONAL:
                values[key] = {}  # a section whose keys are all commented out
        return values

    def _value(self, node: yaml.Node, line: int, place: tuple[str, ...]) -> Any:
        try:
            return PlainLoader("").construct_object(node, deep=True)
        except (yaml.MarkedYAMLError, ValueError) as error:  # an unknown !tag, an anchor that holds itself, `!!int x`
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self._fault(line, place, f"not a plain YAML value ({reason}); write it without ! and &")
            return None

    def override(self, text: str) -> None:
        """Lay one `section.key=value` of the command line over the file."""
        name, equals, value = text.partition("=")
        place = tuple(name.split("."))
        if not equals or not all(place) or len(place) > 2:
            self._fault(
                COMMAND_LINE, (), f"{_shown(text)} is no override; write section.key=value, e.g. train.epochs=3"
            )
            return
        try:
            node = _compose(value)
            parsed = None if node is None else PlainLoader("").construct_document(node)
        except (yaml.YAMLError, ValueError):
            self._fault(COMMAND_LINE, place, f"{_shown(value)} is not a YAML value; quote it")
            return
        target = self.values
        for part in place[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                self._fault(COMMAND_LINE, place, f"{part} is not a section")
                return
        target[name.split(".")[-1]] = parsed
        self.lines = {known: line for known, line in self.lines.items() if known[: len(place)] != place}
        self.lines[place] = COMMAND_LINE
        self.lines.setdefault(place[:1], COMMAND_LINE)

    def find_paths(self) -> None:
        """Replace relative paths by where they lead, and note in `tried` those that lead nowhere."""
        for section, key in PATHS + REFERENCES:
            values = self.values.get(section)
            given = values.get(key) if isinstance(values, dict) else None
            if isinstance(values, dict) and isinstance(given, str):
                values[key] = self._found((section, key), given)
            elif isinstance(values, dict) and isinstance(given, list):
                values[key] = [self._found((section, key), path) if isinstance(path, str) else path for path in given]

    def _found(self, place: tuple[str, str], given: str) -> str:
        """Return the path that a value names, from the recipe's folder or from here; the value itself if none does."""
        prefix = HUB if place == ("data", "path") and given.startswith(HUB) else ""
        path = given.removeprefix(prefix)
        if not path or "\0" in path or len(path) > LONGEST_TEXT or path.startswith("package:"):
            return given
        if path.startswith("~"):
            return prefix + self._home(place, path)
        bases = [self.path.parent, Path()]
        if self._line(place) == COMMAND_LINE:
            bases.reverse()
        for base in bases:
            if _leads_somewhere(base / path):
                return prefix + str(base / path)
        apart = self.path.parent.absolute() != Path.cwd() and not Path(path).is_absolute()
        if apart and not prefix and place not in REFERENCES:
            folders = " and in ".join(str(base.absolute()) for base in bases)
            self.tried.append(f"{'.'.join(place)}: {path} was looked for in {folders}")
        return given

    def _home(self, place: tuple[str, str], path: str) -> str:
        try:
            return str(Path(path).expanduser())
        except RuntimeError:
            self._fault(self._line(place), place, f"{path}: there is no user {path[1:].partition('/')[0]!r} here")
            return path

    def explain(self, error: ErrorDetails) -> tuple[int, str]:
        """One pydantic error in the user's words, with the line it stands on."""
        place = tuple(str(part) for part in error["loc"] if not isinstance(part, int))
        given = _shown(error["input"])
        if error["type"] == "extra_forbidden":
            known = Recipe if len(place) == 1 else sections().get(place[0], Recipe)
            elsewhere = [
                f"{name}.{place[-1]}" for name, section in sections().items() if place[-1] in section.model_fields
            ]
            near = (
                f"; did you mean {' or '.join(elsewhere)}?"
                if elsewhere
                else did_you_mean(place[-1], known.model_fields)
            )
            moved = MOVED.get(".".join(place))
            message = f"is now {moved}" if moved else f"no such key{near}"
        elif error["type"] == "missing":
            message = "is required but missing"
        elif error["type"] == "contradiction":
            context = error.get("ctx", {})
            place, message = (*place, context["key"]), context["message"]
        elif error["type"] == "tuple_type":
            message = f"is a list, e.g. [{given.strip(chr(39))[:40]}], got {given}"
        elif error["type"] == "value_error":
            message = error["msg"].removeprefix("Value error, ")
        elif error["type"] in ("model_type", "model_attributes_type"):
            message = f"is a section with keys of its own, got {given}"
        else:
            message = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {given}"
        return self._place(self._line(place), place, message)

    def look_for_files(self) -> None:
        """Note files of the data section that are not there, so that they are told with the recipe's other faults.

        What else is wrong with the data is found once the recipe is right.
        """
        section = self.values.get("data")
        files = section if isinstance(section, dict) else {}
        for place in (place for place in PATHS if place[0] == "data"):
            given = files.get(place[1])
            for name in given if isinstance(given, list) else [given]:
                if isinstance(name, str) and not name.startswith((HUB, "~")) and _is_missing(name):
                    self._fault(self._line(place), place, f"no such file or folder: {_shown(name)}")

    def _fault(self, line: int, place: tuple[str, ...], message: str) -> None:
        self.faults.append(self._place(line, place, message))

    def _place(self, line: int, place: tuple[str, ...], message: str) -> tuple[int, str]:
        where = "command line" if line == COMMAND_LINE else f"{self.path}:{line}"
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ... ({len(message) - LONGEST_MESSAGE:,} more characters)"
        return line, f"{where}: {'.'.join(place)}: {message}" if place else f"{where}: {message}"

    def _line(self, place: tuple[str, ...]) -> int:
        """The line of the key, or of the nearest enclosing one; the first line for what is missing at the top."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def _read_text(path: Path) -> str:
    """Return the content of a recipe; raises RecipeError where it cannot be one."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{path}: has more than {LARGEST:,} bytes, so it is no recipe")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        if path.is_symlink():
            raise RecipeError(f"{path}: is a link to {os.readlink(path)}, which is not there; mend the link") from None
        beside = [file.name for file in path.parent.glob("*.yaml")]
        near = did_you_mean(path.name, beside) if beside else f"; {path.parent} holds no .yaml file"
        raise RecipeError(f"{path}: no such recipe{near}") from None
    except OSError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read ({error.strerror}); name a file that can be") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read as UTF-8 text: {str(error)[:200]}") from None


def _compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text; raises MarkedYAMLError also for one that is nested or repeats without end."""
    try:
        root = yaml.compose(text, Loader=PlainLoader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_DEEP) from None
    if root is not None:
        _limit(root)
    return root


def _limit(root: yaml.Node) -> None:
    """Raise MarkedYAMLError for what is nested too deep, or for aliases that repeat too many values.

    A value that holds itself is left to the constructor, which names it.
    """
    seen: set[int] = set()
    repeated = 0
    stack: list[tuple[yaml.Node, tuple[int, ...]]] = [(root, ())]
    while stack:
        node, above = stack.pop()
        if id(node) in above:
            continue
        repeated += id(node) in seen
        seen.add(id(node))
        if repeated > REPEATED:
            problem = f"its aliases (*) repeat more than {REPEATED:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if len(above) > DEEPEST:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=node.start_mark)
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        stack += [(part, (*above, id(node))) for part in below if isinstance(part, yaml.Node)]


def _is_missing(name: str) -> bool:
    """Return whether a path leads nowhere; one that no file can have is another fault, with its own message."""
    return "\0" not in name and len(name) <= LONGEST_TEXT and not _leads_somewhere(Path(name))


def _leads_somewhere(path: Path) -> bool:
    """Return whether a path, or a pattern, names anything."""
    try:
        return path.exists() or (glob.has_magic(str(path)) and next(glob.iglob(str(path), recursive=True), "") != "")
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _shown(value: Any) -> str:
    """Return a value as it was given, cut where it is long."""
    try:
        shown = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        return "a number with thousands of digits"
    return shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]} ..."
