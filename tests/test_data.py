"""The collection: BEIR files to row numbers, and every problem with its file and line."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets.table import MemoryMappedTable

from trainer.data import Collection, build_collection, check_collection, fingerprint_data
from trainer.errors import DataError
from trainer.recipe import Data

CORPUS = '{"_id": "d1", "title": "one", "text": "first"}\n{"_id": "d2", "text": "second"}\n'
QUERIES = '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b"}\n{"_id": "q3", "text": "c"}\n'
SKIP = "correct the id, or set data.unknown_ids: skip"
HEAD = "query-id\tcorpus-id\tscore\n"
FILES = {
    "corpus.jsonl": CORPUS,  # what a test adds is line 3
    "queries.jsonl": QUERIES,  # line 4
    "qrels/train.tsv": HEAD + "q1\td1\t2\n",  # line 3, in all three
    "qrels/dev.tsv": HEAD + "q2\td2\t1\n",
    "qrels/test.tsv": HEAD + "q3\td2\t1\nq3\td1\t0\n",
}


NEEDED = list(FILES)[:3]  # dev and test are split off where they are missing


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two documents, three queries, one query a split."""
    folder = tmp_path / "set"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def faults(tmp_path: Path) -> Callable[[Path], list[str]]:
    """The faults of a folder, as the check and the build both have to tell them."""

    def faults(folder: Path) -> list[str]:
        told = []
        for step in (check_collection, lambda section: build_collection(section, tmp_path / "arrow")):
            with pytest.raises(DataError) as caught:
                step(Data(path=folder))
            told.append([line.replace(f"{folder}/", "") for line in caught.value.faults])
        assert told[0] == told[1]
        return told[0]

    return faults


def add(path: Path, text: str | bytes) -> None:
    path.write_bytes(path.read_bytes() + (text if isinstance(text, bytes) else text.encode()))


