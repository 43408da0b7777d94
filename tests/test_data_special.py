"""Special cases: queries that are documents, unusual judgements, tables and layouts of other projects."""

import bz2
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from trainer.data import Collection, build_collection, check_collection, fingerprint_data
from trainer.errors import DataError
from trainer.evaluation.two_stage import evaluate
from trainer.mining import mine
from trainer.recipe import Data, Mine, Retriever
from trainer.retriever import NOTHING, retrieve_splits, retrieve_unjudged

DOCUMENTS = {
    "d1": "how do pods restart at night",
    "d2": "why do pods restart so often",
    "d3": "memory of the node runs out",
    "d4": "the certificate expired",
    "d5": "pods restart after a deploy",
}
QUERIES = {"q1": "pods restart", "q2": "memory runs out", "q3": "certificate expired"}
QRELS = {"train": [("q1", "d1", 1)], "dev": [("q2", "d3", 1)], "test": [("q3", "d4", 1)]}
Rows = list[tuple[str, str, int]]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def section(
    documents: dict[str, str] = DOCUMENTS, queries: dict[str, str] = QUERIES, qrels: dict[str, Rows] = QRELS, **keys
) -> Data:
    """Files of documents, queries and judgements, and the section that names them."""
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"id": identity, "text": text}) for identity, text in texts.items()]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    for split, rows in qrels.items():
        Path(f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{g}\n" for q, d, g in rows)
        )
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "train.tsv"}
    return Data(**names, **{split: f"{split}.tsv" for split in ("dev", "test") if split in qrels} | keys)


def built(data: Data, name: str = "arrow") -> Collection:
    return build_collection(data, Path(name))


def note(data: Data, words: str) -> str:
    summary = check_collection(data)
    (found,) = [line for line in [*summary.notes, *summary.warnings] if words in line]
    return found


def faults(data: Data) -> list[str]:
    with pytest.raises(DataError) as caught:
        check_collection(data)
    return caught.value.faults


def candidates(collection: Collection, tmp_path: Path, depth: int = 3) -> dict[str, dict[str, list[str]]]:
    """The ids that BM25 finds for each query, by split."""
    found = retrieve_splits(Retriever(kind="bm25", depth=depth, language="none"), collection, None, tmp_path)
    return {
        split: {
            collection.query_ids[query]: [collection.document_ids[row] for row in part.found(place)]
            for place, query in enumerate(part.queries.tolist())
        }
        for split, part in found.items()
    }


# Queries that are documents

SELF = {"by id": ("d1", "pods restart at night?"), "by text": ("s1", "How do  pods restart at night?")}


@pytest.mark.parametrize(("query", "text"), SELF.values(), ids=SELF)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_query_that_is_a_document_is_no_candidate_of_itself(query, text, split, tmp_path):
    qrels = QRELS | {split: [(query, "d2", 1)]}
    queries = {query: text} | QUERIES
    found = candidates(built(section(queries=queries, qrels=qrels)), tmp_path)
    assert set(found[split][query]) == {"d2", "d5"}  # all that share a word with it
    kept = built(section(queries=queries, qrels=qrels, self_documents="keep"), "kept")
    assert "d1" in candidates(kept, tmp_path)[split][query]


def test_a_list_keeps_its_length_if_a_document_is_left_out(tmp_path):
    documents = {f"d{n}": f"pods restart {'again ' * n}" for n in range(300)}
    queries = {"d7": documents["d7"], **QUERIES}
    qrels = {"train": [("d7", "d8", 1)], "dev": [("q1", "d1", 1)], "test": [("q2", "d2", 1)]}
    collection = built(section(documents, queries, qrels))
    found = candidates(collection, tmp_path, depth=200)
    assert len(found["train"]["d7"]) == 200
    assert "d7" not in found["train"]["d7"]
    assert len(found["dev"]["q1"]) == 200


