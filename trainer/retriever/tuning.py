"""The first stage tuned on the train queries: BM25's parameters and the weights of the engines.

Guarded against noise: of all settings that are behind the best by no more than the standard error of the difference,
those closest to the defaults are taken; and where cross-validation shows no gain, the defaults stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from trainer.retriever.bm25 import K1, Analyzer, B
from trainer.retriever.candidates import NOTHING, Ranking, sort_keys
from trainer.retriever.engines import Engines, Settings
from trainer.runtime.run_folder import read_json, write_json

ENOUGH = {"auto": 50, "on": 10}  # train queries that it takes; with fewer, folds hold less than two
AT_MOST = 1000  # train queries that are looked at, spread evenly
FOLDS = 5
K1S = (0.4, 0.9, 1.2, 2.0)
BS = (0.1, 0.3, 0.5, 0.75, 0.95)
STEPS = {1: 1, 2: 10, 3: 5}  # into which a weight of 1 is cut, by the number of engines
CUT = 10  # nDCG@10 is what is compared
NAMES = {"dense": "the bi-encoder", "bm25": "BM25", "run": "the run"}


@dataclass(frozen=True)
class Tuning:
    """The settings of the first stage and how they were found; values are nDCG@10.

    `queries` is the number of train queries that chose them, 0 where nothing was tuned; `note` says why not.
    `curves` holds, for each setting, its mean on them as the others are chosen.
    """

    settings: Settings
    queries: int = 0
    cross_validated: float = 0.0
    default: float = 0.0
    curves: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    def save(self, folder: Path) -> None:
        """Write tuning.json."""
        write_json(folder / "tuning.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Tuning:
        """Read what `save` wrote."""
        content = read_json(folder / "tuning.json")
        return cls(**content | {"settings": Settings(**content["settings"])})

    def describe(self, dev: str) -> str:
        """Return a sentence about the settings; `dev` tells what they are worth there."""
        if not self.queries:
            return f"first stage not tuned: {self.note}" if self.note else ""
        train = f"train nDCG@10 (cross-validated) {self.cross_validated:.4f}, default {self.default:.4f}; {dev}"
        if self.note:
            return f"first stage not tuned: {self.note}: {train}"
        return f"first stage tuned on {self.queries} train queries: {', '.join(self._chosen())}: {train}"

    def _chosen(self) -> list[str]:
        settings, words = self.settings, []
        if settings.weights is None or "bm25" in settings.weights:
            words += [f"BM25 k1 {settings.k1:g}", f"b {settings.b:g}"]
            words += [] if settings.drop_stop_words else ["stop words kept"]
            words += [] if settings.stem else ["no stemming"]
        weights = settings.weights or {}
        if len(weights) == 2:
            name = next(name for name in weights if name != "bm25")
            words.append(f"weight of {NAMES[name]} {weights[name]:g}")
        elif len(weights) > 2:
            words.append("weights " + ", ".join(f"{NAMES[name]} {weight:g}" for name, weight in weights.items()))
        return words


def tune(
    engines: Engines, default: Ranking, train: int, qrels: Mapping[int, Mapping[int, int]], rrf: bool = False
) -> Tuning:
    """Choose settings on the train queries, which are the first `train` ones of the engines'.

    `default` is what the settings have to beat. With `rrf` the engines are fused by reciprocal ranks, and only BM25 is
    tuned.
    """
    places = np.linspace(0, train - 1, min(AT_MOST, train)).astype(np.int64)
    judged = [qrels[engines.queries[place]] for place in places]
    grid = _grid(engines, rrf)
    values = np.concatenate([_measure(engines, places, judged, part) for part in grid.values()])
    settings = [one for part in grid.values() for one in part]
    far = np.array([_distance(one) for one in settings])
    chosen = settings[choose(values, far)]
    held_out = cross_validate(values, far)
    before = ndcg(_gains(default.part(places, CUT).documents, judged), ideal_gains(judged))
    note = "" if held_out.mean() > before.mean() else "cross-validation shows no gain over the default"
    return Tuning(
        settings=engines.default_settings if note else chosen,
        queries=len(places),
        cross_validated=float(held_out.mean()),
        default=float(before.mean()),
        curves=_curves(settings, values.mean(axis=1), chosen),
        note=note,
    )


def choose(values: np.ndarray, far: np.ndarray) -> int:
    """Return the row of values (settings, queries) to take.

    Of the rows that are behind the best one by at most the standard error of the difference it is the one with the
    smallest distance `far` (settings,) from the defaults, the better of equals.
    """
    means = values.mean(axis=1)
    behind = values[means.argmax()] - values
    error = behind.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    close = np.flatnonzero(behind.mean(axis=1) <= error)
    return int(min(close, key=lambda row: (far[row], -means[row])))


def cross_validate(values: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Return each query's value (queries,) under the settings that the other folds choose."""
    held_out = np.empty(values.shape[1])
    fold = np.arange(values.shape[1]) % FOLDS
    for number in range(FOLDS):
        row = choose(values[:, fold != number], far)
        held_out[fold == number] = values[row, fold == number]
    return held_out


