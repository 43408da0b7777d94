"""Seeded faults: one change to a file, or to what a file says, of the sorts that disks, editors and downloads make.

Every fault takes a random generator and a path, changes what lies there and returns in words what it did. `LOSSY` names
those after which a model folder is no model any more, so that a run which carries on with it is wrong.
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
    kept = rng.randrange(len(content)) if content else 0
    path.write_bytes(content[:kept])
    return f"cut after {kept} of {len(content)} bytes"


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
    places = [rng.randrange(len(content)) for _ in range(rng.randint(1, 8))] if content else []
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"a bit flipped at {places}"


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
    """Put a folder in the file's place."""
    path.unlink()
    path.mkdir()
    return "a folder is in its place"


def dangling_link(_: random.Random, path: Path) -> str:
    """Put a link to nothing in the file's place."""
    path.unlink()
    path.symlink_to("/nowhere/at/all")
    return "a dangling link is in its place"


def forbid(_: random.Random, path: Path) -> str:
    """Take all permissions away."""
    path.chmod(0)
    return "nobody may read it"


def swap(rng: random.Random, path: Path) -> str:
    """Exchange the file with another one of its folder; where it is alone, empty it."""
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    if not others:
        return empty(rng, path)
    other, aside = rng.choice(others), path.with_name(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)
    return f"exchanged with {other.name}"


def pointer(rng: random.Random, path: Path) -> str:
    """Leave what a clone without Git LFS leaves."""
    size = path.stat().st_size
    path.write_text(POINTER.format(f"{rng.getrandbits(256):064x}", size))
    return "a Git LFS pointer is in its place"


def compress(_: random.Random, path: Path) -> str:
    """Compress the file under its old name."""
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return "compressed under its old name"


# Texts


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="surrogateescape")


def _keep(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.write_bytes(text.encode(encoding, errors="surrogateescape" if encoding == "utf-8" else "replace"))


def control_characters(rng: random.Random, path: Path) -> str:
    """Put control, escape or separator characters somewhere into the text."""
    text, character = _text(path), rng.choice(CONTROL)
    place = rng.randint(0, len(text))
    _keep(path, text[:place] + character + text[place:])
    return f"{character!r} at character {place}"


def line_ends(_: random.Random, path: Path) -> str:
    """Write the text as Windows editors do: a byte order mark and CRLF."""
    _keep(path, "\ufeff" + _text(path).replace("\n", "\r\n"))
    return "byte order mark and CRLF"


def encoding(rng: random.Random, path: Path) -> str:
    """Write the text in another encoding, with a letter that shows it."""
    name = rng.choice(["utf-16", "utf-32", "latin-1", "cp1252", "shift_jis"])
    text = _text(path)
    place = rng.randint(0, len(text))
    _keep(path, text[:place] + ("é" if name != "shift_jis" else "再") + text[place:], name)
    return f"in {name}, with a letter at {place}"


def repeat_line(rng: random.Random, path: Path) -> str:
    """Repeat a line (in a mapping: a key) somewhere else."""
    lines = _text(path).split("\n")
    line = rng.choice(lines)
    lines.insert(rng.randint(0, len(lines)), line)
    _keep(path, "\n".join(lines))
    return f"once more: {line[:60]!r}"


def drop_line(rng: random.Random, path: Path) -> str:
    """Lose a line."""
    lines = _text(path).split("\n")
    lost = lines.pop(rng.randrange(len(lines)))
    _keep(path, "\n".join(lines))
    return f"without {lost[:60]!r}"


def tabs(rng: random.Random, path: Path) -> str:
    """Put a tab in place of some blanks."""
    blanks = list(re.finditer(" +", text := _text(path)))
    if not blanks:
        return append(rng, path)
    found = rng.choice(blanks)
    _keep(path, f"{text[: found.start()]}\t{text[found.end() :]}")
    return f"a tab for the blanks at {found.start()}"


# What JSON and YAML say


def _spoil(rng: random.Random, content: object) -> tuple[object, str]:
    """Return the content with one value or key changed, at any depth, and what was done."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(sorted(content, key=str))
        if rng.random() < 0.15:
            return {name: value for name, value in content.items() if name != key}, f"without key {key!r}"
        if rng.random() < 0.1:
            return {**content, f"{key}x": content[key]}, f"a key {key}x"
        value, done = _spoil(rng, content[key])
        return {**content, key: value}, f"{key}: {done}"
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = rng.randrange(min(len(content), 50))
        value, done = _spoil(rng, content[place])
        return [*content[:place], value, *content[place + 1 :]], f"[{place}]: {done}"
    value = rng.choice(ODD_VALUES)
    return value, f"{value!r} in place of {str(content)[:40]!r}"


def odd_json(rng: random.Random, path: Path) -> str:
    """Change one value in a JSON file, or in one line of a JSON Lines file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = text.splitlines()
        place = rng.randrange(len(lines))
        content, done = _spoil(rng, json.loads(lines[place]))
        lines[place] = json.dumps(content)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"line {place + 1}: {done}"
    content, done = _spoil(rng, json.loads(text))
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return done


def odd_yaml(rng: random.Random, path: Path) -> str:
    """Change one value in a recipe."""
    content, done = _spoil(rng, yaml.safe_load(path.read_text(encoding="utf-8")))
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return done


def bomb(rng: random.Random, path: Path) -> str:
    """Add YAML that grows when it is read: aliases of aliases, or thousands of brackets."""
    aliases = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 30))
    tail = rng.choice([f"a0: &a0 x\n{aliases}", "deep: " + "[" * 5000 + "]" * 5000 + "\n", "self: &self [*self]\n"])
    path.write_text(path.read_text(encoding="utf-8") + tail, encoding="utf-8")
    return f"{tail[:20]!r} ... at the end"


