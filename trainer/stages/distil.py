"""Distil: train a standard checkpoint, the student, on a teacher's scores, without relevance judgements.

The teacher, by default the tuned model, scores the candidates of train queries and of pseudo-queries. Dev queries only
select the checkpoint, and test queries only measure it; neither is used for training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import context, evaluation, mining, model, retriever, training
from trainer.context import Notes, Run, Stage, content, endpoint, settings
from trainer.data import pseudo_queries as pseudo
from trainer.errors import RunError
from trainer.forecast import Cost, Work
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import remove
from trainer.runtime.verify import intact_archive

if TYPE_CHECKING:
    import numpy as np

    from trainer.data import Collection
    from trainer.data.groups import Group
    from trainer.retriever import Candidates


class Distil(Stage):
    """Trains the student and selects its best checkpoint on dev."""

    name = "distil"
    version = 3
    processes = "all"

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe has the section."""
        return recipe.distil is not None

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the section's keys, and the hashes of the student's base model and of another teacher."""
        section = recipe.distil
        unread = {"model", "trust_remote_code", "teacher_trust_remote_code"}
        if section is None or section.other_teacher is None:
            teacher: dict[str, Any] = {}
        else:
            unread |= {"teacher"}
            teacher = content("distil.teacher", section.other_teacher) | endpoint("distil.teacher", recipe)
        return settings("distil", section, unread) | content("distil.model", section and section.model) | teacher

    def run(self, run: Run, folder: Path) -> Notes:
        """Score the queries' candidates with the teacher, and train the student on them."""
        from accelerate.utils import set_seed

        collection, candidates = _unlabelled(run, folder)
        groups, values = _groups(run, collection, candidates)
        pairs = sum(len(group.documents) for group in groups)
        pseudo = sum(group.query >= len(run.collection.queries) for group in groups)
        trained_on = f"{pairs} pairs of {len(groups) - pseudo} train and {pseudo} pseudo-queries"
        console.stage("distil", trained_on)
        set_seed(run.recipe.seed)  # after the teacher, because loading it uses random numbers too
        student = training.load_student(run.recipe, run.best(run.last_training))
        faster = partial(student.bf16_speedup, training=True)
        student.compute_in(run.precision("distil", "training", run.best(run.last_training), faster))
        tokenized = model.TokenizedCollection(collection, student.pairs)
        job = training.TrainingJob(
            training.student_recipe(run.recipe),
            groups,
            [],
            student,
            tokenized,
            context.dev_measure(run, student, tokenized),
            run.accelerator,
            folder,
            training.has_fresh_classifier(run.recipe),
            _chooser(run),
        )
        progress = training.train_reranker(job)
        ((share, best), *_) = context.keep_best(run, folder, progress, self.name, shares=())
        step = progress.best_step if share else 0
        tuned = run.notes(run.last_training)["best_dev"]
        line = f"{trained_on}; best dev {run.metric} {best:.4f} at step {step}"
        line += f" (tuned {tuned:.4f}, first stage {run.first_stage_dev:.4f})"
        return Notes(line, {"best_dev": best, "best_step": step} | values)

    def forecast(self, work: Work) -> Cost:
        """Return the cost of the teacher's scores, of training the student on them, and of the evaluations on dev."""
        section, speed = work.recipe.distil, work.student
        assert section is not None
        pairs, teacher = section.queries * min(section.depth, work.documents), work.reranker
        settings = training.student_recipe(work.recipe).train
        steps = len(training.steps(section.queries, settings, work.recipe.seed))
        evaluations = 1 + len(training.evaluation_steps(steps, settings))
        cost = Cost(bytes=2 * work.weights(speed)) + _cost_of_teacher(work, section.queries, pairs)
        cost += Cost(4 * speed.load + pairs * section.epochs * speed.learn + steps * speed.step)
        cost += Cost(evaluations * work.pairs("dev") * speed.score)
        if work.recipe.bi_encoder and (drawn := section.queries - work.queries("train")) > 0:
            cost += Cost(work.bi_encoder.load + drawn * work.bi_encoder.query)
        if section.teacher == "fused":
            cost += Cost(teacher.load + work.pairs("dev") * teacher.exact)
        return cost


