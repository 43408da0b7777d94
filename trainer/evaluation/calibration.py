"""Calibration of the model's own scores as probabilities, fitted on dev and evaluated on test, with thresholds.

A pair is a document that the first stage returned and that is reranked; one without a judgement counts as not relevant,
so probabilities are those of being *judged* relevant. Uncertainty comes from a bootstrap over queries, since the pairs
of a query are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from trainer.data import Collection
from trainer.evaluation.statistics import Interval
from trainer.model.calibration import SIGMOID, Calibration, Platt
from trainer.retriever import NOTHING, Candidates
from trainer.runtime.console import Advance, no_progress, progress
from trainer.runtime.run_folder import write_json

BINS = 10  # of the reliability diagram and of ECE, with equally many pairs
RESAMPLES = 1000
STATISTICS = 5  # that are resampled
FEWEST = 20  # least number of positive pairs, and of negative pairs, of dev that are needed for a fit
WILSON = 1.96**2  # the square of the normal quantile of a 95 % interval
SEPARATES = 0.7  # least lower bound of the AUC at which thresholds are useful
ON_TEST = "calibration_test.json"  # in the folder of an evaluation
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Pairs(NamedTuple):
    """Scores and grades of reranked candidates, a row for each query; `present` is False where there is none."""

    scores: np.ndarray  # float64 (queries, depth)
    grades: np.ndarray  # int (queries, depth)
    present: np.ndarray  # bool (queries, depth)

    @classmethod
    def of(cls, candidates: Candidates, scores: np.ndarray, qrels: Mapping[int, Mapping[int, int]]) -> Pairs:
        """Return the pairs of the first `depth` candidates, which `scores` (queries, depth) belong to."""
        documents = candidates.documents[:, : scores.shape[1]]
        grades = [
            [qrels.get(query, {}).get(row, 0) for row in rows]
            for query, rows in zip(candidates.queries.tolist(), documents.tolist(), strict=True)
        ]
        present = documents != NOTHING
        return cls(np.where(present, scores, 0.0).astype(np.float64), np.array(grades, dtype=np.int64), present)


class Bin(NamedTuple):
    """A bin of the reliability diagram: its pairs, their mean probability, and the share of them that is relevant.

    `low` and `high` are the 95 % interval of the share.
    """

    pairs: int
    predicted: float
    observed: float
    low: float
    high: float


class Threshold(NamedTuple):
    """The reranked lists after documents below a probability are dropped."""

    probability: float
    kept: float  # documents of a query, on average
    precision: float  # share of the kept documents that are relevant
    recall: float  # share of the relevant reranked documents that are kept
    empty: float  # share of the queries that are left without a document


@dataclass(frozen=True)
class Calibrated:
    """The curve of a grade measured on test; `uncalibrated` figures are those of the logistic function of the score."""

    auc: Interval
    brier: Interval
    ece: Interval
    uncalibrated_brier: Interval
    uncalibrated_ece: Interval
    bins: list[Bin]
    thresholds: list[Threshold]

    @property
    def separates(self) -> bool:
        """Whether the AUC is high enough for a threshold to separate relevant documents from others."""
        return self.auc.low >= SEPARATES

    @property
    def sentence(self) -> str:
        """The result in a sentence, with the answer whether a threshold is of use."""
        error = f"calibration error on test {self.ece.mean:.3f}, {self.uncalibrated_ece.mean:.3f} without"
        if self.separates:
            return f"scores are calibrated on dev: {error}; AUC {self.auc.mean:.3f}"
        low = f"AUC {self.auc.mean:.3f}, lower end {self.auc.low:.3f}"
        return f"scores are calibrated on dev: {error}; no threshold separates relevant documents well enough ({low})"

    def described(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON, which has no NaN: undefined ones are None."""
        intervals = {name: _plain(value) for name, value in vars(self).items() if isinstance(value, Interval)}
        lists = {"bins": [_plain(one) for one in self.bins], "thresholds": [_plain(one) for one in self.thresholds]}
        return {"separates": self.separates, **intervals, **lists}


