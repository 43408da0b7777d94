"""Before any compute: recipe, model references and data judged without loading a model, every fault at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from trainer.data import LONGEST_BY_ITSELF, Summary, check_collection, describe_lengths, fingerprint_data
from trainer.data.languages import detect_language
from trainer.errors import DataError, ExportError, MachineError, ModelError, RecipeError, RunError, TrainerError
from trainer.evaluation.metrics import can_choose
from trainer.model_files import checks, references
from trainer.model_files.architectures import longest_text
from trainer.recipe import ModelReference, Recipe
from trainer.runtime import console, processes
from trainer.runtime.machine import folder_faults
from trainer.runtime.run_folder import read_record, write_json
from trainer.tracking.weights_and_biases import key_fault

VERSION = 1  # raised when the check would find something else in the same collection
KEPT = "check.json"  # in the run folder
# Shares of tokens that a tokenizer does not know: of a language that the model never read, and of noise.
UNREADABLE = 0.9
SUSPICIOUS = 0.1
MANY_CUT = 0.2  # share of the documents above which it is a warning that they are cut
LONG_ENOUGH = 100  # characters of a text whose language can be told
SEVERAL = 0.1  # share of the texts from which a second language counts
FEWEST_TEXTS = 20  # whose language was told


def check(
    recipe: Recipe, runs: Path = Path("runs"), *, weights: bool = False, pushes: bool = True, keep: bool = False
) -> Summary:
    """Judge recipe, run folder, model folders and data without loading a model, and print what is good to know.

    Of models on the Hub only the small files are fetched, unless `weights` are wanted too; `pushes` says whether what
    an upload needs is judged. What an earlier check found in the same collection is read from the run folder; `keep`
    writes it there. Raises TrainerError with every fault.
    """
    errors = _faults_beside_the_data(recipe, pushes)
    if faults := folder_faults(runs, recipe.name):
        errors.append(MachineError(faults))
    try:
        fingerprint = f"{VERSION} {fingerprint_data(recipe.data)}"
        kept = runs / recipe.name / KEPT
        known = _known(kept, fingerprint)
        summary = known or check_collection(recipe.data)
        if faults := _faults_of_mining(summary, recipe):
            raise DataError(faults)
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
            if keep and known is None and processes.is_main():
                write_json(kept, {"fingerprint": fingerprint, "summary": asdict(summary)})
            _show(summary, recipe)
            return summary
    raise (
        errors[0]
        if len(errors) == 1
        else TrainerError(dict.fromkeys(line for error in errors for line in error.faults))
    )


def _known(kept: Path, fingerprint: str) -> Summary | None:
    """Return what an earlier check found in the very same collection, None where there was none or it is damaged."""
    content = read_record(kept) or {}
    if content.get("fingerprint") != fingerprint:
        return None
    try:
        return Summary.from_json(content["summary"])
    except (KeyError, TypeError):
        return None


def _faults_of_mining(summary: Summary, recipe: Recipe) -> list[str]:
    """What would leave every query without a negative, known before anything is searched."""
    section = recipe.mine
    if summary.judged_negatives:
        return []
    if summary.spare[1] <= 0:
        return [
            f"data: no train query can get a negative: each of the {summary.documents} documents is relevant for it "
            "or repeats one that is; give more documents"
        ]
    if section.first_rank > summary.documents and not section.random_share:
        return [
            f"mine.first_rank: {section.first_rank} is beyond the {summary.documents} documents, so no query can get a "
            "negative; lower it"
        ]
    return []


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
            references.require_upload()
        except TrainerError as error:
            errors.append(error)
    return errors + _faults_of_models(recipe, weights=False)


def _faults_of_models(recipe: Recipe, weights: bool) -> list[TrainerError]:
    """Return what speaks against each model that the recipe names, and against distilling with them."""
    lines: list[str] = []
    kinds: dict[str, references.Kind] = {}
    for reference in recipe.model_references:
        try:
            folder = references.locate(reference.name, weights=weights)
            faults = _faults_of_model(reference, folder, recipe, weights or references.is_local(reference.name))
            if not faults:
                kinds[reference.name] = references.kind_of(folder)
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
        return checks.faults_of_bi_encoder(folder, trusted, trust=trust, weights=weights)
    heads: dict[str, checks.Head] = {"mine.teacher": "trained", "distil.model": "classifier"}
    head = heads.get(reference.key, recipe.reranker.head)
    length = recipe.reranker.max_length
    return checks.faults_of_cross_encoder(folder, head, trusted, length, trust=trust, weights=weights)


def faults_of_distil(recipe: Recipe, kinds: Mapping[str, references.Kind]) -> list[str]:
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
    documents, queries = summary.document_lengths.texts, summary.query_lengths.texts
    errors: list[TrainerError] = []
    for reference in recipe.model_references:
        folder = references.locate(reference.name, weights=False)
        if not (folder / "tokenizer.json").is_file():
            continue
        share = checks.unknown_share(folder, [*documents, *queries])
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
    warnings = [*summary.warnings, *_few_negatives(summary, recipe), *_several_languages(summary, recipe)]
    tokenizer = references.locate(recipe.reranker.model, weights=False) / "tokenizer.json"
    if tokenizer.is_file():
        lengths = summary.document_lengths, summary.query_lengths
        longest = longest_text(references.read_config(tokenizer.parent)) or LONGEST_BY_ITSELF
        cut = describe_lengths(*lengths, tokenizer, recipe.reranker.max_length, longest)
        if max(cut.documents, cut.queries) < MANY_CUT:
            console.stage("check", cut.said)
        else:
            warnings.append(f"{cut.said}; raise it, or split long documents into passages")
    warnings += _without_threshold(recipe)
    for warning in warnings:
        console.warn("check", warning)


def _few_negatives(summary: Summary, recipe: Recipe) -> Iterator[str]:
    wanted, (fewest, _) = recipe.mine.negatives_per_positive, summary.spare
    if fewest < wanted:
        yield (
            f"{summary.documents} documents leave some train query {max(0, fewest)} that are neither relevant nor a "
            f"duplicate, fewer than the {wanted} negatives of mine.negatives_per_positive"
        )


def _several_languages(summary: Summary, recipe: Recipe) -> Iterator[str]:
    """Where one stemmer, told from the first documents, would be wrong for many of them."""
    section = recipe.retriever
    if section.kind not in ("bm25", "hybrid") or section.language != "auto":
        return
    shares = _languages(summary.document_lengths.texts)
    if len(shares) > 1:
        found = ", ".join(f"{language} {share:.0%}" for language, share in shares.items())
        yield (
            f"the documents are in several languages ({found} of a sample), but BM25 takes one stemmer; set "
            "retriever.language, none perhaps, and see that both models know all of them"
        )


def _languages(texts: Sequence[str]) -> dict[str, float]:
    """Return the languages that are common among the texts with their shares; of short texts none can be told."""
    found = Counter(detect_language([text]) for text in texts if len(text) >= LONG_ENOUGH)
    found["japanese"] += found.pop("chinese", 0) if found["japanese"] else 0  # kanji alone look like Chinese
    known = +Counter({language: count for language, count in found.items() if language != "none"})
    if known.total() < FEWEST_TEXTS:
        return {}
    shares = {language: count / known.total() for language, count in known.most_common()}
    return {language: share for language, share in shares.items() if share >= SEVERAL}


def _without_threshold(recipe: Recipe) -> Iterator[str]:
    """Metrics that count from grade 1 on although the recipe calls relevant only what is above."""
    import ir_measures

    least = recipe.data.relevant_from
    measures = [(name, ir_measures.parse_measure(name)) for name in recipe.evaluate.metrics]
    binary = [(name, measure.params.get("rel", 1)) for name, measure in measures if "rel" in measure.SUPPORTED_PARAMS]
    if names := [name for name, rel in binary if rel < least]:
        yield (
            f"{', '.join(names)} count grades below data.relevant_from {least} as relevant; write rel={least}, e.g. "
            f"RR(rel={least})@10"
        )
