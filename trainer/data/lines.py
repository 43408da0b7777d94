"""Text files to numbered lines; every text file of the user is read here.

Files may be plain or compressed (.gz, .bz2, .xz), in UTF-8 with or without byte order mark, with lines that end in LF,
CRLF or CR. The Unicode separators U+2028, U+2029 and U+0085 and form feeds do not end a line; a last line without a
line end counts. Every line that cannot be decoded is a problem.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.data.faults import Faults

UNREADABLE = "unreadable files"
ENCODING = "wrong encoding"
UNPACK: dict[str, tuple[str, Callable[[Path], Any]]] = {
    ".gz": ("gzip", gzip.GzipFile),
    ".bz2": ("bzip2", bz2.BZ2File),
    ".xz": ("xz", lzma.LZMAFile),
}
PACKED = tuple(UNPACK)
# The first bytes of files that are not text, whatever their names, with the kind of file and the remedy.
SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as .xlsx is; save the sheet as CSV (UTF-8), or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document, as .xls is; save the sheet as CSV (UTF-8)"),
    (b"PAR1", "Parquet; name it .parquet"),
    (b"\x1f\x8b", "compressed with gzip; name it .gz"),
    (b"BZh9", "compressed with bzip2; name it .bz2"),
    (b"\xfd7zXZ\0", "compressed with xz; name it .xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it: zstd -d"),
    (b"SQLite format 3\0", "an SQLite database; export its tables as CSV or JSON lines"),
    (b"%PDF-", "a PDF; save its texts as a table or JSON lines"),
    (b"ARROW1", "an Arrow file; write it as .parquet"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; get it: git lfs pull"),
    (b"<!doctype html", "a web page, perhaps a login or error page instead of the file; download it again"),
    (b"<html", "a web page, perhaps a login or error page instead of the file; download it again"),
)
PEEKED_BYTES = 1 << 16  # at the start of a file, which are searched for the first line end
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8
UNDEFINED_IN_CP1252 = b"\x81\x8d\x8f\x90\x9d"


def unpacked(name: str) -> str:
    """Return a file's name without the ending of its compression."""
    return name[: -len(ending)] if (ending := Path(name).suffix.lower()) in UNPACK else name


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their line ends and no byte order mark; add unreadable lines to `faults`."""
    number = 0
    try:
        with _open(path) as file:
            head = file.peek(PEEKED_BYTES)[:PEEKED_BYTES]
            if problem := _not_utf8(path, head):
                faults.add(ENCODING, f"{path}:1", problem)
                return
            for number, raw in enumerate(_raw_lines(file, head), start=1):
                if (line := _decoded(path, number, raw, faults)) is not None:
                    yield number, line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        message = f"cannot be read to its end: {error}; download or compress the file again"
        faults.add(UNREADABLE, f"{path}:{number + 1}", message)


def _open(path: Path) -> io.BufferedReader:
    """Open the decompressed bytes, with a buffer that is large enough to peek at `PEEKED_BYTES` of them."""
    _, unpack = UNPACK.get(path.suffix.lower(), ("", io.FileIO))
    return io.BufferedReader(unpack(path), PEEKED_BYTES)


def _raw_lines(file: io.BufferedReader, head: bytes) -> Iterator[bytes]:
    r"""Yield lines that end in \n, or in \r if the head of the file has no \n (classic Mac OS)."""
    if b"\r" not in head or b"\n" in head or head.endswith(b"\r") and head.count(b"\r") == 1:
        yield from file
        return
    rest = b""
    while block := file.read(PEEKED_BYTES):
        *lines, rest = (rest + block).split(b"\r")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _decoded(path: Path, number: int, raw: bytes, faults: Faults) -> str | None:
    if b"\0" in raw:
        message = f"holds a NUL byte (byte {raw.index(0)} of the line); remove it, e.g. with tr -d '\\000'"
        faults.add("NUL bytes", f"{path}:{number}", message)
        return None
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8 ({error.reason} at byte {error.start} of the line); {_advice(path, raw)}"
        faults.add(ENCODING, f"{path}:{number}", message)
        return None


def _not_utf8(path: Path, head: bytes) -> str:
    """Return a message about a file that is no UTF-8 text at all, empty if it may be one."""
    begins = head.removeprefix(BYTE_ORDER_MARK).lstrip()[:32].lower()
    for signature, advice in SIGNATURES:
        if head.startswith(signature) or begins.startswith(signature.lower()):
            return f"no text but {advice}"
    encoding = _wide_encoding(head)
    return f"not UTF-8 but {encoding}; convert it: {_conversion(path, encoding)}" if encoding else ""


def _wide_encoding(head: bytes) -> str:
    """Return UTF-16 or UTF-32 if a byte order mark or NUL bytes show it, else an empty string."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    head = head[:200]
    if head.count(0) * 3 < len(head) or not head:
        return ""
    return "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"


def _advice(path: Path, raw: bytes) -> str:
    """Return the probable encoding of a line, and the command that converts the file.

    Single high bytes are taken as CP1252, which has all letters of LATIN1 and further characters, or as LATIN1 if one
    of them is undefined in CP1252.
    """
    high = [byte for byte in raw if byte > 0x7F]
    if len(high) * 3 > len(raw):
        command = _conversion(path, "ENCODING")
        return f"it may be a regional encoding such as SHIFT_JIS, GB18030 or CP1251; convert the file: {command}"
    encoding = "LATIN1" if set(high) & set(UNDEFINED_IN_CP1252) else "CP1252"
    return f"it looks like {encoding}; convert the file: {_conversion(path, encoding)}"


def _conversion(path: Path, encoding: str) -> str:
    """Return the shell command that writes a UTF-8 copy."""
    given, converted = (shlex.quote(str(name)) for name in (path, path.with_name(f"utf8-{path.name}")))
    program, _ = UNPACK.get(path.suffix.lower(), ("", None))
    if program:
        return f"{program} -dc {given} | iconv -f {encoding} -t UTF-8 | {program} > {converted}"
    return f"iconv -f {encoding} -t UTF-8 {given} > {converted}"