def _plain(figures: Interval | Bin | Threshold) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in figures._asdict().items()}


def calibrate(
    collection: Collection,
    candidates: Mapping[str, Candidates],
    dev: np.ndarray,
    test: np.ndarray,
    seed: int,
    folder: Path,
) -> str:
    """Fit the calibration of a model's dev scores and measure it on test; return the result as a sentence.

    `candidates` are those of dev and test that are reranked, `dev` and `test` the model's scores of them. Write
    calibration_test.json, with the sentence, and calibration.json, which goes with the model, unless a fit is
    impossible.
    """
    pairs = {
        split: Pairs.of(candidates[split], scores, collection.qrels[split])
        for split, scores in (("dev", dev), ("test", test))
    }
    calibration = fit(pairs["dev"], collection.relevant_from)
    if calibration is None:
        sentence = f"scores are not calibrated: {_obstacle(pairs['dev'], collection.relevant_from)}"
        write_json(folder / ON_TEST, {"sentence": sentence})
        return sentence
    calibration.save(folder)
    with progress("calibrate", total=len(calibration.curves) * STATISTICS * RESAMPLES) as advance:
        grades = {
            grade: measure(curve, pairs["test"], grade, seed, advance) for grade, curve in calibration.curves.items()
        }
    on_test = grades[collection.relevant_from]
    described = {"sentence": on_test.sentence, **on_test.described()}
    write_json(folder / ON_TEST, described | {"grades": {str(grade): one.described() for grade, one in grades.items()}})
    return on_test.sentence


def _obstacle(pairs: Pairs, relevant_from: int) -> str:
    """Return the reason why no curve can be fitted to the dev pairs."""
    relevant = pairs.grades[pairs.present] >= relevant_from
    counts = {"relevant": int(relevant.sum()), "other": int((~relevant).sum())}
    few = [f"{count} {kind}" for kind, count in counts.items() if count < FEWEST]
    if few:
        found = " and ".join(few)
        return f"the reranked dev candidates hold only {found} documents, and {FEWEST} of each kind are needed"
    return "on dev, higher scores do not mean more relevant documents"


def fit(pairs: Pairs, relevant_from: int = 1) -> Calibration | None:
    """Return the calibration of dev pairs; None if they are too few, or if scores do not rise with relevance.

    Higher grades get a curve of their own if enough documents have them.
    """
    scores, grades = pairs.scores[pairs.present], pairs.grades[pairs.present]
    curves = {}
    for grade in range(relevant_from, int(grades.max(initial=0)) + 1):
        curve = _platt(scores, grades >= grade)
        if curve is not None:
            curves[grade] = curve
    return Calibration(curves) if relevant_from in curves else None


