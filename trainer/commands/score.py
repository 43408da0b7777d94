"""Offline reranking of many lists: each list of documents is written in the order of the model's scores.

A list is a line of JSON (a query and its documents), or all lines of a TREC run for one query. Lists are scored in
blocks, in which pairs of similar length share batches across queries. Each finished block is written to a file of its
own next to the output, so that the same command resumes with the next block after an interruption. Several processes
(`accelerate launch`) share the blocks.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainer.data import Faults, fingerprint_data, read_lines, trec_fields, trec_id
from trainer.data.reader import Reader
from trainer.data.sources import find_sources
from trainer.errors import DataError, RecipeError, RunError
from trainer.model import Calibration, Reranker
from trainer.model.calibration import require_calibration
from trainer.model_files import references
from trainer.recipe import Data
from trainer.runtime import console, processes
from trainer.runtime.launch import on_main, start_accelerator
from trainer.runtime.run_folder import json_sha256, read_record, remove, replacing, write_json
from trainer.runtime.verify import sha256

if TYPE_CHECKING:
    from trainer.model import Reranker
    from trainer.runtime.precision import Precision

VERSION = 1
BLOCK = 4096  # pairs of a block, or one list if it is longer
DOCUMENTS = ("documents", "passages")  # either name
PACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # by the ending of the output
EXAMPLES = 5  # unknown ids that a message names


@dataclass(frozen=True)
class Item:
    """One list to rerank; `source` is the JSON line, or the ids, from which its output is made."""

    query: str
    passages: list[str]
    source: Any


def score(
    model: str,
    source: Path,
    output: Path,
    data: Data | None = None,
    max_length: int | None = None,
    precision: Precision | Literal["auto"] = "fp32",
    trust_remote_code: bool = False,
    probabilities: bool = False,
) -> None:
    """Write every list of `source` to `output` in the order of a model's scores.

    With `data`, which names the files of the texts, `source` is a TREC run, else JSON lines. With `probabilities` the
    scores are calibrated probabilities of relevance. Raises DataError with all problems of the input before the model
    is loaded, RecipeError if `output` was begun with another input, model or option, and ModelError if the model
    cannot be loaded, or has no calibration for probabilities.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise RecipeError(f"{output}: is the input too; name another file for the output")
    run = _trec_lists(source, data) if data else None
    count = len(run) if run is not None else _checked_lines(source)
    texts = fingerprint_data(data) if data else ""
    known = json_sha256(VERSION, references.fingerprint(references.locate(model)), sha256(source), texts, precision)
    calibration = _calibration(model) if probabilities else None
    parts = output.with_name(f".{output.name}.parts")
    accelerator = start_accelerator("fp32") if processes.several() else None
    fingerprint = json_sha256(known, max_length, *(["probabilities"] if probabilities else []))
    begin = partial(_begin, parts, fingerprint, output)
    done = on_main(accelerator, begin) if accelerator else begin()
    if done:
        console.stage("score", f"{len(done)} blocks are finished already; resuming")
    device = accelerator.device if accelerator else None
    options: dict[str, Any] = {"head": "trained", "max_length": max_length, "trust_remote_code": trust_remote_code}
    load = partial(Reranker.load, model, device=device, precision=precision, **options)
    lists = run if run is not None else _json_lists(source, Faults())
    ours = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    write = partial(_write, _write_trec if data else _write_json, calibration)
    blocks = _score_blocks(lists, parts, done, ours, load, write, count)
    if accelerator:
        accelerator.wait_for_everyone()
    if processes.is_main():
        _join(parts, blocks, output)
    console.stage("score", f"{count} lists in {output}")


def _score_blocks(
    lists: Iterable[Item],
    parts: Path,
    done: set[int],
    ours: tuple[int, int],
    load: Callable[[], Reranker],
    write: Callable[[Path, Sequence[Item], Sequence[np.ndarray]], None],
    count: int,
) -> int:
    """Score this process's share of the blocks that are not done, and return the number of all blocks.

    `ours` are the index of this process and the number of processes.
    """
    reranker: Reranker | None = None
    number, missing = -1, 0
    with console.progress("score", total=count) as advance:
        for number, block in enumerate(_blocks(lists)):
            if number not in done:
                if missing % ours[1] == ours[0]:
                    reranker = reranker or load()
                    with replacing(parts / f"{number:06d}") as unfinished:
                        write(unfinished, block, _scores(reranker, block))
                missing += 1
            advance(len(block))
    return number + 1


