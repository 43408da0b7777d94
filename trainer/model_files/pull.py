"""Download of a whole model folder from the Hub, with its fusion weights, calibration and formats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from trainer.errors import ModelError
from trainer.model_files.references import CARD, MODEL_FILES, download_errors
from trainer.runtime import console

# No pickles: they can run code when they are loaded.
PULLED = [*MODEL_FILES, *CARD, "LICENSE*", "onnx/*", "*.onnx", "*.onnx_data", "*.onnx.data"]
CACHE = ".cache"  # where the client keeps what it needs to continue a download


class Pulled(NamedTuple):
    """The commit that was downloaded, and the bytes of its files."""

    commit: str
    size: int


def pull(repository: str, revision: str | None, folder: Path) -> Pulled:
    """Download a model of the Hub to a folder that does not exist yet; a stopped download continues.

    `revision` is a branch, tag or commit, by default the branch main. Raise ModelError if the folder exists, if the Hub
    refuses, or if the repository holds no model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not console.console.is_terminal:
        disable_progress_bars()
    if folder.exists():
        raise ModelError(f"pull: {folder} exists already; name another folder, or delete it")
    with download_errors(repository):
        commit = str(HfApi().model_info(repository, revision=revision).sha)
        partial = folder.with_name(f".{folder.name}.pull-{commit[:12]}")
        snapshot_download(repository, revision=commit, local_dir=partial, allow_patterns=PULLED)
    if not (partial / "config.json").is_file():
        shutil.rmtree(partial)
        raise ModelError(f"pull: {repository} holds no config.json, so it is not a model")
    shutil.rmtree(partial / CACHE, ignore_errors=True)
    partial.rename(folder)
    return Pulled(commit, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
