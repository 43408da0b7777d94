"""The content of a report, read from the files of a run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.evaluation.gate import made_warning
from trainer.evaluation.holes import JudgedResults
from trainer.evaluation.results import JUDGED, adjusted, detectable_of
from trainer.evaluation.statistics import Interval, bootstrap
from trainer.forecast import read_predicted
from trainer.mining.likely_false_negatives import FILE as LIKELY_FALSE_NEGATIVES
from trainer.reporting.charts import sign
from trainer.reporting.depths import FILE as DEPTHS
from trainer.reporting.json_lines import are_numbers, json_lines
from trainer.reporting.probabilities import read_calibration
from trainer.reporting.queries import NOT_RETRIEVED, TOP, main_metric, read_queries, shipped_system
from trainer.reporting.rows import NAMES, Row, kind_of
from trainer.runtime.run_folder import read_json, read_record

MOST_SHOWN = 50  # likely false negatives in a report
FEW_QUERIES = 50  # below this number a difference of means says little
MORE_UNJUDGED = 0.02  # increase of the share of unjudged documents over the first stage that is a warning
WORDS = {
    "better": "Better",
    "better only with first-stage scores": "Better only with the first stage’s scores",
    "cannot tell": "Cannot tell",
    "worse": "Worse",
}


class Facts:
    """The facts of a finished evaluation and the stages before it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.evaluate = run / "evaluate"
        if not (self.evaluate / "results.json").is_file():
            raise RunError(
                f"{run}: has no finished evaluation; run the recipe first (reranker run RECIPE --until evaluate)"
            )
        self.results: dict[str, Any] = read_json(self.evaluate / "results.json")
        done = sorted(run.glob("*/done.json"), key=lambda path: path.stat().st_mtime_ns)
        # A name with a dot is that of a stage moved aside; the export comes after the report.
        stages = {path.parent.name: path for path in done}
        stages = {name: path for name, path in stages.items() if "." not in name and name != "export"}
        self.notes = {stage: notes for stage, path in stages.items() if (notes := read_record(path))}
        # Documents are most of a record; `documents_of` reads those that are shown.
        records = ({key: record[key] for key in record if key != "documents"} for record in read_queries(self.evaluate))
        self.queries = sorted(records, key=lambda record: (self.gain_of(record), record["id"]))

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the evaluation."""
        return read_record(self.evaluate / "recipe.json") or {}

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.recipe.get("name") or self.run.name)

    @property
    def date(self) -> str:
        """Date and time of the evaluation in UTC."""
        finished = (self.evaluate / "results.json").stat().st_mtime
        return datetime.fromtimestamp(finished, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

    @property
    def data(self) -> str:
        """The first characters of the data's fingerprint, equal for two runs on the same data."""
        return str(self.notes.get("data", {}).get("fingerprint", ""))[:8]

    @property
    def clicks(self) -> dict[str, Any]:
        """What became of the click log; empty without one."""
        return self.notes.get("data", {}).get("clicks") or {}

    @property
    def metric(self) -> str:
        """The metric that chose the checkpoint."""
        return main_metric(self.results)

    @property
    def shipped(self) -> str:
        """Name of the exported system."""
        return shipped_system(self.results)

    def label(self, system: str) -> str:
        """Return a system's name."""
        if system == "fused":
            return f"{self.label(self.shipped)} + first stage"
        return NAMES.get(system, (system, ""))[0]

    def gain_of(self, record: Mapping[str, Any]) -> float:
        """Return the exported model's value for one query less the first stage's."""
        return record["scores"][self.shipped] - record["scores"]["first_stage"]

    def documents_of(self, identities: Container[str]) -> dict[str, list[dict[str, Any]]]:
        """Return {query id: documents} of the queries with these ids."""
        records = read_queries(self.evaluate)
        return {record["id"]: record["documents"] for record in records if record["id"] in identities}

    @cached_property
    def kinds(self) -> Counter[str]:
        """Numbers of queries that are won, lost and the same."""
        return Counter(kind_of(self.gain_of(record)) for record in self.queries)

    @cached_property
    def causes(self) -> Counter[str]:
        """Numbers of queries without a relevant document at the top, by cause."""
        return Counter(record["cause"] for record in self.queries if record["cause"])

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table, in the order of results.json."""
        return [self._row(system) for system in self.results["systems"]]

    def _row(self, system: str) -> Row:
        values = {
            metric: Interval(v["mean"], v["low"], v["high"]) for metric, v in self.results["systems"][system].items()
        }
        compared = system not in ("first_stage", "ceiling") and system in self.queries[0]["scores"]
        gains = [one["scores"][system] - one["scores"]["first_stage"] for one in self.queries] if compared else []
        kinds = Counter(map(kind_of, gains))
        p = [
            row["p_adjusted"] for row in self.comparisons if (row["system"], row["against"]) == (system, "first_stage")
        ]
        return Row(
            system,
            self.label(system),
            NAMES.get(system, ("", ""))[1],
            values,
            bootstrap(gains, self.seed) if gains else None,
            p[0] if p else None,
            kinds["won"],
            kinds["lost"],
            kinds["same"],
            self.judged(system),
            system == self.shipped,
        )

    @cached_property
    def comparisons(self) -> list[dict[str, Any]]:
        """The comparisons by the main metric, with adjusted p-values."""
        return [row for row in adjusted(self.results["comparisons"]) if row["metric"] == self.metric]

    @property
    def detectable(self) -> float | None:
        """The smallest difference of the exported model to the first stage that can be detected; None if unknown."""
        return detectable_of(self.comparisons, self.shipped)

    @property
    def seed(self) -> int:
        """Seed of the intervals."""
        return seed_of(self.recipe)

    def judged(self, system: str) -> float:
        """Return the share of the documents in a system's top 10 that have a judgement, on average over the queries."""
        tops = [(record["unjudged"].get(system, 0), min(TOP, record["candidates"])) for record in self.queries]
        return sum(1 - unjudged / top for unjudged, top in tops if top) / max(1, len(tops))

    @property
    def of_judged(self) -> dict[str, dict[str, float]]:
        """Means of the measures of judged documents alone, {system: {measure: mean}}; empty if there are none."""
        return {
            system: others
            for system, measures in self.results.get("judged", {}).items()
            if (others := {name: one["mean"] for name, one in measures.items() if name != JUDGED})
        }

    @cached_property
    def shipped_row(self) -> Row:
        """The row of the exported model."""
        return next(row for row in self.rows if row.shipped)

    @property
    def word(self) -> str:
        """The verdict in one or two words; for runs without a verdict, one from the interval on test."""
        if verdict := self.results.get("verdict"):
            return WORDS.get(verdict, str(verdict))
        if len(self.queries) < FEW_QUERIES:
            return "Cannot tell"
        return {"gain": "Better", "loss": "Worse", "same": "No clear difference"}[self.shipped_row.direction]

    @property
    def sentence(self) -> str:
        """The test figures in a sentence."""
        row, first = self.shipped_row, next(row for row in self.rows if row.system == "first_stage")
        gain = row.gain or Interval(0.0, 0.0, 0.0)
        count, before, after = len(self.queries), first.values[self.metric].mean, row.values[self.metric].mean
        return (
            f"{self.metric} {before:.3f} → {after:.3f}, {sign(gain.mean)} (95 % interval {sign(gain.low)} to "
            f"{sign(gain.high)}) over {count} test {plural(count, 'query')}: {self.kinds['won']} better, "
            f"{self.kinds['same']} the same, {self.kinds['lost']} worse."
        )

    @property
    def gate_sentence(self) -> str:
        """The verdict of the release gate in a sentence; empty for runs without one."""
        return str(self.notes.get("evaluate", {}).get("judged") or "")

    @property
    def warnings(self) -> list[str]:
        """Warnings, each with the fact, the consequence and the remedy."""
        count, made = len(self.queries), made_warning(self.results.get("made", ()))
        warnings = [f"{made[0].upper()}{made[1:]}."] if made else []
        if not self.results.get("trained", True):
            warnings.append("Training did not run (train.epochs: 0): the model before training was evaluated.")
        elif "tuned" not in self.results["systems"]:
            warnings.append(
                "Training did not help: the model before training was the best one on dev, so that one is used. Look "
                "at the labels of the train queries."
            )
        if count < FEW_QUERIES:
            warnings.append(
                f"{count} test {plural(count, 'query')} are too few for reliable figures. Judge more, at least 100."
            )
        if missing := self.causes[NOT_RETRIEVED]:
            warnings.append(
                f"For {missing} of {count} queries no relevant document is among the reranked candidates, so no "
                "reranker can help them. Rerank more candidates, or improve the first stage."
            )
        before, after = (1 - self.judged(system) for system in ("first_stage", self.shipped))
        if after - before > MORE_UNJUDGED:
            warnings.append(
                f"{100 * after:.0f} % of the documents in the model’s top 10 have no judgement and count as not "
                f"relevant (first stage: {100 * before:.0f} %), so the model’s figures may be too low. Look at the "
                "queries with the cause “probably unlabelled”."
            )
        return warnings

    @cached_property
    def depth_curve(self) -> dict[str, Any]:
        """Quality by depth (depths.json)."""
        return read_json(self.evaluate / DEPTHS)

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """The calibration measured on test (calibration_test.json); empty if there is none."""
        return read_calibration(self.evaluate)

    @property
    def latency(self) -> dict[str, Any] | None:
        """Latency by depth on the machine of the evaluation; None if it was not measured."""
        return self.notes.get("evaluate", {}).get("latency")

    @property
    def training(self) -> str:
        """Folder name of the last training stage; with several seeds, of the one whose model is used."""
        return self.notes.get("evaluate", {}).get("training") or ("train-2" if "train-2" in self.notes else "train")

    @cached_property
    def curves(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Lists of (step, dev score) and of (step, loss) of the last training."""
        lines = list(json_lines(self.run / self.training / "metrics.jsonl"))
        return tuple(  # type: ignore[return-value]
            [(float(line["step"]), float(line[key])) for line in lines if are_numbers(line.get("step"), line.get(key))]
            for key in ("dev_score", "loss")
        )

    @property
    def interpolation(self) -> list[tuple[float, float]]:
        """List of (share of the trained weights, dev score); empty if interpolation was not tried."""
        return [(share, score) for share, score in self.notes.get(self.training, {}).get("interpolation") or []]

    @property
    def judged_holes(self) -> JudgedResults | None:
        """The results with a judge's grades of unjudged documents; None without a judge after this evaluation."""
        folder = self.run / "judge"
        done, evaluated = (path / "done.json" for path in (folder, self.evaluate))
        if "judge" not in self.notes or done.stat().st_mtime_ns < evaluated.stat().st_mtime_ns:
            return None
        return JudgedResults.load(folder)

    @property
    def agreements(self) -> list[tuple[str, dict[str, Any]]]:
        """The agreement of each teacher by endpoint with the human labels, by the name of its stage."""
        return [(stage, notes["agreement"]) for stage, notes in self.notes.items() if "agreement" in notes]

    @property
    def mining(self) -> Path:
        """Folder of the last mining stage."""
        return self.run / ("mine-2" if "mine-2" in self.notes else "mine")

    @cached_property
    def mined(self) -> dict[str, Any]:
        """The counts of the mining stage (report.json); empty if the file is missing."""
        return read_record(self.mining / "report.json") or {}

    @cached_property
    def likely_false_negatives(self) -> tuple[list[dict[str, Any]], int]:
        """The likeliest false negatives of the mining stage, and the number of all of them."""
        lines = json_lines(self.mining / LIKELY_FALSE_NEGATIVES)
        first = list(islice(lines, MOST_SHOWN))
        return first, len(first) + sum(1 for _ in lines)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that the evaluation used."""
        return self.notes.get("evaluate", {}).get("versions", {})

    @property
    def stages(self) -> list[tuple[str, float | None, float, str]]:
        """List of (stage, predicted seconds if there is a forecast, seconds, message) of the finished stages."""
        predicted = read_predicted(self.run)
        return [
            (stage, predicted.get(stage), notes.get("seconds", 0.0), notes.get("said", ""))
            for stage, notes in self.notes.items()
        ]


def seed_of(recipe: Mapping[str, Any]) -> int:
    """Return the seed of a recipe from a run folder, 0 if it has no valid one."""
    seed = recipe.get("seed")
    return seed if isinstance(seed, int) and seed >= 0 else 0


def plural(count: int, word: str) -> str:
    """Return the singular or plural of a word: query, queries."""
    return word if count == 1 else f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def worst_first(facts: Facts, kind: str, most: int) -> Sequence[dict[str, Any]]:
    """Return the queries that lost or won, the largest change first."""
    ordered = facts.queries if kind == "lost" else reversed(facts.queries)
    return list(islice((record for record in ordered if kind_of(facts.gain_of(record)) == kind), most))
