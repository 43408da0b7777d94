"""Weights & Biases: one run for each training, with no wait for a network that is not there and nothing local sent."""

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

REACHED_IN = 8.0  # seconds for the server's first answer; without it the run is kept offline
SENT_IN = 60.0  # seconds for what is left to send at the end; the rest stays on disk for `wandb sync`


def key_fault(recipe: Recipe) -> str:
    """Return what to do where W&B is wanted online and no key for it is known; empty where nothing is missing."""
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
    """Start the W&B run of the training in `folder`, or go on with it where the training was resumed.

    Where the server cannot be reached the run is kept offline. Raises RunError where W&B refuses.
    """
    import wandb

    offline = recipe.track.mode == "offline"
    try:
        server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        if not offline and not answers(server):
            offline = True
            console.warn(
                folder.name,
                f"{server} does not answer, so W&B is kept offline; send it later: wandb sync {folder}/wandb/offline-*",
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
    """Return settings under which W&B prints nothing, waits for a bounded time and describes no machine."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=30,
        finish_timeout=SENT_IN,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )


def _run_id(folder: Path, resumed: bool) -> str:
    """Return the id of this training's W&B run: drawn when it begins, and kept in its folder for when it is resumed.

    Another training never goes on with it: where nothing is resumed, a new id is drawn.
    """
    path = folder / "wandb-id.txt"
    if resumed and path.is_file() and (kept := path.read_text(encoding="utf-8", errors="replace").strip()).isalnum():
        return kept
    drawn = uuid.uuid4().hex[:12]
    path.write_text(f"{drawn}\n", encoding="utf-8")
    return drawn


def answers(server: str) -> bool:
    """Return whether a server answers anything; in a thread, since a name look-up has no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(server, timeout=REACHED_IN).close()
        except HTTPError:  # it answered, though not with a page
            answered.set()
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # whether it can be trusted is for W&B to decide
                answered.set()
        except (OSError, ValueError):
            return
        else:
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACHED_IN)
    return answered.is_set()


def without_local_paths(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values, with the names of local files and folders instead of their paths."""
    values = recipe.model_dump(mode="json")
    for section, key in PATHS:
        if values[section][key] is not None:
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