def test_a_query_that_is_a_document_is_not_its_own_negative(tmp_path):
    qrels = QRELS | {"train": [("d1", "d2", 1), ("d1", "d1", 0)]}
    collection = built(section(queries={"d1": DOCUMENTS["d1"]} | QUERIES, qrels=qrels))
    found = retrieve_splits(Retriever(kind="bm25", language="none"), collection, None, tmp_path)["train"]
    for settings in ({}, {"random_share": 1.0}):
        mined = mine(Mine(negatives_per_positive=4, **settings), collection, found, seed=3)
        (group,) = mined.groups
        names = [collection.document_ids[row] for row in group.negatives]
        assert names
        assert not {"d1", "d2"} & set(names)


def test_a_document_that_is_judged_relevant_for_its_own_query_is_kept(tmp_path):
    queries = {"q1": DOCUMENTS["d1"], "q2": "x", "q3": "y"}
    collection = built(section(queries=queries))  # train says that d1 answers q1, which has its text
    assert collection.self_documents == {}
    assert candidates(collection, tmp_path)["train"]["q1"][0] == "d1"


def test_the_check_counts_queries_that_are_documents():
    queries = {"d5": "another text", "q1": DOCUMENTS["d2"].upper() + "?", "q2": "x", "q3": "y", "free": DOCUMENTS["d4"]}
    qrels = QRELS | {"train": [("d5", "d1", 1), ("q1", "d1", 1)]}
    said = note(section(queries=queries, qrels=qrels), "are documents themselves")
    assert said.startswith(
        "2 queries are documents themselves (1 by their id, 1 by their text alone);"
    )  # free: unjudged
    data = section(queries=queries, qrels=qrels, self_documents="keep")
    assert not [line for line in check_collection(data).notes if "documents themselves" in line]


def test_equal_numeric_ids_count_only_with_equal_texts(tmp_path):
    documents = {str(n): f"pods restart at night {n}" for n in range(1, 6)}
    queries = {str(n): f"why do pods restart {n} times" for n in range(1, 4)}
    qrels = {"train": [("1", "2", 1)], "dev": [("2", "3", 1)], "test": [("3", "4", 1)]}
    assert built(section(documents, queries, qrels)).self_documents == {}
    asked = queries | {"1": documents["1"], "3": documents["3"]}  # as in Quora: two of three are the same question
    assert built(section(documents, asked, qrels), "asked").self_documents == {0: [0], 1: [1], 2: [2]}


def test_title_and_text_are_compared_with_and_without_the_title():
    queries = {"q1": "memory of the node runs out", "q2": "Pods memory of the node runs out", "q3": "pods"}
    data = section(
        queries=queries, qrels={"train": [("q1", "d1", 1)], "dev": [("q2", "d1", 1)], "test": [("q3", "d1", 1)]}
    )
    Path("corpus.jsonl").write_text(
        '{"id": "d1", "text": "a"}\n{"id": "d2", "title": "Pods", "text": "memory of the node runs out"}\n'
    )
    assert built(data).self_documents == {0: [1], 1: [1]}  # a title alone is no document


def test_a_pseudo_query_that_is_a_complete_document_does_not_retrieve_it(tmp_path):
    collection = built(section()).with_queries({"p0": DOCUMENTS["d5"], "p1": "pods restart after"})
    rows = [len(QUERIES), len(QUERIES) + 1]
    assert collection.self_documents == {rows[0]: [4]}
    found = retrieve_unjudged(Retriever(kind="bm25", language="none"), collection, rows, None)
    assert 4 not in found.found(0)
    assert found.found(1)[0] == 4
    from trainer.mining.from_teacher import with_source_documents

    own = with_source_documents(found.top(3), [NOTHING, 4])
    assert 4 not in own.found(0)
    assert own.found(1)[0] == 4


