"""Export: write the model folder, and verify it with the libraries that will serve it."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import context, evaluation, export, model, training
from trainer.context import Notes, Run, Stage, settings
from trainer.data import SPLITS, EarlierSplits
from trainer.forecast import Cost, Work
from trainer.model_files import references
from trainer.model_files.licence import Licence
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import read_record

# Pairs are scored by the model, by transformers singly and padded, by sentence-transformers, and by both in two halves.
READINGS = 8
ODD = 1.8  # odd pairs are added to the real ones
GRAPH = 4.0  # seconds to write an ONNX graph, on the machine of the forecast's constants
PARITY_PAIRS = 48  # dev pairs on which exported formats are compared, including the first and the last


class Export(Stage):
    """Exports the best checkpoint in the standard layout, with its formats, model card and fusion weights."""

    name = "export"
    version = 9
    processes = "main"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the section's keys, and the recipe's name, which is in the model card."""
        return settings("export", recipe.export) | {"name": recipe.name}

    def run(self, run: Run, folder: Path) -> Notes:
        """Write every format, compare its scores with the trained model's, and keep the formats that pass."""
        trust = context.may_run_code(run, run.exported)
        reranker = model.Reranker.load(
            run.best(run.exported), head="trained", precision="fp32", trust_remote_code=trust
        )
        evaluated = run.folder / "evaluate"
        reranker.fusion = model.Fusion.load(evaluated)
        reranker.calibration = model.Calibration.load(evaluated)
        step = run.notes(run.exported)["best_step"]
        adapter = _verified_adapter(run, reranker, trust)
        calibrated = run.notes("evaluate")["calibrated"] if reranker.calibration is not None else ""
        judged = evaluation.JudgedResults.load(run.folder / "judge") if "judge" in run.records else None
        results, pairs = evaluation.Results.load(evaluated), _some_pairs(run)
        licence = Licence.of(references.locate(export.base_of(run.recipe), weights=False))
        history = export.History(step, calibrated, _mined(run), licence, judged)
        parity = export.export(reranker, run.recipe, results, pairs, folder, history, _dev_metric(run, results.shipped))
        if adapter is not None and run.recipe.export.adapter:
            shutil.copytree(adapter, folder / "model" / training.ADAPTER_FOLDER)
        _splits(run).save(folder / "model")
        line = f"{', '.join(dict.fromkeys([*parity.differences, *parity.formats]))} in {folder / 'model'}"
        return Notes(line, _notes_of(parity))

    def forecast(self, work: Work) -> Cost:
        """Return the cost of writing the formats, and of scoring pairs with every reader in every precision."""
        speed = work.student if work.recipe.distil else work.reranker
        weights, formats = work.weights(speed), 1 + len(work.recipe.export.formats)
        readings = READINGS + len(work.recipe.export.formats)
        cost = Cost(readings * (speed.load + PARITY_PAIRS * ODD * speed.exact), formats * weights)
        if "onnx-int8" in work.recipe.export.formats:
            cost += Cost(work.pairs("dev") * speed.exact)
        return cost + work.written(2 * formats * weights) + work.plain(GRAPH * len(work.recipe.export.formats))


def _notes_of(parity: export.Parity) -> dict[str, Any]:
    """Return what the stage records of an export."""
    return {
        "differences": parity.differences,
        "formats": {name: asdict(quality) for name, quality in parity.formats.items()},
        "left_out": parity.left_out,
        "loads_in": [found.name for found in parity.loaded if not found.reasons],
        "does_not_load_in": {found.name: list(found.reasons) for found in parity.loaded if found.reasons},
    }


def _splits(run: Run) -> EarlierSplits:
    """Return the splits of this run's queries and of the runs before it, which a run that continues it will keep."""
    name = run.recipe.reranker.model
    earlier = EarlierSplits.of(name) or EarlierSplits(name, {})
    return earlier.updated({split: run.collection.query_texts(list(run.collection.qrels[split])) for split in SPLITS})


def _mined(run: Run) -> str:
    """Return the counts of the last mining as a sentence's end, empty if nothing was mined."""
    folders = [record.folder for name, record in run.records.items() if name.partition("-")[0] == "mine"]
    report = read_record(folders[-1] / "report.json") if folders else None
    if not report:
        return ""
    passed = ", ".join(f"{count:,} {reason}" for reason, count in report["passed_over"].items())
    line = (
        f"{report['negatives']:,} negatives for {report['queries']:,} queries, of {report['candidates']:,} candidates"
    )
    return f"{line}; not used as negatives: {passed}" if passed else line


def _verified_adapter(run: Run, reranker: model.Reranker, trust: bool) -> Path | None:
    """Return the folder of the LoRA adapter, whose scores are those of the merged weights; None if there is none."""
    adapter = run.best(run.exported) / training.ADAPTER_FOLDER
    if not adapter.is_dir():
        return None
    difference = export.difference_to_merged(run.start, adapter, reranker, _some_pairs(run), trust)
    console.stage("export", f"adapter: largest score difference to the merged weights {difference:.1e}")
    return adapter


def _dev_metric(run: Run, shipped: str) -> export.DevMetric:
    """Return the metric of the exported model on the dev candidates, as the evaluation measured it in float32."""

    def measure(reranker: model.Reranker) -> float:
        tokenized = model.TokenizedCollection(run.collection, reranker.pairs)
        scores = model.rerank(reranker, tokenized, run.reranked("dev"), None, note="export")
        return evaluation.mean_score(run.collection, "dev", run.candidates("dev"), run.metric, scores)

    return export.DevMetric(run.metric, run.notes("evaluate")["dev"][shipped], measure)


def _some_pairs(run: Run) -> list[tuple[str, str]]:
    """Return an evenly spaced sample of (query, document) texts from the dev candidates."""
    dev = run.candidates("dev")
    pairs = [(query, document) for index, query in enumerate(dev.queries.tolist()) for document in dev.found(index)]
    step = max(1.0, (len(pairs) - 1) / (PARITY_PAIRS - 1))
    sample = [pairs[round(index * step)] for index in range(min(len(pairs), PARITY_PAIRS))]
    queries = run.collection.query_texts([query for query, _ in sample])
    return list(zip(queries, run.collection.passages([document for _, document in sample]), strict=True))
