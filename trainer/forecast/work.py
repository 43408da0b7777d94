"""What a stage's cost is computed from: the numbers of texts, queries and pairs, and the speeds of the models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import Summary
from trainer.forecast.records import PairSpeed, TextSpeed, Training
from trainer.forecast.speeds import Speeds
from trainer.model.fusion import LISTS
from trainer.model_files import references
from trainer.recipe import CHAT

if TYPE_CHECKING:
    from trainer.recipe import Recipe

# Share of the train queries with a positive among their candidates, which are those that train: .88 of the runbooks'
# queries at depth 10, .85 of CoSQA's and .93 of SciFact's at depth 20.
RETRIEVED = 0.9
FLOAT32 = 4  # bytes
ANSWER = 1.0  # seconds of an endpoint for a grade, or for the scores of a query, until some are measured
DISK = 3e8  # bytes per second at which checkpoints are written and hashed, at the pace of the constants


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of a stage, and the bytes that it leaves on the disk."""

    seconds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.bytes + other.bytes)


@dataclass(frozen=True)
class Work:
    """The counts of a collection and the speeds of a recipe's models, each measured when a stage first asks for it.

    `embedded` is the share of the documents whose embeddings are in the cache already.
    """

    recipe: Recipe
    summary: Summary
    speeds: Speeds
    embedded: float = 0.0

    # Counts.

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.summary.documents

    @property
    def characters(self) -> float:
        """Number of characters of all documents."""
        lengths = self.summary.document_lengths
        return lengths.count * sum(lengths.characters) / max(1, len(lengths.characters))

    def queries(self, *splits: str) -> int:
        """Return the number of judged queries of splits (all three without an argument)."""
        return sum(count for split, count in self.summary.judged.items() if not splits or split in splits)

    @property
    def depth(self) -> int:
        """Number of candidates of a query that are reranked."""
        return min(self.recipe.rerank_depth, self.documents)

    def pairs(self, *splits: str) -> int:
        """Return the number of pairs that reranking splits takes."""
        return self.queries(*splits) * self.depth

    @property
    def lists(self) -> int:
        """Number of train queries with a positive among their candidates."""
        return round(RETRIEVED * self.queries("train"))

    @property
    def group_size(self) -> int:
        """Number of documents of a training group; a query with several positives has larger ones with `draws`."""
        section = self.recipe.mine
        if section.groups == "draws":
            return 1 + section.negatives_per_positive
        return min(self.depth, section.list_size or self.depth)

    def asked(self, key: str, queries: int, documents: int) -> Cost:
        """Return the cost of an endpoint's scores of so many documents for each query."""
        section, endpoint = self.recipe.endpoints, self.recipe.scoring_endpoints[key]
        each = documents if endpoint.kind == CHAT else -(-documents // section.documents_per_request)
        return Cost(queries * each * ANSWER / section.concurrency)

    # Speeds.

    @cached_property
    def pace(self) -> float:
        """How many times as long plain Python takes here as on the machine on which the constants were measured."""
        return self.speeds.pace

    def plain(self, seconds: float) -> Cost:
        """Return the cost of work besides the models, from its seconds on the machine of the constants."""
        return Cost(seconds * self.pace)

    def written(self, size: float) -> Cost:
        """Return the cost of writing and hashing bytes that are deleted again."""
        return self.plain(size / DISK)

    @cached_property
    def fresh_head(self) -> bool:
        """True if the base model has no head of its own."""
        return references.kind_of(references.locate(self.recipe.reranker.model)) == "encoder"

    @cached_property
    def fitted_lists(self) -> int:
        """Number of candidate lists to which a new head, or lexical signals beside another model, are fitted."""
        section = self.recipe.reranker
        if references.kind_of(references.locate(section.model)) == "interaction":
            return 0
        most = self.recipe.train.fit_lists
        return min(self.lists, most if self.fresh_head and section.head != "classifier" else min(most, LISTS))

    @cached_property
    def may_get_signals(self) -> bool:
        """True if lexical signals may be added to the base's logit, so that there are two more systems to measure."""
        return self.recipe.reranker.lexical_signals and self.fitted_lists > 0 and not self.fresh_head

    @cached_property
    def reranker(self) -> PairSpeed:
        """Speed of the model that is trained."""
        section = self.recipe.reranker
        training = Training(self.recipe.train, self.fresh_head)
        return self.speeds.of_reranker(
            section.model, section.head, section.trust_remote_code, use="training", training=training
        )

    @cached_property
    def teacher(self) -> PairSpeed:
        """Speed of the teacher of mining."""
        section = self.recipe.mine
        assert section.teacher is not None
        return self.speeds.of_reranker(section.teacher, "trained", section.teacher_trust_remote_code, use="scoring")

    @cached_property
    def other_teacher(self) -> PairSpeed:
        """Speed of a teacher of the distillation that is not the trained model."""
        section = self.recipe.distil
        assert section is not None
        assert section.other_teacher is not None
        trust = section.teacher_trust_remote_code
        return self.speeds.of_reranker(section.other_teacher, "trained", trust, use="scoring")

    @cached_property
    def student(self) -> PairSpeed:
        """Speed of the student of a distillation, which has the base's size unless the recipe names another model."""
        from trainer.training import student_recipe

        section = self.recipe.distil
        assert section is not None
        training = Training(student_recipe(self.recipe).train, section.model is None)
        model, trust = section.model or self.recipe.reranker.model, section.trust_remote_code
        return self.speeds.of_reranker(model, "classifier", trust, use="training", training=training)

    @cached_property
    def bi_encoder(self) -> TextSpeed:
        """Speed of the first stage's bi-encoder."""
        return self.speeds.of_bi_encoder(self.recipe.retriever)

    def weights(self, speed: PairSpeed) -> float:
        """Return the bytes of a saved model."""
        return FLOAT32 * speed.parameters
