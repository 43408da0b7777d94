"""READ THIS FIRST: the one path from a recipe to a measured, exported reranker.

    check -> data -> retrieve -> mine -> train -> distil -> evaluate -> export -> push

With `mine.rounds: 2` mine and train come twice: mine-2 asks the model of the first round, train-2 starts from the base.
Distil only comes where the recipe has the section, push likewise.

Every stage leaves a folder under runs/NAME/. It is skipped as long as its files are as they were written and nothing
changed that its result depends on: recipe keys, data, weights and the stages before it, all known before the first
model loads. Else it is done again: what was there moves aside, and the terminal names what changed. Killed anywhere,
the same command goes on. A lock keeps a second run of the same name out.

Under several processes all of them embed, train and score; the rest is the main process's work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from trainer import console, models, processes
from trainer.check import check
from trainer.data import Collection, build_collection, fingerprint_data
from trainer.errors import NotBetterError, RecipeError, RunError, did_you_mean
from trainer.lock import hold
from trainer.machine import explained
from trainer.pins import read_pins, write_pins
from trainer.recipe import Push, Recipe
from trainer.reporting.write import PAGE
from trainer.runs import CONTENT, Stage, read_json, remove, write_json
from trainer.verify import intact_archive

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator

    from trainer.evaluation.fusion import Weights
    from trainer.groups import Group
    from trainer.precision import Precision
    from trainer.reranker import Reranker, TokenizedCollection
    from trainer.reranker.fusion import Kind
    from trainer.retriever import Candidates, Embeddings
    from trainer.teacher import Teacher
    from trainer.train.checkpoints import Progress

# Raised when a stage's code would now leave something else for the same inputs.
VERSIONS = {"data": 5, "retrieve": 3, "mine": 5, "train": 6, "distil": 2, "evaluate": 7, "export": 4}
# In these all processes work; in the others they wait for the main one.
SHARED = ("retrieve", "mine", "train", "distil", "evaluate")
BETWEEN = "between.json"  # each dev query's value under the models that lie between start and trained one
PARITY_PAIRS = 48  # pairs of dev on which exported formats are compared, the first and the last among them
# Keys of train that change time and memory, but not what comes out; a training goes on under another value.
WITHOUT_EFFECT = {"tokens_per_pass", "gradient_checkpointing", "checkpoint_steps", "compile"}
# Of files and models the content counts and not the name; permission to run a model's code changes nothing.
DATA_FILES = {"path", "corpus", "queries", "qrels", "pairs", "dev", "test", "judgements"}
BY_CONTENT = {"model", "run", "trust_remote_code"}
Result = TypeVar("Result")


@explained
def run(recipe: Recipe, runs: Path, until: str = "export", force: bool = False) -> None:
    """Carry out the recipe up to a stage; push follows where the recipe has the section and `until` is export.

    Raises TrainerError for whatever the user can mend. With `force`, a model that is not shown to be better than what
    was there before is exported and pushed all the same.
    """
    if until == "distil" and recipe.distil is None:
        raise RecipeError("distil: the recipe has no distil section; add `distil: {}` for its defaults")
    if until not in VERSIONS:
        raise RecipeError(f"until: {until!r} is no stage{did_you_mean(until, VERSIONS)}")
    models.pin(read_pins(runs / recipe.name))
    check(recipe, runs, weights=True, pushes=until == "export", keep=True)
    pipeline = Pipeline(recipe, runs / recipe.name)
    names = list(pipeline.stages)
    last = max(place for place, name in enumerate(names) if _kind(name) == until)
    with pipeline.locked():
        for name in names[: last + 1]:
            pipeline.carry_out(name, force)
        pipeline.report_stale(names[last + 1 :])
        if until == "export":
            pipeline.deliver(force)


def _unused(recipe: Recipe) -> set[str]:
    """Return the keys of retriever and mine that nothing reads under this recipe."""
    retriever, mine = recipe.retriever, recipe.mine
    return {
        *(() if recipe.bi_encoder else ("max_length", "query_prompt", "document_prompt", "index")),
        *(() if retriever.has_bm25 else ("language", "tune")),
        *(() if retriever.is_fused and retriever.tune != "off" else ("fusion",)),
        *(() if mine.teacher or mine.rounds == 2 else ("teacher_margin",)),
    }


def _settings(name: str, section: BaseModel | None, without: set[str] | None = None) -> dict[str, Any]:
    """Return a section's keys and values under their names in the recipe; nothing where there is no section."""
    values = section.model_dump(mode="json", exclude=without) if section is not None else {}
    return {f"{name}.{key}": value for key, value in values.items()}


