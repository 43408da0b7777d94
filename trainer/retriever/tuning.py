"""Tuning of the first stage on judged queries: BM25's parameters and the fusion weights of the engines.

These are the train queries; if too few of them were asked by people, and others are made, the dev queries. Then what
dev says of a model favours the first stage, and test decides.

Three rules guard against overfitting. Of all settings within one standard error of the best, those closest to the
defaults are taken (the one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984), with the
error of the paired difference. This is repeated on bootstrap samples of the queries, and the choices are averaged
(bagging: Breiman, Bagging Predictors, 1996), so that one query more or less cannot move the result far. And if
cross-validation shows no gain, the defaults are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from trainer.retriever.bm25 import K1, Analyzer, B
from trainer.retriever.candidates import NOTHING, RankedLists, sort_keys
from trainer.retriever.engines import Engines, Settings
from trainer.runtime.console import Advance, progress
from trainer.runtime.run_folder import read_json, write_json

ENOUGH = {"auto": 50, "on": 10}  # least number of queries; with fewer than 10 a fold has less than two
MAX_QUERIES = 1000  # queries used, evenly spaced
FOLDS = 5
RESAMPLES = 20  # bootstrap samples whose choices are averaged
K1S = (0.4, 0.9, 1.2, 2.0)
BS = (0.1, 0.3, 0.5, 0.75, 0.95)
STEPS = {1: 1, 2: 10, 3: 5}  # steps between weights 0 and 1, by the number of engines
CUT = 10  # of nDCG, the metric that is compared
NAMES = {"dense": "the bi-encoder", "bm25": "BM25", "run": "the run"}


@dataclass(frozen=True)
class Tuning:
    """The settings of the first stage and the results of tuning; all values are mean nDCG@10.

    `queries` is the number of queries of `split` used, 0 without tuning; `note` is the reason why the settings are not
    tuned. `curves` maps each setting to {value: mean} with all other settings as chosen.
    """

    settings: Settings
    queries: int = 0
    cross_validated: float = 0.0
    default: float = 0.0
    curves: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""
    split: str = "train"

    def save(self, folder: Path) -> None:
        """Write tuning.json into a folder."""
        write_json(folder / "tuning.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Tuning:
        """Load the tuning.json of a folder."""
        content = read_json(folder / "tuning.json")
        return cls(**content | {"settings": Settings(**content["settings"])})

    def describe(self, dev: str) -> str:
        """Return a sentence about the settings; `dev` is the part about the result on dev."""
        if not self.queries:
            return f"first stage not tuned: {self.note}" if self.note else ""
        values = f"{self.split} nDCG@10 (cross-validated) {self.cross_validated:.4f}, default {self.default:.4f}; {dev}"
        if self.note:
            return f"first stage not tuned: {self.note}: {values}"
        return f"first stage tuned on {self.queries} {self.split} queries: {', '.join(self._chosen())}: {values}"

    def _chosen(self) -> list[str]:
        """Return the chosen settings in words."""
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
    engines: Engines,
    default: RankedLists,
    queries: range,
    qrels: Mapping[int, Mapping[int, int]],
    split: str = "train",
    rrf: bool = False,
) -> Tuning:
    """Return the settings tuned on the queries of a split, which are the engines' queries at the positions `queries`.

    `default` is the baseline ranking. With `rrf` the engines are fused by reciprocal rank fusion, and only BM25's
    parameters are tuned.
    """
    indices = np.linspace(queries[0], queries[-1], min(MAX_QUERIES, len(queries))).astype(np.int64)
    judged = [qrels[engines.queries[index]] for index in indices]
    settings, values = measure_grid(engines, indices, judged, rrf)
    places = np.array([place(one) for one in settings])
    chosen = settings[choose(values, places)]
    held_out = cross_validate(values, places)
    baseline = query_values(default.part(indices, CUT), judged)
    note = "" if held_out.mean() > baseline.mean() else "cross-validation shows no gain over the default"
    return Tuning(
        settings=engines.default_settings if note else chosen,
        queries=len(indices),
        cross_validated=float(held_out.mean()),
        default=float(baseline.mean()),
        curves=_curves(settings, values.mean(axis=1), chosen),
        note=note,
        split=split,
    )


def measure_grid(
    engines: Engines, indices: np.ndarray, judged: Sequence[Mapping[int, int]], rrf: bool = False
) -> tuple[list[Settings], np.ndarray]:
    """Return the settings that are compared, and the nDCG@10 (settings, queries) of the engines' queries `indices`."""
    grid = _grid(engines, rrf)
    with progress("tune", total=sum(map(len, grid.values()))) as advance:
        values = np.concatenate([_measure(engines, indices, judged, part, advance) for part in grid.values()])
    return [one for part in grid.values() for one in part], values


