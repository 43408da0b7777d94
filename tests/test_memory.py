"""A collection from dicts: what is accepted and refused, how a run takes it, and mine and evaluate without a run."""

import gc
import json
import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from trainer import Collection, Recipe, Reranker, evaluate, load_recipe, mine, run
from trainer.data import build_collection
from trainer.errors import DataError, RunError
from trainer.recipe import Data, Retriever
from trainer.runtime import console

TOPICS = {  # in words that the tiny models know
    "probe": "liveness probe restarts the container when its endpoint fails",
    "memory": "kernel kills the process when memory of the node runs out",
    "disk": "inodes run out although the disk shows free space",
    "cert": "certificate expired because renewal ran without reload",
    "queue": "consumer lag grows while one partition holds all messages",
    "lock": "update waits behind another transaction that holds the row",
    "route": "packets are dropped since the path drops large segments",
    "deploy": "rollback keeps the old image because the tag was reused",
}
DETAILS = ["check the log first", "raise the limit slowly"]
DOCUMENTS = {
    f"{name}-{place}": {"title": name, "text": f"{text} {DETAILS[place]}"}
    for name, text in TOPICS.items()
    for place in (0, 1)
}
STARTS = {"train": "why does", "dev": "how do i fix", "test": "at night"}
QUERIES = {f"{split}-{name}": f"{start} {text}" for split, start in STARTS.items() for name, text in TOPICS.items()}
QRELS = {split: {f"{split}-{name}": {f"{name}-0": 2, f"{name}-1": 0} for name in TOPICS} for split in STARTS}


def texts(collection):
    return dict(zip(collection.document_ids, collection.documents["passage"][:], strict=True))


# The collection