def _content(key: str, reference: str | None) -> dict[str, str]:
    """Return the hash of the model that a key names; nothing where it names none."""
    return {CONTENT + key: models.fingerprint(models.locate(reference))} if reference else {}


def _refuse_judgements_in_a_stage(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError where `data.judgements` lies where a stage would move it away."""
    path = recipe.data.judgements
    if path is not None and folder.resolve() in path.resolve().parents and path.resolve().parent != folder.resolve():
        raise RecipeError(
            f"data.judgements: {path} lies in the folder of a stage, which moves aside when it is done again; copy it "
            "to another folder, and name the copy"
        )


def _kind(stage: str) -> str:
    """The stage without its round: `mine` for mine-2."""
    return stage.partition("-")[0]


class Pipeline:
    """The stages of one recipe in its run folder."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        models.pin(self._on_main(lambda: read_pins(folder)))
        _refuse_judgements_in_a_stage(recipe, folder)
        self.stages = self._on_main(self._plan)
        models.pin(self._on_main(models.commits))  # those that were fingerprinted
        self._known: dict[str, dict[str, Any]] = {}  # notes of finished stages, the same on all processes

    def _plan(self) -> dict[str, Stage]:
        """Every stage with all that its result depends on, which is what the stages before it depend on and more."""
        recipe = self.recipe
        depends: dict[str, dict[str, Any]] = {
            "data": _settings("data", recipe.data, DATA_FILES) | {CONTENT + "data": fingerprint_data(recipe.data)},
            "retrieve": _settings("retriever", recipe.retriever, BY_CONTENT | _unused(recipe))
            | _content("retriever.model", recipe.bi_encoder)
            | ({CONTENT + "retriever.run": models.sha256(recipe.retriever.run)} if recipe.retriever.run else {}),
            "mine": _settings("mine", recipe.mine, {"teacher", "teacher_trust_remote_code", "rounds"} | _unused(recipe))
            | _content("mine.teacher", recipe.mine.teacher)
            | ({"reranker.max_length": recipe.reranker.max_length} if recipe.mine.teacher else {})
            | ({"reranker.depth": recipe.rerank_depth} if recipe.mine.groups == "lists" else {})
            | {"seed": recipe.seed},
            "train": _settings("reranker", recipe.reranker, BY_CONTENT | {"depth"})
            | _content("reranker.model", recipe.reranker.model)
            | _settings("train", recipe.train, WITHOUT_EFFECT)
            | {"reranker.depth": recipe.rerank_depth, "evaluate.metrics[0]": self.metric},
            "distil": _settings("distil", recipe.distil, BY_CONTENT)
            | _content("distil.model", recipe.distil and recipe.distil.model),
            "evaluate": {"evaluate.metrics": recipe.evaluate.metrics},
            "export": _settings("export", recipe.export) | {"name": recipe.name},
        }
        names = [name for name in depends if name != "distil" or recipe.distil is not None]
        if recipe.mine.rounds == 2:
            after = names.index("train") + 1
            names[after:after] = ["mine-2", "train-2"]
        stages: dict[str, Stage] = {}
        known: dict[str, Any] = {}
        previous = None
        for name in names:
            kind = _kind(name)
            known |= depends[kind] | {f"the code of {kind}": VERSIONS[kind]}
            known |= {"mine.rounds": 2} if name == "mine-2" else {}
            previous = stages[name] = Stage.of(self.folder / name, known, previous)
        return stages

    def _on_main(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns on the main process; a single process starts no torch for that."""
        if not processes.several():
            return work()
        from trainer.launch import on_main

        return on_main(self.accelerator, work)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the run folder; raises RunError where one is using it."""
        with ExitStack() as held:
            self._on_main(lambda: held.enter_context(hold(self.folder / ".lock", "run")))
            yield

    def carry_out(self, name: str, force: bool) -> None:
        """Do one stage, or say that it stands."""
        stage = self.stages[name]
        notes = self._on_main(lambda: stage.done)
        if notes is not None:
            self._on_main(stage.tidy)
            console.stage(name, notes["said"], note="(stands)")
        else:
            if name == "export":
                self._refuse_worse(force)
            self._on_main(lambda: self._begin(stage))
            made: dict[str, Any] = {}
            if self.accelerator.is_main_process or _kind(name) in SHARED:
                made = getattr(self, f"_{_kind(name)}")(stage.folder)
            notes = self._on_main(lambda: stage.finish(**made))
            console.stage(name, notes["said"])
        self._known[name] = notes
        if name == "evaluate":
            self._show_results()
            self._on_main(self._report)

    def _begin(self, stage: Stage) -> None:
        """Prepare the stage's folder, and note the recipe and the commits of its models."""
        write_pins((reference.name for reference in self.recipe.model_references), self.folder)
        stage.begin(self.recipe.model_dump(mode="json"))

    def report_stale(self, names: Sequence[str]) -> None:
        """Warn of later stages that are finished, but not with this recipe's inputs."""
        stages = [self.stages[name] for name in names]
        stale = [stage.folder.name for stage in stages if (stage.folder / "done.json").exists() and stage.done is None]
        if stale:
            console.warn("run", f"not done again yet, still of other inputs (their recipe.json): {', '.join(stale)}")

    # The stages in their order. Each is given its folder and returns the notes for done.json; `said` is its line on
    # the terminal, now and whenever the stage is skipped later.

    def _data(self, folder: Path) -> dict[str, Any]:
        collection = build_collection(self.recipe.data, folder)
        return {"said": f"{len(collection.documents)} documents and {len(collection.queries)} queries as Arrow files"}

    def _retrieve(self, folder: Path) -> dict[str, Any]:
        from trainer.evaluation.two_stage import mean_score
        from trainer.retriever import Tuning, language_of, retrieve_splits

        section = self.recipe.retriever
        embeddings, new = self.embed(self.collection)
        if not self.accelerator.is_main_process:
            return {"said": ""}
        found = retrieve_splits(section, self.collection, embeddings, folder)
        default = self.default_candidates("dev", folder) or found["dev"]
        score, plain = (
            mean_score(self.collection, "dev", candidates, self.metric) for candidates in (found["dev"], default)
        )
        if tuned := Tuning.load(folder).describe(f"dev {self.metric} {score:.4f}, default {plain:.4f}"):
            console.stage("retrieve", tuned)
        total = sum(len(candidates.queries) for candidates in found.values())
        details = [new] if embeddings else []
        if section.has_bm25:
            details.append(f"bm25 in {language_of(section, self.collection)}")
        engines = f"{section.kind} ({'; '.join(details)})" if details else section.kind
        found_for = f"{section.depth} candidates for each of {total} queries"
        return {"said": f"{engines}: {found_for}; dev {self.metric} {score:.4f}"}

    def embed(
        self, collection: Collection, queries: Sequence[int] | None = None
    ) -> tuple[tuple[Embeddings, Embeddings] | None, str]:
        """The vectors of query rows (None: the judged) and documents, each process encoding its share of the missing.

        None where the first stage has no bi-encoder; and what is new, in words.
        """
        from trainer.retriever import BiEncoder, shards

        reference, section = self.recipe.bi_encoder, self.recipe.retriever
        if reference is None:
            return None, ""
        bi_encoder = BiEncoder(
            models.locate(reference),
            section.max_length,
            section.query_prompt,
            section.document_prompt,
            trust_remote_code=section.trust_remote_code,
        )
        cache = self.folder.parent / ".embeddings"
        parts = shards(bi_encoder, collection, cache, queries)
        missing = [part.find_missing(self.accelerator) for part in parts]
        if any(missing):
            device = str(self.accelerator.device)
            precision = self.precision(
                "retrieve", "encoding", bi_encoder.folder, lambda: bi_encoder.bf16_speedup(device)
            )
            if precision != bi_encoder.precision:
                parts = shards(replace(bi_encoder, precision=precision), collection, cache, queries)
        for part in parts:
            part.encode(self.accelerator)
        self.accelerator.wait_for_everyone()
        opened = (parts[0].open(), parts[1].open())
        return opened, f"{len(parts[1].missing)} of {len(parts[1].paths)} shards of documents embedded"

    def _mine(self, folder: Path) -> dict[str, Any]:
        from trainer import mine
        from trainer.groups import write_groups

        second = folder.name == "mine-2"
        section = self.recipe.mine
        reference = str(self._best("train")) if second else section.teacher
        trust = self._trusts("train") if second else section.teacher_trust_remote_code
        teacher = self.teacher(reference, self.collection, trust) if reference else None
        candidates = self.reranked("train") if section.groups == "lists" else self.candidates("train")
        mined = mine.mine(section, self.collection, candidates, self.recipe.seed, teacher, by_teacher=second)
        report = mine.Report.of(mined, self.collection, section)
        if not mined.groups:
            raise RunError(f"mine: no query got a negative, so nothing can be learned ({report.summary})")
        if self.accelerator.is_main_process:
            write_groups(mined.groups, folder)
            suspects = mine.write_suspects(section, mined, self.collection, folder)
            report.write(mined, self.collection, folder)
            report.show()
            said = f"{report.summary}; {suspects} suspected labels; see {folder / 'report.md'}"
            return {"said": said}
        return {"said": ""}

    def _train(self, folder: Path) -> dict[str, Any]:
        from accelerate.utils import set_seed

        from trainer.groups import read_groups
        from trainer.reranker import TokenizedCollection
        from trainer.train import train

        set_seed(self.recipe.seed)
        reranker = self.load_base()
        base = models.locate(self.recipe.reranker.model)
        measure = partial(reranker.bf16_speedup, training=True)
        reranker.compute_in(self.precision(folder.name, "training", base, measure))
        tokenized = TokenizedCollection(self.collection, reranker.pairs)
        groups = read_groups(folder.with_name(folder.name.replace("train", "mine")))
        first_stage = self.first_stage_dev
        console.stage("train", f"{len(groups)} groups; dev {self.metric} of the first stage {first_stage:.4f}")
        progress = train(
            self.recipe,
            groups,
            self.lists(),
            reranker,
            tokenized,
            self.dev_measure(reranker, tokenized),
            self.accelerator,
            folder,
            fresh_head=self.has_fresh_head,
        )
        curve = self._choose(folder, progress)
        share, best = curve[0]
        said = f"best dev {self.metric} {best:.4f} with {share:.0%} of the way from the start to step"
        said += f" {progress.best_step} (start {progress.curve[0][1]:.4f}, first stage {first_stage:.4f})"
        said += f"; {progress.ending}" if progress.ending else ""
        notes = {"best_dev": best, "best_step": progress.best_step if share else 0, "trained_share": share}
        return {"said": said, **notes, "interpolation": sorted(curve), "precision": progress.precision}

    def _choose(self, folder: Path, progress: Progress, **options: Any) -> list[tuple[float, float]]:
        """Leave the best of the start, the trained model and what lies between them in `best`; return the curve."""
        import numpy as np

        from trainer.evaluation.two_stage import query_scores
        from trainer.reranker import TokenizedCollection
        from trainer.train import choose

        def load(path: Path) -> Reranker:
            return self._load(str(path), _kind(folder.name), progress.precision)

        def values(scores: np.ndarray) -> list[float]:
            dev = self.candidates("dev")
            return list(query_scores(self.collection, "dev", dev, self.metric, scores).values())

        between: list[list[float]] = []

        def measure(reranker: Reranker) -> float:
            scores = self.measure("dev", reranker, TokenizedCollection(self.collection, reranker.pairs))[1]
            between.append(self._on_main(lambda: values(scores)))
            return float(np.mean(between[-1]))

        curve = choose(folder, progress, load, measure, self.accelerator, **options)
        self._on_main(lambda: write_json(folder / BETWEEN, between))
        return curve

    def _distil(self, folder: Path) -> dict[str, Any]:
        from accelerate.utils import set_seed

        from trainer import distil
        from trainer.reranker import TokenizedCollection
        from trainer.train import train

        collection, candidates = self._unlabelled(folder)
        groups = distil.groups(candidates, self._teacher_scores(collection, candidates))
        if not groups:
            raise RunError("distil: no query has two candidates to order; raise distil.queries, or remove the section")
        pairs = sum(len(group.documents) for group in groups)
        pseudo = sum(group.query >= len(self.collection.queries) for group in groups)
        learned = f"{pairs} pairs of {len(groups) - pseudo} train and {pseudo} pseudo-queries"
        console.stage("distil", learned)
        set_seed(self.recipe.seed)  # behind the teacher, who draws numbers too where it has to be loaded
        student = distil.load_student(self.recipe, self._best())
        measure = partial(student.bf16_speedup, training=True)
        student.compute_in(self.precision("distil", "training", self._best(), measure))
        tokenized = TokenizedCollection(collection, student.pairs)
        progress = train(
            distil.student_recipe(self.recipe),
            groups,
            [],
            student,
            tokenized,
            self.dev_measure(student, tokenized),
            self.accelerator,
            folder,
            fresh_head=distil.has_fresh_classifier(self.recipe),
        )
        ((share, best), *_) = self._choose(folder, progress, shares=())
        step = progress.best_step if share else 0
        tuned, first_stage = self._notes(self._last_training)["best_dev"], self.first_stage_dev
        said = f"{learned}; best dev {self.metric} {best:.4f} at step {step}"
        said += f" (tuned {tuned:.4f}, first stage {first_stage:.4f})"
        return {"said": said, "best_dev": best, "best_step": step}

    def _unlabelled(self, folder: Path) -> tuple[Collection, Candidates]:
        """The queries that the student learns from, pseudo-queries behind those of train, with their candidates."""
        from trainer import distil
        from trainer.retriever import NOTHING, Candidates, Tuning, retrieve_unjudged

        section, retriever, seed = self.recipe.distil, self.recipe.retriever, self.recipe.seed
        assert section is not None
        train = distil.draw(self.candidates("train").top(section.depth), section.queries, seed)
        missing = section.queries - len(train.queries)
        if retriever.run is not None and missing:
            message = f"a run finds nothing for new queries, so only {len(train.queries)} queries of train teach"
            console.warn("distil", message)
            return self.collection, train
        drawn = distil.pseudo_queries(self.collection, missing, seed)
        if len(drawn) < missing:
            console.warn(
                "distil", f"the corpus holds {len(drawn)} pseudo-queries, {missing - len(drawn)} fewer than asked"
            )
        if not drawn:
            return self.collection, train
        collection, rows = distil.add_queries(self.collection, drawn)
        path = folder / "pseudo_queries.npz"
        if not self._on_main(lambda: intact_archive(path)):
            self._on_main(lambda: remove(path))
            embeddings, _ = self.embed(collection, rows)
            if self.accelerator.is_main_process:
                distil.write_queries(drawn, collection, path.with_suffix(".jsonl"))
                settings = Tuning.load(self.stages["retrieve"].folder).settings
                retrieve_unjudged(retriever, collection, rows, embeddings, settings).save(path)
        self.accelerator.wait_for_everyone()
        # A document of one sentence is its pseudo-query itself, and no candidate of it.
        own = [
            NOTHING if query.document in collection.self_documents.get(row, ()) else query.document
            for row, query in zip(rows, drawn, strict=True)
        ]
        found = distil.with_own(Candidates.load(path).top(section.depth), own)
        return collection, train.joined(found)

    def _teacher_scores(self, collection: Collection, candidates: Candidates) -> np.ndarray:
        """What the student shall come close to: (queries, depth), -inf where there is no candidate."""
        from trainer import distil
        from trainer.evaluation.fusion import describe, fuse

        assert self.recipe.distil is not None
        logits = candidates.scored(self.teacher(str(self._best()), collection, self._trusts("train")))
        if self.recipe.distil.teacher == "tuned":
            return logits
        weights = self._weights(self._rerank(str(self._best()), self.reranked("dev")), ("scores",))
        console.stage("distil", f"the teacher's scores with the first stage's beside them; {describe(weights)}")
        return distil.on_scale(fuse(candidates, logits, weights["scores"].chosen), logits)

    def _weights(self, scores: np.ndarray, kinds: tuple[Kind, ...] = ("scores", "order")) -> dict[Kind, Weights]:
        """Return the first stage's weights beside a model, given its scores (queries, depth) of dev.

        They are fitted with the scores of the model before training, which has not learned the train lists.
        """
        from trainer.evaluation.fusion import fit, try_weights

        collection, dev = self.collection, self.candidates("dev")
        lists, before = self._before_training()

        def weights(kind: Kind) -> Weights:
            return try_weights(collection, dev, self.metric, scores, fit(collection, lists, before, kind), kind)

        return self._on_main(lambda: {kind: weights(kind) for kind in kinds})

    def _before_training(self) -> tuple[Candidates, np.ndarray]:
        """Return train queries and what the model before training scored their candidates, as its head was fitted."""
        from trainer.evaluation.fusion import fitted_lists, lists_to_fit
        from trainer.train import FITTED

        train, path = self.reranked("train"), self.stages[self._last_training].folder / FITTED
        logits = self._on_main(lambda: read_json(path)["logits"] if path.is_file() else None)
        if logits is not None:
            return fitted_lists(train, logits)
        lists = lists_to_fit(self.collection, train)
        return lists, self._rerank(str(self._start), lists)

    def _evaluate(self, folder: Path) -> dict[str, Any]:
        """Measure on dev, for the gate, and on test, for people; in float32, as the model will be exported."""
        from trainer.evaluation.fusion import describe, fuse
        from trainer.evaluation.release import judge_release
        from trainer.evaluation.two_stage import evaluate
        from trainer.reporting.write import write_details

        systems = self._systems()
        dev, test = (
            {
                name: self._rerank(model, self.reranked(split), "distil" if name == "distilled" else "train")
                for name, model in systems.items()
            }
            for split in ("dev", "test")
        )
        shipped = list(systems)[-1]
        weights = self._weights(dev[shipped])
        if not self.accelerator.is_main_process:
            return {}
        collection, metrics, seed = self.collection, self.recipe.evaluate.metrics, self.recipe.seed
        between = self._between()
        release, means = judge_release(
            collection, self.candidates("dev"), self.metric, dev, between, weights, seed, folder
        )
        candidates, default = self.candidates("test"), self.default_candidates("test")
        test["fused"] = fuse(candidates, test[shipped], release.first_stage_weight)
        if default is not None:
            metrics = tuple(dict.fromkeys([*metrics, f"R@{self.recipe.retriever.depth}"]))
        evaluate(collection, "test", candidates, test, metrics, seed, folder, default=default, release=release)
        write_details(collection, folder, seed)
        said = f"{', '.join(test)} measured on test; {describe(weights)}; runs and results.json in {folder}"
        notes = {"dev": means, "verdict": release.verdict, "judged": release.sentence}
        return {"said": said, **notes, "latency": self._latency()}

    def _latency(self) -> dict[str, Any]:
        """Return how long the exported model takes for one query, by the number of candidates; on the main process."""
        from trainer.reporting.latency import measure_latency

        reranker = self._load(str(self._best(self._exported)), _kind(self._exported))
        return measure_latency(reranker, self.collection, self.reranked("test"))

    def _systems(self) -> dict[str, str]:
        """Return what is measured beside the first stage, by name; the last one is what leaves."""
        systems = {"fitted" if self.has_fresh_head else "base": str(self._start)}
        if self._notes(self._last_training)["trained_share"]:
            systems["tuned"] = str(self._best())
        if "distil" in self.stages:
            systems["distilled"] = str(self._best("distil"))
        return systems

    def _between(self) -> list[list[float]]:
        """Return each dev query's value under the models between start and trained one, as training left them."""
        path = self.stages[self._last_training].folder / BETWEEN
        return read_json(path) if path.is_file() else []

    def _rerank(self, reference: str, candidates: Candidates, stage: str = "train") -> np.ndarray:
        """Return float32 scores (queries, depth) of candidates by a model as it was saved, a base or a stage's best."""
        from trainer.reranker import TokenizedCollection, rerank

        reranker = self._load(reference, stage)
        tokenized = TokenizedCollection(self.collection, reranker.pairs)
        return rerank(reranker, tokenized, candidates, self.accelerator, note="evaluate")

    def _load(self, reference: str, stage: str = "train", precision: Precision = "fp32") -> Reranker:
        """Load a base that ranks, or a model that a training stage left."""
        from trainer.reranker import Reranker

        length, trust = self.recipe.reranker.max_length, self._trusts(stage)
        return Reranker.load(reference, head="trained", max_length=length, precision=precision, trust_remote_code=trust)

    def _export(self, folder: Path) -> dict[str, Any]:
        import numpy as np

        from trainer.evaluation.results import Results
        from trainer.export import export
        from trainer.reranker import Fusion, Reranker

        trust = self._trusts(self._exported)
        best = self._best(self._exported)
        reranker = Reranker.load(best, head="trained", precision="fp32", trust_remote_code=trust)
        dev = self.candidates("dev")
        rows = [(query, found) for place, query in enumerate(dev.queries.tolist()) for found in dev.found(place)]
        some = [rows[round(place)] for place in np.linspace(0, len(rows) - 1, min(len(rows), PARITY_PAIRS)).tolist()]
        queries = self.collection.query_texts([query for query, _ in some])
        documents = self.collection.passages([document for _, document in some])
        pairs = list(zip(queries, documents, strict=True))
        results = Results.load(self.stages["evaluate"].folder)
        reranker.fusion = Fusion.load(self.stages["evaluate"].folder)
        parity = export(reranker, self.recipe, results, pairs, folder, self._notes(self._exported)["best_step"])
        said = f"{', '.join(parity.differences)} in {folder / 'model'}"
        return {"said": said, "differences": parity.differences, "left_out": parity.left_out}

    def deliver(self, force: bool) -> None:
        """End a run: raise NotBetterError where the verdict says so, else push where the recipe has the section."""
        self._require_better(force)
        if self.recipe.push is not None:
            self._push(self.recipe.push, dry_run=False)

    def push(self, dry_run: bool = False, force: bool = False) -> None:
        """Upload what export left; with `dry_run` only list it."""
        section = self.recipe.push
        if section is None:
            raise RecipeError("push: the recipe has no push section; add `push:` with `repository: OWNER/NAME`")
        if self._on_main(lambda: self.stages["export"].done) is None:
            if self._on_main(lambda: self.stages["evaluate"].done) is not None:
                self._refuse_worse(force)
            raise RunError(
                f"push: {self.folder / 'export'} does not hold this recipe's model, whole and as it was written; "
                "run the recipe first"
            )
        self._require_better(force)
        self._push(section, dry_run)

    def _push(self, section: Push, dry_run: bool) -> None:
        """Upload the exported model, or list what would go."""
        from trainer.push import files_to_push, push

        folder = self.stages["export"].folder / "model"
        files = files_to_push(folder)
        visibility = "private" if section.private else "public"
        size = sum(size for _, size in files) / 1e6
        if dry_run:
            for name, length in files:
                console.stage("push", f"{length:>12,} bytes  {name}")
            console.stage("push", f"{size:.1f} MB would go to {section.repository} ({visibility}); nothing was sent")
        elif os.environ.get("RANK", "0") == "0":  # one process uploads
            console.stage("push", f"{size:.1f} MB to {section.repository} ...")
            pushed = push(section, folder)
            if pushed.private and not section.private:
                console.warn("push", "the repository existed and is private; its settings on the Hub make it public")
            console.stage("push", f"done ({'private' if pushed.private else 'public'}): {pushed.address}")

    # What stages share.

    @property
    def metric(self) -> str:
        """The metric that chooses the checkpoint."""
        return self.recipe.evaluate.metrics[0]

    def _best(self, stage: str | None = None) -> Path:
        """The best checkpoint of a training stage, of the last one unless it is named."""
        return self.stages[stage or self._last_training].folder / "best"

    def _trusts(self, stage: str) -> bool:
        """Whether the code that came with the model of a training stage may run: as for what it was trained from."""
        section = self.recipe.distil
        if stage == "distil" and section is not None:
            return section.model is not None and section.trust_remote_code
        return self.recipe.reranker.trust_remote_code

    @property
    def _start(self) -> Path:
        """The model before training: the base, its head fitted where it is new."""
        return self._best().with_name("start")

    @property
    def _last_training(self) -> str:
        return "train-2" if "train-2" in self.stages else "train"

    @property
    def _exported(self) -> str:
        """The stage whose best checkpoint leaves."""
        return "distil" if "distil" in self.stages else self._last_training

    @cached_property
    def collection(self) -> Collection:
        """The checked collection, mapped from the data stage's folder."""
        return Collection.open(self.stages["data"].folder)

    def candidates(self, split: str) -> Candidates:
        """What the first stage found for a split."""
        from trainer.retriever import Candidates

        return Candidates.load(self.stages["retrieve"].folder / f"{split}.npz")

    def default_candidates(self, split: str, folder: Path | None = None) -> Candidates | None:
        """What the first stage finds for dev or test without tuning; None where tuning changed nothing."""
        from trainer.retriever import Candidates

        path = (folder or self.stages["retrieve"].folder) / f"default-{split}.npz"
        return Candidates.load(path) if path.is_file() else None

    def reranked(self, split: str) -> Candidates:
        """Those of them that are reranked and measured."""
        return self.candidates(split).top(self.recipe.rerank_depth)

    @property
    def first_stage_dev(self) -> float:
        """The dev score of the first stage; the metric may be another than when it retrieved."""
        from trainer.evaluation.two_stage import mean_score

        return mean_score(self.collection, "dev", self.candidates("dev"), self.metric)

    def measure(self, split: str, reranker: Reranker, tokenized: TokenizedCollection) -> tuple[float, np.ndarray]:
        """Return the two-stage score of the model in its precision, and its scores (queries, depth)."""
        return self._measure(split, self.candidates(split), reranker, tokenized)

    def dev_measure(self, reranker: Reranker, tokenized: TokenizedCollection) -> Callable[[], float]:
        """Return a function that gives the dev score of the model at the time of the call."""
        dev = self.candidates("dev")  # read once for all evaluations
        return lambda: self._measure("dev", dev, reranker, tokenized)[0]

    def _measure(
        self, split: str, candidates: Candidates, reranker: Reranker, tokenized: TokenizedCollection
    ) -> tuple[float, np.ndarray]:
        from trainer.evaluation.two_stage import mean_score
        from trainer.reranker import rerank

        scores = rerank(reranker, tokenized, candidates.top(self.recipe.rerank_depth), self.accelerator, note=split)
        # Another machine may round the mean otherwise, and end a training where this one goes on.
        return self._on_main(lambda: mean_score(self.collection, split, candidates, self.metric, scores)), scores

    def precision(self, stage: str, use: str, model: Path, measure: Callable[[], float]) -> Precision:
        """Return the precision that a model trains, mines or teaches in; what is measured at the end is float32."""
        from trainer.precision import Precisions

        def choose() -> Precision:
            device, measured = self.accelerator.device, self.folder.parent / ".precision.json"
            choices = Precisions(self.recipe.train.precision, device, measured)
            return choices.of(stage, use, models.fingerprint(model), measure)

        return self._on_main(choose)

    @cached_property
    def has_fresh_head(self) -> bool:
        """Whether the base brings no head of its own."""
        return models.kind_of(models.locate(self.recipe.reranker.model)) == "encoder"

    def load_base(self) -> Reranker:
        """The base as it is before any training, under the head that it will have."""
        from trainer.reranker import Reranker, fit_length

        section = self.recipe.reranker
        reranker = Reranker.load(
            section.model,
            head=section.head,
            max_length=section.max_length,
            layers=section.layers,
            trust_remote_code=section.trust_remote_code,
        )
        reranker.fusion = None  # a base's own belongs to its weights as they were
        if section.max_length is None and (said := fit_length(reranker, self.collection, self.reranked("train"))):
            console.stage("train", said)
        return reranker

    def lists(self) -> list[Group]:
        """The train queries' candidates that a fresh head is fitted to; none where the base brings its own."""
        from trainer.mine import candidate_lists

        return candidate_lists(self.collection, self.reranked("train")) if self.has_fresh_head else []

    def teacher(self, reference: str, collection: Collection, trust_remote_code: bool = False) -> Teacher:
        """A cross-encoder that is asked for scores of the collection's rows."""
        from trainer.reranker import Reranker
        from trainer.teacher import Teacher

        options = {"max_length": self.recipe.reranker.max_length, "trust_remote_code": trust_remote_code}
        folder = models.locate(reference)
        precision = self.precision(
            "teacher", "scoring", folder, lambda: Reranker.load(folder, head="trained", **options).bf16_speedup()
        )
        cache = self.folder.parent / ".teachers"
        return Teacher(reference, collection, cache, self.accelerator, precision=precision, **options)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Devices and processes; made when the first stage has work to do, so that a finished run starts no torch."""
        from trainer.launch import start_accelerator

        return start_accelerator(self.recipe.train.precision)

    def _notes(self, name: str) -> dict[str, Any]:
        """Return what a finished stage noted, the same on all processes."""
        if name not in self._known:
            notes = self._on_main(lambda: self.stages[name].done)
            if notes is None:
                raise RunError(f"{name}: {self.folder / name} is not finished or was changed; run the recipe again")
            self._known[name] = notes
        return self._known[name]

    def _require_better(self, force: bool) -> None:
        """Raise NotBetterError where dev does not show that the model is better, unless forced."""
        from trainer.evaluation.gate import advice, leaves

        notes = self._notes("evaluate")
        if leaves(notes["verdict"]):
            return
        if not force:
            raise NotBetterError(f"export: {notes['judged']}, {advice(notes['verdict'])}")
        console.stage("export", f"{notes['judged']}; forced", style="red")

    def _refuse_worse(self, force: bool) -> None:
        """Raise NotBetterError where the model is worse in both ways of use, unless forced."""
        from trainer.evaluation.gate import WORSE

        if self._notes("evaluate")["verdict"] == WORSE and not force:
            self._require_better(force)

    def _show_results(self) -> None:
        from trainer.evaluation.results import Results, show

        show(Results.load(self.stages["evaluate"].folder))

    def _report(self) -> None:
        """Write report.html and report.md of the run, unless they were made from this evaluation."""
        page, done = self.folder / PAGE, self.stages["evaluate"].folder / "done.json"
        if not page.is_file() or page.stat().st_mtime_ns < done.stat().st_mtime_ns:
            from trainer.reporting.write import write_report

            write_report(self.folder)
        console.stage("report", str(page))