def odd_field(rng: random.Random, path: Path) -> str:
    """Change one field of a table of tab-separated values."""
    lines = path.read_text(encoding="utf-8").splitlines()
    place = rng.randrange(len(lines))
    fields = lines[place].split("\t")
    column = rng.randrange(len(fields))
    fields[column] = rng.choice(["", " ", "nan", "1e999", "-3", "9" * 30, "0.5", "q\x00", "two words", "\u2028", '"'])
    lines[place] = "\t".join(fields if rng.random() < 0.8 else fields[:-1])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {place + 1}: {lines[place]!r}"


# Weights


def _encoder_weights(path: Path) -> list[str]:
    """Names of weights that every use of the model needs."""
    return sorted(name for name in load_file(path) if re.search(r"embeddings\.|layer\.0\.", name))


def missing_tensors(rng: random.Random, path: Path) -> str:
    """Leave out one to three weights of the embeddings or the first layer."""
    weights = load_file(path)
    lost = rng.sample(_encoder_weights(path), rng.randint(1, 3))
    save_file({name: weight for name, weight in weights.items() if name not in lost}, path, {"format": "pt"})
    return f"without {', '.join(lost)}"


def wrong_shape(rng: random.Random, path: Path) -> str:
    """Give a weight another shape."""
    weights = load_file(path)
    name = rng.choice(_encoder_weights(path))
    old = weights[name]
    weights[name] = torch.cat([old, old[:1]]) if rng.random() < 0.5 else old[..., :-1].contiguous()
    save_file(weights, path, {"format": "pt"})
    return f"{name} is {list(weights[name].shape)}, not {list(old.shape)}"


def not_a_number(rng: random.Random, path: Path) -> str:
    """Put NaN into a weight, as a run that diverged leaves it."""
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
LOSSY = {missing_tensors, wrong_shape, not_a_number, pointer, empty, truncate}


def fault_for(rng: random.Random, path: Path) -> Fault:
    """Draw a fault that the file can have."""
    special = BY_SUFFIX.get(path.suffix, [])
    return rng.choice(special if special and rng.random() < 0.5 else ANY)


def tree(folder: Path) -> list[Path]:
    """Return the files below a folder in a fixed order; links and hidden names are among them."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy(source: Path, target: Path) -> None:
    """Copy a folder as it is, links as links."""
    shutil.copytree(source, target, symlinks=True)
