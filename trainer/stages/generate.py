"""Generate: queries made from the documents by a language model, for train, and for dev and test without real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import context, endpoints, generation, retriever
from trainer.context import Notes, Run, Stage, content, settings
from trainer.data import Collection
from trainer.data.generated import write_queries
from trainer.recipe import Recipe
from trainer.runtime.run_folder import CONTENT, write_json
from trainer.runtime.verify import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.endpoints import Spent
    from trainer.endpoints.chat import ChatRequest
    from trainer.generation import Draft
    from trainer.generation.sources import Source
    from trainer.recipe.generate import Kind
    from trainer.retriever import Embeddings

# Keys that change how requests are sent, or what is printed, but not the queries.
WITHOUT_EFFECT = {"concurrency", "prices", "tokenizer", "examples", "model", "check"}


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
            | {"generate.model": section.endpoint.model, "seed": recipe.seed}
            | {"generate.check": section.checker and section.checker.model}
            | examples
            | first_stage
            | content("retriever.model", recipe.bi_encoder)
        )

    def run(self, run: Run, folder: Path) -> Notes:
        """Ask for queries on the main process, and filter them by what the first stage finds."""
        section = run.recipe.generate
        assert section is not None
        collection = Collection.open(run.folder / "data")
        documents = documents_of(run, collection)

        def make() -> tuple[Draft, dict[str, Any]]:
            sources, requests = planned(run, collection, documents)
            store = endpoints.store_of(run.folder.parent)
            asked = [request for request, _ in requests]
            spent, service = endpoints.Spent(), endpoints.Service(section.endpoint, "generate.model")
            endpoints.ask(service, asked, store, section, spent)
            answered = sum(request.key in store.answers for request in asked)
            draft = generation.Draft.read(collection, sources, requests, store.answers)
            return draft, {"asked": len(asked), "answered": answered, "spent": spent}

        draft, counts = run.on_main(make)
        draft.require(("train",))
        extended = collection.with_queries({f"draft {index}": one.text for index, one in enumerate(draft.kept)})
        rows = list(range(len(collection.queries), len(extended.queries)))
        embeddings, _ = context.embed(run, extended, rows)
        if not run.is_main:
            return Notes()
        candidates = retriever.retrieve_unjudged(run.recipe.retriever, extended, rows, embeddings)
        found = draft.filter_by_search(section, candidates, embeddings[0] if embeddings else None)
        _check(run, draft, found, collection, counts["spent"])
        made_splits = ["train", *(split for split in ("dev", "test") if not collection.answerable(split))]
        draft.require(made_splits)
        write_queries(draft.kept, collection, folder)
        report = draft.report(collection, section, **counts)
        write_json(folder / "report.json", report)
        kept = ", ".join(f"{count} {split}" for split, count in report["kept"].items())
        dropped = ", ".join(f"{one['count']} {reason}" for reason, one in report["dropped"].items()) or "none"
        line = f"queries made from {counts['answered']} documents: {kept}; dropped: {dropped}; see {folder}"
        return Notes(line)


def _check(run: Run, draft: Draft, found: Sequence[Sequence[int]], collection: Collection, spent: Spent) -> None:
    """Let the model of `generate.check` grade each query's own document and the first ones of those found for it."""
    section = run.recipe.generate
    if section is None or section.checker is None:
        return
    pairs = [
        (index, row)
        for index, (query, rows) in enumerate(zip(draft.kept, found, strict=True))
        for row in dict.fromkeys([query.document, *rows[: section.check_depth]])
    ]
    passages = collection.passages([row for _, row in pairs])
    requests = [
        endpoints.request_for_pair(section.checker, draft.kept[index].text, passage)
        for (index, _), passage in zip(pairs, passages, strict=True)
    ]
    store = endpoints.store_of(run.folder.parent)
    endpoints.ask(endpoints.Service(section.checker, "generate.check"), requests, store, section, spent)
    grades: list[dict[int, int]] = [{} for _ in draft.kept]
    for (index, row), request in zip(pairs, requests, strict=True):
        answer = store.answers.get(request.key)
        if answer is not None and (grade := endpoints.read_grade(answer.text)) is not None:
            grades[index][row] = grade
    draft.check(grades)


def planned(
    run: Run, collection: Collection, documents: Embeddings | None
) -> tuple[list[Source], list[tuple[ChatRequest, list[Kind]]]]:
    """Return the documents that the stage asks, and each one's request with the kinds of queries that it asks for."""
    section = run.recipe.generate
    assert section is not None
    sources = generation.plan(collection, run.recipe.data, section.documents, documents, run.recipe.seed)
    return sources, generation.requests_of(section, collection, sources)


def documents_of(run: Run, collection: Collection) -> Embeddings | None:
    """Return the vectors of the documents, None without a bi-encoder; every process calls it."""
    embeddings, _ = context.embed(run, collection, [])
    return embeddings[1] if embeddings else None
