"""The models of a recipe, checked by their files before anything heavy starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from trainer.data import Summary
from trainer.errors import ModelError, RecipeError, TrainerError
from trainer.model_files import checks, references, tokenizer_file
from trainer.model_files.architectures import is_decoder, longest_text
from trainer.model_files.decoders import Prompting
from trainer.recipe import BESIDES_WINDOW, ModelReference, Recipe, window_too_long
from trainer.runtime import console

# Shares of tokens unknown to a tokenizer: typical of a language that the model was not trained on, and of noise.
UNREADABLE, SUSPICIOUS = 0.9, 0.1


def model_errors(recipe: Recipe, weights: bool) -> list[TrainerError]:
    """Return the errors of the models in the recipe, and of distilling with them."""
    lines: list[str] = []
    kinds: dict[str, references.BaseKind] = {}
    for reference in recipe.model_references:
        try:
            folder = references.locate(reference.name, weights=weights)
            problems = _model_problems(reference, folder, recipe, weights or references.is_local(reference.name))
            if not problems:
                kinds[reference.name] = references.kind_of(folder)
        except ModelError as error:
            problems = error.faults
        lines += [f"{reference.key}: {problem}" for problem in problems]
    errors: list[TrainerError] = [ModelError(lines)] if lines else []
    if problems := [
        *_distil_problems(recipe, kinds),
        *_untrained_problems(recipe, kinds),
        *_window_problems(recipe, kinds),
        *_adapter_problems(recipe, kinds),
    ]:
        errors.append(RecipeError(problems))
    return errors


def _untrained_problems(recipe: Recipe, kinds: Mapping[str, references.BaseKind]) -> Iterator[str]:
    """Yield the problem that a classifier on an encoder has random weights until it is trained."""
    base = recipe.reranker.model
    if not recipe.train.epochs and recipe.reranker.head == "classifier" and kinds.get(base) == "encoder":
        yield (
            f"train.epochs: 0 trains nothing, and a new classifier on {base} has random weights; use reranker.head: "
            "interaction, which is fitted, or a base that ranks already"
        )


def _model_problems(reference: ModelReference, folder: Path, recipe: Recipe, weights: bool) -> list[str]:
    """Return the problems of one model's files for its use in the recipe."""
    trusted, trust = reference.trust_remote_code, reference.trust_key
    if reference.key == "retriever.model":
        return checks.faults_of_bi_encoder(folder, trusted, trust=trust, weights=weights)
    heads: dict[str, checks.Head] = {
        "generate.check": "trained",
        "mine.teacher": "trained",
        "distil.teacher": "trained",
        "distil.model": "classifier",
    }
    head = heads.get(reference.key, recipe.reranker.head)
    length = recipe.reranker.max_length
    prompting = Prompting.of_model(recipe.reranker, reference.name)
    options = {"trust": trust, "weights": weights, "prompting": prompting}
    return checks.faults_of_cross_encoder(folder, head, trusted, length, **options)


def _adapter_problems(recipe: Recipe, kinds: Mapping[str, references.BaseKind]) -> Iterator[str]:
    """Yield the problems of `train.adapter` with models of these kinds."""
    base = recipe.reranker.model
    if recipe.train.adapter == "none" or base not in kinds:
        return
    config = references.read_config(references.locate(base, weights=False))
    if not is_decoder(config, references.architecture_of(config)):
        yield (
            f"train.adapter: lora saves memory on large decoders, and {base} is a {config.get('model_type')} encoder; "
            "train all of its weights, and save memory with train.gradient_checkpointing or train.frozen_layers"
        )
    elif find_spec("peft") is None:
        yield "train.adapter: lora needs a package: pip install 'domain-reranker[lora]'"


def _distil_problems(recipe: Recipe, kinds: Mapping[str, references.BaseKind]) -> list[str]:
    """Return the problems of the section `distil` with models of these kinds."""
    if recipe.distil is None:
        return []
    base, student, problems = recipe.reranker.model, recipe.distil.model, []
    if kinds.get(base) in ("reranker", "decoder"):
        problems.append(
            f"distil: {base} is a reranker with a standard classifier, so the tuned model is a standard checkpoint "
            "already; remove the section"
        )
    if student is not None and kinds.get(student) == "interaction":
        problems.append(
            f"distil.model: {student} has the interaction head, which no server loads without its modeling file; "
            "name an encoder or a standard reranker"
        )
    return problems


def _window_problems(recipe: Recipe, kinds: Mapping[str, references.BaseKind]) -> list[str]:
    """Return the problems of the section `passages` with models of these kinds."""
    base, student = recipe.reranker.model, recipe.distil and recipe.distil.model
    if recipe.passages is None:
        return []
    problems = []
    if kinds.get(base) == "decoder":
        problems.append(
            f"passages: {base} reads pairs in a prompt, whose text after a document would be missing after each window "
            "but the last; remove the section, and raise reranker.max_length"
        )
    longest = longest_text(references.read_config(references.locate(base, weights=False))) if base in kinds else None
    if longest is not None and recipe.passages.length > longest - BESIDES_WINDOW:
        problems.append(f"passages.length: {window_too_long(recipe.passages, longest)}")
    unable = "its new classifier gives random scores before training, so it cannot choose the windows to train on"
    if kinds.get(base) == "encoder" and recipe.reranker.head == "classifier":
        problems.append(f"passages: {base} is no reranker, and {unable}; use reranker.head: auto")
    if student is not None and kinds.get(student) == "encoder":
        problems.append(f"passages: {student} is no reranker, and {unable}; name a reranker or leave out distil.model")
    return problems


def unknown_token_errors(recipe: Recipe, summary: Summary) -> list[TrainerError]:
    """Return an error for each model to whose tokenizer most tokens are unknown; warn of smaller shares."""
    documents, queries = summary.document_lengths.texts, summary.query_lengths.texts
    errors: list[TrainerError] = []
    for reference in recipe.model_references:
        folder = references.locate(reference.name, weights=False)
        if not (folder / "tokenizer.json").is_file():
            continue
        share = tokenizer_file.unknown_share(folder, [*documents, *queries])
        problem = (
            f"{reference.key}: model {reference.name}: its tokenizer does not know {share:.0%} of the tokens in a "
            "sample of the collection"
        )
        if share >= UNREADABLE:
            errors.append(ModelError(f"{problem}; use a model for the collection's language"))
        elif share >= SUSPICIOUS:
            console.warn("check", f"{problem}; a model for the collection's language would know more of them")
    return errors
