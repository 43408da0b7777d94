"""What a run led to, for Python: the table as data, per-query results, the model's folder, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import NotBetterError, RunError

if TYPE_CHECKING:
    from trainer.evaluation.results import Results


@dataclass(frozen=True)
class RunResult:
    """A run folder, and why the model was refused where it was not shown to be better."""

    folder: Path
    refused: NotBetterError | None = None

    @cached_property
    def results(self) -> Results:
        """Every system's metrics with intervals, comparisons and the verdict; raises RunError before evaluation."""
        from trainer.evaluation.results import Results

        if not (self.folder / "evaluate" / "results.json").is_file():
            raise RunError(f"{self.folder}: nothing is evaluated yet; run the recipe to the stage evaluate or export")
        return Results.load(self.folder / "evaluate")

    @property
    def table(self) -> list[dict[str, float | str]]:
        """The test table: a dict for each system, with its name under `system` and the mean of each metric."""
        return [
            {"system": system, **{metric: interval.mean for metric, interval in metrics.items()}}
            for system, metrics in self.results.systems.items()
        ]

    @property
    def queries(self) -> list[dict[str, Any]]:
        """A dict for each test query, with texts, ranks and scores before and after reranking."""
        from trainer.reporting.queries import read_queries

        return list(read_queries(self.folder / "evaluate"))

    @property
    def verdict(self) -> str:
        """What dev showed: better, better only with first-stage scores, cannot tell, or worse."""
        return self.results.verdict

    @property
    def passed(self) -> bool:
        """Whether the model was shown to be better, so that it may leave."""
        from trainer.evaluation.gate import passes

        return passes(self.verdict)

    @property
    def model_folder(self) -> Path | None:
        """The exported model; None where nothing was exported."""
        folder = self.folder / "export" / "model"
        return folder if folder.is_dir() else None