def test_positives_of_an_equal_query_are_no_negatives(tmp_path):
    queries = {"q1": "pods restart", "q4": "Pods  restart", "q2": "x", "q3": "y"}
    rows = [("q1", "d1", 1), ("q4", "d2", 1), ("q4", "d1", 0)]
    data = section(queries=queries, qrels=QRELS | {"train": rows})
    said = note(data, "repeat the text of another one with other judgements")
    assert said.startswith("1 train queries repeat")
    assert "q1 and q4 (" in said
    collection = built(data)
    found = retrieve_splits(Retriever(kind="bm25", language="none"), collection, None, tmp_path)["train"]
    for group in mine(Mine(negatives_per_positive=4, random_share=0.5), collection, found, seed=3).groups:
        assert not {0, 1} & set(group.negatives)


# What counts as relevant


def test_grades_below_the_threshold_are_not_relevant_but_stay_for_metrics(tmp_path):
    rows = [("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d5", 3), ("q4", "d3", 1)]
    data = section(
        queries=QUERIES | {"q4": "z"},
        qrels=QRELS | {"train": rows, "dev": [("q2", "d3", 2)], "test": [("q3", "d4", 3)]},
        relevant_from=2,
    )
    collection = built(data)
    assert collection.answerable("train") == [0]
    assert collection.positives("train", 0) == [0, 4]
    assert collection.judged_negatives("train", 0) == [1]
    assert collection.named_qrels("train") == {"q1": {"d1": 2, "d2": 1, "d5": 3}}
    found = retrieve_splits(Retriever(kind="bm25", language="none"), collection, None, tmp_path)["train"]
    (group,) = mine(Mine(negatives_per_positive=1), collection, found, seed=3).groups
    assert (group.positives, group.grades) == ([4, 0], [3, 2])
    assert 1 in group.negatives
    assert "1 train queries have no positive" in note(data, "have no positive")
    assert Collection.open(Path("arrow")).relevant_from == 2


def test_a_threshold_above_all_grades_is_an_error():
    assert faults(section(relevant_from=2)) == [
        "train.tsv: no judgement above 1, so train has no relevant document",
        "dev.tsv: no judgement above 1, so dev has no relevant document",
        "test.tsv: no judgement above 1, so test has no relevant document",
    ]


def test_a_reviewed_label_reaches_the_threshold_or_falls_below_it():
    labels = [("d2", True), ("d1", False), ("d3", False)]
    Path("labels.jsonl").write_text(
        "".join(json.dumps({"query_id": "q1", "document_id": d, "relevant": r}) + "\n" for d, r in labels)
    )
    rows = [("q1", "d1", 3), ("q1", "d3", 1), ("q1", "d4", 2)]
    qrels = {"train": rows, "dev": [("q2", "d3", 2)], "test": [("q3", "d4", 2)]}
    collection = built(section(qrels=qrels, relevant_from=2, judgements="labels.jsonl"))
    assert collection.named_qrels("train")["q1"] == {"d1": 1, "d3": 1, "d4": 2, "d2": 2}


@pytest.mark.parametrize("grade", ["-1", "-2", "-1.0", -2])
def test_negative_grades_are_not_relevant(grade):
    collection = built(section(qrels=QRELS | {"train": [("q1", "d1", 1), ("q1", "d2", grade)]}))
    assert collection.named_qrels("train") == {"q1": {"d1": 1, "d2": 0}}
    assert collection.judged_negatives("train", 0) == [1]


