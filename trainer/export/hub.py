"""Upload of the exported model folder to the Hugging Face Hub, on request only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] httpx's or httpx2's
)
from huggingface_hub.utils import disable_progress_bars

from trainer.data.earlier_splits import FILE as SPLITS_FILE
from trainer.errors import PushError, one_line
from trainer.model_files.references import require_upload
from trainer.recipe import Push
from trainer.runtime import console

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


# Files that an earlier export may have uploaded: the same commit deletes those that it does not replace. Files that
# people added, such as a licence or pictures of the card, are left alone.
EXPORTED = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "calibration.json",
    "fusion.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "interaction.py",
    "modeling_*.py",
    "configuration_*.py",
    "onnx/*",
]


@dataclass(frozen=True)
class Pushed:
    """The URL of the commit, and the visibility of the repository."""

    address: str
    private: bool


def files_to_push(folder: Path) -> list[tuple[str, int]]:
    """Return (name, bytes) of each file that would be uploaded, sorted by name: all but hidden files and the splits."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SPLITS_FILE)
    named = [(path.relative_to(folder), path.stat().st_size) for path in paths]
    return [(str(name), size) for name, size in named if not any(part.startswith(".") for part in name.parts)]


def upload(section: Push, folder: Path) -> Pushed:
    """Create the repository if it does not exist (private by default) and upload the folder.

    One commit adds the files and deletes those of an earlier export that no longer exist. The visibility of an existing
    repository does not change. Raise PushError if there is no token, no network or no permission.
    """
    require_upload()
    if not console.console.is_terminal:
        disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(section.repository, private=section.private, exist_ok=True)
        private = bool(api.model_info(section.repository).private)
        if section.private and not private:
            raise PushError(
                f"push.private: {section.repository} exists and is public; make it private on the Hub, "
                "choose another repository, or set private: false"
            )
        commit = api.upload_folder(
            repo_id=section.repository,
            folder_path=folder,
            commit_message=section.message,
            allow_patterns=[name for name, _ in files_to_push(folder)],
            delete_patterns=EXPORTED,
        )
    except HFValidationError as error:
        raise PushError(
            f"push.repository: {section.repository!r} is not a valid repository name: {one_line(error)}"
        ) from None
    except HfHubHTTPError as error:
        raise _refused(section, error) from None
    except (HTTPError, OSError) as error:
        message = f"push: the Hub at {api.endpoint} cannot be reached ({one_line(error)}); try again with a network"
        raise PushError(message) from None
    except (
        RuntimeError,
        ValueError,
    ) as error:  # the upload of a large file failed, or the Hub refused the card or the quota
        if isinstance(error.__cause__, HfHubHTTPError) and isinstance(error, RuntimeError):
            raise _refused(section, error.__cause__) from None
        raise PushError(f"push: {section.repository}: the Hub refused: {one_line(error)}") from None
    return Pushed(str(commit.commit_url), private)


def _refused(section: Push, error: HfHubHTTPError) -> PushError:
    """Return an error with advice, and the Hub's status and message."""
    status = error.response.status_code if error.response is not None else 0
    advice = {
        401: "the token is not valid; run `hf auth login`",
        403: "the token has no write permission there; choose a repository of yours or a token with write permission",
        404: "the owner does not exist, or the token has no access to it",
    }.get(status, "the Hub refused")
    message = " ".join((error.server_message or "").split()) or one_line(error)
    return PushError(f"push: {section.repository}: {advice} ({status}: {message})")