def test_dicts_give_the_collection_that_the_same_files_give(beir, tmp_path):
    def rows(name):
        return [json.loads(line) for line in (beir / name).read_text().splitlines()]

    documents = {row["_id"]: {"title": row["title"], "text": row["text"]} for row in rows("corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows("queries.jsonl")}
    qrels: dict = {}
    for split in STARTS:
        for line in (beir / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
            query, document, grade = line.split("\t")
            qrels.setdefault(split, {}).setdefault(query, {})[document] = int(grade)
    ours = Collection.from_memory(documents, queries, qrels)
    theirs = build_collection(Data(path=beir), tmp_path / "data")
    assert texts(ours) == texts(theirs)
    assert ours.query_ids == theirs.query_ids
    assert ours.qrels == theirs.qrels
    assert ours.twins == theirs.twins


def test_without_splits_the_hash_splits_as_it_does_for_files(tmp_path):
    flat = {query: grades for judged in QRELS.values() for query, grades in judged.items()}
    ours = Collection.from_memory(DOCUMENTS, QUERIES, flat, dev_share=0.3, test_share=0.3)
    assert ours.section is not None
    theirs = build_collection(ours.section, tmp_path / "data")
    assert ours.qrels == theirs.qrels
    sizes = {split: len(judged) for split, judged in ours.qrels.items()}
    assert sum(sizes.values()) == len(flat)
    assert min(sizes.values()) > 0


def test_numpy_numbers_and_whole_numbers_as_ids_are_taken():
    documents = {np.int64(1): "disk", 2: "queue"}
    collection = Collection.from_memory(
        documents, {7: "which disk"}, {"test": {np.int64(7): {1: np.int8(2), "2": 0.0}}}
    )
    assert collection.named_qrels("test") == {"7": {"1": 2, "2": 0}}


def test_texts_and_ids_survive_as_they_are():
    odd = {"a b": "  blanks\tand\nlines ", "ü": '\u2028 separator and "quotes"', '"q,1"': {"title": "T ", "text": "x"}}
    queries = {"query one": "why", "'2'": "how", "#3": 'when, or "where"'}
    names = zip(STARTS, queries, odd, strict=True)
    collection = Collection.from_memory(odd, queries, {split: {query: {name: 1}} for split, query, name in names})
    assert collection.section is not None
    again = build_collection(collection.section, collection.section.path.with_name("again"))  # from the files
    assert texts(collection) == {"a b": "blanks\tand\nlines", "ü": 'separator and "quotes"', '"q,1"': "T  x"}
    assert texts(again) == texts(collection)
    assert again.queries["text"][:] == collection.queries["text"][:] == list(queries.values())
    assert again.qrels == collection.qrels


@pytest.mark.parametrize(
    ("documents", "queries", "qrels", "faults"),
    [
        ([("d", "text")], "q", None, ["documents: must be a dict", "queries: must be a dict", "qrels: must be a dict"]),
        (
            {"a": "text", "b": None, "c": ["x"], "d": {"body": "x"}, "e": ""},
            {"q": "why", "r": 3},
            {"q": {"a": 1, "zz": 1}},
            [
                "documents['b']: document 'b' needs \"text\" as a text, got None",
                "documents['c']: document 'c' needs \"text\" as a text, got ['x']",
                "documents['d']: document 'd' needs \"text\" as a text, got None; keys here: body",
                "documents['e']: document 'e' is empty",
                "queries['r']: query 'r' needs \"text\" as a text, got 3",
                "qrels['q']['zz']: document 'zz' is not in documents",
            ],
        ),
        (
            {"a": "text"},
            {"q": "why", "r": "how"},
            {"q": {"a": 1.5}, "r": {"a": "good"}, "s": 1},
            ["qrels['q']['a']: the grade is a whole number", "qrels['r']['a']: the grade", "qrels['s']: must be {doc"],
        ),
        (
            {"a": "text"},
            {"q": "why"},
            {"train": {"q": {"a": 1}}, "validation": {"q": {"a": 1}}, "dev": 5},
            ["qrels['validation']: is not a split", "qrels['dev']: must be {query id"],
        ),
        ({"a": "t"}, {"q": "t"}, {s: {"q": {"a": 1}} for s in ("train", "test")}, ["query 'q' is in two splits"]),
        (
            {"a\tb": "t", 1: "x", "1": "y"},
            {"q\n": "t"},
            {},
            ["documents['a\\tb']: an id", "queries['q\\n']", "'1' is on line"],
        ),
        (
            {"a": "text"},
            {"q": "why"},
            {"test": {"q": {"a": 0}}},
            ["qrels['test']: no judgement above 0, so test"],
        ),
        ({}, {}, {}, ["documents: holds no readable document", "queries: holds no readable query"]),
    ],
)
def test_all_faults_come_at_once_and_say_where(documents, queries, qrels, faults):
    with pytest.raises(DataError) as error:
        Collection.from_memory(documents, queries, qrels)
    for fault in faults:
        assert any(fault in line for line in error.value.faults), (fault, error.value.faults)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dev_shar": 0.2}, "dev_shar: is not a key of the section data; did you mean dev_share"),
        ({"dev_share": 0.9}, "leave nothing to train on"),
        ({"relevant_from": 0}, "relevant_from: "),
        ({"path": "elsewhere"}, "settings: "),
    ],
)
def test_settings_are_keys_of_the_data_section(settings, message):
    with pytest.raises(DataError, match=message):
        Collection.from_memory(DOCUMENTS, QUERIES, QRELS, **settings)


def test_the_temporary_files_end_with_the_last_user():
    collection = Collection.from_memory(DOCUMENTS, QUERIES, QRELS)
    folder = collection.section.path.parent
    recipe = Recipe(name="faq", data=collection)
    del collection
    gc.collect()
    assert (recipe.data.path / "corpus.jsonl").is_file()
    del recipe
    gc.collect()
    assert not folder.exists()


# A run


@pytest.fixture(scope="module")
def faq(tiny, tmp_path_factory):
    """A finished run of a collection from memory: its recipe and result, and the runs folder."""
    runs = tmp_path_factory.mktemp("faq") / "runs"
    recipe = Recipe(
        name="faq",
        data=Collection.from_memory(DOCUMENTS, QUERIES, QRELS),
        retriever={"kind": "bm25", "depth": 6},
        reranker={"model": str(tiny["bert"]), "max_length": 32},
        train={"queries_per_step": 4, "precision": "fp32"},
        export={"formats": []},
    )
    return recipe, run(recipe, runs, force=True), runs


def test_a_run_keeps_the_collection_and_names_it(faq):
    recipe, result, runs = faq
    kept = runs / "faq" / "faq-collection"
    for stage in ("data", "evaluate", "export"):
        written = json.loads((runs / "faq" / stage / "recipe.json").read_text())
        assert written["data"]["path"] == str(kept)
    again = Recipe.model_validate(json.loads((runs / "faq" / "export" / "recipe.json").read_text()))
    assert again.model_copy(update={"data": recipe.data}) == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")).data.path == recipe.data.path
    assert {row["_id"] for row in map(json.loads, (kept / "corpus.jsonl").read_text().splitlines())} == set(DOCUMENTS)
    card = (result.model_folder / "README.md").read_text()
    assert "faq-collection" in card
    assert str(runs) not in card


def test_the_same_dicts_do_no_work_again_and_a_changed_text_does(faq, capsys):
    recipe, result, runs = faq
    same = recipe.model_copy(update={"data": Collection.from_memory(DOCUMENTS, QUERIES, QRELS).section})
    capsys.readouterr()
    again = run(same, runs, force=True)
    assert capsys.readouterr().out.count("(up to date)") == 6
    assert again.table == result.table
    changed = {**DOCUMENTS, "disk-0": "other words"}
    other = recipe.model_copy(update={"data": Collection.from_memory(changed, QUERIES, QRELS).section})
    run(other, runs, until="data")
    assert "(up to date)" not in capsys.readouterr().out
    run(same, runs, force=True)


def test_a_run_of_a_collection_without_train_says_what_is_missing(tiny, tmp_path):
    collection = Collection.from_memory(DOCUMENTS, QUERIES, {"test": QRELS["test"]})
    recipe = Recipe(name="faq", data=collection, retriever={"kind": "bm25"}, reranker={"model": str(tiny["bert"])})
    with pytest.raises(DataError, match=r"qrels/train.tsv: missing"):
        run(recipe, tmp_path)


def test_a_collection_without_files_is_no_data_section(faq):
    _, _, runs = faq
    with pytest.raises(ValidationError, match="names no files"):
        Recipe(name="faq", data=Collection.open(runs / "faq" / "data"))


def test_results_before_the_evaluation_are_an_error_of_the_run(faq, tmp_path):
    recipe, _, runs = faq
    shutil.copytree(runs / "faq" / "data", tmp_path / "faq" / "data")
    result = run(recipe, tmp_path, until="data")
    for ask in ("results", "table", "queries", "verdict", "passed"):
        with pytest.raises(RunError, match="nothing is evaluated yet"):
            getattr(result, ask)
    assert result.model_folder is None


def test_a_quiet_console_changes_only_what_is_printed(recipe_file, tmp_path, capsys):
    recipe = load_recipe(recipe_file)
    run(recipe, tmp_path / "loud", force=True)
    assert capsys.readouterr().out
    console.quiet()
    run(recipe, tmp_path / "quiet", force=True)
    assert capsys.readouterr().out == ""
    loud, quiet = (
        {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "loud", tmp_path / "quiet")
    )
    assert set(loud) == set(quiet)
    same = [name for name in loud if name.endswith((".safetensors", ".npz", ".trec", ".arrow", "groups.json"))]
    same += ["tiny/evaluate/results.json", "tiny/evaluate/queries.jsonl", "tiny/export/model/README.md"]
    assert len(same) > 12
    for name in same:
        assert loud[name].read_bytes() == quiet[name].read_bytes(), name


# mine and evaluate by themselves


@pytest.fixture(scope="module")
def collection():
    return Collection.from_memory(DOCUMENTS, QUERIES, QRELS)


@pytest.fixture(scope="module")
def model(tiny):
    return Reranker.load(tiny["reranker"], device="cpu")


def overlap(split):
    """A first stage of one's own: shared words."""
    return {
        query: {
            name: float(len(set(QUERIES[query].split()) & set(document["text"].split())))
            for name, document in DOCUMENTS.items()
        }
        for query in QRELS[split]
    }


def test_mining_is_the_stages_own(faq):
    """The same negatives as a run draws under the same settings."""
    recipe, _, runs = faq
    from trainer.data.groups import read_groups

    drawn = recipe.model_copy(
        update={"name": "drawn", "mine": type(recipe.mine)(groups="draws", negatives_per_positive=2)}
    )
    run(drawn, runs, until="mine")
    given = Collection.open(runs / "drawn" / "data")
    expected = {
        given.query_ids[group.query]: [given.document_ids[row] for row in group.negatives]
        for group in read_groups(runs / "drawn" / "mine")
    }
    found = mine(given, Retriever(kind="bm25", depth=6), negatives_per_positive=2)
    assert found == expected
    assert len(found) == len(TOPICS)


def test_candidates_of_ones_own_run_are_mined_in_its_order(collection):
    scores = {query: {name: -float(place) for place, name in enumerate(DOCUMENTS)} for query in QRELS["train"]}
    found = mine(collection, scores, negatives_per_positive=2, pick="top", first_rank=1)
    positives = {query: {name for name, grade in grades.items() if grade} for query, grades in QRELS["train"].items()}
    for query, negatives in found.items():
        judged = [name for name, grade in QRELS["train"][query].items() if not grade]  # these always come first
        rest = [name for name in DOCUMENTS if name not in positives[query] and name not in judged]
        assert negatives == (judged + rest)[:2]


def test_a_teacher_keeps_likely_positives_out(collection, model):
    plain = mine(collection, overlap("train"), negatives_per_positive=15)
    checked = mine(collection, overlap("train"), negatives_per_positive=15, teacher=model)
    assert all(set(checked.get(query, ())) <= set(plain[query]) for query in plain)
    assert sum(map(len, checked.values())) < sum(map(len, plain.values()))
    for query, negatives in checked.items():
        unjudged = [name for name in negatives if name not in QRELS["train"][query]]
        positive = next(name for name, grade in QRELS["train"][query].items() if grade)
        passages = [f"{DOCUMENTS[name]['title']} {DOCUMENTS[name]['text']}" for name in [positive, *unjudged]]
        good, *others = model.score([(QUERIES[query], passage) for passage in passages])
        assert all(other <= good + 1e-6 for other in others)


def test_a_dense_first_stage_keeps_its_embeddings(collection, model, tiny, tmp_path):
    first = Retriever(kind="dense", model=str(tiny["bert"]))
    once = evaluate(collection, model, first, runs=tmp_path, metrics=["RR@10"])
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / ".embeddings").rglob("*.npy")}
    assert shards
    again = evaluate(collection, model, first, runs=tmp_path, metrics=["RR@10"])
    assert again == once
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / ".embeddings").rglob("*.npy")} == shards


