"""Compare our test quality with sentence-transformers' own recipe: same base, same number of pairs, several seeds.

    python scripts/bench_quality.py recipes/cosqa.yaml data.path=PATH/TO/cosqa
    python scripts/bench_quality.py RECIPE [section.key=value ...] --seeds 13 14 15 --their-rates 2e-5 1e-4

Ours follows the recipe. Theirs follows its guide to training rerankers: `mine_hard_negatives` takes the highest ranks
below the positive's similarity, from the first 100; `BinaryCrossEntropyLoss` weighs a positive as much as all its
negatives; AdamW warms up over a tenth of the steps. Its learning rate is the one of --their-rates that is best on dev
with the first seed. Both start from the same encoder, with the same number of negatives for each positive, the same
length of pairs, the same number of pairs in all and in a step, and the same number of epochs; their miner uses our
embeddings. Where one side mined more pairs, its last ones are not used. --their-batch gives theirs other steps: with
whole lists a step of ours is so large that theirs would take few.

Both models rerank the same candidates with our scorer, whose scores equal theirs to 1e-5 (bench_score.py). The table
has means over seeds; intervals and the paired p-value are over test queries, each with its mean over the seeds. Results
are saved in runs/NAME/quality.json, and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import set_seed
from trials import Trials, command_line, main

from trainer.context import models
from trainer.data.groups import Group
from trainer.errors import TrainerError
from trainer.evaluation.statistics import bootstrap, paired_p
from trainer.evaluation.two_stage import query_scores
from trainer.model import Reranker, TokenizedCollection
from trainer.model_files.references import locate
from trainer.recipe import Recipe
from trainer.retriever.retrieve import judged_queries
from trainer.runtime.console import table

if TYPE_CHECKING:
    from datasets import Dataset

THEIR_RANKS = 100


class Bench(Trials):
    """Both sides' runs of one recipe."""

    def __init__(self, recipe: Recipe, their_batch: int | None = None) -> None:
        super().__init__(recipe, "quality")
        self.their_batch = their_batch or recipe.train.queries_per_step * (1 + recipe.mine.negatives_per_positive)
        if not models.has_fresh_head(self.opened) or recipe.bi_encoder is None:
            raise TrainerError("the recipe needs an encoder as base model, and a bi-encoder for their miner")
        self.their_rows = mine_theirs(self)

    def equal(self, seed: int) -> tuple[list[Group], Dataset]:
        """Return our groups and their rows with the same number of pairs, to within one group."""
        groups = self.mine(self.recipe.mine, seed).groups
        sizes = np.cumsum([len(group.documents) for group in groups])
        pairs = min(int(sizes[-1]), len(self.their_rows))
        return groups[: int(np.searchsorted(sizes, pairs, side="right"))], self.their_rows.select(range(pairs))

    def ours(self, seed: int) -> dict[str, Any]:
        """Return the results of our recipe, with its best checkpoint on dev."""
        groups, _ = self.equal(seed)
        results, scores = self.train_from_base(seed, groups, models.lists_for_fit(self.opened))
        pairs = sum(len(group.documents) for group in groups)
        return {"pairs": pairs, "queries": self.of_queries(scores)} | results

    def theirs(self, rate: float, seed: int) -> dict[str, Any]:
        """Return the results of their recipe."""
        _, rows = self.equal(seed)
        folder = train_theirs(self, rows, seed, rate)
        reranker = Reranker.load(folder, max_length=self.recipe.reranker.max_length)
        tokenized = TokenizedCollection(self.opened.collection, reranker.pairs)
        dev, _ = models.measure(self.opened, "dev", reranker, tokenized)
        test, scores = models.measure(self.opened, "test", reranker, tokenized)
        return {"pairs": len(rows), "queries": self.of_queries(scores), "dev": dev, "test": test}

    def of_queries(self, scores: np.ndarray | None = None) -> list[float]:
        """Return the metric of each test query, of the first stage's order or of scores."""
        run = self.opened
        values = query_scores(run.collection, "test", run.candidates("test"), run.metric, scores)
        return [values[query] for query in sorted(values)]