@pytest.mark.parametrize("value", [True, "true", "TRUE"])
def test_true_is_grade_1(value):
    data = section()
    Path("train.jsonl").write_text(
        json.dumps({"query_id": "q1", "doc_id": "d1", "score": value})
        + "\n"
        + json.dumps({"query_id": "q1", "doc_id": "d2", "score": str(not value) if value is True else "false"})
    )
    collection = built(data.model_copy(update={"qrels": (Path("train.jsonl"),)}))
    assert collection.named_qrels("train") == {"q1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize("how", [("sum", 7, 2), ("max", 4, 1)])
def test_repeated_judgements_are_added_or_the_highest_counts(how):
    rule, first, second = how
    rows = [("q1", "d1", 1), ("q1", "d1", 4), ("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d2", 1)]
    data = section(qrels=QRELS | {"train": rows}, repeated=rule)
    assert built(data).named_qrels("train") == {"q1": {"d1": first, "d2": second}}
    assert note(data, "(data.repeated)").startswith("3 judgements repeat a pair; ")
    assert len(faults(section(qrels=QRELS | {"train": rows}))) == 2


# Unknown ids


def test_judgements_of_unknown_ids_can_be_left_out_and_are_counted():
    rows = [("q1", "d1", 1), ("q1", "gone", 1), ("q1", "gone too", 0), ("old", "d1", 1), ("old", "gone", 1)]
    data = section(qrels=QRELS | {"train": rows}, unknown_ids="skip")
    assert built(data).named_qrels("train") == {"q1": {"d1": 1}}
    assert note(data, "(data.unknown_ids)") == (
        "4 judgements were left out, with 2 unknown document ids and 1 unknown query ids, e.g. gone and old "
        "(data.unknown_ids)"
    )
    told = faults(section(qrels=QRELS | {"train": rows}))
    assert len(told) == 5  # each id of each line
    assert told[3] == "train.tsv:5: query 'old' is not in queries.jsonl; correct the id, or set data.unknown_ids: skip"


def test_a_split_with_unknown_ids_only_is_an_error():
    (told,) = faults(section(qrels=QRELS | {"train": [("old", "d1", 1)]}, unknown_ids="skip"))
    assert told == "train.tsv: no judgement above 0, so train has no relevant document"


FORMS = {
    "Unicode": (
        "caf\u00e9",
        "cafe\u0301",
        "the same characters in another Unicode form are ('caf\\xe9' there, 'cafe\\u0301' here)",
    ),
    "case": ("KB-7", "kb-7", "but 'KB-7' is: spell the ids in the same way"),
    "zeros": ("007", "7", "but '007' is: spell the ids in the same way"),
    "numbers": ("7", "7.0", "but '7' is: write ids as whole numbers"),
}


@pytest.mark.parametrize(("known", "given", "said"), FORMS.values(), ids=FORMS)
def test_an_id_in_another_form_is_recognised(known, given, said):
    (told,) = faults(section(DOCUMENTS | {known: "x"}, qrels=QRELS | {"train": [("q1", "d1", 1), ("q1", given, 1)]}))
    assert said in told


# Ids with blanks


def test_ids_may_contain_blanks_also_in_run_files(tmp_path):
    documents = {"kb 12": "pods restart", "a\tb": "pods again", "100%": "pods once", " edge ": "memory"}
    queries = {"q 1": "pods restart", "q2": "memory runs", "q3": "again"}
    qrels = {"train": [("q 1", "kb 12", 1)], "dev": [("q2", "edge", 1)], "test": [("q3", "100%", 1)]}
    data = section(documents, queries, qrels)
    collection = built(data)
    assert collection.document_ids == ["kb 12", "a\tb", "100%", "edge"]
    assert collection.named_qrels("train") == {"q 1": {"kb 12": 1}}
    found = retrieve_splits(Retriever(kind="bm25", language="none"), collection, None, tmp_path)
    evaluate(
        collection, "train", found["train"], {"tuned": found["train"].scores}, ["nDCG@10", "AP", "R@5"], 3, tmp_path
    )
    lines = (tmp_path / "first_stage.trec").read_text().splitlines()
    assert all(len(line.split()) == 6 for line in lines)
    assert lines[0].split()[:3] == ["q%201", "Q0", "kb%2012"]
    from trainer.retriever.trec_run import read_run

    rows = (
        {identity: row for row, identity in enumerate(ids)} for ids in (collection.query_ids, collection.document_ids)
    )
    read = read_run(tmp_path / "first_stage.trec", *rows, wanted=[0], depth=4)
    assert read.documents[0].tolist()[: len(lines)] == found["train"].found(0)


def test_trec_qrels_with_tabs_may_have_ids_with_blanks():
    data = section({"kb 12": "x"} | DOCUMENTS)
    Path("train.qrels").write_text("q1\t0\tkb 12\t1\nq1 0 d1 -1\n")
    collection = built(data.model_copy(update={"qrels": (Path("train.qrels"),)}))
    assert collection.named_qrels("train") == {"q1": {"kb 12": 1, "d1": 0}}


# Tables


def test_tables_without_header_as_in_ms_marco():
    Path("collection.tsv").write_text('0\tThe "presence" of\n1\tpods restart\n')
    Path("queries.tsv").write_text("10\twhy\n11\thow\n12\twho\n")
    for split, lines in {"train": "10\t0\t1\t1\n", "dev": "11 0 0 1\n", "test": "12\t0\t1\t-1\n12\t0\t0\t1\n"}.items():
        Path(f"qrels.{split}.tsv").write_text(lines)
    data = Data(
        corpus="collection.tsv",
        queries="queries.tsv",
        qrels="qrels.train.tsv",
        dev="qrels.dev.tsv",
        test="qrels.test.tsv",
    )
    collection = built(data)
    assert collection.documents["passage"][:] == ['The "presence" of', "pods restart"]
    assert collection.named_qrels("test") == {"12": {"1": 0, "0": 1}}


def test_ids_with_letters_need_a_header_and_the_error_says_so():
    data = section()
    Path("corpus.tsv").write_text("D1\tpods restart at night\n")
    told = faults(data.model_copy(update={"corpus": (Path("corpus.tsv"),)}))
    assert "if the first line is not a header, add one above it" in told[0]


SEPARATED = {
    "semicolons": ("corpus.csv", 'id;text\nd1;a, b\nd2;"c; d"\n', ["a, b", "c; d"]),
    "Excel's hint": ("corpus.csv", "sep=;\nid;text, long\nd1;a\nd2;b\n", None),
    "bars": ("corpus.csv", "id|title|text\nd1||a\nd2||b\n", ["a", "b"]),
    "tabs in csv": ("corpus.csv", 'id\ttext\nd1\t"a\tb"\nd2\tc\n', ["a\tb", "c"]),
    "commas in tsv": ("corpus.tsv", 'id,text\nd1,"a, b"\nd2,c\n', ["a, b", "c"]),
    "comma first": ("corpus.csv", 'id,text\nd1,"a;b;c"\nd2,d\n', ["a;b;c", "d"]),
    "old Macintosh": ("corpus.csv", "id,text\rd1,a\rd2,b\r", ["a", "b"]),
    "separators of lines": ("corpus.csv", "id,text\nd1,a\u2028b\x85c\x0cd\nd2,e", ["a\u2028b\x85c\x0cd", "e"]),
}


@pytest.mark.parametrize(("name", "content", "passages"), SEPARATED.values(), ids=SEPARATED)
def test_the_separator_is_detected_from_the_header(name, content, passages):
    data = section(qrels={split: [(query, "d1", 1)] for split, query in zip(QRELS, QUERIES, strict=True)})
    Path(name).write_text(content, encoding="utf-8", newline="")
    keys = {"corpus": (Path(name),)} | ({} if passages else {"corpus_text": ("text, long",)})
    assert built(data.model_copy(update=keys)).documents["passage"][:] == (passages or ["a", "b"])


def test_a_separator_can_be_set_if_the_header_misleads():
    data = section(qrels={split: [(query, "d1", 1)] for split, query in zip(QRELS, QUERIES, strict=True)})
    Path("corpus.csv").write_text("id;text, long\nd1;a\n")
    data = data.model_copy(update={"corpus": (Path("corpus.csv"),), "corpus_text": ("text, long",)})
    assert any("if ';' separates the fields, set data.separator" in line for line in faults(data))
    for split in QRELS:
        Path(f"{split}.tsv").write_text(Path(f"{split}.tsv").read_text().replace("\t", ";"))
    assert built(data.model_copy(update={"separator": ";"})).documents["passage"][:] == ["a"]


@pytest.mark.parametrize(("ending", "pack"), [(".bz2", bz2.compress), (".xz", lzma.compress)])
def test_other_compressed_files_are_read(ending, pack):
    data = section()
    plain = built(data).documents.to_list()
    Path(f"corpus.jsonl{ending}").write_bytes(pack(Path("corpus.jsonl").read_bytes()))
    packed = built(data.model_copy(update={"corpus": (Path(f"corpus.jsonl{ending}"),)}), "packed")
    assert packed.documents.to_list() == plain


def test_files_may_name_a_column_differently():
    data = section(qrels_grade=["clicks", "rating"], qrels_query=["who", "query-id"])
    Path("train.tsv").write_text("who\tcorpus-id\tclicks\trating\nq1\td1\t5\t0\n")
    for split in ("dev", "test"):
        Path(f"{split}.tsv").write_text(Path(f"{split}.tsv").read_text().replace("score", "rating"))
    collection = built(data)
    assert collection.named_qrels("train") == {"q1": {"d1": 5}}
    assert collection.named_qrels("dev") == {"q2": {"d3": 1}}
    Path("dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td3\t1\n")
    (told,) = faults(data)
    assert told.startswith(
        "dev.tsv: no column 'clicks', which data.qrels_grade names; columns here: query-id, corpus-id"
    )


# Pairs of other projects


def pairs(*rows: dict, **keys) -> dict[str, dict[str, int]]:
    """The train judgements, as texts, of pairs beside one for dev and one for test."""
    more = {split: [{"query": f"{split}?", "positive": f"{split}!", "clicks": 1}] for split in ("dev", "test")}
    for name, lines in {"pairs": rows, **more}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    collection = built(Data(pairs="pairs.jsonl", dev="dev.jsonl", test="test.jsonl", **keys))
    texts = collection.documents["passage"][:]
    return {
        collection.queries[query]["text"]: {texts[row]: grade for row, grade in grades.items()}
        for query, grades in collection.qrels["train"].items()
    }


TEVATRON = {
    "query_id": "7",
    "query": "a?",
    "positive_passages": [{"docid": "1", "title": "Yes", "text": "it is"}, {"docid": "2", "title": "", "text": "yes"}],
    "negative_passages": [{"docid": "3", "title": "No", "text": "never"}],
}
SWIFT = {
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a?"}],
    "positive_messages": [[{"role": "assistant", "content": "yes"}]],
    "negative_messages": [[{"role": "assistant", "content": "no"}], [{"role": "assistant", "content": "never"}]],
}
PEERS = {
    "Tevatron": ([TEVATRON], {"a?": {"Yes it is": 1, "yes": 1, "No never": 0}}),
    "ms-swift": ([SWIFT], {"a?": {"yes": 1, "no": 0, "never": 0}}),
    "labelled": (
        [{"query": "a?", "text": "yes", "label": 2}, {"query": "a?", "text": "no", "label": "0"}],
        {"a?": {"yes": 2, "no": 0}},
    ),
    "labelled by truth": (
        [{"question": "a?", "passage": "yes", "label": True}, {"question": "a?", "passage": "no", "label": False}],
        {"a?": {"yes": 1, "no": 0}},
    ),
    "documents and labels": (
        [{"query": "a?", "docs": ["yes", "no", "perhaps"], "labels": [3, 0, 1]}],
        {"a?": {"yes": 3, "no": 0, "perhaps": 1}},
    ),
    "DPR": (
        [
            {
                "question": "a?",
                "positive_ctxs": [{"title": "T", "text": "yes"}],
                "hard_negative_ctxs": [],
                "negative_ctxs": [],
            }
        ],
        {"a?": {"T yes": 1}},
    ),
}


@pytest.mark.parametrize(("rows", "judged"), PEERS.values(), ids=PEERS)
def test_layouts_of_other_projects_are_read_as_pairs(rows, judged):
    assert pairs(*rows) == judged


def test_the_column_of_labels_can_be_named_and_clicks_be_added():
    rows = [{"query": "a?", "positive": "yes", "clicks": 2}, {"query": "a?", "positive": "yes", "clicks": 3}]
    assert pairs(*rows, pairs_label="clicks", repeated="sum", relevant_from=1) == {"a?": {"yes": 5}}
    with pytest.raises(DataError, match=r"'a\?' has 'yes' with the grades 2 and 3; keep one"):
        pairs(*rows, pairs_label="clicks")


PAIR_FAULTS = {
    "grades do not match": ({"query": "a", "docs": ["x", "y"], "labels": [1]}, '"labels" holds 1 grades for 2 texts'),
    "similarity": (
        {"query": "a", "text": "x", "score": 0.73},
        "the grade is a whole number (below 1: not relevant), got",
    ),
    "object without text": ({"query": "a", "positive": [{"id": 1}]}, "an object has title and text, else it is nested"),
    "number": ({"query": "a", "positive": 5}, 'needs "positive" as a text or a list of texts, got 5'),
    "two queries": ({"query": ["a", "b"], "positive": "x"}, '"query" holds 2 texts; a pair has one query'),
    "messages without text": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "positive_messages": [[]]},
        "each message has its text as content",
    ),
}


