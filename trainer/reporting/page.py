"""`report.html`: one file that opens without a network and loads nothing else.

The template engine escapes the user's texts. The content security policy allows only the page's own style sheet and
script, by their hashes, so no text can become code.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from trainer.evaluation.results import shown_p
from trainer.reporting import probabilities
from trainer.reporting.charts import Axes, Difference, Series, forest, line_chart, sign, sorted_bars
from trainer.reporting.depths import corpus_cost
from trainer.reporting.facts import Facts, plural
from trainer.reporting.made_queries import made_queries
from trainer.reporting.meanings import meaning_of
from trainer.reporting.queries import LOW, NOT_RETRIEVED, REMEDIES, UNLABELLED, cut
from trainer.reporting.robustness import sections
from trainer.reporting.rows import NAMES, kind_of
from trainer.runtime.console import visible

FILES = Path(__file__).with_name("page")
BUDGET = 2_200_000  # most bytes of the queries and their documents in the page
MOST_ROWS = 1000  # queries in the page
QUERY_LETTERS = 240  # most characters of a query's text
LETTERS = 320  # most characters of a document's text
MARKUP = 900, 300  # bytes of HTML around the texts of a query and of a document
RANKS = 5  # documents shown from the top of each list
MOST_POINTS = 240  # points of a curve
CAUSES = {NOT_RETRIEVED: "missing", LOW: "low", UNLABELLED: "unlabelled"}


def render(facts: Facts) -> str:
    """Return the page as HTML."""
    style, script = (Markup((FILES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sign": sign, "visible": visible, "kind": kind_of, "cut": cut, "p_value": shown_p}
    rows, left_out = query_rows(facts)
    return environment.get_template("report.html").render(
        facts=facts,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        rows=rows,
        left_out=left_out,
        clicks=facts.clicks,
        made=made_queries(facts),
        causes=CAUSES,
        remedies=REMEDIES,
        cost=corpus_cost(facts.latency) if facts.latency else None,
        thresholds=probabilities.THRESHOLD,
        qualities=probabilities.QUALITY,
        names=NAMES,
        sections=sections(facts),
        plural=plural,
        charts=draw(facts),
        tables=tables(facts),
        meanings={metric: meaning_of(metric) for metric in facts.results["systems"]["first_stage"]},
        recipe=json.dumps(facts.recipe, indent=2, ensure_ascii=False),
    )


def tables(facts: Facts) -> dict[str, list[Any]]:
    """Return the values of the charts as rows of text."""
    curve = facts.depth_curve
    by_depth = zip(curve["depths"], *curve["systems"].values(), strict=True)
    return {
        "depth_columns": ["candidates", *(facts.label(system) for system in curve["systems"])],
        "depth": [[depth, *(f"{value:.3f}" for value in values)] for depth, *values in by_depth],
        "dev": [[f"{step:.0f}", f"{score:.4f}"] for step, score in facts.curves[0]],
        "shares": [[f"{share:.0%}", f"{score:.4f}"] for share, score in facts.interpolation],
        "bins": probabilities.bin_rows(facts.calibration),
        "grades": probabilities.quality_rows(facts.calibration),
        "thresholds": probabilities.threshold_rows(facts.calibration),
    }


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def query_rows(facts: Facts) -> tuple[list[dict[str, Any]], int]:
    """Return the queries of the page, largest loss first, and the number of queries left out.

    Documents are included for the largest losses and wins first, then for failures, then for the others, until the
    page's budget is used up.
    """
    changed = [record for record in facts.queries if facts.gain_of(record)]
    largest = sorted(changed, key=lambda record: -abs(facts.gain_of(record)))
    others = sorted((r for r in facts.queries if not facts.gain_of(r)), key=lambda record: record["cause"] is None)
    chosen = [*largest, *others][:MOST_ROWS]
    texts = {record["id"]: cut(record["text"], QUERY_LETTERS) for record in chosen}
    used, documents = sum(_size(text) + MARKUP[0] for text in texts.values()), {}
    listed = facts.documents_of(texts)
    for record in chosen:
        shown = _shown(listed[record["id"]])
        used += sum(_size(one["text"]) + MARKUP[1] for one in shown)
        if used > BUDGET:
            break
        documents[record["id"]] = shown
    rows = [
        {
            "record": record,
            "text": texts[record["id"]],
            "gain": facts.gain_of(record),
            "before": record["scores"]["first_stage"],
            "after": record["scores"][facts.shipped],
            "rank_before": record["first_relevant"]["first_stage"],
            "rank_after": record["first_relevant"][facts.shipped],
            "documents": documents.get(record["id"], []),
        }
        for record in facts.queries
        if record["id"] in texts
    ]
    return rows, len(facts.queries) - len(rows)


def _size(text: str) -> int:
    return len(escape(text).encode())


def _shown(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the documents of a query that the page shows, by final rank, with labels for their move and grade."""
    shown = [
        {**one, "text": cut(one["text"], LETTERS), "move": _move(one), "word": _grade(one)}
        for one in documents
        if one["relevant"] or min(one["after"] or 99, one["before"] or 99) <= RANKS
    ]
    return sorted(shown, key=lambda one: (one["after"] is None, one["after"] or 0))