def mine_theirs(bench: Bench) -> Dataset:
    """Return their miner's rows (query, document, label), every positive once, shuffled."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    collection = bench.opened.collection
    vectors, _ = models.embed(bench.opened, collection)
    assert vectors is not None
    passages = collection.documents["passage"][:]
    query_rows, document_rows = (
        {text: row for row, text in enumerate(texts)}
        for texts in (collection.query_texts(judged_queries(collection)), passages)
    )

    class Vectors(SentenceTransformer):
        """A model that returns our embeddings."""

        def encode_query(self, inputs: Any, *_: Any, **__: Any) -> Any:
            return vectors[0].rows(np.array([query_rows[text] for text in inputs]))

        def encode_document(self, inputs: Any, *_: Any, **__: Any) -> Any:
            return vectors[1].rows(np.array([document_rows[text] for text in inputs]))

        def get_embedding_dimension(self) -> int:
            return vectors[1].dimensions

    judged = [
        (query, row)
        for query in collection.answerable("train")
        for row, grade in collection.qrels["train"][query].items()
        if grade > 0
    ]
    pairs = {
        "query": collection.query_texts([query for query, _ in judged]),
        "positive": [passages[row] for _, row in judged],
    }
    return mine_hard_negatives(
        Dataset.from_dict(pairs),
        Vectors(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name="dot"),
        corpus=passages,
        num_negatives=bench.recipe.mine.negatives_per_positive,
        absolute_margin=0,
        range_min=0,
        range_max=THEIR_RANKS,
        sampling_strategy="top",
        output_format="labeled-pair",
        verbose=False,
    ).shuffle(bench.recipe.seed)


def train_theirs(bench: Bench, rows: Dataset, seed: int, rate: float) -> Path:
    """Train their model, and return its folder."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    recipe, negatives = bench.recipe, bench.recipe.mine.negatives_per_positive
    folder = bench.folder / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    set_seed(seed)  # for the random weights of the new classifier
    layers = {"num_hidden_layers": max(recipe.reranker.layers)} if recipe.reranker.layers else {}
    length = recipe.reranker.max_length or models.load_base(bench.opened).max_length
    model = CrossEncoder(str(locate(recipe.reranker.model)), num_labels=1, max_length=length, config_kwargs=layers)
    CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(folder / "run"),
            num_train_epochs=recipe.train.epochs,
            per_device_train_batch_size=bench.their_batch,
            learning_rate=rate,
            warmup_steps=0.1,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(negatives))),
    ).train()
    model.save_pretrained(str(folder))
    return folder


def compare(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Run the missing runs, and print the table."""
    bench, seeds = Bench(recipe, arguments.their_batch), arguments.seeds

    def theirs(rate: float, seed: int) -> dict[str, Any]:
        name = f"sentence-transformers, rate {rate:g}, {bench.their_batch} pairs in a step; seed {seed}"
        return bench.once(name, partial(bench.theirs, rate, seed))

    ours = [bench.once(f"ours; seed {seed}", partial(bench.ours, seed)) for seed in seeds]
    rate = max(arguments.their_rates, key=lambda rate: theirs(rate, seeds[0])["dev"])
    others = [theirs(rate, seed) for seed in seeds]
    before = np.array(bench.of_queries())
    systems = {"first stage": [], "ours": ours, f"theirs, {rate:g}": others}
    means = {name: np.mean([run["queries"] for run in runs] or [before], axis=0) for name, runs in systems.items()}
    rows = []
    for name, runs in systems.items():
        interval = bootstrap(means[name], recipe.seed)
        each = " ".join(f"{run['test']:.4f}" for run in runs)
        p = "" if name == "ours" else f"{paired_p(means['ours'], means[name], recipe.seed):.4f}"
        rows.append([name, f"{interval.mean:.4f}", f"{interval.low:.3f}-{interval.high:.3f}", each, p])
    pairs = " and ".join(str(runs[0]["pairs"]) for runs in (ours, others))
    title = f"test {bench.opened.metric}, {pairs} pairs, {len(before)} queries, depth {recipe.rerank_depth}"
    table(title, ["", "mean", "95 %", "seeds", "p, ours"], rows)


if __name__ == "__main__":
    parser = command_line(__doc__, seeds=[13, 14, 15])
    parser.add_argument("--their-rates", type=float, nargs="+", default=[2e-5])
    parser.add_argument("--their-batch", type=int, help="pairs in a step of theirs; as many as in ours by default")
    main(parser, compare)
