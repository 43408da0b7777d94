"""Distillation: a plain student learns to order as the tuned model does, on queries that nobody judged.

The interaction head learns from few labels but leaves with a modeling file of its own, and servers load nothing but
the standard `ForSequenceClassification`. A fresh classifier needs more examples than there are labels; the tuned model
makes them: it scores the candidates of train queries and of pseudo-queries, titles and sentences of the user's own
documents, and its scores teach the student. Dev and test choose and measure, their queries are never learned from.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoConfig

from trainer.data import Collection
from trainer.data.groups import Group
from trainer.model import Reranker, with_classifier
from trainer.model_files.references import kind_of, locate
from trainer.recipe import Recipe
from trainer.retriever import NOTHING, Candidates

SENTENCE = range(16, 151)  # characters of a sentence that could be a query: three English words to twenty-five
TITLE = range(3, 151)  # a title may be a single word
LETTERS = 0.9  # share of letters, digits and blanks in a sentence; lines of code and tables have fewer
READ = 1000  # documents read at once
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。!?])|\s*\n\s*")
_EDGES = " \t\"'`*#|<>-–•.,:;。"
_WORD = re.compile(r"\w+")


class PseudoQuery(NamedTuple):
    """A text of the corpus in place of a query, and the row of the document that it comes from."""

    text: str
    document: int


def pseudo_queries(collection: Collection, wanted: int, seed: int) -> list[PseudoQuery]:
    """Titles and sentences of documents drawn by seed, no two alike and none like a query of any split.

    Every document gives one before any gives a second; fewer than `wanted` where the corpus holds no more.
    """
    taken = {_words(text) for text in collection.queries["text"][:]} | {""}
    drawn: list[PseudoQuery] = []
    for query in _offers(collection, seed):
        if len(drawn) == wanted:
            break
        if (words := _words(query.text)) not in taken:
            taken.add(words)
            drawn.append(query)
    return drawn


def _words(text: str) -> str:
    """What is compared: a title is no new query for its capitals or a missing question mark."""
    return " ".join(_WORD.findall(text.lower()))


def _offers(collection: Collection, seed: int) -> Iterator[PseudoQuery]:
    """The first text of every document in an order drawn by seed, then the second of those that have one, and so on."""
    order = np.random.default_rng(seed).permutation(len(collection.documents))
    for turn in count():
        left = []
        for start in range(0, len(order), READ):
            rows = order[start : start + READ].tolist()
            documents = collection.documents.select(rows)
            for row, title, passage in zip(rows, documents["title"][:], documents["passage"][:], strict=True):
                texts = _texts(title, passage, np.random.default_rng([seed, row]))
                if turn < len(texts):
                    yield PseudoQuery(texts[turn], row)
                if turn + 1 < len(texts):
                    left.append(row)
        if not left:
            return
        order = np.array(left)


def _texts(title: str, passage: str, rng: np.random.Generator) -> list[str]:
    """A document's title and sentences that could be queries, in the order in which they are taken.

    The title is the first or the second by chance, so that titles and sentences are learned from alike.
    """
    sentences = [sentence.strip(_EDGES) for sentence in _END.split(passage.removeprefix(title.strip()))]
    usable = [sentence for sentence in sentences if len(sentence) in SENTENCE and _is_prose(sentence)]
    texts = [usable[place] for place in rng.permutation(len(usable))]
    if len(title := " ".join(title.split())) in TITLE:
        texts.insert(int(rng.integers(2)), title)
    return texts


def _is_prose(text: str) -> bool:
    plain = sum(unicodedata.category(character)[0] in "LMNZ" for character in text)
    return plain >= LETTERS * len(text)


def add_queries(collection: Collection, queries: Sequence[PseudoQuery]) -> tuple[Collection, list[int]]:
    """The collection with the pseudo-queries, and their rows."""
    first = len(collection.queries)
    extended = collection.with_queries({f"pseudo-{place}": query.text for place, query in enumerate(queries)})
    return extended, list(range(first, first + len(queries)))


def write_queries(queries: Sequence[PseudoQuery], collection: Collection, path: Path) -> None:
    """One JSON line a pseudo-query, for people to look at."""
    lines = [
        {"_id": f"pseudo-{place}", "text": query.text, "document_id": collection.document_ids[query.document]}
        for place, query in enumerate(queries)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def draw(candidates: Candidates, wanted: int, seed: int) -> Candidates:
    """At most `wanted` of the queries, drawn by seed, in their order."""
    size = len(candidates.queries)
    chosen = np.random.default_rng(seed).choice(size, min(wanted, size), replace=False)
    return candidates.of(np.sort(chosen))


def with_own(candidates: Candidates, own: Sequence[int]) -> Candidates:
    """The candidates with each query's own document, in the last place where the first stage did not put it higher.

    There it has the score of the place, which is more than the first stage gave it. NOTHING stands for no document,
    where the query is all that its own says.
    """
    names = ("documents", "scores", "similarities", "ranks")
    documents, scores, similarities, ranks = (getattr(candidates, name).copy() for name in names)
    found = (documents != NOTHING).sum(axis=1)
    wanted = np.array(own)[:, None]
    lacks = np.flatnonzero(~((documents == wanted) | (wanted == NOTHING)).any(axis=1))
    last = np.minimum(found[lacks], documents.shape[1] - 1)
    documents[lacks, last] = np.array(own)[lacks]
    scores[lacks, last] = scores[lacks, np.maximum(found[lacks] - 1, 0)]
    similarities[lacks, last], ranks[lacks, last] = np.nan, 0
    return replace(candidates, documents=documents, scores=scores, similarities=similarities, ranks=ranks)


def on_scale(standardised: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Standardised scores (queries, depth) with the mean and the spread of each query's logits; -inf stays."""
    found = np.isfinite(logits)
    known = np.ma.masked_array(logits, ~found, dtype=np.float64)
    spread, mean = (np.ma.filled(values, 0.0) for values in (known.std(1, keepdims=True), known.mean(1, keepdims=True)))
    return np.where(found, np.where(found, standardised, 0.0) * spread + mean, -np.inf).astype(np.float32)


