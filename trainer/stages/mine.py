"""Mine: select hard negatives from the candidates of the train queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import context, mining
from trainer.context import Notes, RoundStage, Run, content, endpoint, prompt, settings
from trainer.data.groups import write_groups
from trainer.errors import RunError
from trainer.forecast import Cost, Work
from trainer.recipe import Recipe

PAIR = 200  # bytes of a pair in the groups, the report and the likely false negatives


class Mine(RoundStage):
    """Builds training groups. In the second round (`mine.rounds: 2`) the model of the first round is the teacher."""

    name = "mine"
    version = 5
    processes = "all"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of `mine` in use, the teacher's hash, and other inputs of the selection."""
        section, reranker = recipe.mine, recipe.reranker
        local = section.teacher and "mine.teacher" not in recipe.scoring_endpoints
        unread = {"teacher", "teacher_trust_remote_code", "rounds"}
        unread |= set() if section.teacher or section.rounds == 2 else {"teacher_margin"}
        return (
            settings("mine", section, unread)
            | content("mine.teacher", section.teacher)
            | prompt(recipe, section.teacher)
            | endpoint("mine.teacher", recipe)
            | ({"reranker.max_length": reranker.max_length} if local else {})
            | (settings("passages", recipe.passages) if local else {})
            | ({"reranker.depth": recipe.rerank_depth} if section.groups == "lists" else {})
            | {"seed": recipe.seed}
            | ({} if self.round == 1 else {"mine.rounds": self.round})
        )

    def run(self, run: Run, folder: Path) -> Notes:
        """Filter and sample negatives; the teacher scores on all processes, the main one writes groups and report."""
        section, second = run.recipe.mine, self.round > 1
        reference = str(run.best("train")) if second else section.teacher
        trust = context.may_run_code(run, "train") if second else section.teacher_trust_remote_code
        scorer = context.teacher(run, reference, run.collection, trust, "mine.teacher") if reference else None
        values = scorer.checked() if isinstance(scorer, context.EndpointTeacher) else {}
        candidates = run.candidates_to_mine(section)
        mined = mining.mine(section, run.collection, candidates, run.recipe.seed, scorer, by_teacher=second)
        report = mining.Report.of(mined, run.collection, section)
        if not mined.groups:
            raise RunError(f"mine: no train query has a negative, so there is nothing to train on ({report.summary})")
        if not run.is_main:
            return Notes()
        write_groups(mined.groups, folder)
        likely = mining.write_likely_false_negatives(section, mined, run.collection, folder)
        report.write(mined, run.collection, folder)
        report.show()
        line = f"{report.summary}; {likely} likely false negatives; see {folder / 'report.md'}"
        return Notes(line, values)

    def forecast(self, work: Work) -> Cost:
        """Return the cost of the teacher's scores, if there is one; the rest takes seconds."""
        section, queries = work.recipe.mine, work.queries("train")
        cost = work.plain(1e-3 * queries) + Cost(bytes=PAIR * work.lists * work.group_size)
        window = work.depth if section.groups == "lists" else section.last_rank - section.first_rank + 1
        if self.round > 1:
            return cost + Cost(work.reranker.load + queries * window * work.reranker.score)
        if "mine.teacher" in work.recipe.scoring_endpoints:
            return cost + work.asked("mine.teacher", queries, window)
        if section.teacher:
            return cost + Cost(work.teacher.load + queries * window * work.teacher.score)
        return cost
