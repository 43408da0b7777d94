"""The recipe's schema: all sections, the checks across them, and the table of their keys."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, Field, PrivateAttr, ValidationInfo, field_validator

from trainer.recipe.data import Data
from trainer.recipe.endpoint import CHAT, RERANK, Endpoint, is_endpoint, read_endpoint
from trainer.recipe.endpoints import Endpoints
from trainer.recipe.generate import Generate
from trainer.recipe.output import Export, Push, Track
from trainer.recipe.retriever import Retriever
from trainer.recipe.section import LARGEST_NUMBER, Section, contradiction
from trainer.recipe.sections import Distil, Evaluate, Mine, Passages, Reranker, Train

RERANK_DEPTH = 20  # default number of candidates that are reranked
MAX_AUTO_LENGTH = 512  # most tokens of `reranker.max_length: auto`; more only if set, since time and memory grow
BESIDES_WINDOW = 16  # tokens that a window must leave for a short query and the special tokens


class ModelReference(NamedTuple):
    """A model in a recipe, with its key, the key that allows its own Python code, and that key's value."""

    key: str
    name: str
    trust_key: str
    trust_remote_code: bool


class Recipe(Section):
    """One training run from collection to exported model. Sections are in the order in which they run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run; results are saved in runs/NAME."""
    seed: int = Field(default=13, ge=0, le=LARGEST_NUMBER)
    """Random seed for all sampling and initialisation."""
    data: Data
    generate: Generate | None = Field(default=None, validate_default=True)
    retriever: Retriever = Retriever()
    mine: Mine = Mine()
    reranker: Reranker = Reranker()
    passages: Passages | None = None
    train: Train = Train()
    distil: Distil | None = None
    evaluate: Evaluate = Evaluate()
    endpoints: Endpoints = Endpoints()
    export: Export = Export()
    push: Push | None = None
    track: Track = Track()
    _tried: tuple[str, ...] = PrivateAttr(())

    @property
    def tried(self) -> tuple[str, ...]:
        """One sentence for each relative path that does not exist, naming the folders that were searched."""
        return self._tried

    @field_validator("data", mode="before")
    @classmethod
    def _a_collection_has_its_section(cls, data: Any) -> Any:
        """Replace a `Collection` from memory by the data section that names its files."""
        if isinstance(data, Data) or not hasattr(data, "section"):
            return data
        if data.section is None:
            raise ValueError(
                "names no files: a collection must come from Collection.from_memory; else give the path of its files"
            )
        return data.section

    @field_validator("generate")
    @classmethod
    def _require_train_queries(cls, generate: Generate | None, info: ValidationInfo) -> Generate | None:
        data = info.data.get("data")
        if generate is None and data is not None and data.missing:
            also = f" (also missing: {', '.join(data.missing[1:])})" if data.missing[1:] else ""
            raise contradiction(
                f"data.{data.missing[0]}",
                f"is missing: name its file{also}, or add the section generate, which makes queries from the documents",
            )
        return generate

    @field_validator("retriever")
    @classmethod
    def _require_search_for_made_queries(cls, retriever: Retriever, info: ValidationInfo) -> Retriever:
        if info.data.get("generate") and retriever.run is not None:
            raise contradiction("run", "has no candidates for the queries of the section generate; remove one of them")
        return retriever

    @field_validator("train")
    @classmethod
    def _require_teacher_for_its_losses(cls, train: Train, info: ValidationInfo) -> Train:
        mine = info.data.get("mine")
        if mine and mine.teacher is None and train.loss in ("mse", "margin_mse", "kl"):
            raise contradiction("loss", f"{train.loss} learns from a teacher's scores; name one as mine.teacher")
        if mine and mine.rounds == 2 and not train.epochs:
            raise contradiction("epochs", "0 trains no model that could mine again; set mine.rounds to 1")
        return train

    @field_validator("distil")
    @classmethod
    def _refuse_distilling_a_classifier(cls, distil: Distil | None, info: ValidationInfo) -> Distil | None:
        reranker = info.data.get("reranker")
        if distil and reranker and reranker.head == "classifier":
            raise ValueError(
                "with reranker.head: classifier the tuned model is a standard checkpoint already; remove one of them"
            )
        return distil

    @field_validator("evaluate")
    @classmethod
    def _require_a_judge_of_its_own(cls, evaluate: Evaluate, info: ValidationInfo) -> Evaluate:
        mine, distil, generate = (info.data.get(name) for name in ("mine", "distil", "generate"))
        labelled = {"mine.teacher": mine and mine.teacher, "distil.teacher": distil and distil.teacher}
        labelled["generate.check"] = generate and generate.check
        judge = read_endpoint(evaluate.judge) if evaluate.judge else None
        for key, name in labelled.items():
            if judge and name and is_endpoint(name) and _is_same(judge, read_endpoint(name, (CHAT, RERANK))):
                raise contradiction(
                    "judge", f"{judge.model} is {key} too, and would judge what it taught; name another model"
                )
        return evaluate

    @field_validator("export")
    @classmethod
    def _require_adapter_to_export(cls, export: Export, info: ValidationInfo) -> Export:
        train = info.data.get("train")
        if export.adapter and train and train.adapter == "none":
            raise contradiction("adapter", "there is no adapter to export without train.adapter: lora; set one of them")
        return export

    @field_validator("reranker")
    @classmethod
    def _limit_depth_to_retrieved(cls, reranker: Reranker, info: ValidationInfo) -> Reranker:
        retriever = info.data.get("retriever")
        if retriever and reranker.depth and reranker.depth > retriever.depth:
            raise contradiction("depth", f"{reranker.depth} is more than retriever.depth {retriever.depth}; lower it")
        return reranker

    @field_validator("passages")
    @classmethod
    def _require_room_for_a_query(cls, passages: Passages | None, info: ValidationInfo) -> Passages | None:
        reranker = info.data.get("reranker")
        longest = (reranker and reranker.max_length) or MAX_AUTO_LENGTH
        if passages and passages.length > longest - BESIDES_WINDOW:
            raise contradiction("length", window_too_long(passages, longest))
        return passages

    @property
    def bi_encoder(self) -> str | None:
        """The first stage's bi-encoder, None if it has none."""
        return self.retriever.bi_encoder

    @property
    def model_references(self) -> list[ModelReference]:
        """All models that a run of this recipe loads; those behind an endpoint are not among them."""
        retriever, mine, reranker, distil = self.retriever, self.mine, self.reranker, self.distil
        used = [
            ("retriever.model", self.bi_encoder, "retriever.trust_remote_code", retriever.trust_remote_code),
            ("mine.teacher", mine.teacher, "mine.teacher_trust_remote_code", mine.teacher_trust_remote_code),
            ("reranker.model", reranker.model, "reranker.trust_remote_code", reranker.trust_remote_code),
        ]
        if (made := self.generate) is not None:
            used.append(
                ("generate.check", made.cross_encoder, "generate.check_trust_remote_code", made.check_trust_remote_code)
            )
        if distil is not None:
            used.append(("distil.model", distil.model, "distil.trust_remote_code", distil.trust_remote_code))
            trust, allowed = "distil.teacher_trust_remote_code", distil.teacher_trust_remote_code
            used.append(("distil.teacher", distil.other_teacher, trust, allowed))
        return [
            ModelReference(key, name, trust, allowed)
            for key, name, trust, allowed in used
            if name is not None and not is_endpoint(name)
        ]

    @property
    def scoring_endpoints(self) -> dict[str, Endpoint]:
        """The endpoints that score documents, by the key that names them: teachers and the judge."""
        named = {"mine.teacher": self.mine.teacher, "distil.teacher": self.distil and self.distil.other_teacher}
        named["evaluate.judge"] = self.evaluate.judge
        return {key: read_endpoint(name, (CHAT, RERANK)) for key, name in named.items() if name and is_endpoint(name)}

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """Seeds of the trainings in the last round of mining, usually the run's seed alone."""
        return self.train.seeds or (self.seed,)

    @property
    def rerank_depth(self) -> int:
        """Number of candidates per query that are reranked, in training lists and on dev and test."""
        return self.reranker.depth or min(RERANK_DEPTH, self.retriever.depth)