def pack(path: Path, keep: slice = slice(None)) -> None:
    """Put a .gz, whole or not, in the place of a file."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[keep])
    path.unlink()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(collection: Collection) -> tuple:
    return collection.documents.to_list(), collection.queries.to_list(), collection.qrels


# What is right


def test_arrow_files_hold_what_the_source_holds_in_its_order(beir, tmp_path):
    collection = build_collection(Data(path=beir), tmp_path / "arrow")
    documents, queries = rows(beir / "corpus.jsonl"), rows(beir / "queries.jsonl")
    assert collection.documents["id"][:] == collection.document_ids == [document["_id"] for document in documents]
    assert collection.documents["passage"][:] == [f"{row['title']} {row['text']}" for row in documents]
    assert collection.queries["id"][:] == collection.query_ids == [query["_id"] for query in queries]
    assert collection.queries["text"][:] == [query["text"] for query in queries]
    for split in ("train", "dev", "test"):
        lines = [line.split("\t") for line in (beir / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
        found = {
            (collection.query_ids[query], collection.document_ids[document], grade)
            for query, grades in collection.qrels[split].items()
            for document, grade in grades.items()
        }
        assert found == {(query, document, int(grade)) for query, document, grade in lines}


def test_arrow_files_are_mapped_into_memory(beir, tmp_path):
    collection = build_collection(Data(path=beir), tmp_path / "arrow")
    for dataset, name in ((collection.documents, "documents.arrow"), (collection.queries, "queries.arrow")):
        assert isinstance(dataset.data, MemoryMappedTable)
        assert dataset.cache_files == [{"filename": str(tmp_path / "arrow" / name)}]


def test_a_collection_opened_again_is_the_same(beir, tmp_path):
    assert content(build_collection(Data(path=beir), tmp_path / "arrow")) == content(
        Collection.open(tmp_path / "arrow")
    )


def test_packed_files_give_the_same_collection_as_plain_ones(beir, tmp_path):
    packed = tmp_path / "packed"
    shutil.copytree(beir, packed)
    for path in [path for path in packed.rglob("*") if path.is_file()]:
        pack(path)
    assert check_collection(Data(path=packed)) == check_collection(Data(path=beir))
    assert content(build_collection(Data(path=packed), tmp_path / "b")) == content(
        build_collection(Data(path=beir), tmp_path / "a")
    )


def test_judgements_use_row_numbers_and_keep_their_grades(small, tmp_path):
    (small / "qrels/train.tsv").write_text("q3\td2\t0\nq1\td2\t3\nq1\td1\t1\n")
    (small / "qrels/test.tsv").write_text("q4\td1\t1\n")
    add(small / "queries.jsonl", '{"_id": "q4", "text": "d"}\n')
    collection = build_collection(Data(path=small), tmp_path / "arrow")
    # rows by hand: d1 0, d2 1; q1 0, q2 1, q3 2, q4 3; queries in the order in which the qrels name them
    assert collection.qrels == {"train": {2: {1: 0}, 0: {1: 3, 0: 1}}, "dev": {1: {1: 1}}, "test": {3: {0: 1}}}
    assert list(collection.qrels["train"]) == [2, 0]
    assert collection.answerable("train") == [0]  # q3 has no positive
    assert collection.named_qrels("train") == {"q1": {"d2": 3, "d1": 1}}


def test_whole_numbers_are_ids(small, tmp_path):
    add(small / "corpus.jsonl", '{"_id": 7, "text": "seventh"}\n')
    add(small / "queries.jsonl", '{"_id": 8, "text": "eighth"}\n')
    add(small / "qrels/train.tsv", "8\t7\t1\n")
    collection = build_collection(Data(path=small), tmp_path / "arrow")
    assert collection.named_qrels("train")["8"] == {"7": 1}


def test_a_document_may_have_a_title_or_a_text_alone(small, tmp_path):
    add(
        small / "corpus.jsonl",
        '{"_id": "d3", "title": "third", "text": ""}\n{"_id": "d4", "title": null, "text": "x"}\n',
    )
    assert build_collection(Data(path=small), tmp_path / "arrow").documents["passage"][2:] == ["third", "x"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\n \n\n"),
        lambda content: content.rstrip(b"\n"),
    ],
    ids=["byte order mark", "windows line ends", "blank lines", "no last line end"],
)
def test_byte_order_mark_line_ends_and_blank_lines_change_nothing(small, tmp_path, change):
    plain = content(build_collection(Data(path=small), tmp_path / "plain"))
    for name in FILES:
        (small / name).write_bytes(change((small / name).read_bytes()))
    assert content(build_collection(Data(path=small), tmp_path / "changed")) == plain


def test_qrels_may_lack_the_header(small, tmp_path):
    with_head = content(build_collection(Data(path=small), tmp_path / "with"))
    for split in ("train", "dev", "test"):
        path = small / "qrels" / f"{split}.tsv"
        path.write_text(path.read_text().removeprefix(HEAD))
    assert content(build_collection(Data(path=small), tmp_path / "without")) == with_head


def test_a_byte_order_mark_is_no_part_of_the_first_query_id(small, tmp_path):
    (small / "qrels/train.tsv").write_bytes(b"\xef\xbb\xbfq1\td1\t2\n")
    assert build_collection(Data(path=small), tmp_path / "arrow").qrels["train"] == {0: {0: 2}}


def test_the_summary_counts_documents_queries_and_judgements(beir):
    summary = check_collection(Data(path=beir))
    assert (summary.documents, summary.queries) == (40, 40)
    assert summary.judged == {"train": 24, "dev": 8, "test": 8}


# What is wrong: one fault at a time

RECORDS = {
    "broken JSON": ('{"_id": "x", "text": "y"\n', "not valid JSON", '{"_id": "x", "text": "y"'),
    "list": ('["x", "y"]\n', "a JSON object is expected", '["x", "y"]'),
    "null": ("null\n", "a JSON object is expected", "null"),
    "brackets without end": ("[" * 100_000 + "\n", "not valid JSON", "[[["),
    "endless number": ('{"_id": ' + "9" * 5000 + ', "text": "y"}\n', "not valid JSON", "999"),
    "no id": ('{"id": "x", "text": "y"}\n', 'needs "_id"', "keys here: id, text"),
    "id null": ('{"_id": null, "text": "y"}\n', 'needs "_id"', "got None"),
    "id true": ('{"_id": true, "text": "y"}\n', 'needs "_id"', "got True"),
    "id 1.0": ('{"_id": 1.0, "text": "y"}\n', 'needs "_id"', "got 1.0"),
    "id blank": ('{"_id": " ", "text": "y"}\n', 'needs "_id"', "got ' '"),
    "no text": ('{"_id": "x", "body": "y"}\n', '"text"', "keys here: _id, body"),
    "text null": ('{"_id": "x", "text": null}\n', '"text"', "got None"),
    "text 5": ('{"_id": "x", "text": 5}\n', '"text"', "got 5"),
    "half a character": ('{"_id": "x", "text": "y \\ud83d"}\n', "'x'", "surrogate"),
}


@pytest.mark.parametrize(("file", "line", "what"), [("corpus.jsonl", 3, "document"), ("queries.jsonl", 4, "query")])
@pytest.mark.parametrize(("text", "said", "given"), RECORDS.values(), ids=RECORDS)
def test_a_bad_record_is_reported_with_file_and_line(small, faults, file, line, what, text, said, given):
    add(small / file, text)
    (told,) = faults(small)
    assert told.startswith(f"{file}:{line}: ")
    assert said in told
    assert given in told
    assert len(told) < 400  # a glance at the line, not the line
    if "text" in said:
        assert f"{what} 'x'" in told


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "corpus.jsonl",
            '{"_id": "x", "title": " ", "text": ""}\n',
            "corpus.jsonl:3: document 'x' is empty; give it a text, or remove it and its judgements",
        ),
        (
            "queries.jsonl",
            '{"_id": "x", "title": "not read", "text": " "}\n',
            "queries.jsonl:4: query 'x' is empty; give it a text, or remove it and its judgements",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "again"}\n',
            "corpus.jsonl:3: document id 'd1' is on line 1 already; ids must be unique",
        ),
        (
            "queries.jsonl",
            '{"_id": "q2", "text": "again"}\n',
            "queries.jsonl:4: query id 'q2' is on line 2 already; ids must be unique",
        ),
        (
            "corpus.jsonl",
            '\n{"_id": 1, "text": "number"}\n{"_id": "1", "text": "text"}\n',
            "corpus.jsonl:5: document id '1' is on line 4 already; ids must be unique",
        ),
        (
            "corpus.jsonl",
            '{"_id": "x", "text": "caf\xe9"}\n'.encode("latin-1"),
            "corpus.jsonl:3: not UTF-8 (invalid continuation byte at byte 25 of the line); it looks like CP1252; "
            "convert the file: iconv -f CP1252 -t UTF-8 corpus.jsonl > utf8-corpus.jsonl",
        ),
        (
            "qrels/train.tsv",
            "q1\td2\n",
            "qrels/train.tsv:3: expected 3 fields with tabs between (query-id, corpus-id, score), got 2: 'q1\\td2'",
        ),
        (
            "qrels/train.tsv",
            "q1 d2 1\n",
            "qrels/train.tsv:3: expected 3 fields with tabs between (query-id, corpus-id, score), got 1: 'q1 d2 1'",
        ),
        (
            "qrels/train.tsv",
            "q1\t0\td2\t1\n",
            "qrels/train.tsv:3: expected 3 fields with tabs between (query-id, corpus-id, score), "
            "got 4: 'q1\\t0\\td2\\t1'",
        ),
        ("qrels/dev.tsv", "q4\td2\t1\n", f"qrels/dev.tsv:3: query 'q4' is not in queries.jsonl; {SKIP}"),
        ("qrels/dev.tsv", "q2\td4\t1\n", f"qrels/dev.tsv:3: document 'd4' is not in corpus.jsonl; {SKIP}"),
        (
            "qrels/dev.tsv",
            "q1\td2\t1\nq1\td1\t1\n",
            "qrels/dev.tsv:3: query 'q1' is in two splits: train (qrels/train.tsv:2) and dev; keep it in one",
        ),
        (
            "qrels/test.tsv",
            "q3\td1\t0\nq3\td2\t2\n",
            "qrels/test.tsv:5: query 'q3', document 'd2' has grade 2 here and 1 before; keep one, or set "
            "data.repeated: sum or max",
        ),
    ],
    ids=[
        "empty document",
        "empty query",
        "document twice",
        "query twice",
        "number and text of one id",
        "latin-1",
        "two columns",
        "blanks for tabs",
        "four columns",
        "unknown query",
        "unknown document",
        "two splits",
        "contradiction",
    ],
)
def test_an_error_names_location_problem_and_remedy(small, faults, file, text, told):
    add(small / file, text)
    assert faults(small) == [told]


def test_a_title_of_another_type_is_not_reported_as_a_missing_text(small, faults):
    add(small / "corpus.jsonl", '{"_id": "x", "title": 5, "text": "y"}\n')
    (told,) = faults(small)
    assert told.startswith("corpus.jsonl:3: document 'x' ")
    assert '"title"' in told
    assert "got 5" in told


@pytest.mark.parametrize(
    "grade", ["", "yes", "1.5", "-1.5", "+1", "1e0", "nan", "²", "99999999999999999999", "9" * 5000]
)
def test_a_grade_is_a_whole_number(small, faults, grade):
    add(small / "qrels/train.tsv", f"q1\td2\t{grade}\n")
    (told,) = faults(small)
    assert told.startswith("qrels/train.tsv:3: the grade is a whole number")
    assert f"got '{grade[:20]}" in told
    assert len(told) < 400


def test_a_split_without_a_positive_is_an_error(small, faults):
    (small / "qrels/dev.tsv").write_text(f"{HEAD}q2\td2\t0\n")
    assert faults(small) == ["qrels/dev.tsv: no judgement above 0, so dev has no relevant document"]


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl"])
def test_a_file_without_a_record_is_an_error(small, faults, file):
    (small / file).write_text("\n")
    what = {"corpus.jsonl": "document", "queries.jsonl": "query"}[file]
    assert faults(small)[0] == f"{file}: holds no readable {what}; one per row is expected"


# What is wrong: files


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_reported_with_the_content_of_its_folder(small, faults, name):
    path = small / name
    path.rename(path.with_suffix(".bak"))
    told = faults(small)
    assert told[0].startswith(f"{name}: missing (plain or .gz); ")
    assert path.with_suffix(".bak").name in told[0]
    hint = ["qrels: to split one file of judgements, use data.corpus, data.queries and data.qrels"]
    assert told[1:] == (hint if name == "qrels/train.tsv" else [])


def test_all_missing_files_are_reported_at_once(tmp_path, faults):
    assert [told.split(":")[0] for told in faults(tmp_path)] == NEEDED


def test_a_missing_folder_is_reported_with_the_files_it_needs(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; data.path names a folder with corpus.jsonl"):
        check_collection(Data(path=tmp_path / "nowhere"))


@pytest.mark.parametrize("name", FILES)
def test_a_plain_and_a_compressed_file_of_one_name_are_an_error(small, faults, name):
    shutil.copy(small / name, small / f"{name}.gz")
    assert faults(small) == [f"{name}: {Path(name).name}.gz exists too; keep one of them"]


def test_a_truncated_compressed_file_is_reported_with_its_last_line(small, faults):
    add(small / "corpus.jsonl", "".join(f'{{"_id": "d{row}", "text": "{row * row}"}}\n' for row in range(3, 3003)))
    pack(small / "corpus.jsonl", slice(-200))
    (told,) = faults(small)
    place, said = told.split(": ", maxsplit=1)
    file, line = place.split(":")
    assert file == "corpus.jsonl.gz"
    assert 3 < int(line) <= 3002
    assert said.startswith("cannot be read to its end: ")


@pytest.mark.parametrize(
    "broken",
    [CORPUS.encode(), gzip.compress(b"")[:10] + b"\xff" * 20, gzip.compress(CORPUS.encode())[:-8] + b"\0" * 8],
    ids=["not packed at all", "broken block", "wrong checksum"],
)
def test_a_file_that_cannot_be_decompressed_is_reported(small, faults, broken):
    (small / "corpus.jsonl").unlink()
    (small / "corpus.jsonl.gz").write_bytes(broken)
    told = [line for line in faults(small) if "cannot be read to its end" in line]
    assert len(told) == 1
    assert told[0].startswith("corpus.jsonl.gz:")


# What is wrong: many things


def test_all_problems_of_all_files_are_reported_at_once(small, faults):
    add(small / "corpus.jsonl", '{"_id": "d1", "text": "again"}\nnot json\n{"_id": "d5", "text": ""}\n')
    add(small / "queries.jsonl", '{"text": "no id"}\n')
    add(small / "qrels/train.tsv", "q1\td2\tgood\n")
    add(small / "qrels/dev.tsv", "q9\td9\t1\n")
    add(small / "qrels/test.tsv", "q1\td2\t1\n")
    assert sorted(told.split(": ")[0] for told in faults(small)) == [
        "corpus.jsonl:3",
        "corpus.jsonl:4",
        "corpus.jsonl:5",
        "qrels/dev.tsv:3",  # the query
        "qrels/dev.tsv:3",  # the document
        "qrels/test.tsv:4",
        "qrels/train.tsv:3",
        "queries.jsonl:4",
    ]


def test_more_than_ten_problems_of_one_kind_are_counted_and_hide_no_other(small, faults):
    add(small / "corpus.jsonl", "not json\n" * 13 + '{"_id": "d1", "text": "again"}\n')
    add(small / "queries.jsonl", '{"_id": "q1", "text": "again"}\n' * 10)
    told = faults(small)
    assert [line.split(": ")[0] for line in told[:10]] == [f"corpus.jsonl:{line}" for line in range(3, 13)]
    assert told[10:12] == [
        "... and 3 more: broken JSON",
        "corpus.jsonl:16: document id 'd1' is on line 1 already; ids must be unique",
    ]
    assert len(told[12:]) == 10  # ten alike are all told
    assert all("query id 'q1' is on line 1 already" in line for line in told[12:])


# What is doubtful


@pytest.fixture
def wide(small: Path) -> Path:
    """50 queries in dev and 50 in test, each with a text of its own: nothing to warn of."""
    for split in ("dev", "test"):
        names = [f"{split}{number}" for number in range(49)]
        add(small / "queries.jsonl", "".join(f'{{"_id": "{name}", "text": "text of {name}"}}\n' for name in names))
        add(small / "qrels" / f"{split}.tsv", "".join(f"{name}\td1\t1\n" for name in names))
    return small


def test_a_sound_collection_gives_no_warning(wide):
    assert check_collection(Data(path=wide)).warnings == []


def test_the_same_query_in_two_splits_is_a_warning_whatever_its_case_and_blanks(wide):
    texts = ["Text of  DEV7", "text of dev8", "text of test9 ", "text of no other", "TEXT of no other"]
    for number, text in enumerate(texts):
        add(wide / "queries.jsonl", f'{{"_id": "t{number}", "text": "{text}"}}\n')
        add(wide / "qrels/train.tsv", f"t{number}\td2\t1\n")
    told = check_collection(Data(path=wide)).warnings
    assert len(told) == 2  # the last two are in train alone
    assert told[0].startswith("2 query texts are in both train and dev")
    assert told[1].startswith("1 query texts are in both train and test")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_few_dev_or_test_queries_are_a_warning(wide, split):
    path = wide / "qrels" / f"{split}.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (told,) = check_collection(Data(path=wide)).warnings
    assert told.startswith(f"49 {split} queries ")


def test_queries_without_a_positive_do_not_count(wide):
    path = wide / "qrels/dev.tsv"
    path.write_text(path.read_text().replace("\td1\t1\n", "\td1\t0\n"))  # q2 alone keeps its positive
    without, few = check_collection(Data(path=wide)).warnings
    assert few.startswith("1 dev queries ")
    assert without.startswith("49 dev queries have no positive and are left out; e.g. dev0 (")
    assert without.endswith("queries.jsonl:6), and 46 more")


# Fingerprints


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(small, tmp_path):
    shutil.copytree(small, tmp_path / "copy")
    assert fingerprint_data(Data(path=small)) == fingerprint_data(Data(path=tmp_path / "copy"))


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_file_changes_the_fingerprint(small, name):
    before = fingerprint_data(Data(path=small))
    add(small / name, "\n")
    assert fingerprint_data(Data(path=small)) != before


def test_a_judgement_moved_to_the_next_split_changes_the_fingerprint(small):
    train, dev = small / "qrels/train.tsv", small / "qrels/dev.tsv"
    train.write_text("q1\td1\t1\nq4\td1\t1\n")
    dev.write_text("q2\td2\t1\n")
    before = fingerprint_data(Data(path=small))
    train.write_text("q1\td1\t1\n")
    dev.write_text("q4\td1\t1\nq2\td2\t1\n")
    assert fingerprint_data(Data(path=small)) != before
