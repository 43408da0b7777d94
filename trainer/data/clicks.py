"""Click logs as graded labels: clicks divided by the number of times that people looked at the document's place.

The model is the position-based one: a click needs that the user looks at the position, which depends on the position
alone (its propensity), and that the document attracts a click, which depends on query and document alone. Propensities
are given, or estimated from documents that were shown at several positions for the same query (Agarwal et al.,
Estimating Position Bias without Intrusive Interventions, WSDM 2019; Wang et al., Position Bias Estimation for Unbiased
Learning to Rank, WSDM 2018). Clicks over expected looks are the maximum likelihood estimate of the attraction if clicks
are rare (Zhang and Jones, Comparing Click Logs and Editorial Labels, WWW 2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

ROUNDS, TOLERANCE = 1000, 1e-7  # of the estimate
FEWEST_CLICKS = 20  # at a position, on documents shown at other positions too; else its propensity is extrapolated
LOWEST = 0.01  # propensity; without a limit few clicks far down would weigh the most
USUAL_POWER = 1.0  # of 1 / position, where nothing can be estimated (Joachims et al., WSDM 2017)
PRIOR = 2.0  # looks with the mean rate of clicks that are added to each pair
GRADES = 4  # 0 to 3: quarters of the query's most attractive document


class Shown(NamedTuple):
    """A document that was shown for a query; position 0 is unknown."""

    query: str
    document: str
    position: int


@dataclass
class ClickLog:
    """Impressions and clicks by query, document and position; repeated rows are added up."""

    counts: dict[Shown, list[int]] = field(default_factory=dict)

    def add(self, shown: Shown, impressions: int, clicks: int) -> None:
        """Add a row of the log."""
        known = self.counts.setdefault(shown, [0, 0])
        known[0] += impressions
        known[1] += clicks


class Propensities(NamedTuple):
    """The chance that people look at each position (from 1), relative to the first, and how it is known."""

    by_position: dict[int, float]
    origin: str

    def of(self, position: int) -> float:
        """Return the propensity of a position; 1 if the log has no positions."""
        return self.by_position.get(position, 1.0)


@dataclass(frozen=True)
class Clicked:
    """The labels of a log, {query id: {document id: grade}}, and what was done for the report."""

    grades: dict[str, dict[str, int]]
    record: dict[str, Any]

    @property
    def note(self) -> str:
        """What was done, in a sentence."""
        counts = self.record
        return (
            f"click log: {counts['clicks']:,} clicks on {counts['impressions']:,} impressions of {counts['pairs']:,} "
            f"pairs became {counts['labels']:,} labels ({counts['positives']:,} above 0); {counts['thin']:,} pairs "
            f"have too little evidence (data.clicks_evidence); propensities: {counts['propensities']}"
        )


def labels(log: ClickLog, given: str | float | Sequence[float], evidence: float) -> Clicked:
    """Return the labels of the pairs that were looked at `evidence` times or more, impressions times propensity.

    `given` are the propensities: estimate, the power of 1 / position, or one number for each position from 1 on.
    """
    known = propensities(log, given)
    pairs: dict[tuple[str, str], list[float]] = {}
    for (query, document, position), (impressions, clicks) in log.counts.items():
        pair = pairs.setdefault((query, document), [0.0, 0.0])
        pair[0] += impressions * known.of(position)
        pair[1] += clicks
    rates = _rates(pairs)
    kept: dict[str, dict[str, float]] = {}
    for (query, document), (looks, clicks) in pairs.items():
        if looks >= evidence:
            kept.setdefault(query, {})[document] = rates[query, document] if clicks else 0.0
    grades = {query: _grades(attraction) for query, attraction in kept.items()}
    impressions, clicks = (sum(counts[place] for counts in log.counts.values()) for place in (0, 1))
    every = [grade for own in grades.values() for grade in own.values()]
    return Clicked(
        grades,
        {
            "impressions": impressions,
            "clicks": clicks,
            "pairs": len(pairs),
            "thin": len(pairs) - len(every),
            "labels": len(every),
            "positives": sum(grade > 0 for grade in every),
            "propensities": known.origin,
            "by_position": {str(place): round(value, 4) for place, value in sorted(known.by_position.items())},
        },
    )


def propensities(log: ClickLog, given: str | float | Sequence[float]) -> Propensities:
    """Return the propensity of each position of the log."""
    places = sorted({shown.position for shown in log.counts} - {0})
    if not places:
        return Propensities({}, "none, because the log has no positions: clicks by impressions are not corrected")
    if isinstance(given, str):
        return _estimated(log, places)
    if isinstance(given, int | float):
        return Propensities({place: _power(place, given) for place in places}, f"1 / position ^ {given:g} (given)")
    return Propensities({place: max(LOWEST, given[place - 1]) for place in places}, "given for each position")


def _power(place: int, power: float) -> float:
    return max(LOWEST, place**-power)


def _estimated(log: ClickLog, places: Sequence[int]) -> Propensities:
    """Return propensities from documents that were shown at several positions for the same query.

    Positions with too few clicks on such documents get the power law that fits the others best.
    """
    estimate = _fit(log)
    if len(estimate) < 2:
        return Propensities(
            {place: _power(place, USUAL_POWER) for place in places},
            "1 / position, because too few documents were shown at several positions for a query",
        )
    first = min(estimate)
    distances = np.log(np.array(list(estimate)) / first)
    power = -float(distances @ np.log(np.array(list(estimate.values())) / estimate[first]) / (distances @ distances))
    scale = estimate[first] / _power(first, power)
    known = {place: estimate[place] if place in estimate else scale * place**-power for place in places}
    top = known[places[0]]
    known = {place: max(LOWEST, value / top) for place, value in known.items()}
    others = len(places) - len(estimate)
    rest = f", {others} extrapolated with 1 / position ^ {power:.2f}" if others else ""
    return Propensities(known, f"estimated for {len(estimate)} positions{rest}")


def _fit(log: ClickLog) -> dict[int, float]:
    """Return the propensities that fit best, by position, with the largest number of clicks in one connected part.

    Clicks have the mean impressions x propensity x attraction; the two are fitted in turn until nothing changes. Only
    documents at several positions tell anything about the propensities, and only of positions that these connect.
    """
    positions: dict[tuple[str, ...], set[int]] = {}
    for shown in log.counts:
        if shown.position:
            positions.setdefault(shown[:2], set()).add(shown.position)
    rows = [
        (shown, impressions, clicks)
        for shown, (impressions, clicks) in log.counts.items()
        if len(positions.get(shown[:2], ())) > 1
    ]
    enough = _clicks_by_position(rows)
    rows = [row for row in rows if enough[row[0].position] >= FEWEST_CLICKS]
    rows = _connected(rows)
    if not rows:
        return {}
    pair_of = {key: row for row, key in enumerate(dict.fromkeys(shown[:2] for shown, _, _ in rows))}
    place_of = {key: row for row, key in enumerate(dict.fromkeys(shown.position for shown, _, _ in rows))}
    pair = np.array([pair_of[shown[:2]] for shown, _, _ in rows])
    place = np.array([place_of[shown.position] for shown, _, _ in rows])
    impressions, clicks = (np.array([row[column] for row in rows], dtype=np.float64) for column in (1, 2))
    known = np.ones(len(place_of))
    at_place = np.bincount(place, clicks)
    for _ in range(ROUNDS):
        attraction = np.bincount(pair, clicks) / np.bincount(pair, impressions * known[place])
        before, known = known, at_place / np.bincount(place, impressions * attraction[pair])
        known /= known.max()
        if np.abs(np.log(known / before)).max() < TOLERANCE:
            break
    return {position: float(known[row]) for position, row in place_of.items()}


def _clicks_by_position(rows: Sequence[tuple[Shown, int, int]]) -> Mapping[int, int]:
    counts: dict[int, int] = {}
    for shown, _, clicks in rows:
        counts[shown.position] = counts.get(shown.position, 0) + clicks
    return counts


def _connected(rows: list[tuple[Shown, int, int]]) -> list[tuple[Shown, int, int]]:
    """Return the rows of clicked pairs whose positions are connected by such pairs, for the part with most clicks."""
    from scipy.sparse import coo_matrix  # only for click logs, and slow to import
    from scipy.sparse.csgraph import connected_components

    clicked = {shown[:2] for shown, _, clicks in rows if clicks}
    by_pair: dict[tuple[str, ...], list[int]] = {}
    for shown, _, _ in rows:
        if shown[:2] in clicked:
            by_pair.setdefault(shown[:2], []).append(shown.position)
    places = {position: place for place, position in enumerate(sorted(set().union(*by_pair.values())))}
    edges = [(places[first], places[other]) for first, *others in by_pair.values() for other in others]
    if not edges:
        return []
    starts, ends = np.array(edges).T
    links = coo_matrix((np.ones(len(edges)), (starts, ends)), shape=(len(places), len(places)))
    _, parts = connected_components(links, directed=False)
    clicks = _clicks_by_position(rows)
    weights = np.bincount(parts, [clicks[position] for position in places])
    best = weights.argmax()
    return [row for row in rows if row[0][:2] in clicked and parts[places[row[0].position]] == best]


def _rates(pairs: Mapping[tuple[str, str], Sequence[float]]) -> dict[tuple[str, str], float]:
    """Return the rate of clicks by looks, drawn towards the mean where looks are few."""
    looks, clicks = (sum(pair[place] for pair in pairs.values()) for place in (0, 1))
    mean = clicks / looks if looks else 0.0
    return {name: (own + PRIOR * mean) / (seen + PRIOR) for name, (seen, own) in pairs.items()}


def _grades(attraction: Mapping[str, float]) -> dict[str, int]:
    """Return grades 0 to 3, in quarters of the query's most attractive document; 0 for those without a click."""
    best = max(attraction.values())
    return {
        document: min(GRADES - 1, int(GRADES * rate / best)) if best else 0 for document, rate in attraction.items()
    }
