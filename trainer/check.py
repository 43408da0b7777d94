"""Before any compute: recipe, model references and data judged without loading a model, every fault at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from trainer import console, models
from trainer.data import Summary, check_collection, describe_lengths
from trainer.errors import ExportError, MachineError, RecipeError, RunError, TrainerError
from trainer.machine import folder_faults
from trainer.metrics import can_choose
from trainer.recipe import Recipe
from trainer.weights_and_biases import key_fault


def check(recipe: Recipe, runs: Path = Path("runs")) -> Summary:
    """Judge recipe, run folder, model references and data without loading a model, and print what is good to know.

    Raises TrainerError with every fault.
    """
    errors = _faults_beside_the_data(recipe)
    if faults := folder_faults(runs, recipe.name):
        errors.append(MachineError(faults))
    try:
        summary = check_collection(recipe.data)
    except TrainerError as error:
        errors.append(error)
        if recipe.tried:
            errors.append(RecipeError(recipe.tried))
    else:
        if not errors:
            _show(summary, recipe)
            return summary
    raise errors[0] if len(errors) == 1 else TrainerError(fault for error in errors for fault in error.faults)


def _faults_beside_the_data(recipe: Recipe) -> list[TrainerError]:
    errors: list[TrainerError] = []
    if recipe.retriever.run is not None and not recipe.retriever.run.is_file():
        errors.append(RecipeError(f"retriever.run: no such file: {recipe.retriever.run}"))
    metric, depth = recipe.evaluate.metrics[0], recipe.rerank_depth
    if not can_choose(metric, depth):
        errors.append(
            RecipeError(
                f"evaluate.metrics: {metric} comes first and would choose the checkpoint, but no order of the {depth} "
                "reranked candidates changes it for the better; put nDCG@10 first, or rerank deeper"
            )
        )
    if "onnx" in recipe.export.formats and not all(map(find_spec, ("onnx", "onnxruntime"))):
        errors.append(ExportError("export.formats: onnx needs two packages: pip install 'domain-reranker[onnx]'"))
    if fault := key_fault(recipe):
        errors.append(RunError(fault))
    kinds: dict[str, models.Kind] = {}
    student = recipe.distil and recipe.distil.model
    references = (recipe.bi_encoder, recipe.mine.teacher, recipe.reranker.model, student)
    for reference in dict.fromkeys(filter(None, references)):
        try:
            if models.is_local(reference):
                kinds[reference] = models.kind_of(models.locate(reference))
        except TrainerError as error:
            errors.append(error)
    if faults := faults_of_distil(recipe, kinds):
        errors.append(RecipeError(faults))
    return errors


def faults_of_distil(recipe: Recipe, kinds: Mapping[str, models.Kind]) -> list[str]:
    """What speaks against distilling, as far as the kinds of the models are known (on the Hub: not yet)."""
    if recipe.distil is None:
        return []
    base, student, faults = recipe.reranker.model, recipe.distil.model, []
    if kinds.get(base) == "reranker":
        faults.append(
            f"distil: {base} is a reranker with a standard classifier, so the tuned model is a standard checkpoint "
            "already; remove the section"
        )
    if student is not None and kinds.get(student) == "interaction":
        faults.append(
            f"distil.model: {student} has the interaction head, which no server loads without its modeling file; "
            "name an encoder or a standard reranker"
        )
    return faults


def _show(summary: Summary, recipe: Recipe) -> None:
    """What the collection holds, what was done to it, and what to look at before believing a number."""
    judged = ", ".join(f"{count} {split}" for split, count in summary.judged.items())
    console.stage("check", f"{summary.documents} documents; judged queries: {judged}")
    for note in summary.notes:
        console.stage("check", note)
    if models.is_local(recipe.reranker.model):
        tokenizer = models.locate(recipe.reranker.model) / "tokenizer.json"
        if tokenizer.is_file():
            console.stage("check", describe_lengths(*summary.sample, tokenizer, recipe.reranker.max_length))
    for warning in summary.warnings:
        console.warn("check", warning)