def _write(
    form: Callable[[Path, Sequence[Item], Sequence[np.ndarray], Sequence[np.ndarray]], None],
    calibration: Calibration | None,
    path: Path,
    block: Sequence[Item],
    scores: Sequence[np.ndarray],
) -> None:
    """Write a block in a form, JSON or TREC, with its scores or their probabilities."""
    form(path, block, scores, scores if calibration is None else list(map(calibration.relevant.probability, scores)))


def _calibration(model: str) -> Calibration:
    """Return the calibration of a model; raise ModelError if it has none."""
    return require_calibration(Calibration.load(references.locate(model)))


def _begin(parts: Path, known: str, output: Path) -> set[int]:
    """Return the numbers of the blocks that an earlier interrupted call with the same input and model has finished."""
    if output.is_dir():
        raise RecipeError(f"{output}: is a folder; name a file")
    begun = read_record(parts / "begun.json")
    if begun is not None and begun.get("fingerprint") != known:
        raise RecipeError(
            f"{output}: was begun with another input, model or option; finish that, delete {parts}, or name another "
            "output"
        )
    if begun is None:
        remove(parts)
        parts.mkdir(parents=True)
        write_json(parts / "begun.json", {"fingerprint": known})
    return {int(path.name) for path in parts.iterdir() if path.name.isdigit()}