def _move(document: Mapping[str, Any]) -> tuple[str, str]:
    """Return gain, loss or same, and the move from the first stage's rank as text."""
    before, after = document["before"], document["after"]
    if before is None or after is None:
        return "same", "not retrieved"
    if before == after:
        return "same", "= same"
    up = before - after
    return ("gain", f"▲ {up} (was {before})") if up > 0 else ("loss", f"▼ {-up} (was {before})")


def _grade(document: Mapping[str, Any]) -> str:
    if document["grade"] is None:
        return "unjudged"
    return f"relevant ({document['grade']})" if document["relevant"] else f"not relevant ({document['grade']})"


def draw(facts: Facts) -> dict[str, Markup]:
    """Return the charts that the run has values for, by name."""
    gains = [facts.gain_of(record) for record in facts.queries]
    differences = [Difference(row.label, *row.gain) for row in facts.rows if row.gain and row.system != "ceiling"]
    charts = {
        "differences": forest(differences, f"Difference to the first stage in {facts.metric}"),
        "bars": sorted_bars(gains, f"Change of {facts.metric} by query, from the largest loss to the largest gain"),
    }
    if len(facts.depth_curve["depths"]) > 1:
        charts["depth"] = _depth(facts)
    if facts.latency and len(facts.latency["by_depth"]) > 1:
        charts["latency"] = _latency(facts.latency["by_depth"])
    if facts.calibration.get("bins"):
        charts["reliability"] = probabilities.reliability_diagram(facts.calibration["bins"])
    dev, loss = facts.curves
    if len(dev) > 1:
        charts["dev"] = _dev(facts, dev)
    if len(loss) > 1:
        charts["loss"] = _loss(loss)
    if len(facts.interpolation) > 1:
        charts["interpolation"] = _interpolation(facts)
    return charts


def _depth(facts: Facts) -> Markup:
    curve = facts.depth_curve
    depths, shipped = curve["depths"], curve["system"]
    ends = (depths[0], depths[-1])
    series = [Series("first stage", [(k, curve["first_stage"]) for k in ends], "same dotted", markers=False)]
    for system, values in curve["systems"].items():
        points = list(zip(depths, values, strict=True))
        if system == shipped:
            band = [(k, low, high) for k, (low, high) in zip(depths, curve["intervals"], strict=True)]
            series.append(Series(facts.label(system).lower(), points, "gain", band=band))
        else:
            kind = "plain thin" if system == "ceiling" else "plain dashed"
            series.append(Series(facts.label(system).lower(), points, kind, markers=system != "ceiling"))
    ticks = [(float(k), str(k)) for k in depths]
    mark = (float(curve["recommended"]), f"enough: {curve['recommended']}")
    axes = Axes("candidates reranked", curve["metric"], ticks, log_x=True, mark=mark)
    return line_chart(series, axes, f"{curve['metric']} by the number of reranked candidates")


def _latency(by_depth: Sequence[Mapping[str, Any]]) -> Markup:
    series = [
        Series("p95", [(row["depth"], row["p95_ms"]) for row in by_depth], "plain dashed"),
        Series("median", [(row["depth"], row["p50_ms"]) for row in by_depth], "gain"),
    ]
    ticks = [(float(row["depth"]), str(row["depth"])) for row in by_depth]
    axes = Axes("candidates reranked", "ms per query", ticks, log_x=True, from_zero=True, decimals=0)
    return line_chart(series, axes, "Milliseconds per query by the number of reranked candidates", height=220)


def _dev(facts: Facts, dev: Sequence[tuple[float, float]]) -> Markup:
    step = facts.notes.get(facts.training, {}).get("best_step")
    mark = (float(step), f"best: step {step}") if step is not None and any(x == step for x, _ in dev) else None
    axes = Axes("optimizer steps", f"dev {facts.metric}", _step_ticks(dev), mark=mark, decimals=3)
    return line_chart([Series("dev", dev, "gain")], axes, f"dev {facts.metric} during training", height=240)


def _loss(loss: Sequence[tuple[float, float]]) -> Markup:
    size = -(-len(loss) // MOST_POINTS)  # neighbouring points are averaged if there are too many
    parts = [loss[start : start + size] for start in range(0, len(loss), size)]
    points = [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]
    axes = Axes("optimizer steps", "loss", _step_ticks(points))
    return line_chart([Series("loss", points, "same", markers=False)], axes, "Training loss", height=220)


def _interpolation(facts: Facts) -> Markup:
    points = facts.interpolation
    best = max(points, key=lambda point: (point[1], -point[0]))
    ticks = [(share, f"{share:.0%}") for share, _ in points]
    axes = Axes(
        "share of the trained weights", f"dev {facts.metric}", ticks, mark=(best[0], f"best: {best[0]:.0%}"), decimals=3
    )
    title = f"dev {facts.metric} between the model before training and the trained one"
    return line_chart([Series("dev", points, "gain")], axes, title, height=240)


def _step_ticks(points: Sequence[tuple[float, float]]) -> list[tuple[float, str]]:
    """Return about six of the steps, including the first and the last."""
    chosen = {round(part * (len(points) - 1) / 5) for part in range(6)}
    return [(points[index][0], f"{points[index][0]:.0f}") for index in sorted(chosen)]
