"""The runs in a folder, and the recipe and run folder that an argument RECIPE_OR_RUN refers to.

A run is a folder with one folder for each stage, which holds the recipe that the stage was started with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import RunError, TrainerError, did_you_mean
from trainer.runtime.run_folder import DAMAGED
from trainer.runtime.verify import RECORDS

if TYPE_CHECKING:
    from trainer.recipe import Data, Recipe

STAGE = re.compile(r"[a-z][a-z0-9_-]*")
MOVED_ASIDE = re.compile(rf"({STAGE.pattern})\.([0-9a-f]{{8}}|{DAMAGED})")


def stages_of(folder: Path) -> list[Path]:
    """Return the folders of a run's stages, finished or not, in the order in which they were started."""
    found = [path for path in folder.iterdir() if STAGE.fullmatch(path.name) and path.is_dir()]
    begun = [path for path in found if any((path / name).exists() for name in RECORDS)]
    return sorted(begun, key=lambda path: _age(path / "recipe.json"))


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run folder."""
    return folder.is_dir() and bool(stages_of(folder))


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders in a folder, sorted by name; raises RunError if the folder does not exist."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name the folder of your runs with --runs")
    if is_run(folder):
        raise RunError(f"{folder}: is the folder of one run; name the folder above it, or run: reranker show {folder}")
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_run(path))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files under a folder, each counted once.

    Links are not followed, except those to the folders of stages, which may lie on another disk.
    """
    if not path.is_dir():
        return path.lstat().st_size if path.is_symlink() or path.exists() else 0
    linked = [inside for inside in path.iterdir() if inside.is_symlink() and inside.is_dir()]
    files = set()
    for parent, _, names in chain.from_iterable(map(os.walk, (path, *linked))):
        for name in names:
            try:
                state = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # a running run renames and deletes files
                continue
            files.add((state.st_dev, state.st_ino, state.st_size))
    return sum(size for *_, size in files)


def folder_of(path: Path, overrides: Sequence[str] | None, runs: Path) -> Path:
    """Return the run folder of a recipe, or the given run folder itself; raises TrainerError if there is none."""
    if not path.is_dir():
        return runs / recipe_from(path, overrides, runs).name
    require_run(path)
    if overrides:
        raise RunError(
            f"{path}: is a run folder, to which overrides do not apply; remove {' '.join(overrides)}, or name a recipe"
        )
    return path


def recipe_from(path: Path, overrides: Sequence[str] | None, runs: Path) -> Recipe:
    """Return the recipe in a file; raises TrainerError if there is none, naming runs that the path may mean."""
    from trainer.recipe import load_recipe

    _require_something(path, runs)
    return load_recipe(path, overrides or ())


def recipe_in(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run's newest finished stage (or newest stage, if none is finished), with overrides.

    Raises RunError for a folder without a recipe, and RecipeError for a recipe that this version cannot read.
    """
    require_run(folder)
    stages = [stage for stage in stages_of(folder) if (stage / "recipe.json").is_file()]
    finished = [stage for stage in stages if (stage / "done.json").is_file()]
    if not stages:
        raise RunError(f"{folder}: none of its stages has a recipe.json; name the recipe's file instead")
    newest = max(finished or stages, key=lambda stage: _age(stage / ("done.json" if finished else "recipe.json")))
    return recipe_of_stage(newest, overrides)


def recipe_of_stage(stage: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that a stage was started with, with overrides."""
    from trainer.recipe import load_recipe

    return load_recipe(stage / "recipe.json", overrides)


def data_section(path: Path) -> Data:
    """Return the data section of a recipe or of a run's recipe, or one for a folder in BEIR layout."""
    from trainer.recipe import Data, load_recipe

    if is_run(path):
        return recipe_in(path).data
    return Data(path=path) if path.is_dir() else load_recipe(path, ()).data


@contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Raise errors that damaged files of a stage cause as a RunError that names the stage's folder."""
    try:
        yield
    except TrainerError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, FileNotFoundError, StopIteration) as error:
        raise RunError(
            f"{folder}: its files are damaged ({type(error).__name__}: {error}); delete the folder, then run the "
            "recipe again"
        ) from error


def require_run(folder: Path) -> None:
    """Raise RunError for a folder that is not a run folder, naming the runs in it, if any."""
    if is_run(folder):
        return
    inside = [str(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_run(path)]
    hint = f"it holds the runs {', '.join(inside[:5])}" if inside else "it has no stage of a run"
    raise RunError(f"{folder}: is not the folder of a run; {hint}; name a run, e.g. runs/quickstart, or a recipe")


def _require_something(path: Path, runs: Path) -> None:
    """Raise RunError for a path that does not exist; a dangling link is reported by the recipe's reader."""
    if path.exists() or path.is_symlink():
        return
    near = [str(run) for run in runs_in(runs)] if runs.is_dir() and not is_run(runs) else []
    near += [str(file) for file in sorted(path.parent.glob("*.yaml"))]
    hint = did_you_mean(str(path), near) if near else "; name the folder of a run, e.g. runs/quickstart, or a recipe"
    raise RunError(f"{path}: no such recipe and no such run{hint}")


def _age(path: Path) -> int:
    """Return a file's modification time in nanoseconds, 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
