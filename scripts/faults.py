"""Seeded faults for fuzzing: one change to a file or its content, as disks, editors and downloads cause them.

Every fault takes a random generator and a path, changes the file and returns a description of the change. `LOSSY` are
the faults that make a model folder useless, `UNREADABLE` those after which the path cannot be read as a file: a run
that accepts such an input is wrong.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

Fault = Callable[[random.Random, Path], str]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{0}\nsize {1}\n"
CONTROL = ["\x00", "\x07", "\x1b[31m", "\x1b]0;title\x07", "\x08", "\u2028", "\u0085", "\u202e", "\ufeff"]
ODD_VALUES = [
    None,
    True,
    "",
    "text",
    [],
    [1, [2]],
    {},
    {"a": {"b": 1}},
    -1,
    0,
    0.5,
    10**18,
    -(10**18),
    1e308,
    math.nan,
    math.inf,
]


# Any file


def truncate(rng: random.Random, path: Path) -> str:
    """Cut the file at some byte before its end."""
    content = path.read_bytes()
    size = rng.randrange(len(content)) if content else 0
    path.write_bytes(content[:size])
    return f"cut after {size} of {len(content)} bytes"


def empty(_: random.Random, path: Path) -> str:
    """Leave a file of no bytes."""
    path.write_bytes(b"")
    return "emptied"


def zero_block(rng: random.Random, path: Path) -> str:
    """Put zeros in place of a block, as a file system does after a crash."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(content)))
    length = min(len(content) - start, rng.choice([16, 512, 4096]))
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    return f"{length} bytes from {start} are zero"


def flip_bytes(rng: random.Random, path: Path) -> str:
    """Flip one bit in one to eight bytes."""
    content = bytearray(path.read_bytes())
    offsets = [rng.randrange(len(content)) for _ in range(rng.randint(1, 8))] if content else []
    for offset in offsets:
        content[offset] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"a bit flipped at {offsets}"


def append(rng: random.Random, path: Path) -> str:
    """Add bytes that do not belong to the file."""
    tail = rng.choice(
        [b"\n\n", b"{", b"\xff\xfe\x00", b'{"_id": "again"}', bytes(rng.randrange(256) for _ in range(64))]
    )
    path.write_bytes(path.read_bytes() + tail)
    return f"{tail[:16]!r} at the end"


def delete(_: random.Random, path: Path) -> str:
    """Remove the file."""
    path.unlink()
    return "deleted"


def make_directory(_: random.Random, path: Path) -> str:
    """Replace the file by a folder."""
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def dangling_link(_: random.Random, path: Path) -> str:
    """Replace the file by a dangling link."""
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return "replaced by a dangling link"


def forbid(_: random.Random, path: Path) -> str:
    """Remove all permissions."""
    path.chmod(0)
    return "nobody may read it"


def swap(rng: random.Random, path: Path) -> str:
    """Exchange the file with another one of its folder; where there is none, empty it."""
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    if not others:
        return empty(rng, path)
    other, aside = rng.choice(others), path.with_name(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"exchanged with {other.name}"


def pointer(rng: random.Random, path: Path) -> str:
    """Replace the file by the pointer that a clone without Git LFS has."""
    size = path.stat().st_size
    path.write_text(POINTER.format(f"{rng.getrandbits(256):064x}", size))
    return "replaced by a Git LFS pointer"


def compress(_: random.Random, path: Path) -> str:
    """Compress the file under its old name."""
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return "compressed under its old name"


# Texts


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="surrogateescape")


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.write_bytes(text.encode(encoding, errors="surrogateescape" if encoding == "utf-8" else "replace"))


def control_characters(rng: random.Random, path: Path) -> str:
    """Insert a control, escape or separator character into the text."""
    text, character = _text(path), rng.choice(CONTROL)
    position = rng.randint(0, len(text))
    _write(path, text[:position] + character + text[position:])
    return f"{character!r} at character {position}"


def line_ends(_: random.Random, path: Path) -> str:
    """Write the text as Windows editors do: a byte order mark and CRLF."""
    _write(path, "\ufeff" + _text(path).replace("\n", "\r\n"))
    return "byte order mark and CRLF"


def encoding(rng: random.Random, path: Path) -> str:
    """Write the text in another encoding, with a character that differs in it."""
    name = rng.choice(["utf-16", "utf-32", "latin-1", "cp1252", "shift_jis"])
    text = _text(path)
    position = rng.randint(0, len(text))
    _write(path, text[:position] + ("é" if name != "shift_jis" else "再") + text[position:], name)
    return f"in {name}, with a letter at {position}"


def repeat_line(rng: random.Random, path: Path) -> str:
    """Repeat a line (in a mapping: a key) at a random position."""
    lines = _text(path).split("\n")
    line = rng.choice(lines)
    lines.insert(rng.randint(0, len(lines)), line)
    _write(path, "\n".join(lines))
    return f"once more: {line[:60]!r}"


def drop_line(rng: random.Random, path: Path) -> str:
    """Delete a line."""
    lines = _text(path).split("\n")
    lost = lines.pop(rng.randrange(len(lines)))
    _write(path, "\n".join(lines))
    return f"without {lost[:60]!r}"


def tabs(rng: random.Random, path: Path) -> str:
    """Replace some blanks by a tab."""
    blanks = list(re.finditer(" +", text := _text(path)))
    if not blanks:
        return append(rng, path)
    match = rng.choice(blanks)
    _write(path, f"{text[: match.start()]}\t{text[match.end() :]}")
    return f"a tab for the blanks at {match.start()}"


