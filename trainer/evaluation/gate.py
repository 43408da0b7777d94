"""The release gate: decide on dev, in float32, if the exported model is better than the baselines.

A model is used in one of two modes: alone, or fused with first-stage scores. The baselines are what the user had
before: the tuned first stage and, if the base model is a reranker already, the base model. A mode is better only if it
beats both baselines.

The exported model and the first-stage weight were chosen on dev, so their dev means are optimistic. The bootstrap over
dev queries repeats the choice in each resample and takes the full dev set as the truth: the optimism of the choice in
the resamples estimates the optimism of our choice on dev.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

MARGIN = 0.01  # a loss that is too small to matter
LEVEL = 0.99  # one-sided; at .90 a model worse by the margin passes more than once in ten (docs/results.md)
RESAMPLES = 4000
BLOCK = 1 << 20  # counts drawn at once

Outcome = Literal["better", "worse", "cannot tell"]
BETTER, WORSE, UNCLEAR = "better", "worse", "cannot tell"
ONLY_FUSED = "better only with first-stage scores"
BASELINES = {"first_stage": "the first stage", "base": "the base model"}
MODES = {"alone": "the model alone", "fused": "the model with first-stage scores"}
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Finding(NamedTuple):
    """The result of one mode against one baseline, in the first metric; the field names are keys of results.json."""

    judged: Outcome
    against: str  # name of the baseline
    difference: float  # mean over dev queries, corrected for the optimism of the choice
    low: float  # lower end of its one-sided interval


GUARD_METRIC = "nDCG@10"  # whatever metric chooses the checkpoint, so that `max_guard_drop` has one meaning
KEPT, LOST = "kept", "lost"


class GuardFinding(NamedTuple):
    """The result on one guard set; the field names are keys of results.json, the values are means of nDCG@10."""

    set: str
    queries: int
    first_stage: float
    before: float  # of the model before training
    after: float  # of the exported model
    loss: float
    low: float  # lower end of the one-sided interval of the loss
    high: float  # upper end of the one-sided interval of the loss
    allowed: float
    judged: Literal["kept", "lost", "cannot tell"]

    @property
    def sentence(self) -> str:
        """The result in words."""
        change = f"loses {self.loss:.4f}" if self.loss > 0 else f"gains {-self.loss:.4f}"
        upper = f"{100 * LEVEL:.0f} % upper bound {self.high:+.4f}"
        limit = f"{self.allowed:g} (evaluate.max_guard_drop)"
        ending = {
            LOST: f"clearly more than {limit}: {100 * LEVEL:.0f} % lower bound {self.low:+.4f}",
            KEPT: f"and a loss of more than {limit} is ruled out: {upper}",
            UNCLEAR: f"and a loss of more than {limit} is not ruled out: {upper}",
        }[self.judged]
        return f"on the guard set {self.set} the model {change} {GUARD_METRIC} over {self.queries} queries, {ending}"


def best_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the index of the best mean (resamples,) of values (alternatives, queries); ties go to the first one."""
    return np.argmax(counts @ values.T, axis=1)


@dataclass(frozen=True)
class DevChoice:
    """The choice on dev in one mode: `values` (alternatives, queries), the chosen index, and the selection rule.

    `choose` takes values (alternatives, queries) and counts (resamples, queries), and returns indices (resamples,).
    """

    values: np.ndarray
    chosen: int = 0
    choose: Rule = best_mean


def weakest_finding(choice: DevChoice, baselines: Mapping[str, np.ndarray], seed: int) -> Finding:
    """Return the finding against the hardest of the baselines, given as {name: (queries,) values}."""
    queries = choice.values.shape[1]
    findings = [compare(choice, name, values, resamples(queries, seed)) for name, values in baselines.items()]
    order: list[Outcome] = [WORSE, UNCLEAR, BETTER]
    return min(findings, key=lambda finding: (order.index(finding.judged), finding.low))