def groups(candidates: Candidates, scores: np.ndarray) -> list[Group]:
    """Each query with two candidates or more as a group, in the order of the teacher's scores (queries, depth).

    Grades are places in that order and no judgements: of the losses only margin_mse reads them, and takes the
    difference of every two documents.
    """
    made = []
    for place, query in enumerate(candidates.queries.tolist()):
        order = np.argsort(-scores[place], kind="stable")[: len(candidates.found(place))]
        *better, last = candidates.documents[place, order].tolist() or [NOTHING]
        if better:
            teacher = scores[place, order].tolist()
            made.append(Group(query, better, list(range(len(better), 0, -1)), [last], teacher))
    return made


def student_recipe(recipe: Recipe) -> Recipe:
    """How the student is trained: as `train` says, but by the keys of `distil`, and with all of its layers."""
    section = recipe.distil
    assert section is not None
    own = {key: getattr(section, key) for key in ("loss", "epochs", "queries_per_step", "learning_rate")}
    settings = recipe.train.model_copy(update=own | {"head_learning_rate": None, "frozen_layers": 0})
    return recipe.model_copy(update={"train": settings})


def has_fresh_classifier(recipe: Recipe) -> bool:
    """Whether the student starts with a classifier that knows nothing yet."""
    assert recipe.distil is not None
    return recipe.distil.model is None or kind_of(locate(recipe.distil.model)) == "encoder"


def load_student(recipe: Recipe, tuned: Path) -> Reranker:
    """The student that `distil.model` names, else the tuned encoder under a fresh classifier."""
    section = recipe.distil
    assert section is not None
    if section.model is not None:
        student = Reranker.load(
            section.model,
            head="classifier",
            max_length=recipe.reranker.max_length or Reranker.load(tuned, head="trained").max_length,
            trust_remote_code=section.trust_remote_code,
        )
        student.fusion = None  # a student's own belongs to its weights as they were
        return student
    student = Reranker.load(tuned, head="trained", max_length=recipe.reranker.max_length)
    return _under_classifier(student, locate(recipe.reranker.model))


def _under_classifier(tuned: Reranker, base: Path) -> Reranker:
    """The encoder of an interaction head as a standard model; what else its architecture has is the base's, or new.

    The tokenizer goes on framing both texts, as the encoder learned to read them; its file says so to every server.
    """
    assert tuned.is_interaction
    settings = dict(tuned.model.config.encoder)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.num_labels = 1
    model: Any = with_classifier(base, trust_remote_code=False, config=config)
    state = tuned.model.encoder.state_dict()
    differing = model.base_model.load_state_dict(state, strict=False)
    new = [name for name in differing.missing_keys if "pooler" not in name]
    assert [*differing.unexpected_keys, *new] == []
    return Reranker(model.to(tuned.model.device).eval(), tuned.tokenizer, tuned.max_length)
