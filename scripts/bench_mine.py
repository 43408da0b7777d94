"""Compare our mining of hard negatives with sentence-transformers' `mine_hard_negatives`: time, memory, same ids.

    python scripts/bench_mine.py                             # ours and theirs, 100,000 documents and 10,000 queries
    python scripts/bench_mine.py --grow                      # ours alone, 10,000 to 1,000,000 documents
    python scripts/bench_mine.py --documents 20000 --queries 2000

Both are given the same vectors (made here: directions of topics plus noise, rounded to float16 as ours stores them on
disk) and the same rule: from the first 100, documents above 95 % of the positive's similarity are filtered out, and the
7 highest of the others are the negatives. Each side runs in its own process, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_sides import print_result, process_mib

DIMENSIONS = 384
TOPICS = 2000
DEPTH, NEGATIVES, SHARE = 100, 7, 0.95
BLOCK = 4096


def make(folder: Path, documents: int, queries: int) -> None:
    """Write a collection with texts, shards of document vectors, and query vectors near their positives."""
    from trainer.data import build_collection
    from trainer.recipe import Data

    rng = np.random.default_rng(7)
    topics = rng.normal(size=(TOPICS, DIMENSIONS)).astype(np.float32)
    topic_of = rng.integers(TOPICS, size=documents)
    positives = rng.choice(documents, size=queries, replace=False)
    near = np.empty((queries, DIMENSIONS), dtype=np.float32)
    for number, start in enumerate(range(0, documents, BLOCK)):
        vectors = _unit(topics[topic_of[start : start + BLOCK]] + 1.2 * _noise(rng, min(BLOCK, documents - start)))
        np.save(folder / f"documents-{number:05d}.npy", vectors)
        here = (positives >= start) & (positives < start + BLOCK)
        near[here] = vectors[positives[here] - start]
    np.save(folder / "queries.npy", _unit(near * DIMENSIONS**0.5 * 1.5 + _noise(rng, queries)))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    words = np.array([f"word{number}" for number in range(5000)])
    with (beir / "corpus.jsonl").open("w") as file:
        for row, topic in enumerate(topic_of.tolist()):
            text = " ".join(words[rng.integers(len(words), size=60)])
            file.write(json.dumps({"_id": f"d{row}", "text": f"topic {topic}: {text}"}) + "\n")
    held_out = {"dev": "q-dev", "test": "q-test"}
    with (beir / "queries.jsonl").open("w") as file:
        for name in [*(f"q{row}" for row in range(queries)), *held_out.values()]:
            file.write(json.dumps({"_id": name, "text": f"query {name}"}) + "\n")
    judged = {"train": [f"q{row}\td{document}\t1" for row, document in enumerate(positives.tolist())]}
    judged |= {split: [f"{name}\td0\t1"] for split, name in held_out.items()}
    for split, lines in judged.items():
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    build_collection(Data(path=beir), folder / "data")


def _noise(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, DIMENSIONS)).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def ours(folder: Path) -> tuple[float, list[list[str]]]:
    """Return seconds and the ids of each query's negatives, by our search and mining."""
    import faiss  # noqa: F401  imported before the clock starts, on both sides

    from trainer.data import Collection
    from trainer.mining import mine
    from trainer.recipe import Mine
    from trainer.retriever import Embeddings
    from trainer.retriever.candidates import as_candidates
    from trainer.retriever.dense import search_dense

    collection = Collection.open(folder / "data")
    queries = collection.answerable("train")
    started = time.monotonic()
    documents, embedded = Embeddings(sorted(folder.glob("documents-*.npy"))), Embeddings([folder / "queries.npy"])
    ranking = search_dense(embedded, documents, DEPTH + 1, "flat")
    vectors = embedded.rows(np.arange(len(embedded)))
    candidates = as_candidates(ranking, {"dense": ranking}, queries, collection.qrels["train"], (vectors, documents))
    settings = {"negatives_per_positive": NEGATIVES, "last_rank": DEPTH + 1, "max_share_of_positive": SHARE}
    section = Mine(groups="draws", pick="top", **settings)
    groups = mine(section, collection, candidates, seed=1).groups
    seconds = time.monotonic() - started
    negatives = {group.query: [collection.document_ids[row] for row in group.negatives] for group in groups}
    return seconds, [negatives.get(query, []) for query in queries]


