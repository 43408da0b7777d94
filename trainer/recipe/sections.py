"""The sections from `mine` to `evaluate`, in the order in which they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainer.recipe.endpoint import CHAT, RERANK, is_endpoint, read_endpoint
from trainer.recipe.metric_names import unknown_metrics
from trainer.recipe.section import LARGEST_NUMBER, Section

OWN_TEACHERS = ("tuned", "fused")  # values of distil.teacher that mean the trained model


class Mine(Section):
    """Training groups, made from the candidates of the train queries."""

    groups: Literal["lists", "draws"] = "lists"
    """lists: a query's reranked candidates, judged ones with their grades; draws: positives with sampled negatives,
    by the keys below."""
    list_size: int | None = Field(default=None, ge=2)
    """Documents per list: the judged ones and a random sample of the others; null: all candidates that are reranked."""
    negatives_per_positive: int = Field(default=7, ge=1)
    """Negatives sampled for each positive; up to four positives of a query share one group."""
    first_rank: int = Field(default=1, ge=1)
    """First rank of the window of candidates that hard negatives come from; a higher value avoids unlabelled
    positives, which are frequent at the top ranks."""
    last_rank: int = Field(default=30, ge=1, validate_default=True)
    """Last rank of the window of candidates that hard negatives come from."""
    pick: Literal["top", "random"] = "random"
    """Choice of negatives in the window; top: the highest ranks; random: a random sample."""
    random_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the negatives sampled from the complete corpus."""
    max_share_of_positive: float | None = Field(default=None, gt=0, le=1)
    """Exclude candidates whose similarity exceeds this share of the best positive's; null: no limit."""
    teacher: str | None = None
    """Cross-encoder (Hub id, folder, package:NAME/SUB) or endpoint (rerank:URL, rerank:MODEL@URL, chat:MODEL@URL) whose
    scores filter out likely false negatives, or are the targets of the losses mse, margin_mse and kl; null: none."""
    teacher_trust_remote_code: bool = False
    """Run the Python code in the teacher's folder; set it only for code that you have read."""
    teacher_margin: float | None = 0.0
    """Exclude candidates whose teacher logit exceeds the best positive's minus this margin; null: no limit."""
    rounds: Literal[1, 2] = 1
    """2: mine again with the reranker of round 1 as teacher, and train again from the base."""

    @field_validator("teacher")
    @classmethod
    def _require_endpoint(cls, teacher: str | None) -> str | None:
        return _checked_teacher(teacher)

    @field_validator("last_rank")
    @classmethod
    def _require_ranks_in_window(cls, last_rank: int, info: ValidationInfo) -> int:
        first_rank = info.data.get("first_rank", 1)
        if last_rank < first_rank:
            raise ValueError(f"the window is empty: first_rank is {first_rank}, last_rank {last_rank}")
        return last_rank


def _checked_teacher(teacher: str | None) -> str | None:
    """Return a reference to a teacher; raise ValueError if it is one to an endpoint, and not well-formed."""
    if teacher is not None and (is_endpoint(teacher) or "://" in teacher):
        read_endpoint(teacher, (RERANK, CHAT))
    return teacher


