"""Check recipe, models and data before anything runs, without loading a model, and report all errors at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from trainer.check_endpoints import endpoint_costs, endpoint_errors
from trainer.check_models import model_errors, unknown_token_errors
from trainer.data import (
    MAX_AUTO_LENGTH,
    EarlierSplits,
    Summary,
    check_collection,
    check_guard_sets,
    describe_lengths,
    fingerprint_data,
)
from trainer.data.guard import Overlap
from trainer.data.languages import detect_language
from trainer.errors import DataError, ExportError, MachineError, ModelError, RecipeError, RunError, TrainerError
from trainer.evaluation.metrics import can_choose
from trainer.generation.prompt import read_examples
from trainer.model_files import references
from trainer.model_files.architectures import longest_text
from trainer.recipe import Recipe
from trainer.runtime import console, processes
from trainer.runtime.machine import folder_problems
from trainer.runtime.run_folder import read_record, write_json
from trainer.tracking.weights_and_biases import key_problem

VERSION = 2  # raised when the check would give another result for the same collection
CACHE, GUARD_CACHE = "check.json", "check_guard.json"  # in the run folder
MANY_CUT = 0.2  # share of truncated documents that is a warning
LONG_ENOUGH = 100  # characters that a text needs for its language to be detected
SEVERAL = 0.1  # smallest share of texts at which a language counts
FEWEST_TEXTS = 20  # texts with a detected language that the shares need


def check(
    recipe: Recipe, runs: Path = Path("runs"), *, weights: bool = False, pushes: bool = True, keep: bool = False
) -> Summary:
    """Check recipe, run folder, model folders and data without loading a model, and print notes and warnings.

    Of models on the Hub only the small files are fetched, with `weights` all files; with `pushes` the requirements of
    an upload are checked too. The result for an unchanged collection is read from the run folder, and `keep` writes it
    there. Raise TrainerError with all errors.
    """
    errors = _errors_besides_data(recipe, pushes) + _own_model_errors(recipe, runs)
    errors += endpoint_errors(recipe, runs) + _example_errors(recipe, runs)
    if problems := folder_problems(runs, recipe.name):
        errors.append(MachineError(problems))
    overlaps = _guard_overlaps(recipe, runs / recipe.name / GUARD_CACHE, keep, errors)
    try:
        earlier, needed = EarlierSplits.of(recipe.reranker.model), () if recipe.generate else None
        fingerprint = f"{VERSION} {fingerprint_data(recipe.data)}{earlier.fingerprint if earlier else ''}"
        fingerprint += " generate" if recipe.generate else ""
        cache = runs / recipe.name / CACHE
        cached = _read_cache(cache, fingerprint)
        summary = cached or check_collection(recipe.data, earlier, needed)
        if problems := _mining_problems(summary, recipe):
            raise DataError(problems)
    except TrainerError as error:
        errors.append(error)
        if recipe.tried:
            errors.append(RecipeError(recipe.tried))
    else:
        if not errors and weights:  # a long download only if nothing else prevents the run
            errors += model_errors(recipe, weights=True)
        if not errors:
            errors += unknown_token_errors(recipe, summary)
        if not errors:
            if keep and cached is None and processes.is_main():
                write_json(cache, {"fingerprint": fingerprint, "summary": asdict(summary)})
            _show(summary, recipe, runs)
            _show_guard_sets(overlaps)
            return summary
    raise (
        errors[0]
        if len(errors) == 1
        else TrainerError(dict.fromkeys(line for error in errors for line in error.faults))
    )


def _guard_overlaps(recipe: Recipe, cache: Path, keep: bool, errors: list[TrainerError]) -> Mapping[str, Overlap]:
    """Return how far each guard set overlaps the collection; problems of the sets are added to `errors`."""
    if recipe.evaluate.guard is None:
        return {}
    try:
        return check_guard_sets(recipe.evaluate, recipe.data, cache, keep and processes.is_main())
    except TrainerError as error:
        errors.append(error)
        return {}


def _own_model_errors(recipe: Recipe, runs: Path) -> list[TrainerError]:
    """Return an error if the base model is in the folder of this run, which would replace it."""
    base = recipe.reranker.model
    try:
        inside = references.is_local(base) and references.locate(base, weights=False).resolve()
    except ModelError:  # reported with the other models
        return []
    if not inside or (runs / recipe.name).resolve() not in inside.parents:
        return []
    advice = f"give the new run a name of its own, e.g. name={recipe.name}-2"
    return [RecipeError(f"reranker.model: {base} is in the folder of this run, which replaces it; {advice}")]


def _read_cache(path: Path, fingerprint: str) -> Summary | None:
    """Return the summary of an earlier check of the same collection; None if it is missing or damaged."""
    content = read_record(path) or {}
    if content.get("fingerprint") != fingerprint:
        return None
    try:
        return Summary.from_json(content["summary"])
    except (KeyError, TypeError):
        return None


def _mining_problems(summary: Summary, recipe: Recipe) -> list[str]:
    """Return the problems, known before retrieval, because of which no train query can have a negative."""
    section = recipe.mine
    if summary.judged_negatives or not summary.judged["train"]:
        return []
    if summary.spare[1] <= 0:
        return [
            f"data: no train query can have a negative: each of the {summary.documents} documents is relevant for it "
            "or a duplicate of a relevant one; give more documents"
        ]
    if section.first_rank > summary.documents and not section.random_share:
        return [
            f"mine.first_rank: {section.first_rank} is beyond the {summary.documents} documents, so no query can have "
            "a negative; lower it"
        ]
    return []


def _errors_besides_data(recipe: Recipe, pushes: bool) -> list[TrainerError]:
    """Return the errors of the recipe, of installed packages and of models."""
    errors: list[TrainerError] = []
    if recipe.retriever.run is not None and not recipe.retriever.run.is_file():
        errors.append(RecipeError(f"retriever.run: no such file: {recipe.retriever.run}"))
    metric, depth = recipe.evaluate.metrics[0], recipe.rerank_depth
    if not can_choose(metric, depth):
        errors.append(
            RecipeError(
                f"evaluate.metrics: {metric} comes first and would choose the checkpoint, but reordering the {depth} "
                "reranked candidates cannot improve it; put nDCG@10 first, or increase reranker.depth"
            )
        )
    if recipe.export.formats and not all(map(find_spec, ("onnx", "onnxruntime"))):
        errors.append(ExportError("export.formats: onnx needs two packages: pip install 'domain-reranker[onnx]'"))
    if problem := key_problem(recipe):
        errors.append(RunError(problem))
    if recipe.push is not None and pushes:
        try:
            references.require_upload()
        except TrainerError as error:
            errors.append(error)
    return errors + model_errors(recipe, weights=False)


def _example_errors(recipe: Recipe, runs: Path) -> list[TrainerError]:
    """Return the errors in the examples of `generate`, unless the stage is finished and needs none."""
    if recipe.generate is None or (runs / recipe.name / "generate" / "done.json").is_file():
        return []
    try:
        read_examples(recipe.generate.examples)
    except DataError as error:
        return [error]
    return []


def _show(summary: Summary, recipe: Recipe, runs: Path) -> None:
    """Print the size of the collection, notes on how it was read, and warnings."""
    judged = ", ".join(f"{count} {split}" for split, count in summary.judged.items())
    console.stage("check", f"{summary.documents} documents; judged queries: {judged}")
    for note in summary.notes:
        console.stage("check", note)
    for sentence in endpoint_costs(recipe, summary, runs):
        console.stage("check", sentence)
    warnings = [*summary.warnings, *_few_negatives(summary, recipe), *_several_languages(summary, recipe)]
    tokenizer = references.locate(recipe.reranker.model, weights=False) / "tokenizer.json"
    if tokenizer.is_file():
        lengths = summary.document_lengths, summary.query_lengths
        longest = longest_text(references.read_config(tokenizer.parent)) or MAX_AUTO_LENGTH
        cut = describe_lengths(*lengths, tokenizer, recipe.reranker.max_length, longest, recipe.passages)
        if max(cut.documents, cut.queries) < MANY_CUT:
            console.stage("check", cut.message)
        elif recipe.passages is not None:
            warnings.append(f"{cut.message}; raise reranker.max_length")
        else:
            warnings.append(f"{cut.message}; raise it, or have long documents read in windows (section passages)")
    warnings += _without_threshold(recipe)
    for warning in warnings:
        console.warn("check", warning)
    if recipe.generate is not None:
        _warn_of_made_queries(summary)


def _warn_of_made_queries(summary: Summary) -> None:
    """Print that figures of splits without real queries say little."""
    from trainer.evaluation.gate import made_warning  # numpy and scipy take half a second

    if made := made_warning([split for split, count in summary.judged.items() if not count]):
        console.stage("check", made, style="red")


def _show_guard_sets(overlaps: Mapping[str, Overlap]) -> None:
    """Print the size of each guard set, and warnings about sets that share texts with the run's own collection."""
    for name, overlap in overlaps.items():
        size = f"{overlap.queries} {overlap.split} queries, {overlap.documents} documents"
        console.stage("check", f"guard set {name}: {size}")
        if overlap.shared_documents or overlap.shared_queries:
            shared = (
                f"{overlap.shared_documents} of its {overlap.documents} documents and {overlap.shared_queries} of its "
                f"{overlap.queries} queries are in the run's own collection"
            )
            console.warn("check", f"guard set {name}: {shared}; what the model loses elsewhere may not show on it")


