"""The training loop: plain Accelerate, steps of `queries_per_step` groups over all devices.

Dev is measured as a user will use the model, by reranking what the first stage really returned, and the best state is
kept, the untrained one included. Training ends after the last step, or where `patience` evaluations brought nothing
better. A killed run goes on from its last checkpoint with the same batches and random numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import nn

from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import Reranker, TokenizedCollection
from trainer.recipe import Recipe
from trainer.runtime import console, processes
from trainer.runtime.launch import on_main
from trainer.runtime.run_folder import write_json
from trainer.tracking.log import Log
from trainer.training.checkpoints import (
    START,
    Progress,
    last_checkpoint,
    precision_of,
    resume,
    save_checkpoint,
    unsettled_best,
)
from trainer.training.gradients import Engine
from trainer.training.head_init import fit_head
from trainer.training.optimizer import make_optimizer, prepare_model
from trainer.training.parallel import is_sharded, spread, whole, whole_weights
from trainer.training.schedule import evaluation_steps, rate_factor, steps

Measure = Callable[[], float]  # the dev score, larger is better


def train(
    recipe: Recipe,
    groups: Sequence[Group],
    lists: Sequence[Group],
    reranker: Reranker,
    tokenized: TokenizedCollection,
    measure: Measure,
    accelerator: Accelerator,
    folder: Path,
    *,
    fresh_head: bool,
) -> Progress:
    """Fine-tune `reranker.model` in place; leave the state before the first step in `start`, the best in `trained`.

    A fresh head has a faster rate than the encoder; `lists` are whole lists of candidates that a fresh interaction head
    is fitted to first, and empty where there is nothing to fit.
    `measure()` returns the two-stage dev score of the model at that step; every process calls it.
    Raises RunError where the loss is no longer finite or memory does not suffice.
    """
    section = recipe.train
    checkpoint = on_main(accelerator, lambda: last_checkpoint(folder))
    if checkpoint:
        reranker.compute_in(on_main(accelerator, lambda: precision_of(checkpoint)))
    prepare_model(section, reranker)
    plan = steps(len(groups), section, recipe.seed)
    evaluate_at = evaluation_steps(len(plan), section)
    optimizer = make_optimizer(section, reranker, fresh_head, fused=not is_sharded(accelerator))
    weight = 0.0
    if lists and checkpoint is None:
        weight = fit_head(reranker, tokenized, lists, section.fit_lists, accelerator, folder)
    untrained = None if checkpoint else measure()  # before the model is shared out over devices, perhaps
    stepper = _Stepper(recipe, groups, len(plan), reranker, tokenized, accelerator, optimizer, folder)

    progress = (
        resume(checkpoint, accelerator)
        if checkpoint
        else Progress(planned=len(plan), precision=reranker.precision, first_stage_weight=weight)
    )
    stepper.engine.first_stage_weight = progress.first_stage_weight
    log = Log(folder, recipe, progress.step) if processes.is_main() else None
    if untrained is not None:
        torch.manual_seed(recipe.seed + accelerator.process_index)
        _keep_if_best(progress, untrained, reranker, stepper.model, accelerator, folder, log)
    with console.progress(folder.name, total=len(plan), completed=progress.step) as advance:
        for positions in plan[progress.step :]:
            if progress.stalled(section.patience):
                break
            numbers = stepper.step(progress.step, positions)
            progress.step += 1
            if log:
                log.write(progress.step, **numbers, epoch=progress.step * section.epochs / len(plan))
            loss, speed, rate = (numbers[name] for name in ("loss", "pairs_per_second", "learning_rate"))
            advance(1, f"loss {loss:.4f}  {speed:.1f} pairs/s  rate {rate:.1e}")
            if progress.step in evaluate_at:
                with whole(accelerator, stepper.model):
                    measured = measure()
                _keep_if_best(progress, measured, reranker, stepper.model, accelerator, folder, log)
            if progress.step % section.checkpoint_steps == 0 or progress.step in evaluate_at:
                save_checkpoint(progress, accelerator, folder)
    if log:
        log.close()
    accelerator.free_memory()  # optimizer, gradients and moments; what is scored next needs the room
    return progress


class _Stepper:
    """Carries out one optimizer step after the other."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Sequence[Group],
        planned: int,
        reranker: Reranker,
        tokenized: TokenizedCollection,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        folder: Path,
    ) -> None:
        self.section = recipe.train
        self.groups = groups
        self.planned = planned
        self.accelerator = accelerator
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = spread(accelerator, reranker, optimizer)
        self.engine = Engine(recipe.train, groups, reranker, tokenized, accelerator, self.model)
        self.collection = tokenized.collection
        self.folder = folder

    def step(self, number: int, positions: Sequence[int]) -> dict[str, float]:
        """Learn from the groups of step `number` (from 0); returns what is to be logged of it.

        Raises RunError, with the weights as they were, where the loss or a gradient is not finite.
        """
        started = time.monotonic()
        factor = rate_factor(number, self.planned, self.section.warmup_share)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss, pairs = self.engine.gradients(positions)
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.section.max_gradient_norm)
        # In fp16 gradients overflow now and then; such a step is left out, and the next ones are scaled less.
        if not math.isfinite(loss) or (self.accelerator.scaler is None and not math.isfinite(float(norm))):
            self._stop_not_finite(number, positions, f"the loss is {loss} and the gradients' norm {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": loss,
            "pairs_per_second": round(pairs / (time.monotonic() - started), 2),
            "padding": self.engine.padding,
            "learning_rate": self.peaks[0] * factor,
        }

    def _stop_not_finite(self, number: int, positions: Sequence[int], fault: str) -> NoReturn:
        """Keep the step's groups, as texts, where the next start does not clear them away, and say what to do."""
        stage = self.folder.name
        path = self.folder.with_name(f"not_finite-{stage}.json")
        if processes.is_main():
            write_json(path, [self.groups[position].described(self.collection) for position in positions])
        self.accelerator.wait_for_everyone()
        advice = f"lower {stage.partition('-')[0]}.learning_rate"
        if self.engine.reranker.precision != "fp32":
            advice += ", or set train.precision=fp32"
        raise RunError(f"{stage}: step {number + 1} is not finite: {fault}; its groups are in {path}; {advice}")


def _keep_if_best(
    progress: Progress,
    score: float,
    reranker: Reranker,
    model: nn.Module,
    accelerator: Accelerator,
    folder: Path,
    log: Log | None,
) -> None:
    """Record a dev score and save the model at the start, and later where it is the best so far."""
    best = score > max((known for _, known in progress.curve), default=-math.inf)
    progress.curve.append((progress.step, score))
    keep = progress.step == 0 or score > progress.best_score
    weights = whole_weights(accelerator, model) if keep else None
    if keep and progress.step:
        progress.best_score, progress.best_step = score, progress.step
    if processes.is_main():
        if keep:
            reranker.save(unsettled_best(folder, progress.step) if progress.step else folder / START, weights)
        assert log is not None
        log.write(progress.step, dev_score=score)
        console.stage(folder.name, f"step {progress.step:>5}  dev {score:.4f}{'  best so far' if best else ''}")
    accelerator.wait_for_everyone()
