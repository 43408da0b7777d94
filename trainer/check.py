"""Before any compute: recipe, model references and data judged without loading a model, every fault at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from trainer import console, model_files, models
from trainer.data import Summary, check_collection, describe_lengths
from trainer.errors import ExportError, MachineError, ModelError, RecipeError, RunError, TrainerError
from trainer.machine import folder_faults
from trainer.metrics import can_choose
from trainer.recipe import ModelReference, Recipe
from trainer.weights_and_biases import key_fault

# Shares of tokens that a tokenizer does not know: of a language that the model never read, and of noise.
UNREADABLE = 0.9
SUSPICIOUS = 0.1


def check(recipe: Recipe, runs: Path = Path("runs"), *, weights: bool = False, pushes: bool = True) -> Summary:
    """Judge recipe, run folder, model folders and data without loading a model, and print what is good to know.

    Of models on the Hub only the small files are fetched, unless `weights` are wanted too; `pushes` says whether what
    an upload needs is judged. Raises TrainerError with every fault.
    """
    errors = _faults_beside_the_data(recipe, pushes)
    if faults := folder_faults(runs, recipe.name):
        errors.append(MachineError(faults))
    try:
        summary = check_collection(recipe.data)
    except TrainerError as error:
        errors.append(error)
        if recipe.tried:
            errors.append(RecipeError(recipe.tried))
    else:
        if not errors and weights:  # a long download only for what can run otherwise
            errors += _faults_of_models(recipe, weights=True)
        if not errors:
            errors += _unreadable(recipe, summary)
        if not errors:
            _show(summary, recipe)
            return summary
    raise (
        errors[0]
        if len(errors) == 1
        else TrainerError(dict.fromkeys(line for error in errors for line in error.faults))
    )


def _faults_beside_the_data(recipe: Recipe, pushes: bool) -> list[TrainerError]:
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
    if recipe.push is not None and pushes:
        try:
            models.require_upload()
        except TrainerError as error:
            errors.append(error)
    return errors + _faults_of_models(recipe, weights=False)


def _faults_of_models(recipe: Recipe, weights: bool) -> list[TrainerError]:
    """Return what speaks against each model that the recipe names, and against distilling with them."""
    lines: list[str] = []
    kinds: dict[str, models.Kind] = {}
    for reference in recipe.model_references:
        try:
            folder = models.locate(reference.name, weights=weights)
            faults = _faults_of_model(reference, folder, recipe, weights or models.is_local(reference.name))
            if not faults:
                kinds[reference.name] = models.kind_of(folder)
        except ModelError as error:
            faults = error.faults
        lines += [f"{reference.key}: {fault}" for fault in faults]
    errors: list[TrainerError] = [ModelError(lines)] if lines else []
    if faults := faults_of_distil(recipe, kinds):
        errors.append(RecipeError(faults))
    return errors


def _faults_of_model(reference: ModelReference, folder: Path, recipe: Recipe, weights: bool) -> list[str]:
    """Return what the files of one model show, for what it is used as."""
    trusted, trust = reference.trust_remote_code, reference.trust_key
    if reference.key == "retriever.model":
        return model_files.faults_of_bi_encoder(folder, trusted, trust=trust, weights=weights)
    heads: dict[str, model_files.Head] = {"mine.teacher": "trained", "distil.model": "classifier"}
    head = heads.get(reference.key, recipe.reranker.head)
    length = recipe.reranker.max_length
    return model_files.faults_of_cross_encoder(folder, head, trusted, length, trust=trust, weights=weights)


def faults_of_distil(recipe: Recipe, kinds: Mapping[str, models.Kind]) -> list[str]:
    """Return what speaks against distilling, as far as the kinds of the models are known."""
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


def _unreadable(recipe: Recipe, summary: Summary) -> list[TrainerError]:
    """Return an error for each model whose tokenizer knows next to nothing of the collection; warn of lesser shares."""
    documents, queries = summary.sample
    errors: list[TrainerError] = []
    for reference in recipe.model_references:
        folder = models.locate(reference.name, weights=False)
        if not (folder / "tokenizer.json").is_file():
            continue
        share = model_files.unknown_share(folder, [*documents, *queries])
        fault = (
            f"{reference.key}: model {reference.name}: its tokenizer does not know {share:.0%} of the tokens in a "
            "sample of the collection"
        )
        if share >= UNREADABLE:
            errors.append(ModelError(f"{fault}; take a model of the collection's language"))
        elif share >= SUSPICIOUS:
            console.warn("check", f"{fault}; a model of the collection's language would read more")
    return errors


def _show(summary: Summary, recipe: Recipe) -> None:
    """What the collection holds, what was done to it, and what to look at before believing a number."""
    judged = ", ".join(f"{count} {split}" for split, count in summary.judged.items())
    console.stage("check", f"{summary.documents} documents; judged queries: {judged}")
    for note in summary.notes:
        console.stage("check", note)
    tokenizer = models.locate(recipe.reranker.model, weights=False) / "tokenizer.json"
    if tokenizer.is_file():
        console.stage("check", describe_lengths(*summary.sample, tokenizer, recipe.reranker.max_length))
    for warning in summary.warnings:
        console.warn("check", warning)