class Reranker(Section):
    """The cross-encoder that is trained."""

    model: str = "cross-encoder/ms-marco-MiniLM-L6-v2"
    """Base model: a reranker, bi-encoder or plain encoder, as a Hub id, folder, or package:NAME/SUBFOLDER."""
    head: Literal["auto", "classifier", "interaction"] = "auto"
    """auto: classifier if the base is a reranker already, else interaction, which learns from few labels."""
    depth: int | None = Field(default=None, ge=2)
    """Number of candidates that are reranked, in training lists and on dev and test; serve with the same number. null:
    20, or retriever.depth if that is lower."""
    max_length: int | None = Field(default=None, ge=8)
    """Maximum length of a query and document together, in tokens; null or auto: so that nine of ten pairs fit, up to
    512."""
    layers: tuple[int, ...] | None = None
    """Hidden layers that the interaction head compares (0: embeddings); deeper layers are removed; null: automatic."""
    lexical_signals: bool = True
    """Let exact matches of words count too (BM25 and others): in an interaction head, or beside another model's logit
    if train queries show a gain. Other libraries and servers read such a model's logit alone."""
    instruction: str | None = None
    """Description of the task in a decoder's prompt, e.g. "Find the code that does this"; null: the template's own."""
    template: Path | None = None
    """Jinja file of a decoder's prompt, with messages of the roles system (the instruction), query and document; null:
    the base's chat template if it has these roles, else the one of its family."""
    tokens: tuple[str, ...] = Field(default=(), max_length=2)
    """Tokens of a decoder whose logits make the score: [irrelevant, relevant], whose difference it is, or [relevant];
    []: those of the base or its family."""
    trust_remote_code: bool = False
    """Run the Python code in the base's folder; set it only for code that you have read."""

    @field_validator("tokens", mode="before")
    @classmethod
    def _undo_yaml_booleans(cls, tokens: Any) -> Any:
        """Return yes, no, 0 and 1 as texts, which YAML reads as booleans and numbers."""
        if not isinstance(tokens, list | tuple):
            return tokens
        return [("yes" if token else "no") if isinstance(token, bool) else str(token) for token in tokens]

    @field_validator("tokens")
    @classmethod
    def _require_different_tokens(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if len(tokens) > len(set(tokens)):
            raise ValueError(f"names {tokens[0]!r} twice, so that every score would be 0; name two different tokens")
        return tokens

    @field_validator("max_length", mode="before")
    @classmethod
    def _read_auto_as_null(cls, max_length: Any) -> Any:
        return None if max_length == "auto" else max_length


class Passages(Section):
    """Windows for long documents: the reranker reads overlapping parts, and the best part's score is the document's."""

    length: int = Field(default=256, ge=8)
    """Length of a window in tokens of the document; shorter where a long query leaves less of reranker.max_length."""
    overlap: int = Field(default=64, ge=0, validate_default=True)
    """Least number of tokens that a window shares with the one before it."""

    @field_validator("overlap")
    @classmethod
    def _require_progress(cls, overlap: int, info: ValidationInfo) -> int:
        length = info.data.get("length")
        if length is not None and overlap >= length:
            raise ValueError(f"{overlap} is not less than passages.length {length}, so windows would not advance")
        return overlap

    def windows(self, tokens: int, room: int) -> list[slice]:
        """Return the windows of a document of so many tokens, `room` of which are read with the query.

        All have the same length, and together they hold every token. They are spread evenly, and the last one ends with
        the document, because a short rest would be read without context.
        """
        length = min(self.length, room)
        last = tokens - length  # start of the last window
        if last <= 0:
            return [slice(0, tokens)]
        steps = -(-last // (length - self.overlap * length // self.length))
        starts = (number * last // steps for number in range(steps + 1))
        return [slice(start, start + length) for start in starts]


class Train(Section):
    """The training loop."""

    loss: Literal[
        "listwise",
        "pointwise",
        "lambdarank",
        "mse",
        "margin_mse",
        "kl",
    ] = "listwise"
    """Training objective. listwise: softmax over a list; pointwise: scores as probabilities; lambdarank: pairs weighted
    by their effect on nDCG, for several grades; mse, margin_mse, kl: a teacher's scores."""
    adapter: Literal["none", "lora"] = "none"
    """lora: train low-rank matrices in all linear layers of a decoder instead of its weights, which takes a fraction of
    the memory; they are merged in float32 whenever the model is saved."""
    adapter_rank: int = Field(default=16, ge=1)
    """Rank of the LoRA matrices."""
    adapter_alpha: float | None = Field(default=None, gt=0)
    """Factor of the LoRA product, which is divided by the rank; null: twice the rank."""
    adapter_score_row: Literal["auto", "trained", "frozen"] = "auto"
    """Whether the one-row head is trained with LoRA; auto: only if the base is no reranker yet."""
    epochs: int = Field(default=1, ge=0)
    """Passes over all training groups; 0: no training, so that the model as it was fitted, or the base itself, is
    evaluated and exported."""
    queries_per_step: int = Field(default=8, ge=1)
    """Groups per optimizer step, summed over all devices."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the encoder; null: chosen by the head and the size of the base."""
    head_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of a new classifier head; null: 1e-3. An interaction head is fitted before training, then
    frozen."""
    fit_lists: int = Field(default=800, ge=1)
    """Maximum number of train queries whose candidate lists are used to fit a new interaction head; 200
    at most are used to fit lexical signals beside another model."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak; afterwards it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay of weight matrices; not applied to biases, LayerNorm and a new classifier head."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability in all layers; over one or two epochs it mainly adds training time (1.4 times on a CPU)."""
    frozen_layers: int = Field(default=0, ge=0)
    """Number of lowest layers that are not trained, with the embeddings; freezing two thirds of the layers reduces a
    step to 5/9 of the work."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Maximum norm to which gradients are clipped."""
    tokens_per_pass: int = Field(default=16384, ge=512)
    """Maximum number of tokens in one forward and backward pass on a device; a step takes as many passes as it needs.
    A larger group is processed in parts, twice, with the same gradients (GradCache); if memory runs out, the number is
    halved."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, one more forward pass."""
    compile: bool = False
    """Use torch.compile: the first steps take longer, later ones are faster; for long runs on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format in training, mining and evaluations on dev; auto: bf16 if the device supports it natively and is
    faster with it, else fp32. The gate, the test table and the export always use fp32."""
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, le=LARGEST_NUMBER)], ...] | None = None
    """Seeds of several trainings (order of the groups, dropout, new head); the best on dev is exported, and the table
    shows their mean. null: one training, with `seed`."""
    evaluations_per_epoch: int = Field(default=2, ge=1)
    """Evaluations on dev per epoch; the best checkpoint is used, or the untrained model if none is better."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without improvement after which training stops; null: never."""
    checkpoint_steps: int = Field(default=25, ge=1)
    """Steps between checkpoints; a killed run resumes from the last one."""

    @field_validator("seeds")
    @classmethod
    def _require_different_seeds(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds == ():
            raise ValueError("is an empty list; name at least one seed, e.g. [1, 2, 3], or remove the key")
        if seeds is not None and len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise ValueError(f"names {twice} twice, which would be the same training; name different seeds")
        return seeds


class Distil(Section):
    """Distillation of the tuned model into a standard checkpoint on unlabelled queries; runs only with this section."""

    model: str | None = None
    """Student, an encoder or a reranker (Hub id, folder, package:NAME/SUB); null: the tuned model's encoder."""
    trust_remote_code: bool = False
    """Run the Python code in the student's folder; set it only for code that you have read."""
    queries: int = Field(default=2000, ge=1)
    """Number of queries, used without labels: the train queries first, then titles and sentences of the corpus."""
    depth: int = Field(default=20, ge=2, le=200)
    """Number of candidates per query that the teacher scores and the student learns to rank."""
    teacher: str = "tuned"
    """tuned: the trained model; fused: its score combined with the first stage's, with a weight chosen on dev; else
    another cross-encoder or an endpoint, as for mine.teacher."""
    teacher_trust_remote_code: bool = False
    """Run the Python code in the folder of another cross-encoder; set it only for code that you have read."""
    loss: Literal["mse", "margin_mse", "kl"] = "margin_mse"
    """Distance to the teacher; mse: of scores; margin_mse: of score differences; kl: of softmax distributions over a
    list."""
    epochs: int = Field(default=1, ge=1)
    """Passes over all queries."""
    queries_per_step: int = Field(default=16, ge=1)
    """Queries per optimizer step, summed over all devices."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the student's encoder; null: chosen by its size if its classifier is new, low for a
    reranker."""

    @field_validator("teacher")
    @classmethod
    def _require_endpoint(cls, teacher: str) -> str:
        if teacher not in OWN_TEACHERS and not any(sign in teacher for sign in "/:") and not Path(teacher).is_dir():
            raise ValueError(
                f"is 'tuned' or 'fused', a Hub id as OWNER/NAME, a folder or an endpoint, got {teacher!r:.100}"
            )
        _checked_teacher(teacher)
        return teacher

    @property
    def other_teacher(self) -> str | None:
        """Reference of a teacher that is not the trained model; None if that is the teacher."""
        return None if self.teacher in OWN_TEACHERS else self.teacher


class Evaluate(Section):
    """Evaluation of both stages: retrieve, rerank, measure."""

    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@50")
    """Metrics by their names in ir_measures; the first one chooses the checkpoint."""
    guard: tuple[Path, ...] | None = None
    """Other collections (BEIR folders, or hub:OWNER/NAME) on which the exported model must not lose much against the
    model before training."""
    max_guard_drop: float = Field(default=0.02, ge=0, le=1)
    """Largest loss of nDCG@10 on a guard set; a model that clearly loses more is worse, and is not exported."""
    judge: str | None = None
    """Language model (chat:MODEL@URL), not the teacher, that grades the unjudged documents in the top 10 of the
    measured systems; the results with its grades are shown in a table of their own. null: none."""

    @field_validator("judge")
    @classmethod
    def _require_endpoint(cls, judge: str | None) -> str | None:
        if judge is not None:
            read_endpoint(judge)
        return judge

    @field_validator("guard", mode="before")
    @classmethod
    def _wrap_single_folder(cls, guard: Any) -> Any:
        return (guard,) if isinstance(guard, str | Path) else guard

    @field_validator("guard")
    @classmethod
    def _require_different_folders(cls, guard: tuple[Path, ...] | None) -> tuple[Path, ...] | None:
        if guard == ():
            raise ValueError("is an empty list; name at least one folder, or remove the key")
        if guard is not None and len(set(guard)) < len(guard):
            raise ValueError(f"names {next(one for one in guard if guard.count(one) > 1)} twice; keep it once")
        return guard

    @field_validator("metrics")
    @classmethod
    def _require_known_metrics(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        if not metrics:
            raise ValueError("name at least one metric, e.g. [nDCG@10]")
        if unknown := unknown_metrics(metrics):
            raise ValueError(f"ir_measures knows no {', '.join(unknown)}; e.g. nDCG@10, RR@10, R@50, AP, P@5")
        return metrics
