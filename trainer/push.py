"""Upload of the export folder to the Hugging Face Hub, on request only."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import PushError
from trainer.recipe import Push


def files_to_push(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of everything that would go, in the order of names; hidden files stay here."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path.relative_to(folder), path.stat().st_size) for path in paths]
    return [(str(name), size) for name, size in named if not any(part.startswith(".") for part in name.parts)]


def push(section: Push, folder: Path) -> str:
    """Create the repository where it does not exist (private unless the recipe says otherwise) and upload the folder.

    Returns the address of the commit. Raises PushError where there is no token, no network or no permission.
    """
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not get_token():
        raise PushError(
            "push: no Hugging Face token; run `hf auth login`, or set HF_TOKEN to one with write permission"
        )
    api = HfApi()
    try:
        api.create_repo(section.repository, private=section.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=section.repository,
            folder_path=folder,
            commit_message=section.message,
            allow_patterns=[name for name, _ in files_to_push(folder)],
        )
    except HFValidationError as error:
        raise PushError(
            f"push.repository: {section.repository!r} is no name for a repository: {_first_line(error)}"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        advice = {
            401: "the token is not valid; run `hf auth login`",
            403: "the token may not write there; choose a repository of yours or a token with write permission",
            404: "the owner does not exist, or the token cannot see it",
        }.get(status, "the Hub refused; see its words")
        raise PushError(f"push: {section.repository}: {advice} ({status}: {_first_line(error)})") from None
    except (httpx.HTTPError, OSError) as error:
        message = f"push: the Hub at {api.endpoint} cannot be reached ({_first_line(error)}); try again with a network"
        raise PushError(message) from None
    return str(commit.commit_url)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
