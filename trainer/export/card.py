"""The model card: a description of the model, its test results, its use, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import transformers
from huggingface_hub import EvalResult, ModelCardData

from trainer.evaluation.gate import BASELINES, made_warning
from trainer.evaluation.holes import COLUMNS, JudgedResults
from trainer.evaluation.results import SIGNIFICANT, Results
from trainer.evaluation.seeds import SYSTEM, describe_seeds
from trainer.export.formats import table
from trainer.export.loads import as_table
from trainer.export.parity import HALVES, Parity
from trainer.export.public import base_of, public_name, public_recipe
from trainer.inference import FORMATS
from trainer.model import Fusion, Reranker
from trainer.model_files import references
from trainer.model_files.licence import Licence
from trainer.recipe import Recipe

READ_BY = "4.51.3, 4.57.1 and 5.23.0"  # versions of transformers in scripts/check_readers.py (docs/results.md)


@dataclass(frozen=True)
class History:
    """What the card says of a model besides its results.

    `best_step` is the training step of the weights, 0 if they are untrained; `calibrated` is the sentence on the
    calibration and `mined` the one on the training groups, empty if there is none; `licence` is that of the base;
    `judged` are the results with a judge's grades.
    """

    best_step: int | None = None
    calibrated: str = ""
    mined: str = ""
    licence: Licence = Licence()
    judged: JudgedResults | None = None


UNKNOWN = History()


def _fusion(results: Results, fusion: Fusion | None) -> str:
    """Return the paragraph on fusion with first-stage scores; empty if the model has no weights for it."""
    if fusion is None:
        return ""
    return f"""
`{results.label("fused")}` is the fusion of the model's scores with the first stage's: both are standardised over the
documents of a request (mean 0, variance 1) and added, the first stage's with weight {fusion.scores:g}. The weight was
fitted to the train queries that people asked (without any, to those of dev) and checked on dev. If only the order of
the first stage is known, -log2(1 + rank) is used as its score, with weight {fusion.order:g}. Both weights are in
`fusion.json`; domain-reranker applies them:

```python
from trainer.model import Reranker

model = Reranker.load("FOLDER_OR_REPOSITORY")
model.rank("a query", ["a document", "another document"], first_stage_scores=[12.5, 11.0])
```
"""


def _mixture(reranker: Reranker) -> str:
    """Return the paragraph on lexical signals beside the logit; empty if there are none."""
    if reranker.mixture is None:
        return ""
    return """
