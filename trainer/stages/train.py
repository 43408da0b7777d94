"""Train: fit a new head, then train all weights on the groups, and save the best checkpoint on dev."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer import context, model, training
from trainer.context import Notes, RoundStage, Run, Stage, content, file, settings
from trainer.data.groups import read_groups
from trainer.forecast import FLOAT32, Cost, Work
from trainer.recipe import Recipe
from trainer.runtime import console

# Keys that change time and memory, but not the result: a training can be resumed with another value.
WITHOUT_EFFECT = {"tokens_per_pass", "gradient_checkpointing", "checkpoint_steps", "compile"}


@dataclass(frozen=True)
class Train(RoundStage):
    """Trains the reranker. The second round starts from the base model again, with the groups of mine-2.

    With `train.seeds` the last round has one stage for each seed. If the run's own seed comes first, its stage is the
    one of a recipe without this key, so that a finished training is used again.
    """

    seeds: tuple[int, ...] = ()
    """The stage's seed after those of the stages before it; empty: the run's own seed, with none before it."""

    name = "train"
    version = 7
    processes = "all"

    @property
    def folder(self) -> str:
        """Name of the stage's folder: train, or train-seed-SEED."""
        folder = self.folder_of(self.name)
        return f"{folder}-seed-{self.seeds[-1]}" if self.seeds else folder

    def each(self, recipe: Recipe) -> Sequence[Stage]:
        """Return a stage for each seed in the last round, and one for the round before it."""
        if self.round != recipe.mine.rounds:
            return super().each(recipe)
        seeds = recipe.training_seeds
        up_to = [seeds[: number + 1] for number in range(len(seeds))]
        return [self if one == (recipe.seed,) else replace(self, seeds=one) for one in up_to]

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of `reranker`, `passages` and `train` that count, the base's hash, and the dev metric."""
        base = recipe.reranker
        return (
            settings("reranker", base, {"model", "trust_remote_code", "depth", "template"})
            | file("reranker.template", base.template)
            | content("reranker.model", base.model)
            | settings("passages", recipe.passages)
            | settings("train", recipe.train, WITHOUT_EFFECT | {"seeds"})
            | ({"train.seeds": self.seeds} if self.seeds else {})
            | {"reranker.depth": recipe.rerank_depth, "evaluate.metrics[0]": recipe.evaluate.metrics[0]}
        )

    def run(self, run: Run, folder: Path) -> Notes:
        """Train on the groups of the mining stage of the same round, and save the best weights on dev."""
        first_stage = run.first_stage_dev
        progress = self._train(run, folder, first_stage)
        curve = context.keep_best(run, folder, progress, self.name)
        share, best = curve[0]
        line = f"best dev {run.metric} {best:.4f} with {share:.0%} of the trained weights of step {progress.best_step}"
        if not run.recipe.train.epochs:
            line = f"not trained (train.epochs: 0); dev {run.metric} {best:.4f}"
        line += f" (before training {progress.curve[0][1]:.4f}, first stage {first_stage:.4f})"
        line += f"; {progress.ending}" if progress.ending else ""
        values = {"best_dev": best, "best_step": progress.best_step if share else 0, "trained_share": share}
        return Notes(line, values | {"interpolation": sorted(curve), "precision": progress.precision})

    def _train(self, run: Run, folder: Path, first_stage: float) -> training.Progress:
        """Train the base, and return the progress; the model leaves the memory before its weights are interpolated."""
        from accelerate.utils import set_seed

        seed = self.seeds[-1] if self.seeds else run.recipe.seed
        set_seed(seed)
        reranker = context.load_base_to_train(run, folder.name)
        tokenized = model.TokenizedCollection(run.collection, reranker.pairs)
        groups = read_groups(run.folder / self.folder_of("mine"))
        with_seed = f" with seed {seed}" if run.recipe.train.seeds else ""
        console.stage(
            "train", f"{len(groups)} groups{with_seed}; dev {run.metric} of the first stage {first_stage:.4f}"
        )
        job = training.TrainingJob(
            run.recipe.model_copy(update={"seed": seed}),
            groups,
            context.lists_for_fit(run),
            reranker,
            tokenized,
            context.dev_measure(run, reranker, tokenized),
            run.accelerator,
            folder,
            context.has_fresh_head(run),
            base_ranks=context.base_ranks(run),
        )
        return training.train_reranker(job)

    def forecast(self, work: Work) -> Cost:
        """Return the cost of fitting the head, of all steps, and of the evaluations on dev."""
        section, speed = work.recipe.train, work.reranker
        groups, weights = work.lists, work.weights(speed)
        steps = len(training.steps(groups, section, work.recipe.seed))
        fitted = work.fitted_lists * work.depth
        evaluations = 1 + len(training.evaluation_steps(steps, section)) + len(training.BETWEEN) * bool(steps)
        pairs = groups * work.group_size * section.epochs
        cost = Cost(4 * speed.load + (fitted + evaluations * work.pairs("dev")) * speed.score, 2 * weights)
        cost += Cost(pairs * speed.learn + steps * speed.step)
        # A checkpoint has the weights and two numbers of the optimizer for each that is trained.
        saved = steps // section.checkpoint_steps + bool(steps)
        return cost + work.written(saved * (weights + 2 * FLOAT32 * speed.trained)) + work.written(4 * weights)
