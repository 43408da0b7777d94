"""All data formats: files, columns, pairs, splits, reviewed labels and data sets of the datasets library."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from trainer.data import Collection, build_collection, check_collection, fingerprint_data
from trainer.recipe import Data

DOCUMENTS = [
    ("d1", "one", "first"),
    ("d2", "", 'second, "quoted"\nover two lines'),
    ("d3", "three", "caf\u00e9 \u2603"),
]
QUERIES = [("q1", "why"), ("q2", "how"), ("q3", "who")]
QRELS = {"train": [("q1", "d1", 2), ("q1", "d2", 0)], "dev": [("q2", "d2", 1)], "test": [("q3", "d3", 1)]}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(name: str, names: list[str], rows: list[tuple]) -> str:
    """Write rows under column names in the format of the name's ending."""
    path = Path(name.removesuffix(".gz"))
    if path.suffix == ".parquet":
        columns = list(zip(*rows, strict=True))
        parquet.write_table(
            pyarrow.table({key: list(column) for key, column in zip(names, columns, strict=True)}), name
        )
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
    elif path.suffix == ".tsv":
        lines = ["\t".join(map(str, row)).replace("\n", " ") for row in [names, *rows]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".qrels":
        path.write_text("".join(f"{query} 0 {document} {grade}\n" for query, document, grade in rows))
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    if name.endswith(".gz"):
        Path(name).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return name


def files(records: str, judgements: str, corpus_names=("id", "title", "text")) -> Data:
    return Data(
        corpus=write(f"corpus{records}", list(corpus_names), DOCUMENTS),
        queries=write(f"queries{records}", ["id", "text"], QUERIES),
        qrels=write(f"train{judgements}", ["query-id", "corpus-id", "score"], QRELS["train"]),
        dev=write(f"dev{judgements}", ["query-id", "corpus-id", "score"], QRELS["dev"]),
        test=write(f"test{judgements}", ["query-id", "corpus-id", "score"], QRELS["test"]),
    )


def content(collection: Collection) -> tuple:
    return collection.documents.to_list(), collection.queries.to_list(), collection.qrels


def named(collection: Collection, split: str) -> dict[str, dict[str, int]]:
    """Judgements as texts."""
    return {
        collection.queries[query]["text"]: {
            collection.documents[document]["passage"]: grade for document, grade in grades.items()
        }
        for query, grades in collection.qrels[split].items()
    }


# Formats


@pytest.mark.parametrize(
    ("records", "judgements"),
    [
        (".jsonl", ".tsv"),
        (".ndjson", ".csv"),
        (".json", ".jsonl"),
        (".csv", ".qrels"),
        (".parquet", ".parquet"),
        (".jsonl.gz", ".qrels.gz"),
        (".csv.gz", ".tsv.gz"),
    ],
)
def test_every_format_gives_the_same_collection(records, judgements):
    section = files(records, judgements)
    summary = check_collection(section)
    assert (summary.documents, summary.queries, summary.judged) == (3, 3, {"train": 1, "dev": 1, "test": 1})
    collection = build_collection(section, Path("arrow"))
    assert collection.documents.to_list() == [
        {"id": identity, "title": title, "passage": f"{title} {text}".strip()} for identity, title, text in DOCUMENTS
    ]
    assert collection.queries.to_list() == [{"id": identity, "text": text} for identity, text in QUERIES]
    assert collection.qrels == {"train": {0: {0: 2, 1: 0}}, "dev": {1: {1: 1}}, "test": {2: {2: 1}}}


def test_a_tsv_file_has_no_quotes():
    section = Data(
        corpus=write("corpus.tsv", ["id", "text"], [("d1", 'a "b'), ("d2", '"c" d')]),
        queries=write("queries.csv", ["id", "text"], QUERIES),
        qrels=write("train.csv", ["query-id", "corpus-id", "score"], [("q1", "d1", 1)]),
        dev=write("dev.csv", ["query-id", "corpus-id", "score"], [("q2", "d1", 1)]),
        test=write("test.csv", ["query-id", "corpus-id", "score"], [("q3", "d1", 1)]),
    )
    assert build_collection(section, Path("arrow")).documents["passage"][:] == ['a "b', '"c" d']


def test_byte_order_mark_and_windows_line_ends_change_nothing():
    section = files(".csv", ".tsv")
    plain = content(build_collection(section, Path("plain")))
    for path in Path().glob("*.[ct]sv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    changed = content(build_collection(section, Path("changed")))
    assert changed[1:] == plain[1:]
    assert changed[0][1]["passage"].replace("\r", "") == plain[0][1]["passage"]  # the line end inside a quoted field


def test_ids_and_grades_may_be_numbers_in_every_format():
    for number, suffix in enumerate([".jsonl", ".csv", ".parquet"]):
        section = Data(
            corpus=write(f"corpus{suffix}", ["pid", "body"], [(7, "seven"), (8, "eight")]),
            queries=write(f"queries{suffix}", ["qid", "question"], [(1, "a"), (2, "b"), (3, "c")]),
            qrels=write(f"train{suffix}", ["qid", "pid", "relevance"], [(1, 7, 1.0), (1, 8, 0.0)]),
            dev=write(f"dev{suffix}", ["qid", "pid", "relevance"], [(2, 7, 2.0)]),
            test=write(f"test{suffix}", ["qid", "pid", "relevance"], [(3, 8, 1.0)]),
        )
        collection = build_collection(section, Path(f"arrow{number}"))
        assert collection.named_qrels("train") == {"1": {"7": 1, "8": 0}}
        assert collection.named_qrels("dev") == {"2": {"7": 2}}


def test_a_document_beyond_the_csv_modules_default_limit_is_read():
    long = "word " * 40_000
    section = files(".csv", ".tsv")
    write("corpus.csv", ["id", "text"], [("d1", long), ("d2", "b"), ("d3", "c")])
    assert build_collection(section, Path("arrow")).documents["passage"][0] == long.strip()


def test_several_files_and_globs_are_one_corpus_in_their_order():
    section = files(".jsonl", ".tsv")
    Path("parts").mkdir()
    write("parts/b.csv", ["id", "text"], [("d1", "first")])
    write("parts/a.jsonl", ["id", "text"], [("d3", "third")])
    write("last.parquet", ["id", "text"], [("d2", "second")])
    section = section.model_copy(update={"corpus": (Path("parts/*"), Path("last.parquet"))})
    assert build_collection(section, Path("arrow")).document_ids == ["d3", "d1", "d2"]


def test_only_the_columns_that_are_needed_are_read_from_parquet():
    section = files(".parquet", ".tsv")
    nested = pyarrow.table({"id": ["d1", "d2", "d3"], "text": ["a", "b", "c"], "vector": [[0.1], [0.2], [0.3]]})
    parquet.write_table(nested, "corpus.parquet")
    assert check_collection(section).documents == 3


# Columns


def test_columns_are_those_that_the_recipe_names():
    section = Data(
        corpus=write(
            "corpus.csv",
            ["id", "sku", "name", "text", "details"],
            [("x", "d1", "n", "t", "more"), ("x", "d2", "", "u", "")],
        ),
        queries=write("queries.jsonl", ["text", "asked", "number"], [("no", "a", 1), ("no", "b", 2), ("no", "c", 3)]),
        qrels=write("train.csv", ["who", "what", "score", "stars"], [(1, "d1", 0, 5)]),
        dev=write("dev.csv", ["who", "what", "score", "stars"], [(2, "d2", 0, 4)]),
        test=write("test.csv", ["who", "what", "score", "stars"], [(3, "d2", 0, 3)]),
        corpus_id="sku",
        corpus_title="name",
        corpus_text=("text", "details"),
        query_id="number",
        query_text="asked",
        qrels_query="who",
        qrels_document="what",
        qrels_grade="stars",
    )
    collection = build_collection(section, Path("arrow"))
    first, second = collection.documents.to_list()
    assert first == {"id": "d1", "title": "n", "passage": "n t more"}
    assert second == {"id": "d2", "title": "", "passage": "u"}
    assert collection.queries["text"][:] == ["a", "b", "c"]
    assert collection.named_qrels("train") == {"1": {"d1": 5}}


@pytest.mark.parametrize(
    "names",
    [
        ("_id", "title", "text"),
        ("docid", "title", "contents"),
        ("doc_id", "Title", "Body"),
        ("pid", "title", "passage"),
    ],
)
def test_usual_names_of_columns_need_no_key(names):
    section = files(".csv", ".tsv", corpus_names=names)
    assert build_collection(section, Path("arrow")).documents["passage"][0] == "one first"


# Pairs


def pair_files(train: list[tuple], names=("query", "positive", "negative")) -> Data:
    return Data(
        pairs=write("pairs.jsonl", list(names), train),
        dev=write("pairs-dev.jsonl", ["query", "positive"], [("dev?", "dev!")]),
        test=write("pairs-test.jsonl", ["query", "positive"], [("test?", "test!")]),
    )


def test_pairs_become_documents_queries_and_judgements():
    section = pair_files([("a?", "yes", "no"), ("b?", "no", "never"), (" a?", "yes  ", "never")])
    collection = build_collection(section, Path("arrow"))
    assert collection.documents["passage"][:] == ["yes", "no", "never", "dev!", "test!"]
    assert collection.queries["text"][:] == ["a?", "b?", "dev?", "test?"]
    assert named(collection, "train") == {"a?": {"yes": 1, "no": 0, "never": 0}, "b?": {"no": 1, "never": 0}}
    assert named(collection, "test") == {"test?": {"test!": 1}}


def test_ids_of_pairs_depend_on_their_texts_and_not_on_their_rows():
    first = build_collection(pair_files([("a?", "yes", "no"), ("b?", "no", "never")]), Path("first"))
    second = build_collection(pair_files([("b?", "no", "never"), ("a?", "yes", "no")]), Path("second"))
    assert first.document_ids != second.document_ids
    assert set(first.document_ids) == set(second.document_ids)
    assert first.named_qrels("train") == second.named_qrels("train")
    assert all(len(identity) == 14 and identity[:2] == "d-" for identity in first.document_ids)
    assert all(identity[:2] == "q-" for identity in first.query_ids)


def test_texts_whose_short_hashes_are_the_same_get_longer_ids(monkeypatch):
    from trainer.data import pairs

    monkeypatch.setattr(pairs, "HASH_DIGITS", 1)
    rows = [(f"query {number}", f"answer {number}", "") for number in range(60)]
    collection = build_collection(pair_files(rows), Path("arrow"))
    assert len(set(collection.document_ids)) == 62
    assert {len(identity) for identity in collection.document_ids} == {3, 7}
    assert all(list(grades) == [f"answer {query.split()[1]}"] for query, grades in named(collection, "train").items())


@pytest.mark.parametrize(
    ("names", "row"),
    [
        (("query", "pos", "neg"), ("a?", ["yes"], ["no", "never"])),
        (("anchor", "positive", "negative_1", "negative_2"), ("a?", "yes", "no", "never")),
        (("question", "answer", "negative_1", "negative_2", "negative_3"), ("a?", "yes", "no", None, "never")),
        (("query", "positive", "negatives"), ("a?", "yes", ["no", "never"])),
    ],
)
def test_negatives_may_be_columns_or_lists(names, row):
    section = pair_files([row], names)
    for suffix in ("", "-dev", "-test"):  # the columns of all three are looked for in each file
        assert Path(f"pairs{suffix}.jsonl").exists()
    assert named(build_collection(section, Path("arrow")), "train") == {"a?": {"yes": 1, "no": 0, "never": 0}}


def test_columns_of_pairs_are_those_that_the_recipe_names():
    row = [("x", "a?", "yes", "no", "never")]
    names = ["query", "asked", "good", "bad", "worse"]
    keys = {"pairs_query": "asked", "pairs_positive": "good", "pairs_negatives": ("bad", "worse")}
    section = Data(
        pairs=write("pairs.csv", names, [*row, *[("x", f"q{n}", f"d{n}", "", "") for n in range(40)]]), **keys
    )
    collection = build_collection(section, Path("arrow"))
    assert {"yes", "no", "never"} <= set(collection.documents["passage"][:])


# Splits


@pytest.fixture
def many() -> dict[str, str]:
    """400 judged queries in one file."""
    return {
        "corpus": write("corpus.csv", ["id", "text"], [(f"d{n}", f"text {n}") for n in range(10)]),
        "queries": write("queries.csv", ["id", "text"], [(f"q{n}", f"query number {n}") for n in range(400)]),
        "qrels": write(
            "train.tsv", ["query-id", "corpus-id", "score"], [(f"q{n}", f"d{n % 10}", 1) for n in range(400)]
        ),
    }


def splits(keys: dict, **more) -> dict[str, set[str]]:
    collection = build_collection(Data(**keys, **more), Path("arrow"))
    return {split: set(collection.named_qrels(split)) for split in ("train", "dev", "test")}


def test_missing_splits_are_split_off_and_the_notes_say_so(many):
    found = splits(many)
    assert sum(map(len, found.values())) == 400
    assert not found["train"] & found["dev"]
    assert 25 <= len(found["dev"]) <= 55  # 40 expected, standard deviation 6
    assert 56 <= len(found["test"]) <= 104  # 80, 8
    notes = check_collection(Data(**many)).notes
    how = "of 400 train queries, chosen by a hash of their text (data.dev_share 0.1)"
    assert notes[0] == f"dev is split off: {len(found['dev'])} {how}"
    assert notes[1].startswith(f"test is split off: {len(found['test'])} of 400 train queries")


def test_more_queries_in_another_order_change_no_split(many):
    before = splits(many)
    rows = [(f"q{n}", f"query number {n}") for n in reversed(range(500))]
    write("queries.csv", ["id", "text"], rows)
    write("train.tsv", ["query-id", "corpus-id", "score"], [(f"q{n}", f"d{n % 10}", 1) for n in reversed(range(500))])
    after = splits(many)
    assert all(before[split] < after[split] for split in before)


def test_equal_texts_stay_together_whatever_their_case_and_blanks(many):
    rows = [(f"q{n}", f"query number {n}") for n in range(400)]
    write("queries.csv", ["id", "text"], [*rows, *[(f"r{n}", f" Query  NUMBER {n}") for n in range(400)]])
    judged = [(f"{letter}{n}", f"d{n % 10}", 1) for letter in "qr" for n in range(400)]
    write("train.tsv", ["query-id", "corpus-id", "score"], judged)
    for found in splits(many).values():
        assert {name[1:] for name in found if name[0] == "q"} == {name[1:] for name in found if name[0] == "r"}
    assert check_collection(Data(**many)).warnings == []


def test_a_given_split_leaves_the_other_as_it_was(many):
    both = splits(many)
    write("more.csv", ["id", "text"], [("t1", "a test query")])
    write("test.tsv", ["query-id", "corpus-id", "score"], [("t1", "d1", 1)])
    found = splits(many | {"queries": ["queries.csv", "more.csv"], "test": "test.tsv"})
    assert found["dev"] == both["dev"]
    assert found["test"] == {"t1"}
    assert found["train"] == both["train"] | both["test"]


def test_a_beir_folder_may_lack_dev_and_test(beir):
    lines = [path.read_text().splitlines() for path in sorted((beir / "qrels").glob("*.tsv"))]
    (beir / "qrels" / "dev.tsv").unlink()
    (beir / "qrels" / "test.tsv").unlink()
    (beir / "qrels" / "train.tsv").write_text("\n".join([lines[0][0], *[line for part in lines for line in part[1:]]]))
    summary = check_collection(Data(path=beir, dev_share=0.2, test_share=0.3))
    assert sum(summary.judged.values()) == 40
    assert summary.notes[0].startswith(f"dev is split off: {summary.judged['dev']} of 40 train queries")


# Reviewed labels


def test_reviewed_labels_add_to_the_judgements_and_overrule_them():
    section = files(".jsonl", ".tsv")
    labels = [
        {"query_id": "q1", "document_id": "d1", "relevant": True, "by": "me"},  # keeps its grade, 2
        {"query_id": "q1", "document_id": "d2", "relevant": True},  # overrules 0
        {"query_id": "q1", "document_id": "d3", "relevant": False},  # adds
        {"query_id": "q2", "document_id": "d2", "relevant": 3},  # overrules 1
        {"query_id": "q3", "document_id": "d1", "relevant": None},  # still open
    ]
    Path("labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    section = section.model_copy(update={"judgements": Path("labels.jsonl")})
    collection = build_collection(section, Path("arrow"))
    assert collection.named_qrels("train") == {"q1": {"d1": 2, "d2": 1, "d3": 0}}
    assert collection.named_qrels("dev") == {"q2": {"d2": 3}}
    assert collection.named_qrels("test") == {"q3": {"d3": 1}}
    assert check_collection(section).notes[0] == (
        "labels.jsonl: 1 judgements added, 2 overruled, 1 confirmed, 1 left open; "
        "1 are of dev queries, so metrics change"
    )


# Sets of the datasets library


def write_set(folder: Path, configurations: dict[str, dict[str, dict[str, list]]]) -> None:
    """A data set folder: {configuration: {split: {column: values}}}."""
    folder.mkdir()
    lines = ["---", "configs:"]
    for name, parts in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, columns in parts.items():
            parquet.write_table(pyarrow.table(columns), folder / f"{name}-{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {name}-{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


CORPUS_AND_QUERIES = {
    "corpus": {"corpus": {"_id": ["d1", "d2"], "title": ["one", ""], "text": ["first", "second"]}},
    "queries": {"queries": {"_id": ["q1", "q2", "q3"], "text": ["a", "b", "c"]}},
}
JUDGED = {
    "train": {"query-id": ["q1"], "corpus-id": ["d1"], "score": [1]},
    "validation": {"query-id": ["q2"], "corpus-id": ["d2"], "score": [2]},
    "test": {"query-id": ["q3"], "corpus-id": ["d1"], "score": [1]},
}


@pytest.mark.parametrize("place", ["qrels", "default", "sister"])
def test_a_set_in_beir_layout_is_a_collection(place):
    if place == "sister":
        write_set(Path("set"), CORPUS_AND_QUERIES)
        write_set(Path("set-qrels"), {"default": JUDGED})
    else:
        write_set(Path("set"), CORPUS_AND_QUERIES | {place: JUDGED})
    collection = build_collection(Data(path="hub:set"), Path("arrow"))
    assert collection.documents["passage"][:] == ["one first", "second"]
    assert collection.qrels == {"train": {0: {0: 1}}, "dev": {1: {1: 2}}, "test": {2: {0: 1}}}


def test_a_set_of_triplets_is_a_collection_and_its_content_is_its_fingerprint():
    count = 60
    columns = {
        "anchor": [f"query {n}" for n in range(count)],
        "positive": [f"yes {n}" for n in range(count)],
        "negative": [f"no {n}" for n in range(count)],
    }
    write_set(Path("set"), {"default": {"train": columns}})
    summary = check_collection(Data(path="hub:set"))
    assert (summary.documents, summary.queries, sum(summary.judged.values())) == (120, 60, 60)
    before = fingerprint_data(Data(path="hub:set"))
    write_set(Path("copy"), {"default": {"train": columns}})
    columns["negative"][7] = "another"
    write_set(Path("changed"), {"default": {"train": columns}})
    assert fingerprint_data(Data(path="hub:changed")) != before


def test_one_of_several_configurations_is_named_after_a_colon():
    pairs = {"query": [f"query {n}" for n in range(60)], "positive": [f"yes {n}" for n in range(60)]}
    write_set(Path("set"), {"easy": {"train": pairs}, "hard": {"train": pairs}})
    assert check_collection(Data(path="hub:set:hard")).queries == 60


# Fingerprints


def test_the_fingerprint_depends_on_the_files_and_the_reading_keys():
    section = files(".csv", ".tsv")
    before = fingerprint_data(section)
    assert fingerprint_data(files(".csv", ".tsv")) == before
    for change in ({"corpus_text": ("title",)}, {"dev_share": 0.2}, {"test": None}, {"dev": (Path("test.tsv"),)}):
        assert fingerprint_data(section.model_copy(update=change)) != before
    Path("labels.jsonl").write_text("{}\n")
    labelled = section.model_copy(update={"judgements": Path("labels.jsonl")})
    assert fingerprint_data(labelled) != before
