"""The training loop with Accelerate: steps of `queries_per_step` groups over all devices.

The dev score is that of the model in use: of reranking the first stage's candidates. The best model is saved, and the
one before training. Training ends after the last step, or when `patience` evaluations brought no improvement. A killed
run resumes from its last checkpoint with the same batches and random numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import ChosenWindows, Mixture, Reranker, TokenizedCollection
from trainer.model.batching import prefetch
from trainer.model.scoring import Row
from trainer.model_files.references import is_local
from trainer.recipe import Recipe
from trainer.runtime import console, processes
from trainer.runtime.launch import on_main
from trainer.runtime.run_folder import write_json
from trainer.tracking.log import Log
from trainer.training.adapter import ADAPTER_FOLDER, merged, save_adapter
from trainer.training.checkpoints import (
    START,
    Progress,
    last_checkpoint,
    pending_best,
    precision_of,
    resume,
    save_checkpoint,
)
from trainer.training.fit import fit_start
from trainer.training.gradients import GradientStep, Step
from trainer.training.optimizer import configure_model, make_optimizer
from trainer.training.parallel import as_plain, full_weights, is_sharded, prepare_model, unsharded
from trainer.training.schedule import evaluation_steps, rate_factor, steps
from trainer.training.windows import choose_windows

Measure = Callable[[], float]  # the dev score, larger is better


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of a training; `reranker.model` is trained in place.

    `lists` are full candidate lists of train queries, to which a fresh interaction head, or a mixture, is fitted first;
    empty if neither is. `measure()` returns the two-stage dev score of the current model; every process calls it. With
    `fresh_head` the head has a higher rate than the encoder; `base_ranks` says whether the base was trained to rank. If
    documents are read in windows, `chooser` chooses those to train on; None: the model before training does.
    """

    recipe: Recipe
    groups: Sequence[Group]
    lists: Sequence[Group]
    reranker: Reranker
    tokenized: TokenizedCollection
    measure: Measure
    accelerator: Accelerator
    folder: Path
    fresh_head: bool
    chooser: Reranker | None = None
    base_ranks: bool = True


def train_reranker(job: TrainingJob) -> Progress:
    """Fine-tune the model of a job, and return the progress with the curve of dev scores.

    The model before the first step is saved in `folder/start`, the best one after it in `folder/trained`. Raises
    RunError if the loss is not finite or memory runs out.
    """
    section, reranker, accelerator = job.recipe.train, job.reranker, job.accelerator
    checkpoint = on_main(accelerator, lambda: last_checkpoint(job.folder))
    if checkpoint:
        reranker.compute_in(on_main(accelerator, lambda: precision_of(checkpoint)))
    configure_model(section, reranker, job.base_ranks)
    plan = steps(len(job.groups), section, job.recipe.seed)
    fused = not is_sharded(accelerator)
    optimizer = make_optimizer(section, reranker, job.fresh_head, fused, job.base_ranks)
    weight, known = 0.0, {}
    if checkpoint:
        reranker.mixture = on_main(accelerator, lambda: Mixture.load(job.folder / START, reranker.tokenizer))
    elif job.lists:
        weight, known = fit_start(job.recipe, reranker, job.tokenized, job.lists, accelerator, job.folder)
    pairs = _training_pairs(job, known)
    untrained = None if checkpoint else job.measure()  # before the model may be sharded over devices
    stepper = _Stepper(job, pairs, len(plan), optimizer)
    progress = (
        resume(checkpoint, accelerator)
        if checkpoint
        else Progress(planned=len(plan), precision=reranker.precision, first_stage_weight=weight)
    )
    stepper.gradient_step.first_stage_weight = progress.first_stage_weight
    log = Log(job.folder, job.recipe, progress.step) if processes.is_main() else None
    if untrained is not None:
        torch.manual_seed(job.recipe.seed + accelerator.process_index)
        _record_score(job, progress, untrained, stepper.model, log)
    _run_steps(job, progress, plan, stepper, log)
    if log:
        log.close()
    accelerator.free_memory()  # free optimizer states and gradients before the next stage scores
    return progress


def _training_pairs(job: TrainingJob, known: Mapping[Row, int]) -> TokenizedCollection | ChosenWindows:
    """Return the pairs of training; of documents that are read in windows, the best window before training."""
    if job.reranker.passages is None:
        return job.tokenized
    chooser = job.chooser or job.reranker
    chosen = choose_windows(chooser, job.tokenized, job.groups, known, job.accelerator, job.folder)
    return ChosenWindows(job.reranker, job.tokenized, chosen)


