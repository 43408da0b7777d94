"""Retrieve: tune the first stage on the train queries, and write its candidates for every judged query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import context, evaluation, retriever
from trainer.context import Notes, Run, Stage, content, settings
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import CONTENT
from trainer.runtime.verify import sha256


class Retrieve(Stage):
    """Retrieves candidates for mining, dev and test."""

    name = "retrieve"
    version = 4
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
        if not run.is_main:
            return Notes()
        splits = retriever.retrieve_splits(section, run.collection, embeddings, folder)
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


def _unread(recipe: Recipe) -> set[str]:
    """Return the keys of `retriever` that have no effect in this recipe."""
    retriever = recipe.retriever
    return {
        *(() if recipe.bi_encoder else ("max_length", "query_prompt", "document_prompt", "index")),
        *(() if retriever.has_bm25 else ("language", "tune")),
        *(() if retriever.is_fused and retriever.tune != "off" else ("fusion",)),
    }
