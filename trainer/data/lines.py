"""Text files to numbered lines: plain or .gz, UTF-8 with or without byte order mark, every broken line a fault."""

from __future__ import annotations

import gzip
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path

from trainer.data.faults import Faults

UNREADABLE = "unreadable files"
ENCODING = "wrong encoding"


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; a byte order mark is passed over."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and (encoding := _wide_encoding(raw)):
                    message = f"not UTF-8 but {encoding}; convert it: {_mend(path, encoding)}"
                    faults.add(ENCODING, f"{path}:1", message)
                    return
                if b"\0" in raw:
                    message = f"holds a NUL byte (byte {raw.index(0)} of the line); remove it, e.g. with tr -d '\\000'"
                    faults.add("NUL bytes", f"{path}:{number}", message)
                    continue
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    message = f"not UTF-8 ({error.reason} at byte {error.start} of the line); {_advice(path, raw)}"
                    faults.add(ENCODING, f"{path}:{number}", message)
    except (OSError, EOFError, zlib.error) as error:
        message = f"cannot be read to its end: {error}; get or pack the file again"
        faults.add(UNREADABLE, f"{path}:{number + 1}", message)


def _wide_encoding(raw: bytes) -> str:
    """UTF-16 or UTF-32, which the first line gives away by its mark or by a NUL in every other byte."""
    if raw.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    head = raw[:200]
    if head.count(0) * 3 < len(head):
        return ""
    return "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"


def _advice(path: Path, raw: bytes) -> str:
    high = [byte for byte in raw if byte > 0x7F]
    if len(high) * 3 > len(raw):
        return f"it is a national encoding such as SHIFT_JIS, GB18030 or CP1251; convert it: {_mend(path, 'ENCODING')}"
    encoding = "CP1252" if any(byte < 0xA0 for byte in high) else "LATIN1"
    return f"it looks like {encoding}; convert the file: {_mend(path, encoding)}"


def _mend(path: Path, encoding: str) -> str:
    given, mended = (shlex.quote(str(name)) for name in (path, path.with_name(f"utf8-{path.name}")))
    if path.suffix == ".gz":
        return f"gzip -dc {given} | iconv -f {encoding} -t UTF-8 | gzip > {mended}"
    return f"iconv -f {encoding} -t UTF-8 {given} > {mended}"
