"""The sections after `data`, in the order in which a run needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainer.errors import did_you_mean
from trainer.recipe.metric_names import unknown_metrics
from trainer.recipe.section import Section

UNSPACED = ("chinese", "japanese", "thai", "lao", "khmer", "burmese")  # languages written without spaces


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
    def bi_encoder(self) -> str | None:
        """The model that embeds, where the first stage has one."""
        return self.model if self.kind in ("dense", "hybrid") or self.fuse_run else None

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