def _run_steps(
    job: TrainingJob, progress: Progress, plan: Sequence[Sequence[int]], stepper: _Stepper, log: Log | None
) -> None:
    """Perform the remaining steps, with evaluations on dev and checkpoints."""
    section = job.recipe.train
    evaluate_at = evaluation_steps(len(plan), section)
    with console.progress(job.folder.name, total=len(plan), completed=progress.step) as advance:
        for prepared in prefetch(map(stepper.gradient_step.prepare, plan[progress.step :])):
            if progress.stalled(section.patience):
                break
            numbers = stepper.step(progress.step, prepared)
            progress.step += 1
            if log:
                log.write(progress.step, **numbers, epoch=progress.step * section.epochs / len(plan))
            loss, speed, rate = (numbers[name] for name in ("loss", "pairs_per_second", "learning_rate"))
            advance(1, f"loss {loss:.4f}  {speed:.1f} pairs/s  rate {rate:.1e}")
            if progress.step in evaluate_at:
                with unsharded(job.accelerator, stepper.model):
                    score = job.measure()
                _record_score(job, progress, score, stepper.model, log)
            if progress.step % section.checkpoint_steps == 0 or progress.step in evaluate_at:
                save_checkpoint(progress, job.accelerator, job.folder)


class _Stepper:
    """Performs the optimizer steps of a training."""

    def __init__(
        self,
        job: TrainingJob,
        pairs: TokenizedCollection | ChosenWindows,
        planned: int,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.section = job.recipe.train
        self.groups = job.groups
        self.planned = planned
        self.accelerator = job.accelerator
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = prepare_model(job.accelerator, job.reranker, optimizer)
        self.gradient_step = GradientStep(
            job.recipe.train, job.groups, job.reranker, pairs, job.accelerator, self.model
        )
        self.collection = job.tokenized.collection
        self.folder = job.folder

    def step(self, number: int, prepared: Step) -> dict[str, float]:
        """Perform step `number` (from 0), and return the values to log.

        Raises RunError, with unchanged weights, if the loss or a gradient is not finite.
        """
        started = time.monotonic()
        factor = rate_factor(number, self.planned, self.section.warmup_share)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        sums = self.gradient_step.accumulate(prepared)
        clipped: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.section.max_gradient_norm)
        # The only point of a step at which the program waits for a GPU.
        loss, pairs, norm = torch.stack([*sums, as_plain(clipped)]).tolist()
        # In fp16 gradients overflow now and then; the scaler skips such a step and lowers its scale.
        if not math.isfinite(loss) or (self.accelerator.scaler is None and not math.isfinite(norm)):
            self._stop_not_finite(number, prepared.positions, f"the loss is {loss} and the gradients' norm {norm}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": loss,
            "pairs_per_second": round(pairs / (time.monotonic() - started), 2),
            "padding": self.gradient_step.padding,
            "learning_rate": self.peaks[0] * factor,
        }

    def _stop_not_finite(self, number: int, positions: Sequence[int], fault: str) -> NoReturn:
        """Write the step's groups with their texts next to the stage folder, and raise RunError with advice."""
        stage = self.folder.name
        path = self.folder.with_name(f"not_finite-{stage}.json")
        if processes.is_main():
            write_json(path, [self.groups[position].described(self.collection) for position in positions])
        self.accelerator.wait_for_everyone()
        advice = f"lower {stage.partition('-')[0]}.learning_rate"
        if self.gradient_step.reranker.precision != "fp32":
            advice += ", or set train.precision=fp32"
        raise RunError(f"{stage}: step {number + 1} is not finite: {fault}; its groups are in {path}; {advice}")


def _record_score(job: TrainingJob, progress: Progress, score: float, model: nn.Module, log: Log | None) -> None:
    """Record a dev score, and save the model before the first step or when it is the best after it."""
    is_best = score > max((earlier for _, earlier in progress.curve), default=-math.inf)
    progress.curve.append((progress.step, score))
    save = progress.step == 0 or score > progress.best_score
    weights = full_weights(job.accelerator, model) if save else None
    if save and progress.step:
        progress.best_score, progress.best_step = score, progress.step
    if processes.is_main():
        if save:
            _save(job, pending_best(job.folder, progress.step) if progress.step else job.folder / START, weights)
        assert log is not None
        log.write(progress.step, dev_score=score)
        console.stage(job.folder.name, f"step {progress.step:>5}  dev {score:.4f}{'  best so far' if is_best else ''}")
    job.accelerator.wait_for_everyone()


def _save(job: TrainingJob, path: Path, weights: dict[str, Tensor] | None) -> None:
    """Write the model, with an adapter merged and its own files in a subfolder."""
    section, reranker = job.recipe.train, job.reranker
    if section.adapter == "none":
        reranker.save(path, weights)
        return
    state = reranker.model.state_dict() if weights is None else weights
    reranker.save(path, merged(state, section))
    base = job.recipe.reranker.model
    name = Path(base).name if is_local(base) else base  # a path on this machine is not saved
    save_adapter(state, reranker.model, name, path / ADAPTER_FOLDER)
