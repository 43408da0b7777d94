"""Long documents: quality and time with and without windows, on samples of collections in BEIR layout.

    python scripts/bench_windows.py scifact=PATH/TO/scifact nfcorpus=PATH/TO/nfcorpus

Each collection is run twice up to `evaluate`, with scripts/ablation.yaml and BM25 as first stage: once with long
documents cut off and once with windows. The base is cut after its lowest layers, and queries are sampled. A line of
Markdown is printed for each system of a run, and for windows that begin with the title of their document. Times are
seconds of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from ablation import ROOT, cut, draw_queries

from trainer import context
from trainer.context import Run
from trainer.evaluation.results import Results
from trainer.evaluation.two_stage import mean_score
from trainer.model import TokenizedCollection
from trainer.model.windows import Pair, Windowed
from trainer.model.windows import cut as cut_windows
from trainer.pipeline import open_run, run_stage
from trainer.recipe import load_recipe

WINDOWS = ("passages.length=72", "passages.overlap=18")
HEAD = ("collection", "documents", "system", "nDCG@10", "first stage", "train s", "ms per document", "windows")


def run(name: str, folder: Path, windows: tuple[str, ...], options: argparse.Namespace) -> list[list[str]]:
    """Run a recipe up to `evaluate`, and return the table's rows."""
    data = write_judgements(name, folder, options)
    kind = "windows" if windows else "cut"
    settings = [f"name={name}-{kind}", "retriever.kind=bm25", "reranker.depth=10", "train.precision=fp32", *data]
    base = cut(load_recipe(options.recipe, settings).reranker.model, options.layers, options.runs / "bases")
    recipe = load_recipe(options.recipe, [*settings, f"reranker.model={base}", *windows])
    opened = open_run(recipe, options.runs)
    seconds = {}
    for stage in opened.stages[: [stage.name for stage in opened.stages].index("evaluate") + 1]:
        started = time.process_time()
        run_stage(opened, stage)
        seconds[stage.folder] = time.process_time() - started
    results = Results.load(opened.folder / "evaluate")
    first = results.systems["first_stage"]["nDCG@10"].mean
    systems = [system for system in results.systems if system not in ("first_stage_default", "first_stage", "ceiling")]
    per_document, count = speed(opened)
    shared = [f"{first:.3f}", f"{seconds['train']:.0f}", f"{per_document:.1f}", f"{count:.1f}"]
    means = {results.label(system): results.systems[system]["nDCG@10"].mean for system in systems}
    if windows:
        means["with titles"] = mean_score(
            opened.collection, "test", opened.candidates("test"), "nDCG@10", titled_scores(opened)
        )
    return [[name, kind, system, f"{mean:.3f}", *shared] for system, mean in means.items()]


def write_judgements(name: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Write the judgements of the sampled queries; return the keys that name a run's data."""
    keys = [f"data.{part}={(folder / f'{part}.jsonl').absolute()}" for part in ("corpus", "queries")]
    for key, split in (("qrels", "train"), ("dev", "dev"), ("test", "test")):
        file = options.runs / "judgements" / f"{name}-{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = draw_queries(folder / "qrels" / f"{split}.tsv", getattr(options, split), 13)
        file.write_text("".join(lines), encoding="utf-8")
        keys.append(f"data.{key}={file.absolute()}")
    return keys


def speed(opened: Run) -> tuple[float, float]:
    """Return processor milliseconds per test candidate, tokenised before, and the number of windows of each."""
    reranker = context.load(opened, str(opened.best()))
    candidates = opened.reranked("test").top(5)
    rows = [(query, row) for index, query in enumerate(candidates.queries.tolist()) for row in candidates.found(index)]
    pairs = TokenizedCollection(opened.collection, reranker.pairs).pairs(rows)
    started = time.process_time()
    reranker.score_tokens(pairs)
    return 1000 * (time.process_time() - started) / len(pairs), float(reranker.cut(pairs).counts.mean())


def titled_scores(opened: Run) -> np.ndarray:
    """Return the scores (queries, depth) of test candidates if each window begins with the document's title."""
    reranker = context.load(opened, str(opened.best()))
    passages, collection = reranker.passages, opened.collection
    assert passages is not None
    tokenized = TokenizedCollection(collection, reranker.pairs)

    def windows(row: tuple[int, int]) -> Windowed:
        ((query, document),) = tokenized.pairs([row])
        (title,) = reranker.pairs.tokenize([collection.documents[row[1]]["title"] or ""])
        title = title[: passages.length // 2]
        shorter = passages.model_copy(update={"length": passages.length - len(title)})
        body = cut_windows(
            shorter, [(query, document[len(title) :])], lambda _: reranker.pairs.room(query) - len(title)
        )
        return Windowed([(query, np.concatenate([title, window])) for _, window in body.pairs], body.counts)

    def score(rows: list[tuple[int, int]]) -> np.ndarray:
        parts = [windows(row) for row in rows]
        pairs: list[Pair] = [pair for part in parts for pair in part.pairs]
        counts = np.concatenate([part.counts for part in parts])
        return Windowed(pairs, counts).best(reranker.score_windows(pairs))

    return opened.reranked("test").scored(score)


def command_line() -> argparse.ArgumentParser:
    """Return what the script takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", metavar="NAME=FOLDER", help="folders in BEIR layout")
    parser.add_argument("--recipe", type=Path, default=ROOT / "scripts" / "ablation.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "windows")
    parser.add_argument("--layers", type=int, default=3, help="lowest layers of the base that are kept")
    for split, most in (("train", 60), ("dev", 12), ("test", 60)):
        parser.add_argument(f"--{split}", type=int, default=most, help=f"most {split} queries")
    return parser


if __name__ == "__main__":
    given = command_line().parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for collection in given.collections:
        label, _, place = collection.partition("=")
        for setting in ((), WINDOWS):
            for cells in run(label, Path(place), setting, given):
                print(f"| {' | '.join(cells)} |", flush=True)
