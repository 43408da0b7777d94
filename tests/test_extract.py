"""Queries without a language model: parts of documents, cut out of these, from extraction to a measured reranker."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import vocabulary

from trainer.commands.generate import open_data
from trainer.data import Collection
from trainer.data.extracts import extracts, without
from trainer.data.generated import MadeQuery, with_made_queries, write_queries
from trainer.errors import RecipeError
from trainer.generation import extraction, filters
from trainer.generation.making import Draft
from trainer.generation.sources import Source
from trainer.model import Reranker, TokenizedCollection
from trainer.pipeline import open_run, run
from trainer.recipe import Retriever, load_recipe
from trainer.retriever import Embeddings, retrieve_unjudged
from trainer.retriever.embeddings import Replaced

# The parts of a document.

PYTHON = '''def total(x):
    """Return the sum of all squares. It is fast.

    x: the numbers
    """
    # this comment looks like a sentence
    return sum(y * y for y in x)
'''


@pytest.mark.parametrize(
    ("title", "text", "found"),
    [
        ("Restarting pods", "", [("title", "Restarting pods")]),
        ("A", "", []),
        (
            "Probes",
            "## First  steps\nDo this and that with care. How do I restart it now?\nSecond part\n-----\nno end",
            [
                ("title", "Probes"),
                ("heading", "First steps"),
                ("sentence", "Do this and that with care"),
                ("question", "How do I restart it now?"),
                ("heading", "Second part"),
            ],
        ),
        ("", "Q: What makes a probe fail?\nToo little memory does.", "question: What makes a probe fail?"),
        ("", "<h2>Lost volumes</h2>", [("heading", "Lost volumes")]),
        ("", PYTHON, [("docstring", "Return the sum of all squares")]),
        (
            "",
            "/**\n * Returns the sum of x.\n * @param x\n */\nfunction a() {}",
            [("docstring", "Returns the sum of x")],
        ),
        ("", "x = 1; y = 2; z = {}; print(x, y, z)", []),
        (
            "",
            "容器的存活探针失败三次以后，节点代理会重新启动容器。没有了",
            "sentence: 容器的存活探针失败三次以后，节点代理会重新启动容器",
        ),
    ],
)
def test_a_document_has_parts_that_can_be_queries(title, text, found):
    passage = f"{title} {text}".strip()
    parts = extracts(title, passage)
    if isinstance(found, str):
        assert found in [f"{part.kind}: {part.text}" for part in parts]
    else:
        assert [(part.kind, part.text) for part in parts] == found
    for part in parts:
        assert re.sub(r"\W", "", part.text) in re.sub(r"\W", "", passage[part.start : part.end])
        left = without(passage, [part])
        assert part.text not in left
        assert len(left.split()) >= len(passage.split()) - len(passage[part.start : part.end].split()) - 1


def test_all_parts_can_be_cut_out_together():
    passage = "Probes One sentence of words. Another sentence of words! rest"
    parts = extracts("Probes", passage)
    assert [part.kind for part in parts] == ["title", "sentence", "sentence"]
    assert without(passage, parts) == "rest"
    assert without(passage, []) == passage


# The queries of a collection.

WORDS = vocabulary()  # known to the tokenizers of the tiny models


def documents(count: int) -> dict[str, dict[str, str]]:
    """Documents with a title and three sentences, each with a word that no other document has."""
    rng = np.random.default_rng(3)
    found = {}
    for number in range(count):
        own = rng.permutation(WORDS)[:14].tolist()
        texts = [" ".join([f"word{number}", *rng.permutation(own)[:7].tolist()]) for _ in range(4)]
        found[f"d{number}"] = {"title": texts[0], "text": ". ".join(texts[1:]) + "."}
    return found


def collection_of(texts: dict[str, Any]) -> Collection:
    judged = {"train": {"q": {next(iter(texts)): 1}}}
    return Collection.from_memory(texts, {"q": "a real query"}, judged, dev_share=0, test_share=0)


def everything(collection: Collection) -> list[Source]:
    return [Source(row, "train") for row in range(len(collection.documents))]


def test_a_document_gives_as_many_queries_as_are_wanted_of_different_kinds():
    collection = collection_of(documents(40))
    queries = extraction.extract(collection, everything(collection), 2)
    assert len(queries) == 80
    assert all(len({one.kind for one in queries if one.document == row}) == 2 for row in range(40))
    again = extraction.extract(collection_of(dict(list(documents(40).items())[20:])), [Source(0, "train")], 2)
    assert [one.text for one in again] == [one.text for one in queries if one.document == 20]


def test_a_query_is_cut_out_of_its_document_and_of_no_other():
    collection = collection_of(documents(20))
    queries = extraction.extract(collection, everything(collection)[:10], 2)
    left = extraction.cut(collection, queries)
    assert set(left) == set(range(10))
    for query in queries:
        assert query.text in " ".join(collection.passages([query.document])[0].split())
        assert not filters.is_copied(query.text, left[query.document])


def test_a_document_of_which_nothing_would_be_left_gives_no_query():
    texts = {"d0": "One sentence that has quite a few words in it.", "d1": {"title": "Only a title", "text": ""}}
    collection = collection_of(texts | {"d2": "word " * 11 + ". This sentence could be taken away. x"})
    (query,) = extraction.extract(collection, everything(collection), 3)
    assert query.document == 2


def test_what_is_copied_or_real_or_stands_elsewhere_is_dropped():
    texts = documents(20)
    texts["d3"]["text"] += f" {texts['d3']['title']}, repeated in its text."
    sentence = texts["d4"]["text"].split(".")[0]
    for number in (5, 6):
        texts[f"d{number}"]["text"] += f" {sentence}."
    texts["d4"]["text"] += " " + " ".join(f"({number})=[{number}];" for number in range(20))  # so that all can be taken
    judged = {"train": {"q": {"d7": 1}}}
    collection = Collection.from_memory(texts, {"q": texts["d7"]["title"]}, judged, dev_share=0, test_share=0)
    draft = Draft.taken(collection, everything(collection), 3)
    assert {one.document for one in draft.dropped[filters.COPIED]} == {3}
    assert [one.text for one in draft.dropped[filters.REAL]] == [texts["d7"]["title"]]
    draft = Draft.taken(collection, everything(collection), 4)
    found = [[one.document, 4, 5, 6] for one in draft.kept]
    before = len(draft.kept)
    left = draft.filter_repeated(collection, found)
    assert {one.text for one in draft.dropped[filters.ELSEWHERE]} == {sentence}
    assert len(left) == len(draft.kept) < before


# What models and the first stage read with these queries.


@pytest.fixture
def cut_collection(tmp_path) -> Collection:
    collection = collection_of(documents(12))
    queries = extraction.extract(collection, everything(collection)[:6], 1)
    write_queries(queries, collection, tmp_path, extraction.cut(collection, queries))
    return with_made_queries(collection, tmp_path)


def test_only_made_queries_read_the_cut_texts(cut_collection, tiny):
    collection = cut_collection
    assert set(collection.cut) == set(range(6))
    pairs = Reranker.load(tiny["bert"], max_length=64).pairs
    tokenized = TokenizedCollection(collection, pairs)
    real, made = 0, sorted(collection.made)
    whole = collection.documents["passage"][:]
    for query in (real, *made):
        for document in range(12):
            text = whole[document] if query == real else collection.cut.get(document, whole[document])
            ((_, tokens),) = tokenized.pairs([(query, document)])
            assert tokens.tolist() == pairs.tokenize([text])[0].tolist()
    assert [tokens.tolist() for tokens in tokenized.documents(99)] == [one.tolist() for one in pairs.tokenize(whole)]
    searched = collection.as_made_queries_find_it()
    assert searched.documents["passage"][:] == [collection.cut.get(row, text) for row, text in enumerate(whole)]
    assert searched.document_ids == collection.document_ids
    assert collection.passages([0]) == whole[:1]


def test_the_first_stage_finds_the_cut_texts(cut_collection):
    made = sorted(cut_collection.made)
    section = Retriever(kind="bm25", language="none", depth=12)
    whole, cut = (
        retrieve_unjudged(section, one, made, None)
        for one in (cut_collection, cut_collection.as_made_queries_find_it())
    )
    for index, query in enumerate(made):
        (own,) = cut_collection.positives("train", query)
        scores = [dict(zip(one.found(index), one.scores[index].tolist(), strict=False)) for one in (whole, cut)]
        assert scores[1].get(own, 0) < scores[0][own]


def test_replaced_vectors_are_those_of_the_cut_texts(tmp_path):
    rng = np.random.default_rng(1)
    whole, others = (rng.normal(size=(count, 4)).astype(np.float16) for count in (9, 2))
    for name, vectors in (("whole", whole), ("others", others)):
        np.save(tmp_path / f"{name}.npy", vectors)
    replaced = Replaced(Embeddings([tmp_path / "whole.npy"]), [7, 2], Embeddings([tmp_path / "others.npy"]))
    expected = whole.astype(np.float32)
    expected[[7, 2]] = others
    assert len(replaced) == 9
    assert np.array_equal(replaced.rows(np.array([7, 0, 2, 2])), expected[[7, 0, 2, 2]])
    assert np.array_equal(np.concatenate([block for _, block in replaced.blocks(4)]), expected)


# The stage, and a whole run of a corpus alone without a model.


@pytest.fixture
def extract_recipe(recipe_file: Path, beir: Path) -> Path:
    rows = [{"_id": identity, **texts} for identity, texts in documents(60).items()]
    (beir / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = recipe_file.read_text().replace(
        f"data:\n  path: {beir}\n",
        f"data:\n  corpus: {beir / 'corpus.jsonl'}\n  dev_share: 0.2\n  test_share: 0.25\n"
        "generate:\n  model: extract\n",
    )
    recipe_file.write_text(text)
    return recipe_file


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_corpus_alone_and_no_endpoint_become_a_measured_reranker(extract_recipe, tmp_path, command):
    ended = command(extract_recipe, "--runs", tmp_path / "runs", "--force")
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "runs" / "tiny"
    made = lines_of(folder / "generate" / "queries.jsonl")
    assert {line["split"] for line in made} == {"train", "dev", "test"}
    assert {line["kind"] for line in made} == {"title", "sentence"}
    opened = open_run(load_recipe(extract_recipe), tmp_path / "runs")
    collection = opened.collection
    assert {collection.document_ids[row] for row in collection.cut} == {line["document_id"] for line in made}
    for split in ("train", "dev", "test"):
        candidates = opened.candidates(split)
        assert candidates.queries.tolist() == collection.answerable(split)
        searched = collection.as_made_queries_find_it()
        expected = retrieve_unjudged(opened.recipe.retriever, searched, candidates.queries.tolist(), None)
        assert np.array_equal(candidates.documents, expected.top(candidates.documents.shape[1]).documents)
    assert "the dev and test queries are made from documents, not asked by people" in ended.stdout
    assert "first stage not tuned: 0 train queries and 0 dev queries that are not made from documents" in ended.stdout
    assert "scores are not calibrated: the dev queries are made" in ended.stdout
    for name in ("report.md", "report.html"):
        assert re.search(r"parts of \d+ of 60 documents", (folder / name).read_text()), name
    assert '"model": "extract"' in (folder / "export" / "model" / "README.md").read_text()
    assert not list((tmp_path / "runs").rglob("chat.jsonl"))


def test_extracted_queries_never_tune_and_real_ones_find_whole_documents(extract_recipe, beir, tmp_path):
    ids = list(documents(60))
    queries = {f"r{number}": f"where is {WORDS[number % 24]} and word{number}" for number in range(60)}
    (beir / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in queries.items())
    )
    for split, part in (("train", range(52)), ("dev", range(52, 56)), ("test", range(56, 60))):
        rows = [f"r{number}\t{ids[number]}\t1" for number in part]
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    keys = [f"data.queries={beir / 'queries.jsonl'}", "data.dev_share=0.1", f"data.qrels={beir / 'qrels/train.tsv'}"]
    keys += [f"data.{split}={beir / 'qrels' / split}.tsv" for split in ("dev", "test")]
    run(load_recipe(extract_recipe, keys), tmp_path / "runs", until="mine")
    opened = open_run(load_recipe(extract_recipe, keys), tmp_path / "runs")
    collection = opened.collection
    assert not {collection.document_ids[row] for row in collection.cut} & set(ids[52:])
    tuning = json.loads((tmp_path / "runs" / "tiny" / "retrieve" / "tuning.json").read_text())
    assert tuning["queries"] == 52
    train = opened.candidates("train").queries.tolist()
    assert train[:52] == list(range(52))
    assert len(train) == 52 + len(collection.made)
    assert set(train[52:]) == collection.made


def test_retrieval_of_made_queries_has_the_vectors_of_cut_texts(extract_recipe, tmp_path, tiny):
    recipe = load_recipe(extract_recipe, ["retriever.kind=hybrid", f"retriever.model={tiny['bert']}"])
    run(recipe, tmp_path / "runs", until="retrieve")
    opened = open_run(recipe, tmp_path / "runs")
    train = opened.candidates("train")
    assert np.isfinite(train.positive_similarity).all()
    assert np.isfinite(train.similarities[train.documents >= 0]).all()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["generate.temperature=0.5"], "generate.temperature: has no effect with model: extract"),
        (["generate.kinds=[question]"], "generate.kinds: has no effect with model: extract"),
        (["generate.model=extracts"], "generate.model: is extract, or an endpoint, chat:MODEL@URL"),
    ],
)
def test_keys_of_a_model_contradict_extraction(extract_recipe, keys, told):
    with pytest.raises(RecipeError, match=told):
        load_recipe(extract_recipe, keys)


def test_a_recipe_that_was_written_by_a_run_can_be_read_again(extract_recipe, tmp_path):
    recipe = load_recipe(extract_recipe)
    assert type(recipe).model_validate(recipe.model_dump(mode="json")).generate == recipe.generate


def test_a_made_query_of_a_model_cuts_nothing(tmp_path):
    collection = collection_of(documents(3))
    write_queries([MadeQuery("how is it", "question", 1, "train")], collection, tmp_path)
    assert not with_made_queries(collection, tmp_path).cut


def test_extraction_has_no_requests_to_estimate(extract_recipe, tmp_path):
    with pytest.raises(RecipeError, match="extract sends no requests"):
        open_data(load_recipe(extract_recipe), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