def query_values(ranking: RankedLists, judged: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return the nDCG@10 (queries,) of a ranking."""
    return ndcg(_gains(ranking.documents[:, :CUT], judged), ideal_gains(judged))


def choose(values: np.ndarray, places: np.ndarray) -> int:
    """Return the row of `values` (settings, queries) to take: the average of the choices on bootstrap samples.

    `places` (settings, dimensions) are the settings' steps from the defaults. The samples are the same in every call.
    """
    distances = np.abs(places).sum(axis=1)
    generator, queries = np.random.default_rng(0), values.shape[1]
    samples = (generator.integers(queries, size=queries) for _ in range(RESAMPLES))
    average = places[[nearest_to_default(values[:, sample], distances) for sample in samples]].mean(axis=0)
    away = np.abs(places - average).sum(axis=1).round(9)  # so that equal ones are ties
    return int(np.lexsort([distances, away])[0])


def nearest_to_default(values: np.ndarray, distances: np.ndarray) -> int:
    """Return the row of `values` (settings, queries) to take, by the one-standard-error rule.

    Of the rows whose mean is below the best one by at most the standard error of the paired difference, it is the row
    with the smallest of `distances` (settings,) from the defaults; ties go to the higher mean.
    """
    means = values.mean(axis=1)
    deficits = values[means.argmax()] - values
    error = deficits.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    close = np.flatnonzero(deficits.mean(axis=1) <= error)
    return int(min(close, key=lambda row: (distances[row], -means[row])))


def cross_validate(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return each query's held-out value (queries,): under the settings chosen on the other folds."""
    held_out = np.empty(values.shape[1])
    fold = np.arange(values.shape[1]) % FOLDS
    for number in range(FOLDS):
        row = choose(values[:, fold != number], places)
        held_out[fold == number] = values[row, fold == number]
    return held_out


def ideal_gains(judged: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return the grades (Q, 10) of the ideal ranking of each query's judged documents, padded with 0."""
    ideal = np.zeros((len(judged), CUT))
    for row, grades in zip(ideal, judged, strict=True):
        best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:CUT]
        row[: len(best)] = best
    return ideal


def ndcg(gains: np.ndarray, ideal: np.ndarray) -> np.ndarray:
    """Return nDCG@10 (Q,) of ranked grades (Q, at most 10) and ideal ones (Q, 10), with trec_eval's linear gain."""
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    return (gains @ discounts[: gains.shape[1]]) / (ideal @ discounts)


def _gains(documents: np.ndarray, judged: Sequence[Mapping[int, int]]) -> np.ndarray:
    """Return the grades (Q, m) float64 of document rows (Q, m), 0 where not judged or negative."""
    rows = zip(documents.tolist(), judged, strict=True)
    return np.array([[max(0, grades.get(document, 0)) for document in ranked] for ranked, grades in rows], dtype=float)


def _grid(engines: Engines, rrf: bool) -> dict[Analyzer | None, list[Settings]]:
    """Return the settings to compare, grouped by analyzer."""
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
    """Yield all combinations of engine weights that add up to 1, in equal steps."""
    steps = STEPS[len(names)]
    for parts in product(range(steps + 1), repeat=len(names)):
        if sum(parts) == steps:
            yield {name: part / steps for name, part in zip(names, parts, strict=True)}


def _measure(
    engines: Engines,
    indices: np.ndarray,
    judged: Sequence[Mapping[int, int]],
    grid: Sequence[Settings],
    advance: Advance,
) -> np.ndarray:
    """Return nDCG@10 (settings, queries) of settings with the same analyzer.

    The union of the engines' lists under the default k1 and b is rescored under each setting, which takes milliseconds.
    """
    start = replace(grid[0], k1=K1, b=B)
    pool = engines.pool(engines.lists(start, indices), start, indices)
    gains, ideal = _gains(pool.documents, judged), ideal_gains(judged)
    columns = np.broadcast_to(np.arange(gains.shape[1]), gains.shape)
    values = np.empty((len(grid), len(indices)))
    for row, settings in enumerate(grid):
        scores = np.where(pool.documents == NOTHING, -np.inf, pool.fused(settings)).astype(np.float32)
        best = RankedLists.best(sort_keys(scores, columns), CUT)
        values[row] = ndcg(np.take_along_axis(gains, best.documents.astype(np.int64), axis=1), ideal)
        advance()
    return values


def place(settings: Settings) -> list[float]:
    """Return the steps of the grid from the default settings, in each dimension; an analyzer's switch counts as two."""
    weights = settings.weights or {}
    shifts = [(weights[name] - 1 / len(weights)) / 2 * STEPS[len(weights)] for name in sorted(weights)]
    steps = [K1S.index(settings.k1) - K1S.index(K1), BS.index(settings.b) - BS.index(B)]
    return [*steps, 2 * (not settings.drop_stop_words), 2 * (not settings.stem), *shifts]


def _curves(grid: Sequence[Settings], means: np.ndarray, chosen: Settings) -> dict[str, dict[str, float]]:
    """Return {setting: {value: mean}} over the settings that equal the chosen ones in all other respects."""
    curves: dict[str, dict[str, float]] = {}
    for name in ("k1", "b", "drop_stop_words", "stem", "weights"):
        rest = [replace(one, **{name: getattr(chosen, name)}) == chosen for one in grid]
        points = {
            str(getattr(one, name)): float(mean) for one, mean, same in zip(grid, means, rest, strict=True) if same
        }
        if len(points) > 1:
            curves[name] = points
    return curves
