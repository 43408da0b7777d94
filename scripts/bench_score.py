"""Compare our scoring of pairs with sentence-transformers' `CrossEncoder.predict`: speed, padding, memory, scores.

    python scripts/bench_score.py PATH/TO/beir [PATH ...]
    python scripts/bench_score.py PATH/TO/beir --pairs 400 --max-length 256 --rounds 3 --shape modernbert-base

Both load one plain checkpoint and score the same pairs from texts to raw logits: test queries with judged documents and
documents sampled from the full collection. Tokenising counts, loading does not. They take turns in one process, so
both have the same threads. Theirs uses the batch size that was fastest on some of the pairs; it sorts texts by their
characters itself, so sorting them first changes nothing. On one GPU both compute in bf16 with torch's attention, ours
with autocast, theirs with bf16 weights. Memory is the peak of another pass, with each side in its own process.

Share of the peak: FLOPs of the model on real tokens (`model_flops` in bench_sides.py) over seconds, divided by the
GPU's peak in bf16, by its name or by --peak-tflops. The exit code is 1 where float32 scores differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_sides import (
    LONGEST,
    model_flops,
    padding,
    parse,
    peak_mib,
    peak_tflops,
    print_result,
    print_table,
    run_side,
    save_base,
    texts,
)

from trainer.data import Collection, build_collection
from trainer.errors import TrainerError
from trainer.recipe import Data
from trainer.runtime.run_folder import read_json, write_json

DOCUMENTS_PER_QUERY = 10
BATCH_SIZES = {"cpu": (16, 32, 64), "cuda": (32, 64, 128, 256, 512)}
PROBE_PAIRS = {"cpu": 128, "cuda": 4096}  # pairs on which the batch size is chosen
SAME = 1e-5

Pairs = list[tuple[int, int]]  # query rows and document rows


def draw_pairs(collection: Collection, count: int, seed: int = 13) -> Pairs:
    """Return test queries with up to half judged documents and others sampled from all, so lengths are realistic."""
    rng = np.random.default_rng(seed)
    queries = rng.permutation(collection.answerable("test"))[: -(-count // DOCUMENTS_PER_QUERY)].tolist()
    each = -(-count // len(queries))
    pairs = []
    for query in queries:
        judged = list(collection.qrels["test"][query])[: each // 2]
        drawn = rng.integers(len(collection.documents), size=each - len(judged)).tolist()
        pairs += [(query, document) for document in (*judged, *drawn)]
    return pairs[:count]


class Ours:
    """This project's reranker."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        import torch

        from trainer.model import Reranker

        default = "auto" if torch.cuda.is_available() else "fp32"
        self.collection = Collection.open(folder / "data")
        self.reranker = Reranker.load(
            folder / "base", max_length=task["max_length"], precision=task.get("precision", default)
        )
        self.device = self.reranker.model.device

    def score(self, rows: Pairs) -> np.ndarray:
        """Return logits computed from the collection's texts, without any cache."""
        from trainer.model import TokenizedCollection

        return self.reranker.score_tokens(TokenizedCollection(self.collection, self.reranker.pairs).pairs(rows))

    def sizes(self, rows: Pairs) -> list[int]:
        """Return the number of tokens of each joined pair."""
        from trainer.model import TokenizedCollection

        pairs = TokenizedCollection(self.collection, self.reranker.pairs).pairs(rows)
        return [self.reranker.pairs.size(pair) for pair in pairs]

    def batches(self, sizes: Sequence[int]) -> list[list[int]]:
        """Return the positions of the pairs in each batch."""
        if self.reranker.packed:
            return [[position] for position in range(len(sizes))]  # packed pairs have no padding
        return self.reranker.buckets(sizes)