@pytest.mark.parametrize("split", ["dev", "test"])
def test_evaluation_of_ones_own_run(collection, model, split):
    measured = evaluate(collection, model, overlap(split), split=split, depth=5, metrics=["RR@10", "R@5"])
    assert [row["system"] for row in measured.table] == ["first_stage", "reranked", "ceiling"]
    assert (measured.results.split, measured.results.depth, measured.results.queries) == (split, 5, len(TOPICS))
    for row in measured.table:
        for metric in ("RR@10", "R@5"):
            values = measured.per_query[row["system"]][metric]
            assert set(values) == set(QRELS[split])
            assert row[metric] == pytest.approx(np.mean(list(values.values())))
    assert measured.table[0]["R@5"] == measured.table[1]["R@5"]  # the same five documents in another order
    (compared,) = [row for row in measured.results.comparisons if row["metric"] == "RR@10"]
    assert (compared["system"], compared["against"]) == ("reranked", "first_stage")
    assert compared["difference"] == pytest.approx(measured.table[1]["RR@10"] - measured.table[0]["RR@10"])


def test_an_empty_answer_counts_as_missed(collection, model):
    some = overlap("test")
    query = next(iter(some))
    measured = evaluate(collection, model, {**some, query: {}}, metrics=["RR@10"])
    assert {system: values["RR@10"][query] for system, values in measured.per_query.items()} == {
        "first_stage": 0,
        "reranked": 0,
        "ceiling": 0,
    }
    nothing = evaluate(collection, model, dict.fromkeys(some, {}), metrics=["RR@10"])
    assert {row["RR@10"] for row in nothing.table} == {0.0}