def compare(
    choice: DevChoice, against: str, baseline: np.ndarray, counts: Iterable[np.ndarray], level: float = LEVEL
) -> Finding:
    """Compare one mode with one baseline's values (queries,); `counts` are blocks of (resamples, queries)."""
    gains = choice.values - baseline
    means = gains.mean(axis=1)
    errors, optimism = [], []
    for block in counts:
        error = block @ gains.T / gains.shape[1] - means
        chosen = np.take_along_axis(error, choice.choose(choice.values, block)[:, None], axis=1)[:, 0]
        errors.append(chosen)
        # The error of the alternative chosen on the full dev set has mean 0; subtracting it reduces the variance.
        optimism.append(chosen - error[:, choice.chosen])
    difference = float(means[choice.chosen] - max(0.0, np.concatenate(optimism).mean()))
    most = np.quantile(np.concatenate(errors), level) * _small_sample_factor(gains.shape[1], level)
    low = float(means[choice.chosen] - most) if gains.shape[1] > 1 else -1.0  # a single query gives no interval
    return Finding(outcome_of(difference, low), against, difference, low)


def outcome_of(difference: float, low: float) -> Outcome:
    """Return the outcome for a difference and the lower end of its interval.

    Better: above 0, and a loss of .01 is ruled out. Worse: not above 0.
    """
    if difference <= 0:
        return WORSE
    return BETTER if low > -MARGIN else UNCLEAR


def _small_sample_factor(queries: int, level: float) -> float:
    """Return the factor by which the bootstrap's interval is too narrow for few queries (Hesterberg 2015, section 5.3).

    The bootstrap ignores that the standard deviation is estimated (Student's t) and that the standard deviation of a
    sample is biased downwards.
    """
    freedom = max(1, queries - 1)
    return float(stdtrit(freedom, level) / ndtri(level) * math.sqrt(queries / freedom))


def resamples(queries: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (resamples, queries) of the number of times that each query is drawn."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // queries)
    for start in range(0, RESAMPLES, rows):
        yield rng.multinomial(queries, np.full(queries, 1 / queries), size=min(rows, RESAMPLES - start)).astype(float)


@dataclass(frozen=True, kw_only=True)
class Release:
    """The verdict on the exported model: its system, the finding in each mode, and the first stage's weight."""

    verdict: str = ""
    shipped: str = "tuned"
    findings: dict[str, Finding] = field(default_factory=dict)  # by mode
    first_stage_weight: float = 0.0
    guard: tuple[GuardFinding, ...] = ()
    trained: bool = True  # False with train.epochs: 0

    @property
    def sentence(self) -> str:
        """The verdict with the dev differences that it is based on, and with guard sets that may have lost."""
        differences = [
            f"{MODES[mode]} {finding.difference:+.4f} against {BASELINES[finding.against]} "
            f"({100 * LEVEL:.0f} % lower bound {finding.low:+.4f})"
            for mode, finding in self.findings.items()
        ]
        lost = "".join(f"; {finding.sentence}" for finding in self.guard if finding.judged != KEPT)
        untrained = "" if self.trained else "; training did not run"
        return f"{self.verdict}: on dev, {', '.join(differences)}{untrained}{lost}"


def verdict_of(alone: Finding, fused: Finding) -> str:
    """Return the verdict on a model from its findings in both modes."""
    if alone.judged == BETTER:
        return BETTER
    if fused.judged == BETTER:
        return ONLY_FUSED
    return WORSE if alone.judged == fused.judged == WORSE else UNCLEAR


def passes(verdict: str) -> bool:
    """Return whether a model with this verdict may be pushed without `--force`."""
    return verdict in (BETTER, ONLY_FUSED)


def advice(verdict: str, lost_guard: bool = False) -> str:
    """Return the next step for a model that does not pass the gate; `lost_guard`: because of a guard set."""
    if lost_guard:
        return (
            "so the model is not exported; lower train.learning_rate or train.epochs, freeze layers "
            "(train.frozen_layers), allow more with evaluate.max_guard_drop, or export it anyway with --force"
        )
    if verdict == WORSE:
        return (
            "so the model is not exported; look at mine/report.md, try more or better judgements or another base "
            "model, or export it anyway with --force"
        )
    return (
        "so the model is exported to the run folder with this verdict in its card, but not pushed; judge more dev "
        "queries for a clear verdict, or push it anyway with --force"
    )