def _is_same(one: Endpoint, other: Endpoint) -> bool:
    """Return whether two endpoints have the same model, also if a service puts the name of its maker before it."""
    first, second = (endpoint.model.rpartition("/")[2].lower() for endpoint in (one, other))
    return first == second


def window_too_long(passages: Passages, longest: int) -> str:
    """Return the problem of windows that leave no room for a query in an input of `longest` tokens."""
    return (
        f"a window of {passages.length} tokens leaves no room for a query in the {longest} tokens of "
        f"reranker.max_length; set {longest - BESIDES_WINDOW} or less, or raise reranker.max_length"
    )


def schema_table(section: type[BaseModel]) -> list[list[str]]:
    """Return one section's keys as rows [key, default, meaning], for README and `check --schema`."""
    return [
        [
            name,
            "required" if field.is_required() else _plain(field.get_default()),
            " ".join((field.description or "").split()),  # a row is one line, a docstring may be two
        ]
        for name, field in section.model_fields.items()
    ]


def sections() -> dict[str, type[BaseModel]]:
    """Return the sections of a recipe by name, in the order in which they run."""
    by_name = {}
    for name, field in Recipe.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):  # the args of `Push | None`
            if isinstance(kind, type) and issubclass(kind, Section):
                by_name[name] = kind
    return by_name


def _plain(value: Any) -> str:
    """Return a default value as it is written in YAML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
