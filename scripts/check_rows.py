"""Check that the exported files give the row of the test table that they were exported with.

    python scripts/check_rows.py runs/quickstart

transformers, sentence-transformers and ONNX Runtime read runs/NAME/export/model in a process that does not import this
package, and score every test candidate. Reported for each: the largest score difference to the trained model, how many
neighbours in the order differ by more than a tie, and the metrics beside those of the table, alone and fused. Exits
with 1 where an order differs by more than a tie, or a metric by more than 1e-6 without a tie to explain it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.context import Run
from trainer.context.models import score
from trainer.evaluation.two_stage import mean_score
from trainer.export import readers
from trainer.model.fusion import Fusion, fuse
from trainer.pipeline import open_run
from trainer.recipe import Recipe
from trainer.retriever import NOTHING, Candidates
from trainer.runtime.run_folder import read_json

TIE = 1e-4  # scores that are closer may change places
EXACT = 1e-6  # of a metric
READERS = ("score_transformers", "score_sentence_transformers", "score_onnx")
# Runs without this package: argv holds the readers' file, a reader's name, the model, pairs as JSON, and the output.
OUTSIDE = """
import json, runpy, sys
import numpy as np
from pathlib import Path
reader = runpy.run_path(sys.argv[1])[sys.argv[2]]
np.save(sys.argv[5], reader(Path(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text())))
assert "trainer" not in sys.modules
"""


class Row(NamedTuple):
    """One reader's scores of all test candidates beside the trained model's."""

    reader: str
    difference: float  # the largest, of a score
    swapped: int  # neighbours in the reader's order that the trained model has the other way round, by more than a tie
    ties: int  # the same, within a tie
    metrics: dict[str, tuple[float, float]]  # metric: (by the reader, in the table)


def check_rows(folder: Path) -> list[Row]:
    """Return a row for every format in the export of a finished run."""
    run = open_run(Recipe.model_validate(read_json(folder / "evaluate" / "recipe.json")), folder.parent)
    model, candidates = folder / "export" / "model", run.reranked("test")
    results = read_json(folder / "evaluate" / "results.json")
    stage = "distil" if run.exported == "distil" else "train"
    # Other libraries give the logits of truncated documents.
    expected = score(run, str(run.best(run.exported)), candidates, stage, windows=False, mixture=False)
    present = candidates.documents != NOTHING
    pairs = _pairs(run, candidates)
    rows = []
    for reader in READERS:
        if reader == "score_onnx" and not (model / readers.GRAPH).is_file():
            continue
        scores = np.full(expected.shape, -np.inf)
        scores[present] = _outside(reader, model, pairs)
        difference = float(np.abs(scores[present] - expected[present]).max())
        rows.append(Row(reader, difference, *_swaps(scores, expected), _metrics(run, scores, results)))
    return rows


def _pairs(run: Run, candidates: Candidates) -> list[tuple[str, str]]:
    length = [len(candidates.found(place)) for place in range(len(candidates.queries))]
    texts = run.collection.query_texts(candidates.queries.tolist())
    queries = [text for text, count in zip(texts, length, strict=True) for _ in range(count)]
    documents = run.collection.passages(candidates.documents[candidates.documents != NOTHING].tolist())
    return list(zip(queries, documents, strict=True))


def _outside(reader: str, model: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Return a reader's scores (pairs,), computed in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "pairs.json", Path(folder) / "scores.npy"
        given.write_text(json.dumps(pairs), encoding="utf-8")
        command = [sys.executable, "-I", "-c", OUTSIDE, readers.__file__, reader, str(model), str(given), str(made)]
        subprocess.run(command, check=True)
        return np.load(made)


def _swaps(scores: np.ndarray, expected: np.ndarray) -> tuple[int, int]:
    """Count the neighbours in the order by `scores` whose expected scores rise: by more than a tie, and within one."""
    order = np.argsort(-scores, axis=1, kind="stable")
    before = np.take_along_axis(expected, order, axis=1).astype(np.float64)
    both = np.isfinite(before[:, 1:]) & np.isfinite(before[:, :-1])
    rise = np.where(both, before[:, 1:], 0.0) - np.where(both, before[:, :-1], 0.0)
    return int((rise > TIE).sum()), int(((rise > 0) & (rise <= TIE)).sum())


def _metrics(run: Run, scores: np.ndarray, results: dict) -> dict[str, tuple[float, float]]:
    """Return each metric by these scores and in the table, alone and with first-stage scores."""
    candidates, split = run.candidates("test"), "test"
    reranked = candidates.top(run.recipe.rerank_depth)
    fusion = Fusion.load(run.folder / "export" / "model")
    differs = "other_libraries" in results["systems"]
    systems = {"other_libraries" if differs else results["shipped"]: scores}
    if not differs and fusion is not None and "fused" in results["systems"]:
        first, present = reranked.scores, reranked.documents != NOTHING
        systems["fused"] = fuse(np.where(present, scores, 0.0), first, fusion.scores, present)
    return {
        f"{metric} {name}": (
            mean_score(run.collection, split, candidates, metric, values),
            results["systems"][name][metric]["mean"],
        )
        for name, values in systems.items()
        for metric in run.recipe.evaluate.metrics
    }


def main() -> None:
    """Print a line for every reader and metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    rows = check_rows(parser.parse_args().run)
    wrong = False
    for row in rows:
        print(f"{row.reader}: largest difference {row.difference:.1e}; {row.swapped} swapped, {row.ties} within a tie")
        for metric, (read, table) in row.metrics.items():
            print(f"    {metric:20} {read:.6f}  table {table:.6f}")
            wrong |= abs(read - table) > EXACT and not row.ties
        wrong |= row.swapped > 0
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
