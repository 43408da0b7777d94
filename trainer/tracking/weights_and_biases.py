"""Weights & Biases: one run per training, which neither waits for a missing network nor sends local paths."""

from __future__ import annotations

import ssl
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from trainer.errors import RunError, one_line
from trainer.model_files.references import is_local
from trainer.recipe import PATHS, REFERENCES, Recipe
from trainer.runtime import console

CONNECT_TIMEOUT = 8.0  # seconds until the server's first response; without it the run is recorded offline
FINISH_TIMEOUT = 60.0  # seconds for unsent data at the end; the rest stays on disk for `wandb sync`


def key_problem(recipe: Recipe) -> str:
    """Return a message if the recipe tracks online and no W&B key is known; empty if nothing is missing."""
    if recipe.track.mode != "online":
        return ""
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        if wandb.login(prompt=False, verify=False):
            return ""
        reason = "no key is known"
    except (wandb.Error, ValueError) as error:
        reason = one_line(error)
    return f"track.mode: online, but {reason}; run `wandb login`, or set track.mode=offline"


def start(folder: Path, recipe: Recipe, resumed: bool) -> Any:
    """Start the W&B run of the training in `folder`, or resume it if the training was resumed.

    If the server does not respond the run is recorded offline. Raises RunError if W&B refuses to start.
    """
    import wandb

    offline = recipe.track.mode == "offline"
    try:
        server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        if not offline and not answers(server):
            offline = True
            console.warn(
                folder.name,
                f"{server} does not respond, so W&B records offline; upload later: wandb sync {folder}/wandb/offline-*",
            )
        return wandb.init(
            project=recipe.track.project,
            name=recipe.name if folder.name == "train" else f"{recipe.name}-{folder.name}",
            id=_run_id(folder, resumed),
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
            dir=str(folder),
            config=without_local_paths(recipe),
            settings=_settings(),
        )
    except (wandb.Error, ValueError) as error:
        message = f"track: W&B did not start ({one_line(error)}); run `wandb login`, or set track.mode=offline"
        raise RunError(message) from None


def _settings() -> Any:
    """Return settings for W&B: no output, bounded waits, and no information about the machine."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=30,
        finish_timeout=FINISH_TIMEOUT,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )


def _run_id(folder: Path, resumed: bool) -> str:
    """Return the id of this training's W&B run, saved in its folder so that a resumed training continues the same run.

    A training that is not resumed gets a new random id, so that it never adds to the run of another training.
    """
    path = folder / "wandb-id.txt"
    if resumed and path.is_file() and (saved := path.read_text(encoding="utf-8", errors="replace").strip()).isalnum():
        return saved
    new = uuid.uuid4().hex[:12]
    path.write_text(f"{new}\n", encoding="utf-8")
    return new


def answers(server: str) -> bool:
    """Return True if a server responds in time; a thread makes the request, because DNS look-ups have no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(server, timeout=CONNECT_TIMEOUT).close()
        except HTTPError:  # it responded, though with an error
            answered.set()
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # W&B checks the certificate itself
                answered.set()
        except (OSError, ValueError):
            return
        else:
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT)
    return answered.is_set()


def without_local_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values, with local paths reduced to the names of files and folders."""
    values = recipe.model_dump(mode="json")
    for section, key in PATHS:
        if values[section] and values[section][key] is not None:
            values[section][key] = _names(values[section][key])
    if recipe.data.hub:
        values["data"]["path"] = recipe.data.title
    for section, key in REFERENCES:
        reference = (values[section] or {}).get(key)
        if reference and is_local(reference) and not reference.startswith("package:"):
            values[section][key] = Path(reference).name
    return values


def _names(paths: str | list[str]) -> str | list[str]:
    return Path(paths).name if isinstance(paths, str) else [Path(path).name for path in paths]