@pytest.mark.parametrize(("row", "said"), PAIR_FAULTS.values(), ids=PAIR_FAULTS)
def test_a_pair_that_cannot_be_read_is_reported(row, said):
    with pytest.raises(DataError) as caught:
        pairs(row)
    assert caught.value.faults[0].startswith("pairs.jsonl:1: ")
    assert said in caught.value.faults[0]


# What the check says beforehand


def test_html_and_empty_texts_are_counted():
    data = section()
    rows = [
        {"id": "d1", "text": "<p>pods</p> restart"},
        {"id": "d2", "title": "only a title", "text": " "},
        {"id": "d3", "text": "List<String> of a < b and c > d, no <p> more"},
        {"id": "d4", "text": "a&nbsp;b<br/>c"},
    ]
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert note(data, "hold HTML").startswith("2 of 4 documents hold HTML, which models read as text; strip the tags")
    assert "e.g. d1 (corpus.jsonl:1); d4 (corpus.jsonl:4)" in note(data, "hold HTML")
    assert note(data, "no text").startswith(
        "1 of 4 documents have a title and no text; models read the title alone; e.g. d2"
    )


def test_documents_that_can_be_negatives_are_counted():
    assert check_collection(section()).spare == (4, 4)
    assert check_collection(
        section(queries={"d5": "x"} | QUERIES, qrels=QRELS | {"train": [("d5", "d1", 1)]})
    ).spare == (3, 3)
    everything = [("q1", name, 1) for name in DOCUMENTS]
    assert check_collection(
        section(qrels=QRELS | {"train": [*everything, ("q4", "d1", 1)]}, queries=QUERIES | {"q4": "x"})
    ).spare == (0, 4)
    alike = dict.fromkeys(DOCUMENTS, "the same. text") | {"d2": "The same text"}
    assert check_collection(section(alike)).spare == (0, 0)


# Fingerprints


def test_keys_for_the_reading_of_files_are_part_of_the_fingerprint():
    before = fingerprint_data(section())
    for keys in (
        {"relevant_from": 2},
        {"repeated": "sum"},
        {"unknown_ids": "skip"},
        {"self_documents": "keep"},
        {"separator": "\t"},
        {"qrels_grade": ["score", "clicks"]},
    ):
        assert fingerprint_data(section(**keys)) != before, keys


def test_scores_stay_in_order_where_documents_are_left_out():
    from trainer.retriever.candidates import RankedLists

    ranking = RankedLists(
        np.array([[4, 2, 9], [1, 2, NOTHING]], np.int32), np.array([[3, 2, 1], [5, 4, 0]], np.float32)
    )
    left = ranking.without([[2], [1, 2]], 2)
    assert left.documents.tolist() == [[4, 9], [NOTHING, NOTHING]]
    assert left.scores.tolist() == [[3, 1], [0, 0]]
    assert ranking.without([[], []], 2).documents.tolist() == [[4, 2], [1, 2]]