def ideal_gains(judged: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return the grades (Q, 10) of the best order of each query's judged documents."""
    ideal = np.zeros((len(judged), CUT))
    for row, grades in zip(ideal, judged, strict=True):
        best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:CUT]
        row[: len(best)] = best
    return ideal


def ndcg(gains: np.ndarray, ideal: np.ndarray) -> np.ndarray:
    """Return nDCG@10 (Q,) of the grades (Q, 10 at most) in the order of a ranking, linear as trec_eval's."""
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    return (gains @ discounts[: gains.shape[1]]) / (ideal @ discounts)


def _gains(documents: np.ndarray, judged: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return the grades (Q, m) of document rows, 0 where nothing positive is judged."""
    rows = zip(documents.tolist(), judged, strict=True)
    return np.array([[max(0, grades.get(document, 0)) for document in found] for found, grades in rows], dtype=float)


def _grid(engines: Engines, rrf: bool) -> dict[Analyzer | None, list[Settings]]:
    """Return the settings to compare, by the analyzer that they need."""
    weights: list[Mapping[str, float] | None] = [None] if rrf else list(_weights(engines.names))
    if not engines.has_bm25:
        return {None: [Settings(weights=one) for one in weights]}
    return {
        analyzer: [
            Settings(k1, b, analyzer.drop_stop_words, analyzer.stem, one) for k1, b, one in product(K1S, BS, weights)
        ]
        for analyzer in engines.analyzer.variants()
    }


def _weights(names: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield all weights of the engines that add up to 1, in equal steps."""
    steps = STEPS[len(names)]
    for parts in product(range(steps + 1), repeat=len(names)):
        if sum(parts) == steps:
            yield {name: part / steps for name, part in zip(names, parts, strict=True)}


def _measure(
    engines: Engines, places: np.ndarray, judged: Sequence[Mapping[int, int]], grid: Sequence[Settings]
) -> np.ndarray:
    """Return nDCG@10 (settings, queries) of settings that share an analyzer.

    What any engine lists under the default k1 and b is scored anew under each, so that a setting takes milliseconds.
    """
    start = replace(grid[0], k1=K1, b=B)
    pool = engines.pool(engines.lists(start, places), start, places)
    gains, ideal = _gains(pool.documents, judged), ideal_gains(judged)
    columns = np.broadcast_to(np.arange(gains.shape[1]), gains.shape)
    values = np.empty((len(grid), len(places)))
    for row, settings in enumerate(grid):
        scores = np.where(pool.documents == NOTHING, -np.inf, pool.fused(settings)).astype(np.float32)
        best = Ranking.best(sort_keys(scores, columns), CUT)
        values[row] = ndcg(np.take_along_axis(gains, best.documents.astype(np.int64), axis=1), ideal)
    return values


def _distance(settings: Settings) -> float:
    """Return how many steps of the grid the settings are away from the defaults; an analyzer's switch counts as two."""
    steps = abs(K1S.index(settings.k1) - K1S.index(K1)) + abs(BS.index(settings.b) - BS.index(B))
    switches = (not settings.drop_stop_words) + (not settings.stem)
    weights = settings.weights or {}
    away = sum(abs(weight - 1 / len(weights)) for weight in weights.values()) / 2 * STEPS.get(len(weights), 1)
    return steps + 2 * switches + away


def _curves(grid: Sequence[Settings], means: np.ndarray, chosen: Settings) -> dict[str, dict[str, float]]:
    """Return {setting: {value: mean}} of the settings that differ from the chosen ones in nothing else."""
    curves: dict[str, dict[str, float]] = {}
    for name in ("k1", "b", "drop_stop_words", "stem", "weights"):
        rest = [replace(one, **{name: getattr(chosen, name)}) == chosen for one in grid]
        points = {
            str(getattr(one, name)): float(mean) for one, mean, same in zip(grid, means, rest, strict=True) if same
        }
        if len(points) > 1:
            curves[name] = points
    return curves
