"""Upload of the exported model folder to the Hugging Face Hub, on request only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] httpx's or httpx2's
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.logging import set_verbosity_error

from trainer.data.earlier_splits import FILE as SPLITS_FILE
from trainer.errors import PushError, one_line
from trainer.export.signature import is_unedited
from trainer.model_files.licence import README
from trainer.model_files.references import require_upload
from trainer.recipe import Push
from trainer.runtime import console

MAIN = "main"  # the branch that every repository has
# Files that an earlier export may have uploaded: the same commit deletes those that it does not replace. Files that
# people added, such as a licence or pictures of the card, are left alone.
EXPORTED = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "chat_template.jinja",
    "calibration.json",
    "fusion.json",
    "mixture.json",
    "passages.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "interaction.py",
    "modeling_*.py",
    "configuration_*.py",
    "adapter/*",
    "onnx/*",
]


@dataclass(frozen=True)
class Pushed:
    """The URL of the commit, the visibility of the repository on the Hub, and whether anything was new."""

    address: str
    private: bool
    changed: bool


def files_to_push(folder: Path) -> list[tuple[str, int]]:
    """Return (name, bytes) of each file that would be uploaded, sorted by name: all but hidden files and the splits."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SPLITS_FILE)
    named = [(path.relative_to(folder), path.stat().st_size) for path in paths]
    return [(str(name), size) for name, size in named if not any(part.startswith(".") for part in name.parts)]


def upload(section: Push, folder: Path) -> Pushed:
    """Create the repository if it does not exist (private by default) and upload what is new in the folder.

    One commit adds the files and deletes those of an earlier export that no longer exist. The visibility of an existing
    repository does not change. Large files of a push that was killed are not sent again. Raise PushError if there is no
    token, no network or no permission, if the tag exists, or if someone else wrote the README.md on the Hub.
    """
    require_upload()
    if not console.console.is_terminal:
        disable_progress_bars()
    set_verbosity_error()  # else a push without changes warns that there is no commit
    api = HfApi()
    with _refusals(section, api.endpoint):
        before = _prepared(section, api)
        kept = [README] if section.card == "keep" and _has_others_card(section, api) else []
        commit = api.upload_folder(
            repo_id=section.repository,
            folder_path=folder,
            commit_message=section.message,
            revision=section.revision,
            allow_patterns=[name for name, _ in files_to_push(folder) if name not in kept],
            delete_patterns=EXPORTED,
        )
        if section.tag is not None:
            api.create_tag(section.repository, tag=section.tag, revision=commit.oid)
        after = api.model_info(section.repository)
    return Pushed(str(commit.commit_url), bool(after.private), commit.oid != before)


def _prepared(section: Push, api: HfApi) -> str | None:
    """Create repository and branch where they do not exist, and return the branch's commit.

    Raise PushError before anything is sent if the upload would publish, overwrite or move what it should not.
    """
    api.create_repo(section.repository, private=section.private, exist_ok=True)
    if section.private and not api.model_info(section.repository).private:
        raise PushError(
            f"push.private: {section.repository} exists and is public; make it private on the Hub, "
            "choose another repository, or set private: false"
        )
    if section.tag is not None and section.tag in [ref.name for ref in api.list_repo_refs(section.repository).tags]:
        raise PushError(
            f"push.tag: {section.repository} has a tag {section.tag!r} already; name another, or delete it on the Hub"
        )
    if section.revision != MAIN:
        api.create_branch(section.repository, branch=section.revision, exist_ok=True)
    if section.card == "refuse" and _has_others_card(section, api):
        raise PushError(
            f"push.card: someone wrote or edited README.md in {section.repository}; nothing was uploaded. Set "
            "push.card=keep to leave it as it is, or push.card=replace to overwrite it with the new model card"
        )
    return api.model_info(section.repository, revision=section.revision).sha


def _has_others_card(section: Push, api: HfApi) -> bool:
    """Return whether the branch has a README.md that no export wrote, or that was edited since."""
    with TemporaryDirectory() as temporary:
        try:
            path = api.hf_hub_download(section.repository, README, revision=section.revision, local_dir=temporary)
        except RemoteEntryNotFoundError:
            return False
        return not is_unedited(Path(path).read_text(encoding="utf-8", errors="replace"))


@contextmanager
def _refusals(section: Push, endpoint: str) -> Iterator[None]:
    """Raise what the Hub refuses, or that it cannot be reached, as PushError."""
    try:
        yield
    except HFValidationError as error:
        raise PushError(
            f"push.repository: {section.repository!r} is not a valid repository name: {one_line(error)}"
        ) from None
    except HfHubHTTPError as error:
        raise _refused(section, error) from None
    except (HTTPError, OSError) as error:
        message = f"push: the Hub at {endpoint} cannot be reached ({one_line(error)}); try again with a network"
        raise PushError(message) from None
    except (RuntimeError, ValueError) as error:  # a large file's upload failed, or the Hub refused the card or quota
        if isinstance(error.__cause__, HfHubHTTPError) and isinstance(error, RuntimeError):
            raise _refused(section, error.__cause__) from None
        raise PushError(f"push: {section.repository}: the Hub refused: {one_line(error)}") from None


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