def _cost_of_teacher(work: Work, queries: int, pairs: int) -> Cost:
    """Return the cost of the teacher's scores."""
    section = work.recipe.distil
    assert section is not None
    if "distil.teacher" in work.recipe.scoring_endpoints:
        return work.asked("distil.teacher", queries, pairs // max(1, queries))
    speed = work.reranker if section.other_teacher is None else work.other_teacher
    return Cost(speed.load + pairs * speed.score)


def _chooser(run: Run) -> model.Reranker | None:
    """Return the model that chooses windows for a student that cannot, because its classifier is new."""
    assert run.recipe.distil is not None
    if run.recipe.passages is None or run.recipe.distil.model is not None:
        return None
    return context.load(run, str(run.best(run.last_training)))


def _unlabelled(run: Run, folder: Path) -> tuple[Collection, Candidates]:
    """Return the collection with pseudo-queries appended, and the candidates that the student is trained on."""
    section, seed = run.recipe.distil, run.recipe.seed
    assert section is not None
    train = mining.sample_queries(run.candidates("train").top(section.depth), section.queries, seed)
    missing = section.queries - len(train.queries)
    if run.recipe.retriever.run is not None and missing:
        message = "retriever.run has no candidates for pseudo-queries, so the student is trained on "
        console.warn("distil", f"{message}{len(train.queries)} train queries only")
        return run.collection, train
    drawn = pseudo.pseudo_queries(run.collection, missing, seed)
    if len(drawn) < missing:
        fewer = missing - len(drawn)
        console.warn("distil", f"the corpus gives {len(drawn)} pseudo-queries, {fewer} fewer than requested")
    if not drawn:
        return run.collection, train
    collection, rows = pseudo.add_queries(run.collection, drawn)
    path = folder / "pseudo_queries.npz"
    if not run.on_main(lambda: intact_archive(path)):
        run.on_main(lambda: remove(path))
        _retrieve(run, collection, rows, path)
        if run.is_main:
            pseudo.write_queries(drawn, collection, path.with_suffix(".jsonl"))
    run.accelerator.wait_for_everyone()
    # A document of one sentence is identical to its pseudo-query, and is not one of its candidates.
    own = [
        retriever.NOTHING if query.document in collection.self_documents.get(row, ()) else query.document
        for row, query in zip(rows, drawn, strict=True)
    ]
    pseudo_candidates = mining.with_source_documents(retriever.Candidates.load(path).top(section.depth), own)
    return collection, train.joined(pseudo_candidates)


def _retrieve(run: Run, collection: Collection, rows: list[int], path: Path) -> None:
    """Write the candidates of pseudo-queries, with the settings that were tuned on the train queries."""
    embeddings, _ = context.embed(run, collection, rows)
    if run.is_main:
        tuned = retriever.Tuning.load(run.folder / "retrieve").settings
        retriever.retrieve_unjudged(run.recipe.retriever, collection, rows, embeddings, tuned).save(path)


def _groups(run: Run, collection: Collection, candidates: Candidates) -> tuple[list[Group], dict[str, Any]]:
    """Return the candidates in the teacher's order, and values for `done.json`; raise RunError if there is no order."""
    scores, values = _teacher_scores(run, collection, candidates)
    if not (groups := mining.groups_by_teacher(candidates, scores)):
        raise RunError("distil: no query has two candidates to order; raise distil.queries, or remove the section")
    return groups, values


def _teacher_scores(run: Run, collection: Collection, candidates: Candidates) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the teacher's scores (queries, depth), and values for `done.json`.

    They are -inf where there is no candidate, and NaN where an endpoint gives none.
    """
    section = run.recipe.distil
    assert section is not None
    if section.other_teacher is not None:
        trust = section.teacher_trust_remote_code
        teacher = context.teacher(run, section.other_teacher, collection, trust, "distil.teacher")
        values = teacher.checked() if isinstance(teacher, context.EndpointTeacher) else {}
        return candidates.scored(teacher), values
    tuned = str(run.best(run.last_training))
    logits = candidates.scored(context.teacher(run, tuned, collection, context.may_run_code(run, "train")))
    if section.teacher == "tuned":
        return logits, {}
    weights = context.first_stage_weights(run, context.score(run, tuned, run.reranked("dev")), ("scores",))
    console.stage("distil", f"the teacher's scores are fused with the first stage's; {evaluation.describe(weights)}")
    fused = evaluation.fuse_with_first_stage(candidates, logits, weights["scores"].chosen)
    return mining.rescale_to_logits(fused, logits), {}