def theirs(folder: Path, use_faiss: bool) -> tuple[float, list[list[str]]]:
    """Return the same by sentence-transformers, whose model only returns the given vectors."""
    import faiss  # noqa: F401
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from trainer.data import Collection

    collection = Collection.open(folder / "data")
    texts = collection.documents["passage"][:]
    ids = dict(zip(texts, collection.document_ids, strict=True))
    queries = collection.answerable("train")
    positives = [texts[next(iter(collection.qrels["train"][query]))] for query in queries]
    pairs = Dataset.from_dict({"query": collection.queries.select(queries)["text"][:], "positive": positives})
    vectors = {
        name: np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}*.npy"))]).astype(np.float32)
        for name in ("documents", "queries")
    }

    class Vectors(SentenceTransformer):
        def encode_document(self, *_: Any, **__: Any) -> Any:
            return vectors.pop("documents")

        def encode_query(self, *_: Any, **__: Any) -> Any:
            return vectors.pop("queries")

        def get_embedding_dimension(self) -> int:
            return DIMENSIONS

    started = time.monotonic()
    mined = mine_hard_negatives(
        pairs,
        Vectors(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name="dot"),
        corpus=texts,
        range_max=DEPTH,
        relative_margin=1 - SHARE,
        num_negatives=NEGATIVES,
        sampling_strategy="top",
        output_format="triplet",
        use_faiss=use_faiss,
        faiss_batch_size=16384 if use_faiss else 1024,
        verbose=False,
    )
    seconds = time.monotonic() - started
    negatives: dict[str, list[str]] = {}
    for query, negative in zip(mined["query"][:], mined["negative"][:], strict=True):
        negatives.setdefault(query, []).append(ids[negative])
    return seconds, [negatives.get(query, []) for query in pairs["query"][:]]


SIDES = {
    "ours": ours,
    "sentence-transformers, FAISS": lambda folder: theirs(folder, use_faiss=True),
    "sentence-transformers, torch": lambda folder: theirs(folder, use_faiss=False),
}


def measure(side: str, folder: Path) -> dict:
    """Run one side in its own process, and return its results."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, documents: int, queries: int, rounds: int) -> None:
    """Run all sides in turn, several times; print medians, ratios and the share of queries with equal negatives."""
    make(folder, documents, queries)
    results = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            results[side].append(measure(side, folder))
    print(f"{documents:,} documents x {queries:,} queries, median of {rounds} interleaved rounds\n")
    print("| | seconds | peak MiB | ours / theirs, time | memory | same negatives |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    seconds, mib = (
        {side: float(np.median([run[key] for run in runs])) for side, runs in results.items()}
        for key in ("seconds", "mib")
    )
    for side in SIDES:
        ratios = f"{seconds['ours'] / seconds[side]:.2f} | {mib['ours'] / mib[side]:.2f}"
        pairs = zip(results["ours"][0]["negatives"], results[side][0]["negatives"], strict=True)
        same = np.mean([one == other for one, other in pairs])
        print(f"| {side} | {seconds[side]:.1f} | {mib[side]:.0f} | {ratios} | {same:.2%} |")


def grow(folder: Path, sizes: list[int], queries: int) -> None:
    """Measure ours alone on collections of growing size."""
    print(f"| documents, {queries:,} queries | seconds | peak MiB |\n| ---: | ---: | ---: |")
    for size in sizes:
        here = folder / str(size)
        here.mkdir()
        make(here, size, min(queries, size))
        run = measure("ours", here)
        print(f"| {size:,} | {run['seconds']:.1f} | {run['mib']:.0f} |", flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", action="store_true", help="ours alone at 10,000, 100,000 and 1,000,000 documents")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        seconds, negatives = SIDES[arguments.side](arguments.folder)
        print_result(seconds=seconds, mib=process_mib(), negatives=negatives)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.grow:
            grow(Path(folder), [10_000, 100_000, 1_000_000], arguments.queries)
        else:
            compare(Path(folder), arguments.documents, arguments.queries, arguments.rounds)


if __name__ == "__main__":
    main()