class Theirs:
    """sentence-transformers' CrossEncoder, with the texts in memory."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        collection = Collection.open(folder / "data")
        queries, documents = map(set, zip(*task["pairs"], strict=True))
        self.queries = texts(collection.queries, "text", queries)
        self.documents = texts(collection.documents, "passage", documents)
        cuda = torch.cuda.is_available()
        half = task["precision"] == "bf16" if "precision" in task else cuda
        self.model = CrossEncoder(
            str(folder / "base"),
            max_length=task["max_length"],
            model_kwargs={"dtype": torch.bfloat16 if half else torch.float32, "attn_implementation": "sdpa"},
        )
        self.batch_size = task.get("batch_size") or self._fastest("cuda" if cuda else "cpu", task["pairs"])

    def _fastest(self, device: str, rows: Pairs) -> int:
        """Return the batch size that takes the least time on some of the pairs, after a warm-up pass."""
        some = rows[:: -(-len(rows) // PROBE_PAIRS[device])]
        seconds = {}
        self.batch_size = BATCH_SIZES[device][0]
        self.score(some)
        for self.batch_size in BATCH_SIZES[device]:
            seconds[self.batch_size] = timed(lambda: self.score(some))[0]
        return min(seconds, key=lambda size: seconds[size])

    def score(self, rows: Pairs) -> np.ndarray:
        """Return logits computed from texts."""
        from torch import nn

        return self.model.predict(
            self.texts(rows), batch_size=self.batch_size, activation_fn=nn.Identity(), show_progress_bar=False
        )

    def texts(self, rows: Pairs) -> list[tuple[str, str]]:
        """Return the pairs as texts."""
        return [(self.queries[query], self.documents[document]) for query, document in rows]

    def batches(self, rows: Pairs) -> list[list[int]]:
        """Return the positions in each batch: slices of the pairs, sorted by descending number of characters."""
        characters = [-len(query) - len(document) for query, document in self.texts(rows)]
        order = np.argsort(characters).tolist()
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]


SIDES: dict[str, Callable[[Path, dict[str, Any]], Ours | Theirs]] = {"ours": Ours, "sentence-transformers": Theirs}


def timed(score: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return seconds and scores; the scores are on the CPU, so a GPU has finished."""
    started = time.perf_counter()
    scores = score()
    return time.perf_counter() - started, scores


def compare(path: Path, folder: Path, arguments: argparse.Namespace) -> float:
    """Print one collection's table, and return the largest difference of float32 scores, 0 in bf16."""
    collection = build_collection(Data(path=path), folder / "data")
    rows = draw_pairs(collection, arguments.pairs)
    task = {"max_length": arguments.max_length, "pairs": rows}
    ours, theirs = Ours(folder, task), Theirs(folder, task)
    write_json(folder / "task.json", task | {"batch_size": theirs.batch_size})
    sides = {"ours": ours, "sentence-transformers": theirs}
    seconds, scores = {side: [] for side in sides}, {}
    ours.score(rows)  # warm-up; theirs is warm after choosing its batch size
    for number in range(arguments.rounds):
        for side in sorted(sides, reverse=number % 2 == 1):
            took, scores[side] = timed(lambda side=side: sides[side].score(rows))
            seconds[side].append(took)
    sizes = ours.sizes(rows)
    wasted = {
        "ours": padding(sizes, ours.batches(sizes)),
        "sentence-transformers": padding(sizes, theirs.batches(rows)),
    }
    peak = arguments.peak_tflops or device_peak(ours.device.type)
    at_peak = model_flops(ours.reranker.model, sizes) / 1e12 / peak if peak else None
    mib = {side: run_side(__file__, side, folder)["mib"] for side in sides}
    medians = {side: float(np.median(times)) for side, times in seconds.items()}
    title = f"{path.name}, {arguments.shape}: {len(rows)} pairs of {np.mean(sizes):.0f} tokens"
    print(f"\n{title}, median of {arguments.rounds} interleaved rounds, their batch size {theirs.batch_size}\n")
    print_table(medians, mib, wasted, len(rows), sum(sizes), at_peak)
    difference = float(np.abs(scores["ours"] - scores["sentence-transformers"]).max())
    print(f"\nlargest difference of two scores {difference:.1e}; standard deviation {scores['ours'].std():.1e}")
    return 0.0 if ours.device.type == "cuda" else difference


def device_peak(device: str) -> float | None:
    """Return the peak TFLOP/s of the GPU in use; None on a CPU."""
    import torch

    return peak_tflops(torch.cuda.get_device_name()) if device == "cuda" else None


def measure_memory(side: str, folder: Path) -> None:
    """Run one pass in this process, and print its peak memory."""
    task = read_json(folder / "task.json")
    SIDES[side](folder, task).score(task["pairs"])
    print_result(mib=peak_mib())


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="*", metavar="PATH", help="folders in BEIR layout")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="peak of the device, where it is not known by name")
    arguments = parse(parser, SIDES)
    if arguments.side:
        measure_memory(arguments.side, arguments.folder)
        return
    if not arguments.collections:
        parser.error("give at least one collection in BEIR layout")
    differences = []
    for path in arguments.collections:
        with tempfile.TemporaryDirectory() as folder:
            save_base(arguments.shape, Path(folder) / "base")
            try:
                differences.append(compare(path, Path(folder), arguments))
            except TrainerError as error:
                parser.error(str(error))
    if not all(difference <= SAME for difference in differences):  # nan is not the same either
        raise SystemExit(f"bench_score: float32 scores differ by more than {SAME:.0e}")


if __name__ == "__main__":
    main()