domain-reranker adds lexical signals (BM25 over the model's tokens, and others) to the model's logit, with the weights
of `mixture.json`, which were fitted to the train queries. All rows above are measured in this way except `base model`
and `other libraries`: the logit by itself, as other libraries and servers compute it.
"""


def _windows(reranker: Reranker) -> str:
    """Return the paragraph on windows for long documents; empty if documents are truncated."""
    if reranker.passages is None:
        return ""
    length, overlap = reranker.passages.length, reranker.passages.overlap
    return f"""
domain-reranker reads documents of more than {length} tokens in windows of that length, which overlap by {overlap}
tokens or more; the best window's score is the document's (`passages.json`). All rows above are measured in this way
except `other libraries`: the same model with long documents cut off, as other libraries and servers read them.
"""


def _lineage(recipe: Recipe) -> str:
    """Return the paragraph on distilled models; empty for other models."""
    if recipe.distil is None:
        return ""
    teacher = "another model" if recipe.distil.other_teacher else "the tuned model"
    return f"""
This is the distilled model: a standard classifier trained on the scores of {teacher}, which is not in this
folder, for queries without labels.
"""


def _front_matter(recipe: Recipe, results: Results, licence: Licence) -> str:
    metric, base = results.metrics[0], base_of(recipe)
    measured = results.systems.get("other_libraries", results.systems[results.shipped])[metric]
    data = ModelCardData(
        pipeline_tag="text-ranking",
        library_name="sentence-transformers",
        tags=["cross-encoder", "reranker", "sentence-transformers", "text-embeddings-inference"],
        base_model=None if references.is_local(base) else base,
        license=licence.name,
        license_name=licence.full_name,
        license_link=licence.link,
        model_name=recipe.name,
        eval_results=[
            EvalResult(
                task_type="text-ranking",
                dataset_type=recipe.data.title,
                dataset_name=recipe.data.title,
                dataset_split=results.split,
                metric_type=metric.lower().replace("@", "_at_"),
                metric_name=metric,
                metric_value=round(measured.mean, 4),
            )
        ],
    )
    return data.to_yaml()


def _origin(recipe: Recipe, is_interaction: bool, best_step: int | None) -> str:
    """Return the end of the first sentence: the base model, and whether its weights were trained."""
    name, title = public_name(base_of(recipe)), recipe.data.title
    if best_step != 0:
        return f"fine-tuned on {title} with\ndomain-reranker from {name}."
    head = ", with a head fitted to the candidates of the training queries" if is_interaction else ""
    if not recipe.train.epochs:
        return f"made with domain-reranker from\n{name}. It is not fine-tuned: these are its weights{head}."
    return f"""made with domain-reranker from
{name}. It is not fine-tuned: no checkpoint of the training on {title} was better on dev than the model before
training, so these are the weights before training{head}."""


def _first_line(results: Results) -> str:
    """Return the verdict as the first paragraph, and a warning about made queries; empty if there is neither."""
    warning = made_warning(results.made)
    lines = [f"**{results.sentence}**"] * bool(results.verdict) + [f"**Warning: {warning}.**"] * bool(warning)
    return "".join(f"\n{line}\n" for line in lines)


def _table(results: Results) -> str:
    """Return the results as a Markdown table."""
    table = [f"| {' | '.join(results.columns())} |", f"|{' --- |' * len(results.columns())}"]
    return "\n".join([*table, *(f"| {' | '.join(row)} |" for row in results.rows())])


def _on_test(results: Results) -> str:
    """Return a sentence for each baseline that the model does not significantly beat on test."""
    sentences = []
    for row in results.main_comparisons():
        better = row["difference"] > 0 and row["p_adjusted"] < SIGNIFICANT
        if row["system"] == results.shipped and not better:
            figures = f"difference {row['difference']:+.3f}, p = {row['p_adjusted']:.3f}"
            sentences.append(
                f"On these queries it is not significantly better than {BASELINES[row['against']]} ({figures})."
            )
    return "\n".join(["", *sentences, ""]) if sentences else ""


def _notes(results: Results, judged: JudgedResults | None) -> str:
    """Return the paragraphs below the table."""
    return _on_test(results) + _seeds(results) + _guard(results) + _judged(results, judged)


def _judged(results: Results, judged: JudgedResults | None) -> str:
    """Return the table with a judge's grades of unjudged documents; empty without a judge."""
    if judged is None:
        return ""
    rows = judged.rows(results.label)
    table = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return f"""
The figures above are from human labels alone. Beside them, {judged.metric} with a language model's grades of the
documents without a human label: {judged.sentence}.

{chr(10).join(table)}
"""


def _seeds(results: Results) -> str:
    """Return the paragraph on the trainings with several seeds; empty for one."""
    if not results.seeds:
        return ""
    sentence = describe_seeds(results.seeds, results.metrics[0])
    return f"\n{sentence[0].upper()}{sentence[1:]}. `{results.label(SYSTEM)}` averages each query's values over them.\n"


def _guard(results: Results) -> str:
    """Return the paragraph on guard sets; empty if there are none."""
    if not results.guard:
        return ""
    lines = [f"- {finding.sentence[0].upper()}{finding.sentence[1:]}." for finding in results.guard]
    return "\n".join(["", "Other collections, before training and now, on the same candidates:", "", *lines, ""])


def _example(trust: str, left_out: Mapping[str, str]) -> str:
    """Return example code for sentence-transformers, or for transformers if that alone reads the folder."""
    if "sentence-transformers" not in left_out:
        return f"""from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER_OR_REPOSITORY"{trust})
print(model.rank("a query", ["a document", "another document"]))"""
    return f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPOSITORY"{trust})
model = AutoModelForSequenceClassification.from_pretrained("FOLDER_OR_REPOSITORY"{trust})
documents = ["a document", "another document"]
inputs = tokenizer(["a query"] * 2, documents, padding=True, truncation=True, return_tensors="pt")
print(model(**inputs).logits)"""


def _readers(parity: Parity) -> str:
    """Return the list of libraries and precisions that were verified or left out, with their differences."""
    exact = ", ".join(f"{name} ({difference:.1e})" for name, difference in parity.differences.items())
    lines = [
        f"Largest difference to the trained model's float32 scores over {len(parity.pairs)} pairs: {exact}.",
        f"Written with transformers {transformers.__version__}; such folders were also verified with {READ_BY}.",
    ]
    for name, half in parity.halves.items():
        lines.append(
            f"Weights loaded as {name}: largest difference {half.difference:.1e}, Kendall's tau {half.tau:.3f}."
        )
    if parity.formats:
        graphs = "The graphs below return `logits`"
        lines.append(f"{graphs}; their inputs are named as the tokenizer's outputs, and may be only some of them.")
    lines += [f"{name}: {consequence(name)}: {_plain(reason)}." for name, reason in parity.left_out.items()]
    return "\n".join(f"- {line}" for line in lines)


def consequence(name: str) -> str:
    """Return the consequence of a reader, format or precision that failed."""
    if name in HALVES:
        return "do not load the weights in this precision"
    if name == "padded batches":
        return "score one pair at a time, because padding changes the scores"
    return "left out" if name in FORMATS else "does not read the folder"


def _plain(text: str) -> str:
    """Return another library's message without characters that Markdown or a terminal would interpret."""
    return "`" + "".join(letter for letter in text if letter.isprintable() and letter != "`").rstrip(".") + "`"


def _calibration(calibrated: str) -> str:
    """Return the paragraph on probabilities, with what they were worth on test; empty without a calibration."""
    if not calibrated:
        return ""
    quality = calibrated.removeprefix("scores are calibrated on dev: ")
    return f"""
`calibration.json` turns the model's logits into the probability that a document would be judged relevant. It was fitted
on dev, where a document without a judgement counted as not relevant ({quality}).
domain-reranker applies it:

```python
from trainer.model import Reranker

model = Reranker.load("FOLDER_OR_REPOSITORY")
model.probability([("a query", "a document"), ("a query", "another document")])
```
"""


def _limits(reranker: Reranker, recipe: Recipe, results: Results, history: History) -> str:
    """Return the list of what the model was trained on, and of what the figures do not cover."""
    metric = results.metrics[0]
    low, high = results.systems[results.shipped][metric][1:3]
    lines = [
        *[f"Mined for training: {history.mined}."] * bool(history.mined),
        f"Measured on {results.queries} queries of {recipe.data.title} ({metric} between {low:.3f} and {high:.3f}), "
        "and on no other domain or language.",
        "A document without a judgement counts as not relevant. A document that the first stage misses is never found.",
        f"Other libraries cut a pair at {reranker.max_length} tokens. They apply no fusion, no calibration, no windows "
        "and no lexical signals beside the logit.",
        history.licence.sentence,
    ]
    return "\n".join(f"- {line}" for line in lines)


def _use(reranker: Reranker, parity: Parity, metric: str) -> str:
    """Return an example, the measured differences, the table of formats, and that of what loads the folder."""
    brings_code = bool(reranker.is_interaction or getattr(reranker.model.config, "auto_map", None))
    return f"""```python
{_example(", trust_remote_code=True" if brings_code else "", parity.left_out)}
```

{_readers(parity)}
{table(parity.formats, metric)}
## What loads it

By the rules of each one's parser; only transformers, sentence-transformers and ONNX Runtime were run.

{as_table(parity.loaded, brings_code)}"""


def model_card(
    reranker: Reranker,
    recipe: Recipe,
    results: Results,
    parity: Parity,
    history: History = UNKNOWN,
) -> str:
    """Return the model card."""
    origin = _origin(recipe, reranker.is_interaction, history.best_step)
    additions = _mixture(reranker) + _windows(reranker) + _lineage(recipe) + _fusion(results, reranker.fusion)
    return f"""---
{_front_matter(recipe, results, history.licence)}
---

# {recipe.name}
{_first_line(results)}
A cross-encoder that reranks the candidates of a first stage, {origin}
It reads query and document together, up to {reranker.max_length} tokens, and returns one logit. Use only the order of
the logits; their values have no absolute meaning.

## Results

Split {results.split}: {results.queries} queries; the first {results.depth} candidates of each were reranked.
Intervals are bootstrapped over queries; `gain` is the difference to the first stage in {results.metrics[0]}, and `p`
its p-value in a paired sign-flip permutation test, adjusted for all comparisons by this metric (Holm). Relevant
documents that the first stage missed count as missed;
`ceiling` is the perfect order of the candidates.

{_table(results)}
{_notes(results, history.judged)}{additions}{_calibration(history.calibrated)}
## Use

{_use(reranker, parity, results.metrics[0])}

## Training groups and limits

{_limits(reranker, recipe, results, history)}

## Recipe

```json
{public_recipe(recipe)}
```
"""