def _few_negatives(summary: Summary, recipe: Recipe) -> Iterator[str]:
    """Yield a warning if some train query cannot have as many negatives as the recipe asks for."""
    wanted, (fewest, _) = recipe.mine.negatives_per_positive, summary.spare
    if summary.judged["train"] and fewest < wanted:
        yield (
            f"for some train query only {max(0, fewest)} of the {summary.documents} documents are neither relevant nor "
            f"duplicates of relevant ones, fewer than the {wanted} negatives of mine.negatives_per_positive"
        )


def _several_languages(summary: Summary, recipe: Recipe) -> Iterator[str]:
    """Yield a warning if the stemmer, chosen from the first documents, does not fit many other documents."""
    section = recipe.retriever
    if section.kind not in ("bm25", "hybrid") or section.language != "auto":
        return
    shares = _languages(summary.document_lengths.texts)
    if len(shares) > 1:
        languages = ", ".join(f"{language} {share:.0%}" for language, share in shares.items())
        yield (
            f"the documents are in several languages ({languages} of a sample), but BM25 uses one stemmer; set "
            "retriever.language, perhaps to none, and use models that support all of these languages"
        )


def _languages(texts: Sequence[str]) -> dict[str, float]:
    """Return the shares of the common languages among the texts; short texts are ignored."""
    counts = Counter(detect_language([text]) for text in texts if len(text) >= LONG_ENOUGH)
    counts["japanese"] += counts.pop("chinese", 0) if counts["japanese"] else 0  # kanji alone look like Chinese
    known = +Counter({language: count for language, count in counts.items() if language != "none"})
    if known.total() < FEWEST_TEXTS:
        return {}
    shares = {language: count / known.total() for language, count in known.most_common()}
    return {language: share for language, share in shares.items() if share >= SEVERAL}


def _without_threshold(recipe: Recipe) -> Iterator[str]:
    """Yield a warning on metrics that count grade 1 as relevant if the recipe has a higher threshold."""
    import ir_measures

    least = recipe.data.relevant_from
    measures = [(name, ir_measures.parse_measure(name)) for name in recipe.evaluate.metrics]
    binary = [(name, measure.params.get("rel", 1)) for name, measure in measures if "rel" in measure.SUPPORTED_PARAMS]
    if names := [name for name, rel in binary if rel < least]:
        yield (
            f"{', '.join(names)} count grades below data.relevant_from {least} as relevant; write rel={least}, e.g. "
            f"RR(rel={least})@10"
        )