def _platt(scores: np.ndarray, relevant: np.ndarray) -> Platt | None:
    """Return the most likely curve for Platt's targets (1999), which keep it finite for separable labels."""
    positives, negatives = int(relevant.sum()), int((~relevant).sum())
    if min(positives, negatives) < FEWEST:
        return None
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = scores.mean(), scores.std() or 1.0
    units = (scores - centre) / spread

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = parameters[0] * units + parameters[1]
        value = (np.logaddexp(0.0, exponent) - targets * exponent).mean()
        error = 0.5 * (1.0 + np.tanh(0.5 * exponent)) - targets
        return float(value), np.array([(error * units).mean(), error.mean()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if slope <= 0:
        return None
    return Platt(float(slope / spread), float(intercept - slope * centre / spread))


def measure(curve: Platt, pairs: Pairs, grade: int, seed: int, advance: Advance = no_progress) -> Calibrated:
    """Return the quality of one grade's curve, fitted on dev, measured on the pairs of test."""
    relevant = pairs.grades >= grade
    fitted = curve.probability(pairs.scores)
    plain = SIGMOID.probability(pairs.scores)
    draws = np.random.default_rng(seed).integers(len(relevant), size=(RESAMPLES, len(relevant)))

    def over_queries(statistic: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray) -> Interval:
        def of(rows: np.ndarray | slice) -> float:
            present = pairs.present[rows]
            return statistic(values[rows][present], relevant[rows][present])

        mean = of(slice(None))
        if np.isnan(mean):  # the AUC of pairs that are all relevant, or all not
            return Interval(mean, mean, mean)
        resampled = []
        for rows in draws:
            resampled.append(of(rows))
            advance()
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        return Interval(mean, float(low), float(high))

    return Calibrated(
        auc=over_queries(auc, pairs.scores),
        brier=over_queries(brier, fitted),
        ece=over_queries(ece, fitted),
        uncalibrated_brier=over_queries(brier, plain),
        uncalibrated_ece=over_queries(ece, plain),
        bins=reliability(fitted, relevant, pairs.present),
        thresholds=[_threshold(limit, fitted, relevant, pairs.present) for limit in THRESHOLDS],
    )


def auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Return the probability that a relevant document has a higher score than another one (AUC); ties count half."""
    positives, negatives = int(relevant.sum()), int((~relevant).sum())
    if not positives or not negatives:
        return float("nan")
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return float((ranks[relevant].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def brier(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    """Return the mean squared error of the probabilities (Brier 1950); 0 is best."""
    return float(np.mean((probabilities - relevant) ** 2))


def ece(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    """Return the expected calibration error: the mean distance of predicted and observed share, over bins of pairs.

    Naeini et al. (AAAI 2015), with bins of equally many pairs, since most pairs have low probabilities.
    """
    gaps = [abs(float((probabilities[part] - relevant[part]).sum())) for part in _bins(probabilities)]
    return sum(gaps) / max(1, len(relevant))


def _bins(probabilities: np.ndarray) -> list[np.ndarray]:
    """Return the positions of the pairs in each bin: equally many pairs, from the lowest probabilities up."""
    order = np.argsort(probabilities, kind="stable")
    return [part for part in np.array_split(order, BINS) if len(part)]


def reliability(probabilities: np.ndarray, relevant: np.ndarray, present: np.ndarray) -> list[Bin]:
    """Return the reliability diagram of pairs (queries, depth); `present` is False where there is none."""
    queries = np.nonzero(present)[0]
    values, labels = probabilities[present], relevant[present]
    return [
        Bin(len(part), float(values[part].mean()), float(labels[part].mean()), *share(labels[part], queries[part]))
        for part in _bins(values)
    ]


def share(relevant: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the share of relevant pairs; `queries` are the numbers of the pairs' queries.

    Wilson's interval (1927), which is not empty for a share of 0, for the effective number of pairs: fewer than there
    are if relevant pairs gather in some queries (Dean and Pagano, 2015).
    """
    count, observed = len(relevant), float(relevant.mean())
    independent = observed * (1 - observed) / count
    gathered = float((np.bincount(queries, relevant - observed) ** 2).sum()) / count**2
    effective = count * independent / gathered if gathered > independent > 0 else count
    centre = (observed + WILSON / 2 / effective) / (1 + WILSON / effective)
    half = (WILSON * observed * (1 - observed) / effective + (WILSON / 2 / effective) ** 2) ** 0.5
    half /= 1 + WILSON / effective
    return max(0.0, centre - half), min(1.0, centre + half)


def _threshold(limit: float, probabilities: np.ndarray, relevant: np.ndarray, present: np.ndarray) -> Threshold:
    kept = present & (probabilities >= limit)
    hits, wanted = int((kept & relevant).sum()), int((present & relevant).sum())
    return Threshold(
        probability=limit,
        kept=float(kept.sum(axis=1).mean()),
        precision=hits / int(kept.sum()) if kept.any() else float("nan"),
        recall=hits / wanted if wanted else float("nan"),
        empty=float((~kept.any(axis=1)).mean()),
    )
