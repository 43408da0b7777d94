"""Malformed input of every kind is reported with its location, the problem and the remedy, and exit code 2."""

import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trainer.commands.cli import reranker_command
from trainer.data import build_collection, check_collection
from trainer.errors import DataError
from trainer.recipe import Data

Faults = Callable[..., list[str]]
FILES = {
    "corpus.jsonl": '{"id": "d1", "text": "first"}\n{"id": "d2", "text": "second"}\n',
    "corpus.csv": "id,title,text\nd1,one,first\nd2,,second\n",
    "corpus.tsv": "id\ttext\nd1\tfirst\nd2\tsecond\n",
    "queries.csv": "id,text\nq1,a\nq2,b\nq3,c\n",
    "train.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    "train.csv": "query-id,corpus-id,score\nq1,d1,1\n",
    "train.qrels": "q1 0 d1 1\n",
    "dev.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\n",
    "test.tsv": "query-id\tcorpus-id\tscore\nq3\td2\t1\n",
    "pairs.csv": "query,positive,negative\na,first,second\n",
    "pairs-dev.csv": "query,positive\nb,second\n",
    "pairs-test.csv": "query,positive\nc,second\n",
    "labels.jsonl": '{"query_id": "q1", "document_id": "d2", "relevant": true}\n',
}
BY_FILES = {
    "corpus": "corpus.csv",
    "queries": "queries.csv",
    "qrels": "train.tsv",
    "dev": "dev.tsv",
    "test": "test.tsv",
}
BY_PAIRS = {"pairs": "pairs.csv", "dev": "pairs-dev.csv", "test": "pairs-test.csv"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")


def faults(keys: dict) -> list[str]:
    """What the check says, which the build says too."""
    told = []
    for step in (check_collection, lambda section: build_collection(section, Path("arrow"))):
        with pytest.raises(DataError) as caught:
            step(Data(**keys))
        told.append(caught.value.faults)
    assert told[0] == told[1]
    assert all("\n" not in line and len(line) < 500 for line in told[0])
    return told[0]


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def write_parquet(name: str, **columns: list) -> None:
    parquet.write_table(pyarrow.table(columns), name)


def test_the_unbroken_files_are_valid():
    assert check_collection(Data(**BY_FILES)).documents == 2
    assert check_collection(Data(**BY_PAIRS)).judged == {"train": 1, "dev": 1, "test": 1}


CSV = "id,title,text\nd1,one,first\nd2,,second\n"
# name: file, content, what is said, in this order
CORPUS_FILES = {
    "utf-16": ("corpus.csv", CSV.encode("utf-16"), "corpus.csv:1: not UTF-8 but UTF-16; ", "iconv -f UTF-16 -t UTF-8"),
    "utf-16 without mark": ("corpus.csv", CSV.encode("utf-16-le"), "corpus.csv:1: ", "iconv -f UTF-16LE -t UTF-8"),
    "utf-32": ("corpus.csv", CSV.encode("utf-32"), "corpus.csv:1: not UTF-8 but UTF-32", "iconv -f UTF-32"),
    "latin-1": (
        "corpus.csv",
        f"{CSV}d3,,caf\xe9\n".encode("latin-1"),
        "corpus.csv:4: not UTF-8 (",
        "looks like CP1252; convert the file: iconv -f CP1252 -t UTF-8 corpus.csv > utf8-corpus.csv",
    ),
    "windows-1252": ("corpus.csv", f"{CSV}d3,,\u201cquoted\u201d\n".encode("cp1252"), "corpus.csv:4: ", "-f CP1252"),
    "shift-jis": ("corpus.csv", f"{CSV}d3,,\u30e9\u30fc\u30e1\u30f3\n".encode("shift-jis"), ":4: ", "SHIFT_JIS"),
    "packed latin-1": (
        "corpus.csv.gz",
        gzip.compress(f"{CSV}d3,,caf\xe9\n".encode("latin-1")),
        "corpus.csv.gz:4: ",
        "gzip -dc corpus.csv.gz | iconv -f CP1252 -t UTF-8 | gzip > utf8-corpus.csv.gz",
    ),
    "half a line of JSON": (
        "corpus.jsonl",
        FILES["corpus.jsonl"] + '{"id": "d3", "te',
        "corpus.jsonl:3: not valid JSON (",
        '\'{"id": "d3", "te\'',
    ),
    "JSON array": (
        "corpus.json",
        '[{"id": "d1", "text": "first"},\n {"id": "d2", "text": "second"}]',
        "corpus.json:1: a JSON array; one object per line is expected; ",
        "jq -c '.[]' corpus.json > corpus.jsonl",
    ),
    "JSON over many lines": (
        "corpus.json",
        json.dumps({"id": "d1", "text": "first"}, indent=1),
        "corpus.json:1: an object over several lines",
        "jq -c . corpus.json > corpus.jsonl",
    ),
    "unclosed quote": (
        "corpus.csv",
        f'{CSV}d3,,"third\nd4,,fourth\n',
        "corpus.csv:4: not valid in the row that begins here: a quote is opened and never closed; ",
        "correct the quotes",
    ),
    "quote in a quote": (
        "corpus.csv",
        f'{CSV}d3,,"a "b" c"\nd4,,"x"\n',
        "corpus.csv:4: not valid",
        "correct the quotes",
    ),
    "too many fields": (
        "corpus.csv",
        f"{CSV}d3,,third, with a comma\n",
        "corpus.csv:4: expected 3 fields with commas between (id, title, text), got 4: ",
        "'d3,,third, with a comma'",
    ),
    "too few fields": (
        "corpus.csv",
        f"{CSV}d3\n",
        "corpus.csv:4: expected 3 fields with commas between",
        "got 1: 'd3'",
    ),
    "wrong line after one over two lines": (
        "corpus.csv",
        'id,title,text\nd1,,"one\ntwo"\nd2,,"three\n\nfour"\nd3\n',
        "corpus.csv:7: expected 3 fields",
        "got 1: 'd3'",
    ),
    "unnamed column": (
        "corpus.csv",
        "id,,text\nd1,x,y\n",
        "corpus.csv: column 2 has no name; ",
        "name it or remove it",
    ),
    "doubled column": ("corpus.csv", "id,text,text\nd1,x,y\n", "column 'text' appears twice; ", "rename one of them"),
    "NUL byte": ("corpus.csv", f"{CSV}d3,,a\0b\n", "corpus.csv:4: holds a NUL byte (byte 5", "tr -d '\\000'"),
    "NUL in JSON": (
        "corpus.jsonl",
        FILES["corpus.jsonl"] + '{"id": "d3", "text": "a\\u0000b"}\n',
        "corpus.jsonl:3: document 'd3' holds a NUL character; ",
        "remove it",
    ),
    "half a character": (
        "corpus.jsonl",
        FILES["corpus.jsonl"] + '{"id": "d3", "text": "\\ud83d"}\n',
        "corpus.jsonl:3: document 'd3' holds half a character",
        "remove it",
    ),
    "no column for the text": (
        "corpus.csv",
        "id,words\nd1,first\n",
        "corpus.csv: no column for the document's text; columns here: id, words; ",
        "name it with data.corpus_text (tried: text, body,",
    ),
    "no head line": (
        "corpus.tsv",
        "d1\tfirst\nd2\tsecond\n",
        "no column for the document id",
        "here: d1, first; name it",
    ),
    "float ids": (
        "corpus.jsonl",
        '{"id": 1.0, "text": "first"}\n',
        'corpus.jsonl:1: needs "id" as a text or whole number, got 1.0; ',
        "keys here: id, text",
    ),
    "null id": ("corpus.jsonl", '{"id": null, "text": "a"}\n', 'corpus.jsonl:1: needs "id"', "got None"),
    "true id": ("corpus.jsonl", '{"id": true, "text": "a"}\n', 'corpus.jsonl:1: needs "id"', "got True"),
    "empty id": ("corpus.csv", f"{CSV},,third\n", 'corpus.csv:4: needs "id" as a text or whole number', "got ''"),
    "id that is another one in run files": (
        "corpus.csv",
        f"{CSV}d 3,,third\nd%203,,fourth\n",
        "corpus.csv:4: document id 'd 3' is 'd%203' in run files, which is another id; ",
        "rename one",
    ),
    "spreadsheet": (
        "corpus.csv",
        b"PK\x03\x04\x14\0\x06\0",
        "corpus.csv:1: no text but a zip archive, as .xlsx is; ",
        "save the sheet as CSV",
    ),
    "old spreadsheet": ("corpus.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", "corpus.csv:1: no text but an old Office", "save"),
    "gzip without its ending": ("corpus.csv", gzip.compress(CSV.encode()), "compressed with gzip; ", "name it .gz"),
    "zstd": ("corpus.jsonl", b"\x28\xb5\x2f\xfd\x04\0", "compressed with zstd; ", "decompress it: zstd -d"),
    "login page": ("corpus.jsonl", b"\n<!DOCTYPE html><html>", "corpus.jsonl:1: no text but a web page", "download it"),
    "Git LFS pointer": (
        "corpus.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "latin-1 with control characters": ("corpus.csv", f"{CSV}d3,,\x81\xe9\n".encode("latin-1"), ":4: ", "-f LATIN1"),
    "stray carriage return": (
        "corpus.csv",
        f"{CSV}d3,,third\rhalf\n",
        "corpus.csv:4: not valid in the row that begins here: a carriage return is inside a line; ",
        "nothing after it was read",
    ),
    "cut off xz": (
        "corpus.csv.xz",
        lzma.compress(CSV.encode())[:-20],
        "corpus.csv.xz:",
        "download or compress the file again",
    ),
    "bz2 that is none": (
        "corpus.csv.bz2",
        CSV,
        "corpus.csv.bz2:1: cannot be read to its end: Invalid",
        "compress the file",
    ),
    "id twice": (
        "corpus.csv",
        f"{CSV}d1,,again\n",
        "corpus.csv:4: document id 'd1' is on line 2 already; ",
        "ids must be unique",
    ),
    "empty text": (
        "corpus.csv",
        f"{CSV}d3,, \n",
        "corpus.csv:4: document 'd3' is empty; ",
        "give it a text, or remove it",
    ),
    "nested text": (
        "corpus.jsonl",
        '{"id": "d1", "text": {"en": "first"}}\n{"id": "d2", "text": "second"}\n',
        "corpus.jsonl:1: document 'd1' needs \"text\" as a text, got {'en': 'first'}; ",
        "it is nested, write the text into a column of its own",
    ),
    "empty file": ("corpus.csv", "", "corpus.csv: holds no readable document; ", "one per row is expected"),
    "head line only": (
        "corpus.csv",
        "id,text\n",
        "corpus.csv: holds no readable document; ",
        "one per row is expected",
    ),
    "cut off gz": (
        "corpus.csv.gz",
        gzip.compress((CSV + "".join(f"x{n},,{n * n}\n" for n in range(5000))).encode())[:-100],
        "corpus.csv.gz:",
        "cannot be read to its end: Compressed file ended before the end-of-stream marker was reached; download",
    ),
    "gz that is none": (
        "corpus.csv.gz",
        CSV,
        "corpus.csv.gz:1: cannot be read to its end: Not a gzipped",
        "compress the file",
    ),
    "corrupt parquet": (
        "corpus.parquet",
        b"PAR1" + b"\0" * 100 + b"PAR1",
        "corpus.parquet: not readable as Parquet (",
        "download or write the file again",
    ),
    "unknown ending": (
        "corpus.xlsx",
        "x",
        "corpus.xlsx: unknown ending '.xlsx' (data.corpus); known here: .jsonl, .ndjson, .json, .csv, .tsv, .parquet",
        "also with .gz",
    ),
    "qrels for a corpus": ("corpus.qrels", "q1 0 d1 1", "corpus.qrels: unknown ending '.qrels'", "known here: .jsonl"),
}


@pytest.mark.parametrize(("name", "content", "place", "remedy"), CORPUS_FILES.values(), ids=CORPUS_FILES)
def test_a_broken_corpus_is_reported_with_location_and_remedy(name, content, place, remedy):
    write(name, content)
    told = faults({**BY_FILES, "corpus": name})
    assert place in told[0]
    assert remedy in told[0]
    # what follows from it: judged documents that were lost, further columns that are not there
    assert all("is not in" in line or "no column" in line for line in told[1:])


PARQUET = {
    "float ids": ({"id": [1.0, 2.0], "text": ["a", "b"]}, 'corpus.parquet: row 1: needs "id" as a text', "got 1.0"),
    "missing id": ({"id": ["d1", None], "text": ["a", "b"]}, 'corpus.parquet: row 2: needs "id"', "got None"),
    "missing text": ({"id": ["d1", "d2"], "text": ["a", None]}, "row 2: document 'd2' needs \"text\"", "got None"),
    "nested column": (
        {"id": ["d1", "d2"], "text": [{"en": "a"}, {"en": "b"}]},
        "corpus.parquet: row 1: document 'd1' needs \"text\" as a text, got {'en': 'a'}",
        "it is nested, write the text into a column of its own",
    ),
    "list column": ({"id": ["d1"], "text": [["a", "b"]]}, "row 1: document 'd1' needs \"text\"", "it is nested"),
    "wrong columns": (
        {"key": ["d1"], "text": ["a"]},
        "no column for the document id; columns here: key, text",
        "corpus_id",
    ),
    "no rows": ({"id": [], "text": []}, "corpus.parquet: holds no readable document", "one per row"),
}


@pytest.mark.parametrize(("columns", "place", "remedy"), PARQUET.values(), ids=PARQUET)
def test_a_broken_parquet_file_is_reported_with_its_row(columns, place, remedy):
    write_parquet("corpus.parquet", **columns)
    told = faults({**BY_FILES, "corpus": "corpus.parquet"})
    assert place in told[0]
    assert remedy in told[0]


QRELS = {
    "missing document": ("train.tsv", "q1\td9\t1\n", "train.tsv:3: document 'd9' is not in corpus.csv"),
    "missing query": ("train.tsv", "q9\td1\t1\n", "train.tsv:3: query 'q9' is not in queries.csv"),
    "negative fraction": ("train.tsv", "q1\td2\t-0.5\n", "train.tsv:3: the grade is a whole number (below 1: not rel"),
    "fractional grade": (
        "train.tsv",
        "q1\td2\t0.5\n",
        "train.tsv:3: the grade is a whole number (below 1: not relevant), got '0.5'",
    ),
    "grade as text": (
        "train.csv",
        "q1,d2,good\n",
        "train.csv:3: the grade is a whole number (below 1: not relevant), got 'good'",
    ),
    "two grades": (
        "train.csv",
        "q1,d1,2\n",
        "train.csv:3: query 'q1', document 'd1' has grade 2 here and 1 before; keep one",
    ),
    "judged both ways": (
        "train.qrels",
        "q1 0 d1 0\n",
        "train.qrels:2: query 'q1', document 'd1' has grade 0 here and 1",
    ),
    "trec with three fields": (
        "train.qrels",
        "q1 d1 1\n",
        "train.qrels:2: expected query id, 0, document id and grade",
    ),
    "two splits": ("train.tsv", "q2\td1\t1\n", "dev.tsv:2: query 'q2' is in two splits: train (train.tsv:3) and dev"),
}


@pytest.mark.parametrize(("name", "line", "said"), QRELS.values(), ids=QRELS)
def test_a_broken_judgement_is_reported_with_its_line(name, line, said):
    write(name, FILES[name] + line)
    (told,) = faults({**BY_FILES, "qrels": name})
    assert said in told


def test_ids_that_became_floats_are_recognised():
    write("corpus.csv", "id,text\n1,first\n2,second\n")
    write("train.tsv", "q1\t1.0\t1\n")
    write("dev.tsv", "q2\t2\t1\n")
    write("test.tsv", "q3\t2\t1\n")
    assert faults(BY_FILES) == [
        "train.tsv:1: document '1.0' is not in corpus.csv, but '1' is: write ids as whole numbers"
    ]


def test_a_missing_column_is_reported_with_the_existing_ones_and_the_most_similar():
    assert faults({**BY_FILES, "corpus_text": "txt"}) == [
        "corpus.csv: no column 'txt', which data.corpus_text names; columns here: id, title, text; did you mean text?"
    ]
    assert faults({**BY_FILES, "qrels_grade": "zzz"})[0] == (
        "train.tsv: no column 'zzz', which data.qrels_grade names; columns here: query-id, corpus-id, score"
    )


def test_all_broken_files_are_reported_at_once():
    write("corpus.csv", "id,body2\nd1,x\n")
    write("queries.csv", f"{FILES['queries.csv']}q1,again\n")
    write("train.tsv", f"{FILES['train.tsv']}q1\td1\n")
    places = [line.split(": ")[0] for line in faults(BY_FILES)]
    assert places == ["corpus.csv", "queries.csv:5", "train.tsv:3"]


FILE_NAMES = {
    "glob that matches nothing": ("parts/*.csv", "parts/*.csv: no such file (data.corpus); parts holds nothing"),
    "misspelt": ("korpus.csv", "korpus.csv: no such file (data.corpus); . holds corpus.csv, corpus.jsonl, corpus.tsv"),
    "folder": (".", ".: is a folder (data.corpus); name its files, e.g. *.parquet"),
    "twice": (["corpus.csv", "corp*.csv"], "corpus.csv: named twice by data.corpus; keep it once"),
}


@pytest.mark.parametrize(("given", "said"), FILE_NAMES.values(), ids=FILE_NAMES)
def test_a_name_without_a_file_is_reported_with_its_key(given, said):
    (told,) = faults({**BY_FILES, "corpus": given})
    assert told.startswith(said)


def beir_folder() -> Path:
    """The files in BEIR layout, with all three splits."""
    folder = Path("set")
    (folder / "qrels").mkdir(parents=True)
    write("set/corpus.jsonl", FILES["corpus.jsonl"])
    write("set/queries.jsonl", "".join(f'{{"_id": "q{row}", "text": "{row}"}}\n' for row in (1, 2, 3)))
    for split in ("train", "dev", "test"):
        write(f"set/qrels/{split}.tsv", FILES[f"{split}.tsv"])
    return folder


def forbid(path: Path) -> None:
    path.touch(mode=0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads every file")


# What is in the place of a file, and what is said about it.
ENTRIES = {
    "folder": (Path.mkdir, "is a folder"),
    "dangling link": (lambda path: path.symlink_to("gone.tsv"), "is a link to gone.tsv, which does not exist; "),
    "circle of links": (lambda path: path.symlink_to(path.name), "is a link to dev.tsv, which does not exist; "),
    "pipe": (os.mkfifo, "is a pipe or a device, but the files are read more than once; "),
    "forbidden": (forbid, "cannot be read: permission denied; "),
}


@pytest.mark.parametrize(("put", "said"), ENTRIES.values(), ids=ENTRIES)
def test_a_name_that_is_no_file_is_an_error_and_no_missing_split(put, said):
    dev = beir_folder() / "qrels" / "dev.tsv"
    assert check_collection(Data(path="set")).judged == {"train": 1, "dev": 1, "test": 1}
    for path, keys in ((dev, {"path": "set"}), (Path("dev.tsv"), BY_FILES)):
        path.unlink()
        put(path)
        (told,) = faults(keys)
        assert told.startswith(f"{path}: {said}")


def test_an_id_in_two_files_is_reported_with_both():
    write("more.csv", "id,text\nd1,again\n")
    assert faults({**BY_FILES, "corpus": ["corpus.csv", "more.csv"]}) == [
        "more.csv:2: document id 'd1' is in corpus.csv:2 already; ids must be unique"
    ]


PAIRS = {
    "no positive": ("b,,second\n", 'pairs.csv:3: "positive" is empty; a pair needs a query and a relevant text'),
    "no query": (" ,first,\n", 'pairs.csv:3: "query" is empty; a pair needs a query and a relevant text'),
    "positive that is its negative": (
        "b,first, first \n",
        "pairs.csv:3: query 'b' has ' first ' both as relevant and as not relevant; keep one",
    ),
    "negative that was a positive": (
        "a,third,first\n",
        "pairs.csv:3: query 'a' has 'first' both as relevant and as not relevant; keep one",
    ),
    "query of another split": (
        "b ,first,\n",
        "pairs-dev.csv:2: query 'b' is in two splits: train (pairs.csv:3) and dev; keep it in one",
    ),
}


@pytest.mark.parametrize(("line", "said"), PAIRS.values(), ids=PAIRS)
def test_a_broken_pair_is_reported_with_its_line(line, said):
    write("pairs.csv", FILES["pairs.csv"] + line)
    assert faults(BY_PAIRS)[0] == said


def test_pairs_without_a_usable_column_are_reported():
    write("pairs.csv", "left,right\na,b\n")
    first, second = faults(BY_PAIRS)
    assert first.startswith(
        "pairs.csv: no column for the query's text; columns here: left, right; name it with data.pairs"
    )
    assert second.startswith("pairs.csv: no column for the relevant text; columns here: left, right; name it with")


def test_a_label_of_pairs_has_to_be_a_grade():
    write("pairs.csv", "query,passage,label\na,first,0.5\n")
    (told,) = faults(BY_PAIRS)
    assert told == (
        "pairs.csv:2: the grade is a whole number (below 1: not relevant), got '0.5'; "
        "name another column with data.pairs_label"
    )
    write("pairs.csv", "query,passage,label\na,first,0.5\n")  # who names the column of the text alone means it
    write("pairs-dev.csv", "query,passage\nb,second\n")
    write("pairs-test.csv", "query,passage\nc,second\n")
    assert check_collection(Data(**BY_PAIRS, pairs_positive="passage")).documents == 2


LABELS = {
    "query nobody knows": (
        '{"query_id": "q9", "document_id": "d1", "relevant": true}',
        "query 'q9' is not a query of this",
    ),
    "document nobody knows": (
        '{"query_id": "q1", "document_id": "d9", "relevant": 1}',
        "document 'd9' is not a document of",
    ),
    "query in no split": ('{"query_id": "q4", "document_id": "d1", "relevant": true}', "query 'q4' is in no split"),
    "text": (
        '{"query_id": "q1", "document_id": "d1", "relevant": "yes"}',
        '"relevant" is true, false, null or a grade',
    ),
    "fraction": ('{"query_id": "q1", "document_id": "d1", "relevant": 0.5}', "null or a grade, got 0.5"),
    "no label": ('{"query_id": "q1", "document_id": "d1"}', "got 'nothing'"),
    "twice": ('{"query_id": "q1", "document_id": "d2", "relevant": false}', "is labelled in labels.jsonl:1 already"),
    "broken": ('{"query_id": "q1"', "not valid JSON"),
}


@pytest.mark.parametrize(("line", "said"), LABELS.values(), ids=LABELS)
def test_a_broken_label_is_reported_with_its_line(line, said):
    write("queries.csv", f"{FILES['queries.csv']}q4,d\n")
    write("labels.jsonl", f"{FILES['labels.jsonl']}{line}\n")
    (told,) = faults({**BY_FILES, "judgements": "labels.jsonl"})
    assert told.startswith("labels.jsonl:2: ")
    assert said in told


def test_labels_need_their_file_and_their_keys():
    expected = "lines like {query_id, document_id, relevant} are expected"
    assert faults({**BY_FILES, "judgements": "no.jsonl"}) == [f"no.jsonl: no such file (data.judgements); {expected}"]
    assert faults({**BY_FILES, "judgements": "train.tsv"}) == [
        f"train.tsv: is not a .jsonl file (data.judgements); {expected}"
    ]
    write("labels.jsonl", '{"query": "q1", "document_id": "d1", "relevant": true}\n')
    assert faults({**BY_FILES, "judgements": "labels.jsonl"}) == [
        "labels.jsonl: needs the keys query_id, document_id, relevant; query_id missing, "
        "keys here: query, document_id, relevant"
    ]


# Splits


def test_a_split_without_a_query_is_reported_with_the_remedy():
    Path("dev.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert faults(BY_FILES) == ["dev.tsv: no judgement above 0, so dev has no relevant document"]
    keys = {key: value for key, value in BY_FILES.items() if key != "dev"}
    assert faults({**keys, "dev_share": 0}) == [
        "dev is split off: a share of 0.0 leaves no query with a positive; give more queries, raise data.dev_share, "
        "or give the judgements of dev in a file"
    ]


# Sets of the datasets library


def test_a_set_without_usable_columns_is_reported(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"left": "a", "right": "b"}\n')
    told = faults({"path": f"hub:{folder}"})
    assert told[0].startswith(
        f"hub:{folder}/default/train: no column for the query's text; columns here: left, right; "
    )


def test_a_set_that_cannot_be_reached_is_one_sentence(tmp_path):
    (told,) = faults({"path": "hub:nobody/nothing"})
    assert told.startswith("hub:nobody/nothing: cannot be loaded (")
    assert "check the name and the network" in told
    (told,) = faults({"path": f"hub:{tmp_path / 'nowhere'}"})
    assert "cannot be loaded (" in told


def test_a_set_whose_files_are_broken_is_one_sentence(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    (told,) = faults({"path": f"hub:{folder}"})
    assert told.startswith(f"hub:{folder}: cannot be loaded (")


# The command


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (BY_FILES | {"corpus": "nowhere.csv"}, "nowhere.csv: no such file (data.corpus)"),
        (BY_FILES | {"path": "."}, "r.yaml:2: data.corpus: path and corpus cannot be combined; keep one of them"),
        (BY_PAIRS | {"pairs_positive": "answr"}, "pairs.csv: no column 'answr', which data.pairs_positive names"),
        (BY_FILES | {"judgements": "no.jsonl"}, "no.jsonl: no such file (data.judgements)"),
        ({"path": "hub:nobody/nothing"}, "hub:nobody/nothing: cannot be loaded ("),
    ],
    ids=["file", "contradiction", "column", "labels", "hub"],
)
def test_the_command_ends_with_2_and_no_traceback(keys, said, tiny, monkeypatch, capsys):
    recipe = {"name": "r", "data": keys, "retriever": {"kind": "bm25"}, "reranker": {"model": str(tiny["bert"])}}
    Path("r.yaml").write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in recipe.items()))
    monkeypatch.setattr(sys, "argv", ["reranker", "check", "r.yaml"])
    with pytest.raises(SystemExit) as ended:
        reranker_command()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert said in told.err
    assert "Traceback" not in told.err + told.out
