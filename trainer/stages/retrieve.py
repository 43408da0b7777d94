"""Retrieve: tune the first stage on the train queries, and write its candidates for every judged query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import context, evaluation, retriever
from trainer.context import Notes, Run, Stage, content, settings
from trainer.forecast import Cost, Work
from trainer.recipe import Recipe
from trainer.recipe.retriever import MINING_DEPTH
from trainer.runtime import console
from trainer.runtime.run_folder import CONTENT
from trainer.runtime.verify import sha256

# Seconds on the machine of the forecast's constants: to analyse and count a character for BM25, to search a query and
# write its candidates, to tune on a query; products of numbers per second in the dense search.
ANALYSED, SEARCHED, TUNED, PRODUCTS = 2e-7, 1.5e-3, 1.4e-2, 1e10
CANDIDATE = 20  # bytes of a candidate in a file


class Retrieve(Stage):
    """Retrieves candidates for mining, dev and test."""

    name = "retrieve"
    version = 5
    processes = "all"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of `retriever` in use, and the hashes of the bi-encoder and of the user's run."""
        section = recipe.retriever
        run = {CONTENT + "retriever.run": sha256(section.run)} if section.run else {}
        unread = {"model", "run", "trust_remote_code"} | _unread(recipe)
        return settings("retriever", section, unread) | content("retriever.model", recipe.bi_encoder) | run

    def run(self, run: Run, folder: Path) -> Notes:
        """Encode missing embeddings on all processes; on the main one tune, search and write the candidates."""
        section = run.recipe.retriever
        embeddings, new = context.embed(run, run.collection)
        of_made = None
        if run.collection.cut:
            of_made, _ = context.embed(run, run.collection, retriever.made_queries(run.collection), cut=True)
        if not run.is_main:
            return Notes()
        splits = retriever.retrieve_splits(section, run.collection, embeddings, folder, of_made)
        default = run.default_candidates("dev") or splits["dev"]
        score, untuned = (
            evaluation.mean_score(run.collection, "dev", one, run.metric) for one in (splits["dev"], default)
        )
        if message := retriever.Tuning.load(folder).describe(f"dev {run.metric} {score:.4f}, default {untuned:.4f}"):
            console.stage("retrieve", message)
        total = sum(len(candidates.queries) for candidates in splits.values())
        details = [new] if embeddings else []
        if section.has_bm25:
            details.append(f"bm25 in {retriever.language_of(section, run.collection)}")
        engines = f"{section.kind} ({'; '.join(details)})" if details else section.kind
        return Notes(f"{engines}: {section.depth} candidates for each of {total} queries; dev {run.metric} {score:.4f}")

    def forecast(self, work: Work) -> Cost:
        """Return the cost of missing embeddings, of BM25 with its tuning, and of the search."""
        section, queries = work.recipe.retriever, work.queries()
        depths = (
            (work.queries("train"), max(section.depth, MINING_DEPTH)),
            (work.queries("dev", "test"), section.depth),
        )
        cost = Cost(bytes=CANDIDATE * sum(count * min(depth, work.documents) for count, depth in depths))
        if work.recipe.bi_encoder:
            speed, missing = work.bi_encoder, work.documents * (1 - work.embedded)
            vectors = 2 * speed.dimensions * (missing + queries)  # float16
            cost += Cost(speed.load + missing * speed.document + queries * speed.query, vectors)
            cost += work.plain(queries * work.documents * speed.dimensions / PRODUCTS)
        if section.has_bm25:
            cost += work.plain(ANALYSED * work.characters + SEARCHED * queries)
            if section.tune != "off":
                cost += work.plain(3 * ANALYSED * work.characters + TUNED * min(work.queries("train"), 1000))
        return cost


def _unread(recipe: Recipe) -> set[str]:
    """Return the keys of `retriever` that have no effect in this recipe."""
    retriever = recipe.retriever
    return {
        *(() if recipe.bi_encoder else ("max_length", "query_prompt", "document_prompt", "index")),
        *(() if retriever.has_bm25 else ("language", "tune")),
        *(() if retriever.is_fused and retriever.tune != "off" else ("fusion",)),
    }