def _blocks(lists: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield blocks of lists, of at most BLOCK pairs unless a single list is longer."""
    block: list[Item] = []
    pairs = 0
    for item in lists:
        if block and pairs + len(item.passages) > BLOCK:
            yield block
            block, pairs = [], 0
        block.append(item)
        pairs += len(item.passages)
    if block:
        yield block


def _scores(reranker: Reranker, block: Sequence[Item]) -> list[np.ndarray]:
    """Return the scores of each list; pairs are batched over the whole block, and each text is tokenised once."""
    pairs = [(item.query, passage) for item in block for passage in item.passages]
    scores = reranker.score_tokens(reranker.pairs.tokenize_pairs(pairs))
    if np.isnan(scores).any():
        raise RunError(
            f"score: {np.isnan(scores).sum()} scores are not numbers; the weights or the precision are at fault"
        )
    return np.split(scores, np.cumsum([len(item.passages) for item in block])[:-1])


def _ordered(scores: np.ndarray) -> list[int]:
    """Return the positions by descending score; equal scores keep their order."""
    return np.argsort(-scores, kind="stable").tolist()


def _write_json(path: Path, block: Sequence[Item], scores: Sequence[np.ndarray], public: Sequence[np.ndarray]) -> None:
    """Write the lists in the order of their scores, with the public scores."""
    with path.open("w", encoding="utf-8") as file:
        for item, values, shown in zip(block, scores, public, strict=True):
            line = dict(item.source)
            order = _ordered(values)
            key = _key_of(line)
            line[key] = [line[key][position] for position in order]
            line |= {"scores": [_number_of(shown[position]) for position in order], "index": order}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _number_of(score: np.floating) -> float:
    """Return a score for files: float32 logits with six decimals, and probabilities, which can be tiny, in full."""
    return round(float(score), 6) if score.dtype == np.float32 else float(score)


def _write_trec(path: Path, block: Sequence[Item], scores: Sequence[np.ndarray], public: Sequence[np.ndarray]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item, values, shown in zip(block, scores, public, strict=True):
            query, documents = item.source
            for rank, position in enumerate(_ordered(values), start=1):
                file.write(f"{query} Q0 {documents[position]} {rank} {_number_of(shown[position])!r} reranked\n")


def _join(parts: Path, blocks: int, output: Path) -> None:
    """Write all blocks in order to the output, replacing it, and delete the blocks."""
    with replacing(output) as unfinished, PACK.get(output.suffix.lower(), open)(unfinished, "wb") as file:
        for number in range(blocks):
            file.write((parts / f"{number:06d}").read_bytes())
    remove(parts)


def _checked_lines(path: Path) -> int:
    """Return the number of lists in a file of JSON lines; raises DataError with all problems."""
    faults = Faults()
    count = sum(1 for _ in _json_lists(path, faults))
    if not count and not faults.kinds:
        faults.add("empty input", str(path), "holds no list; one JSON object a line is expected")
    faults.stop()
    return count


def _json_lists(path: Path, faults: Faults) -> Iterator[Item]:
    """Yield the lists in JSON lines; add invalid lines to `faults`."""
    for number, text in read_lines(path, faults):
        if text.strip() and (item := _json_list(text, f"{path}:{number}", faults)) is not None:
            yield item


def _json_list(text: str, where: str, faults: Faults) -> Item | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    line: dict[str, Any] = content if isinstance(content, dict) else {}
    if "\\ud" in text.lower() and not _is_writable(line):
        faults.add(
            "broken characters", where, "holds half a character (a lone surrogate, \\ud800 to \\udfff); remove it"
        )
        return None
    documents = line.get(_key_of(line))
    if not isinstance(line.get("query"), str) or not isinstance(documents, list):
        faults.add("broken lines", where, 'expected {"query": TEXT, "documents": [TEXT, ...]} (or "passages")')
        return None
    passages = [passage for document in documents if (passage := _passage(document)) is not None]
    if len(passages) < len(documents):
        message = 'each document is a text, or an object with "text" (and perhaps "title")'
        faults.add("broken documents", where, message)
        return None
    return Item(line["query"], passages, line)


def _is_writable(line: Mapping[str, Any]) -> bool:
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_of(line: Mapping[str, Any]) -> str:
    """Return the key of the documents in a line, an empty string if there is none."""
    return next((key for key in DOCUMENTS if key in line), "")


def _passage(document: Any) -> str | None:
    """Return title and text of a document, the input of the model; None if the value is not a document."""
    if isinstance(document, str):
        return document
    if isinstance(document, dict) and isinstance(document.get("text"), str):
        title = document.get("title")
        return f"{title} {document['text']}".strip() if isinstance(title, str) else document["text"]
    return None


def _trec_lists(path: Path, data: Data) -> list[Item]:
    """Return the lists of a TREC run with their texts; raises DataError with all problems."""
    faults = Faults()
    ranked: dict[str, dict[str, tuple[float, int]]] = {}
    for number, text in read_lines(path, faults):
        if text.strip():
            _add_trec_line(text, number, f"{path}:{number}", ranked, faults)
    if not ranked and not faults.kinds:
        faults.add("empty input", str(path), "holds no line `query Q0 document rank score tag`")
    faults.stop()
    queries, documents = _texts(data, ranked.keys(), {name for found in ranked.values() for name in found})
    lists = []
    for query, found in ranked.items():
        names = sorted(found, key=lambda name: (-found[name][0], found[name][1]))
        lists.append(Item(queries[query], [documents[name] for name in names], (query, names)))
    return lists


def _add_trec_line(
    text: str, number: int, where: str, ranked: dict[str, dict[str, tuple[float, int]]], faults: Faults
) -> None:
    fields = trec_fields(text, 6)
    value = _number(fields[4]) if len(fields) == 6 else None
    if value is None:
        faults.add("broken run lines", where, f"expected `query Q0 document rank score tag`, got {text.strip()[:60]!r}")
        return
    query, _, document, *_ = fields
    if ranked.setdefault(query, {}).setdefault(document, (value, number))[1] != number:
        faults.add("documents listed twice", where, f"document {document!r} is listed for query {query!r} already")


def _number(written: str) -> float | None:
    try:
        value = float(written)
    except ValueError:
        return None
    return None if np.isnan(value) else value


def _texts(data: Data, queries: Iterable[str], documents: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the texts of the queries and documents in a run by id; raises DataError for unknown ids."""
    if data.pairs:
        raise RecipeError("score: the data section names pairs, and their texts have no ids for a TREC run")
    reader = Reader(find_sources(data), data)
    texts, unknown = [], []
    for what, wanted, records in (
        ("document", set(documents), reader.documents()),
        ("query", set(queries), reader.queries()),
    ):
        found: dict[str, str] = {}
        for record in records:
            for name in {record.id, trec_id(record.id)} & wanted:
                found[name] = record.passage
        reader.faults.stop()
        if missing := sorted(wanted - found.keys()):
            named = ", ".join(map(repr, missing[:EXAMPLES])) + ", ..." * (len(missing) > EXAMPLES)
            unknown.append(f"the run names unknown {what} ids: {named} ({len(missing)} of {len(wanted)}); see --data")
        texts.append(found)
    if unknown:
        raise DataError(unknown)
    return texts[1], texts[0]
