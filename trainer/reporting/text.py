"""`report.md`: the report for terminals and code hosts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.evaluation.results import shown_p
from trainer.reporting import probabilities
from trainer.reporting.charts import sign
from trainer.reporting.depths import corpus_cost
from trainer.reporting.facts import Facts, worst_first
from trainer.reporting.made_queries import made_queries
from trainer.reporting.meanings import meaning_of
from trainer.reporting.queries import REMEDIES
from trainer.reporting.robustness import sections
from trainer.runtime.console import markdown

SHOWN = 10  # largest losses, largest wins, and likely false negatives


def markdown_report(facts: Facts) -> str:
    """Return the report as Markdown, with the collection's texts escaped."""
    parts = [
        f"# {markdown(facts.name)}: {facts.word}",
        facts.sentence,
        *(f"**!** {warning}" for warning in facts.warnings),
        *_results(facts),
        *_some_runs(facts),
        *_queries(facts),
        *_depth(facts),
        *_calibration(facts),
        *_clicks(facts),
        *_generated(facts),
        *_mining(facts),
        *_training(facts),
        *_origin(facts),
        "## Glossary",
        *(f"- {metric}: {meaning_of(metric)}" for metric in facts.results["systems"]["first_stage"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _results(facts: Facts) -> list[str]:
    metrics = list(facts.results["systems"]["first_stage"])
    rows = []
    for row in facts.rows:
        gain = f"{sign(row.gain.mean)} [{sign(row.gain.low)}, {sign(row.gain.high)}]" if row.gain else "–"
        values = [f"{row.values[metric].mean:.3f}" for metric in metrics]
        changes = f"{row.wins} / {row.unchanged} / {row.losses}" if row.gain else "–"
        p = "–" if row.p is None else shown_p(row.p)
        label = f"**{row.label}** (exported)" if row.shipped else row.label
        rows.append([label, *values, gain, p, changes, f"{row.judged:.0%}"])
    difference, changes = f"difference in {facts.metric} [95 % interval]", "better / same / worse"
    columns = ["system", *metrics, difference, "p", changes, "judged@10"]
    title = (
        f"{facts.results['queries']} queries, the first {facts.results['depth']} candidates of each reranked. "
        "Differences are to the first stage; better / same / worse counts queries; p is adjusted for all "
        f"{len(facts.comparisons)} comparisons by {facts.metric} (Holm)."
    )
    parts = ["## Results", title, _table(columns, rows)]
    if facts.detectable:
        parts.append(
            f"With these queries, differences of {facts.detectable:.3f} {facts.metric} or more to the first stage can "
            "be detected (power 80 %; from the measured spread)."
        )
    return [*parts, *_of_judged(facts)]


def _of_judged(facts: Facts) -> list[str]:
    """Return the table of measures of judged documents alone; empty if nothing is judged not relevant."""
    if not facts.of_judged:
        return []
    rows = [
        [facts.label(system), *(f"{value:.3f}" for value in measures.values())]
        for system, measures in facts.of_judged.items()
    ]
    return ["### Judged documents alone", _table(["system", *next(iter(facts.of_judged.values()))], rows)]


def _some_runs(facts: Facts) -> list[str]:
    parts = []
    for section in sections(facts):
        rows = [[markdown(name), *others] for name, *others in section.rows]
        parts += [f"## {section.title}", section.text, _table(section.columns, rows)]
    return parts


def _queries(facts: Facts) -> list[str]:
    parts = []
    for kind, title in (("lost", "Largest losses"), ("won", "Largest wins")):
        records = worst_first(facts, kind, SHOWN)
        documents = facts.documents_of({record["id"] for record in records})
        rows = [_query_row(facts, record, documents[record["id"]]) for record in records]
        columns = ["query", "difference", "rank of the first relevant document before", "after", "top document"]
        parts += [f"## {title}", _table(columns, rows) if rows else "None."]
    causes = [f"- {cause}: {count}; {REMEDIES[cause]}" for cause, count in sorted(facts.causes.items())]
    parts += ["## Queries without a relevant document at the top", "\n".join(causes) or "None."]
    return [*parts, "All queries with their documents: `evaluate/queries.jsonl`."]


def _query_row(facts: Facts, record: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> list[object]:
    ranks = [record["first_relevant"][system] or "–" for system in ("first_stage", facts.shipped)]
    top = documents[0]["text"] if documents else ""
    return [markdown(record["text"][:120]), sign(facts.gain_of(record)), *ranks, markdown(top[:80])]


def _depth(facts: Facts) -> list[str]:
    curve = facts.depth_curve
    times = {row["depth"]: row for row in (facts.latency or {}).get("by_depth", [])}
    rows = []
    for depth, *values in zip(curve["depths"], *curve["systems"].values(), strict=True):
        took = times.get(depth)
        measured = ["–", "–", "–"]
        if took:
            measured = [f"{took['p50_ms']:.0f}", f"{took['p95_ms']:.0f}", f"{took['pairs_per_second']:.0f}"]
        rows.append([depth, *(f"{value:.3f}" for value in values), *measured])
    columns = ["candidates", *(facts.label(system) for system in curve["systems"]), "median ms", "p95 ms", "pairs/s"]
    parts = [
        "## Depth and cost",
        _table(columns, rows),
        f"{curve['recommended']} candidates are enough: more are not significantly better.",
    ]
    if not facts.latency:
        return parts
    if cost := corpus_cost(facts.latency):
        documents, seconds, times = cost
        parts.append(
            f"Scoring all {documents:,} documents of the corpus instead would take about {seconds:,.1f} s per query, "
            f"{times:,.0f} times as long as {facts.latency['by_depth'][-1]['depth']} candidates."
        )
    return [*parts, f"Measured on: {facts.latency['machine']}."]


def _calibration(facts: Facts) -> list[str]:
    calibration = facts.calibration
    if not calibration:
        return []
    parts = ["## Calibration", calibration["sentence"][:1].upper() + calibration["sentence"][1:] + "."]
    if calibration.get("grades"):
        parts += [
            _table(probabilities.QUALITY, probabilities.quality_rows(calibration)),
            _table(probabilities.THRESHOLD, probabilities.threshold_rows(calibration)),
            _table(
                ["mean probability", "share judged relevant", "95 % interval", "pairs"],
                probabilities.bin_rows(calibration),
            ),
        ]
    return parts


def _clicks(facts: Facts) -> list[str]:
    clicks = facts.clicks
    if not clicks:
        return []
    places = [[place, f"{value:.3f}"] for place, value in clicks["by_position"].items()]
    note = f"{clicks['note'][0].upper()}{clicks['note'][1:]}."
    return ["## Labels from clicks", note, *([_table(["position", "propensity"], places)] if places else [])]


def _generated(facts: Facts) -> list[str]:
    made = made_queries(facts)
    if not made:
        return []
    kept = ", ".join(f"{count} for {split}" for split, count in made["kept"].items())
    dropped = [
        [reason, one["count"], *(markdown(one["examples"][0][key][:100]) for key in ("query", "document_id"))]
        for reason, one in made["dropped"].items()
    ]
    examples = [[markdown(one[key][:100]) for key in ("query", "kind", "document_id")] for one in made["examples"]]
    sources = f"{made['answered']} of {made['documents']} documents"
    return [
        "## Queries made from documents",
        f"{kept}: {markdown(made['origin'])} {sources}.",
        _table(["query", "kind", "document"], examples),
        *([_table(["reason for being dropped", "queries", "example", "document"], dropped)] if dropped else []),
    ]


def _mining(facts: Facts) -> list[str]:
    likely, total = facts.likely_false_negatives
    filtered = [[name, count] for name, count in facts.mined.get("passed_over", {}).items()]
    parts = ["## Mining", _table(["reason for not being a negative", "candidates"], filtered)] if filtered else []
    if not likely:
        return parts
    rows = [
        [markdown(str(one.get("query"))[:100]), markdown(str(one.get("document"))[:120]), markdown(str(one.get("why")))]
        for one in likely[:SHOWN]
    ]
    title = f"## Likely false negatives ({total})"
    return [*parts, title, _table(["query", "document", "reason"], rows), "Judge them: `reranker review RECIPE`."]


def _origin(facts: Facts) -> list[str]:
    """Return the finished stages, the versions of packages, and the recipe with all defaults as a code block."""
    rows = [
        [stage, "" if predicted is None else f"{predicted:.0f}", f"{seconds:.0f}", markdown(message)]
        for stage, predicted, seconds, message in facts.stages
    ]
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    recipe = json.dumps(facts.recipe, indent=2).replace("\n", "\n    ")
    parts = [_table(["stage", "predicted seconds", "seconds", "result"], rows)] if rows else []
    return ["## Recipe and versions", *parts, *([versions] if versions else []), f"    {recipe}"]


def _training(facts: Facts) -> list[str]:
    dev, _ = facts.curves
    parts = []
    if dev:
        rows = [[f"{step:.0f}", f"{score:.4f}"] for step, score in dev]
        parts += ["## Training", _table(["step", f"dev {facts.metric}"], rows)]
    if facts.interpolation:
        rows = [[f"{share:.0%}", f"{score:.4f}"] for share, score in facts.interpolation]
        parts.append(_table(["share of the trained weights", f"dev {facts.metric}"], rows))
    return parts
