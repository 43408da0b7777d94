"""Generate: queries made from the documents, or taken from them, for train, and for dev and test without real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import context, endpoints, generation, retriever
from trainer.context import Notes, Run, Stage, content, prompt, settings
from trainer.data import Collection
from trainer.data.generated import write_queries
from trainer.forecast import Cost, Work
from trainer.generation.estimate import SECONDS
from trainer.recipe import Recipe
from trainer.runtime.run_folder import CONTENT, write_json
from trainer.runtime.verify import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.endpoints import Spent
    from trainer.endpoints.chat import ChatRequest
    from trainer.generation import Draft
    from trainer.generation.sources import Source
    from trainer.recipe import Generate as Section
    from trainer.recipe.generate import Kind
    from trainer.retriever import Embeddings

# Keys that change how requests are sent, or what is printed, but not the queries.
WITHOUT_EFFECT = {"concurrency", "prices", "tokenizer", "examples", "model", "check", "check_trust_remote_code"}


class Generate(Stage):
    """Makes queries from documents; real queries stay what they are."""

    name = "generate"
    version = 1
    processes = "all"

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe has the section."""
        return recipe.generate is not None

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of the section, the model without its address, and what the round trip depends on."""
        section = recipe.generate
        if section is None:
            return {}
        examples = {CONTENT + "generate.examples": sha256(section.examples)} if section.examples else {}
        first_stage = settings("retriever", recipe.retriever, {"model", "run", "trust_remote_code", "tune", "fusion"})
        return (
            settings("generate", section, WITHOUT_EFFECT)
            | {"generate.model": section.origin, "seed": recipe.seed}
            | ({"generate.check": section.checker.model} if section.checker else {})
            | content("generate.check", section.cross_encoder)
            | prompt(recipe, section.cross_encoder)
            | examples
            | first_stage
            | content("retriever.model", recipe.bi_encoder)
        )

    def run(self, run: Run, folder: Path) -> Notes:
        """Ask for queries on the main process, or take them, and filter them by what the first stage finds."""
        section = run.recipe.generate
        assert section is not None
        collection = Collection.open(run.folder / "data")
        documents = documents_of(run, collection)
        draft, counts = run.on_main(lambda: _draft(run, collection, documents))
        draft.require(("train",))
        extended, rows = _with_draft(section, draft, collection)
        embeddings, _ = context.embed(run, extended, rows, cut=section.extracts)

        def filtered() -> tuple[Draft, list[list[int]]]:
            searched = extended.as_made_queries_find_it() if section.extracts else extended
            candidates = retriever.retrieve_unjudged(run.recipe.retriever, searched, rows, embeddings)
            found = draft.filter_by_search(section, candidates, embeddings[0] if embeddings else None)
            return draft, draft.filter_repeated(collection, found) if section.extracts else found

        draft, found = run.on_main(filtered)
        grades = _grades(run, section, draft, found, collection, counts["spent"]) if section.check else []
        if not run.is_main:
            return Notes()
        if section.check:
            draft.check(grades)
        made_splits = ["train", *(split for split in ("dev", "test") if not collection.answerable(split))]
        draft.require(made_splits)
        write_queries(draft.kept, collection, folder, _cut(section, draft, collection))
        report = draft.report(collection, section, **counts)
        write_json(folder / "report.json", report)
        kept = ", ".join(f"{count} {split}" for split, count in report["kept"].items())
        dropped = ", ".join(f"{one['count']} {reason}" for reason, one in report["dropped"].items()) or "none"
        source = "taken from" if section.extracts else "made from"
        return Notes(f"queries {source} {counts['answered']} documents: {kept}; dropped: {dropped}; see {folder}")

    def forecast(self, work: Work) -> Cost:
        """Return the cost of all requests, if no answer is stored yet; the rest takes seconds."""
        section = work.recipe.generate
        assert section is not None
        asked = min(section.documents, work.documents)
        checked = asked * section.queries_per_document * (section.check_depth + 1)
        requests = (asked if section.endpoint else 0) + (checked if section.checker else 0)
        return Cost(requests * SECONDS / section.concurrency)


def _with_draft(section: Section, draft: Draft, collection: Collection) -> tuple[Collection, list[int]]:
    """Return the collection with the kept queries, which find documents without the texts taken from them; their rows.

    The queries have no judgements.
    """
    texts = {f"draft {index}": query.text for index, query in enumerate(draft.kept)}
    extended = collection.with_queries(texts)
    rows = list(range(len(collection.queries), len(extended.queries)))
    return replace(extended, made=frozenset(rows), cut=_cut(section, draft, collection)), rows


def _draft(run: Run, collection: Collection, documents: Embeddings | None) -> tuple[Draft, dict[str, Any]]:
    """Return the queries that are left after the filters of texts, and counts for the report."""
    section, spent = run.recipe.generate, endpoints.Spent()
    assert section is not None
    if section.endpoint is None:
        sources = _sources(run, collection, documents)
        draft = generation.Draft.taken(collection, sources, section.queries_per_document)
        answered = len({query.document for queries in (draft.kept, *draft.dropped.values()) for query in queries})
        return draft, {"asked": len(sources), "answered": answered, "spent": spent}
    sources, requests = planned(run, collection, documents)
    store = endpoints.store_of(run.folder.parent)
    asked = [request for request, _ in requests]
    endpoints.ask(endpoints.Service(section.endpoint, "generate.model"), asked, store, section, spent)
    answered = sum(request.key in store.answers for request in asked)
    draft = generation.Draft.read(collection, sources, requests, store.answers)
    return draft, {"asked": len(asked), "answered": answered, "spent": spent}


def _cut(section: Section, draft: Draft, collection: Collection) -> dict[int, str]:
    """Return the texts of documents without the queries that were taken from them, by row; none with a model."""
    return generation.cut(collection, draft.kept) if section.extracts else {}


def _grades(
    run: Run, section: Section, draft: Draft, found: Sequence[Sequence[int]], collection: Collection, spent: Spent
) -> list[dict[int, int]]:
    """Return the grades that `generate.check` gives each query's own document and the first ones found for it.

    A language model is asked by the main process alone, a cross-encoder scores on all.
    """
    extended, queries = _with_draft(section, draft, collection)
    own = [query.document for query in draft.kept]
    graded = [
        list(dict.fromkeys([first, *rows[: section.check_depth]])) for first, rows in zip(own, found, strict=True)
    ]
    pairs = [(query, row) for query, rows in zip(queries, graded, strict=True) for row in rows]
    if section.cross_encoder is not None:
        scorer = context.teacher(run, section.cross_encoder, extended, section.check_trust_remote_code)
        scores = iter(scorer(pairs).tolist())
        return [
            generation.grades_of_scores(first, {row: next(scores) for row in rows})
            for first, rows in zip(own, graded, strict=True)
        ]
    if section.checker is None or not run.is_main:
        return [{} for _ in own]
    passages = extended.passages([extended.read_with(*pair) for pair in pairs])
    texts = extended.query_texts([query for query, _ in pairs])
    requests = [
        endpoints.request_for_pair(section.checker, text, passage)
        for text, passage in zip(texts, passages, strict=True)
    ]
    store = endpoints.store_of(run.folder.parent)
    endpoints.ask(endpoints.Service(section.checker, "generate.check"), requests, store, section, spent)
    answers = (store.answers.get(request.key) for request in requests)
    read = iter([endpoints.read_grade(answer.text) if answer else None for answer in answers])
    return [{row: grade for row in rows if (grade := next(read)) is not None} for rows in graded]


def planned(
    run: Run, collection: Collection, documents: Embeddings | None
) -> tuple[list[Source], list[tuple[ChatRequest, list[Kind]]]]:
    """Return the documents that the stage asks, and each one's request with the kinds of queries that it asks for."""
    section = run.recipe.generate
    assert section is not None
    sources = _sources(run, collection, documents)
    return sources, generation.requests_of(section, collection, sources)


def _sources(run: Run, collection: Collection, documents: Embeddings | None) -> list[Source]:
    """Return the documents that queries are made from."""
    section = run.recipe.generate
    assert section is not None
    return generation.plan(collection, run.recipe.data, section.documents, documents, run.recipe.seed)


def documents_of(run: Run, collection: Collection) -> Embeddings | None:
    """Return the vectors of the documents, None without a bi-encoder; every process calls it."""
    embeddings, _ = context.embed(run, collection, [])
    return embeddings[1] if embeddings else None
