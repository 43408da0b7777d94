"""The result of a run for Python: the table as data, per-query results, the model's folder, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import evaluation, reporting
from trainer.errors import NotBetterError, RunError

if TYPE_CHECKING:
    from trainer.evaluation.results import Results


@dataclass(frozen=True)
class RunResult:
    """A finished run, read from its folder.

    `refused` is the error of the release gate, if it stopped the export or the push; it never does with `force`.
    """

    folder: Path
    refused: NotBetterError | None = None

    @cached_property
    def results(self) -> Results:
        """Each system's metrics with intervals, comparisons and the verdict; raises RunError before evaluation."""
        if not (self.folder / "evaluate" / "results.json").is_file():
            raise RunError(f"{self.folder}: nothing is evaluated yet; run the recipe to the stage evaluate or export")
        return evaluation.Results.load(self.folder / "evaluate")

    @property
    def table(self) -> list[dict[str, float | str]]:
        """The test table: a dict for each system, with its name under `system` and the mean of each metric."""
        return self.results.table

    @property
    def queries(self) -> list[dict[str, Any]]:
        """A dict for each test query, with texts, ranks and scores; raises RunError before evaluation."""
        _ = self.results  # raises a clearer error than that of a missing file
        return list(reporting.read_queries(self.folder / "evaluate"))

    @property
    def verdict(self) -> str:
        """The verdict on dev: better, better only with first-stage scores, cannot tell, or worse."""
        return self.results.verdict

    @property
    def passed(self) -> bool:
        """Whether the model was shown to be better, so that it may be pushed."""
        return evaluation.passes(self.verdict)

    @property
    def model_folder(self) -> Path | None:
        """The folder of the exported model; None if nothing was exported."""
        folder = self.folder / "export" / "model"
        return folder if folder.is_dir() else None