# JSON, YAML and tables


def _spoil(rng: random.Random, content: object) -> tuple[object, str]:
    """Return the content with one value or key changed at any depth, and a description of the change."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(sorted(content, key=str))
        if rng.random() < 0.15:
            return {name: value for name, value in content.items() if name != key}, f"without key {key!r}"
        if rng.random() < 0.1:
            return {**content, f"{key}x": content[key]}, f"a key {key}x"
        value, done = _spoil(rng, content[key])
        return {**content, key: value}, f"{key}: {done}"
    if isinstance(content, list) and content and rng.random() < 0.7:
        index = rng.randrange(min(len(content), 50))
        value, done = _spoil(rng, content[index])
        return [*content[:index], value, *content[index + 1 :]], f"[{index}]: {done}"
    value = rng.choice(ODD_VALUES)
    return value, f"{value!r} instead of {str(content)[:40]!r}"


def odd_json(rng: random.Random, path: Path) -> str:
    """Change one value in a JSON file, or in one line of a JSON Lines file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        row = rng.randrange(len(lines))
        content, done = _spoil(rng, json.loads(lines[row]))
        lines[row] = json.dumps(content)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"line {row + 1}: {done}"
    content, done = _spoil(rng, json.loads(text))
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return done


def odd_yaml(rng: random.Random, path: Path) -> str:
    """Change one value in a recipe."""
    content, done = _spoil(rng, yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return done


def bomb(rng: random.Random, path: Path) -> str:
    """Add YAML that expands when it is parsed: nested aliases, or thousands of brackets."""
    aliases = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 30))
    tail = rng.choice([f"a0: &a0 x\n{aliases}", "deep: " + "[" * 5000 + "]" * 5000 + "\n", "self: &self [*self]\n"])
    path.write_text(path.read_text(encoding="utf-8") + tail, encoding="utf-8")
    return f"{tail[:20]!r} ... at the end"


def odd_field(rng: random.Random, path: Path) -> str:
    """Change one field of a table of tab-separated values."""
    lines = path.read_text(encoding="utf-8").splitlines()
    row = rng.randrange(len(lines))
    fields = lines[row].split("\t")
    column = rng.randrange(len(fields))
    fields[column] = rng.choice(["", " ", "nan", "1e999", "-3", "9" * 30, "0.5", "q\x00", "two words", "\u2028", '"'])
    lines[row] = "\t".join(fields if rng.random() < 0.8 else fields[:-1])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {row + 1}: {lines[row]!r}"


# Weights


def _encoder_weights(path: Path) -> list[str]:
    """Return names of weights that every use of the model needs."""
    return sorted(name for name in load_file(path) if re.search(r"embeddings\.|layer\.0\.", name))


def missing_tensors(rng: random.Random, path: Path) -> str:
    """Remove one to three weights of the embeddings or the first layer."""
    weights = load_file(path)
    lost = rng.sample(_encoder_weights(path), rng.randint(1, 3))
    save_file({name: weight for name, weight in weights.items() if name not in lost}, path, {"format": "pt"})
    return f"without {', '.join(lost)}"


def wrong_shape(rng: random.Random, path: Path) -> str:
    """Change the shape of a weight."""
    weights = load_file(path)
    name = rng.choice(_encoder_weights(path))
    old = weights[name]
    weights[name] = torch.cat([old, old[:1]]) if rng.random() < 0.5 else old[..., :-1].contiguous()
    save_file(weights, path, {"format": "pt"})
    return f"{name} is {list(weights[name].shape)}, not {list(old.shape)}"


def not_a_number(rng: random.Random, path: Path) -> str:
    """Set an element of a weight to NaN, as in a run that diverged."""
    weights = load_file(path)
    name = rng.choice(_encoder_weights(path))
    weights[name].view(-1)[0] = math.nan
    save_file(weights, path, {"format": "pt"})
    return f"NaN in {name}"


ANY = [
    truncate,
    empty,
    zero_block,
    flip_bytes,
    append,
    delete,
    make_directory,
    dangling_link,
    forbid,
    swap,
    pointer,
    compress,
]
TEXT = [control_characters, line_ends, encoding, repeat_line, drop_line, tabs]
BY_SUFFIX: dict[str, list[Fault]] = {
    ".json": [*TEXT, odd_json, odd_json, odd_json],
    ".jsonl": [*TEXT, odd_json, odd_json, odd_json],
    ".yaml": [*TEXT, bomb, *[odd_yaml] * 12],
    ".tsv": [*TEXT, odd_field, odd_field, odd_field],
    ".trec": TEXT,
    ".safetensors": [missing_tensors, wrong_shape, not_a_number] * 3,
}
UNREADABLE = {make_directory, dangling_link, forbid}
LOSSY = {missing_tensors, wrong_shape, not_a_number, pointer, empty, truncate}


def fault_for(rng: random.Random, path: Path) -> Fault:
    """Return a random fault that is possible for the file."""
    special = BY_SUFFIX.get(path.suffix, [])
    return rng.choice(special if special and rng.random() < 0.5 else ANY)


def tree(folder: Path) -> list[Path]:
    """Return the files below a folder in a fixed order, including links and hidden files."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy(source: Path, target: Path) -> None:
    """Copy a folder, with links as links."""
    shutil.copytree(source, target, symlinks=True)