@pytest.mark.parametrize(
    ("first_stage", "faults"),
    [
        ({}, ["run: 8 judged queries are missing, e.g. 'test-probe'; use {} for no results"]),
        (
            {"test-probe": {"nope": 1.0, "disk-0": float("nan"), "disk-1": "high"}, "who": {}, "test-disk": ["disk-0"]},
            [
                "run['test-probe']['nope']: this document is not in the collection",
                "run['test-probe']['disk-0']: the score is a number of at most 1e+30 in size, got nan",
                "run['test-probe']['disk-1']: the score is a number",
                "run['who']: this query is not in the collection",
                "run['test-disk']: must be {document id: score}, got ['disk-0']",
            ],
        ),
    ],
)
def test_a_broken_run_is_refused_with_all_its_faults(collection, model, first_stage, faults):
    with pytest.raises(DataError) as error:
        evaluate(collection, model, first_stage)
    assert len(error.value.faults) == len(faults)
    for fault, line in zip(faults, error.value.faults, strict=True):
        assert line.startswith(fault)


def test_wrong_arguments_are_refused(collection, model, tiny):
    for error, message, call in [
        (TypeError, "reranker must be a Reranker, not str", lambda: evaluate(collection, str(tiny["reranker"]))),
        (TypeError, "first_stage must be a Retriever section or a dict", lambda: evaluate(collection, model, "bm25")),
        (ValueError, "'validation' is not a split", lambda: evaluate(collection, model, {}, split="validation")),
        (ValueError, "depth must be 1 or more", lambda: evaluate(collection, model, {}, depth=0)),
        (ValueError, "nDCG@ten", lambda: evaluate(collection, model, {}, metrics=["nDCG@ten"])),
        (TypeError, r"mine\(\) does not use rounds", lambda: mine(collection, rounds=2)),
        (ValueError, "negative_per_positive", lambda: mine(collection, negative_per_positive=2)),
    ]:
        with pytest.raises(error, match=message):
            call()
    only_test = Collection.from_memory(DOCUMENTS, QUERIES, {"test": QRELS["test"]})
    with pytest.raises(DataError, match="train: no query of this split has a relevant document"):
        mine(only_test, overlap("train"))
    assert evaluate(only_test, model, overlap("test")).results.queries == len(TOPICS)
