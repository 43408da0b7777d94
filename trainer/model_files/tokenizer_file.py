"""Reading of a model's tokenizer files without transformers, for checks before loading."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trainer.errors import ModelError, one_line
from trainer.model_files.references import name_of, read_json

REFETCH = "fetch the model again"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "bpe.codes")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def highest_id(folder: Path) -> int:
    """Return the highest token id in the tokenizer's files, -1 if only transformers can read them.

    Raises ModelError if there is no tokenizer or one of its files cannot be read.
    """
    if not any(fnmatch(file.name, pattern) for file in folder.iterdir() for pattern in VOCABULARIES):
        raise ModelError(
            f"model {name_of(folder)}: holds no tokenizer ({', '.join(VOCABULARIES)}); copy the tokenizer's files of "
            "its base to it, or save it with tokenizer.save_pretrained"
        )
    ids = [-1]
    for name in SETTINGS:
        if os.path.lexists(folder / name):
            settings = read_json(folder / name)
            if not isinstance(settings, dict):
                raise ModelError(f"model {name_of(folder)}: {name} is no JSON object; {REFETCH}")
            added = settings.get("added_tokens_decoder")
            ids += [int(identity) for identity in added if identity.isdigit()] if isinstance(added, dict) else []
    if os.path.lexists(folder / "tokenizer.json"):
        ids += read_tokenizer(folder).get_vocab(with_added_tokens=True).values()
    return max(ids)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in tokenizer.json without truncation and padding; raises ModelError if it is unreadable."""
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no more specific class
        raise ModelError(
            f"model {name_of(folder)}: tokenizer.json cannot be read ({one_line(error)[:200]}); {REFETCH}"
        ) from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def token_counter(folder: Path) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text, without special tokens; raises ModelError as above."""
    backend = read_tokenizer(folder)
    return lambda text: len(backend.encode(text, add_special_tokens=False))


def unknown_share(folder: Path, texts: Sequence[str]) -> float:
    """Return the share of the texts' tokens that are the unknown token of tokenizer.json; 0 if it has none."""
    backend = read_tokenizer(folder)
    unknown = json.loads(backend.to_str())["model"].get("unk_token")
    identity = backend.token_to_id(unknown) if isinstance(unknown, str) else None
    ids = [one for encoded in backend.encode_batch(list(texts), add_special_tokens=False) for one in encoded.ids]
    return ids.count(identity) / len(ids) if ids and identity is not None else 0.0
