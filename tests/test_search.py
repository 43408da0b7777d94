"""Search on a finished run: the candidates of its first stage, in the order of its evaluation."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient
from typer.testing import CliRunner

from trainer.commands.cli import reranker_app
from trainer.errors import RunError
from trainer.model import Reranker
from trainer.pipeline import run
from trainer.recipe import load_recipe
from trainer.retriever import Candidates, Searcher, Tuning
from trainer.runtime import console
from trainer.serving.app import create_app
from trainer.serving.corpus import Corpus
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings


@pytest.fixture(scope="module")
def folder(exported):
    return exported[1] / "exported"


@pytest.fixture(scope="module")
def corpus(folder):
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def reranker(folder):
    return Reranker.load(folder, device="cpu")


def trec(path):
    """{query id: document ids, best first}"""
    ranking = {}
    for line in path.read_text().splitlines():
        query, _, document, *_ = line.split()
        ranking.setdefault(query, []).append(document)
    return ranking


def ask(engine, corpus, *bodies, path="/search", settings=None):
    async def talk():
        app = create_app(engine, settings or Settings(), corpus)
        transport = ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://test") as client:
            info = await client.get("/info")
            return [info, *(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))]

    return asyncio.run(talk())


def queries_of(folder):
    from trainer.data import Collection

    collection = Collection.open(folder / "data")
    return dict(zip(collection.query_ids, collection.queries["text"][:], strict=True))


def test_test_queries_get_the_order_of_the_evaluation_and_of_rank(folder, corpus, reranker):
    texts, fused = queries_of(folder), trec(folder / "evaluate" / "fused.trec")
    first = trec(folder / "evaluate" / "first_stage.trec")
    info, *answers = ask(Engine(reranker, "exported"), corpus, *({"query": texts[query]} for query in fused))
    assert info.json()["search"] == {"documents": corpus.documents, "depth": 6}
    for query, answer in zip(fused, answers, strict=True):
        hits = answer.json()["results"]
        assert [hit["id"] for hit in hits] == fused[query]
        before = sorted(hits, key=lambda hit: hit["first_stage_rank"])
        assert [hit["id"] for hit in before] == first[query]
        ranked = reranker.rank(
            texts[query],
            [hit["text"] for hit in before],
            first_stage_scores=[hit["first_stage_score"] for hit in before],
        )
        assert [hit["first_stage_rank"] - 1 for hit in hits] == [one.index for one in ranked]
        scores = [1 / (1 + np.exp(-one.score)) for one in ranked]
        assert [hit["relevance_score"] for hit in hits] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_new_queries_are_searched_as_the_run_searched(kind, recipe_file, tmp_path, tiny):
    overrides = [f"retriever.kind={kind}", f"retriever.model={tiny['bert']}", "retriever.tune=on"]
    recipe = load_recipe(recipe_file, overrides)
    run(recipe, tmp_path / "runs", until="retrieve")
    folder = tmp_path / "runs" / "tiny"
    from trainer.data import Collection

    collection, settings = Collection.open(folder / "data"), Tuning.load(folder / "retrieve").settings
    cache = tmp_path / "runs" / ".embeddings"
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    searcher = Searcher.open(recipe.retriever, collection, settings, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == written
    dev = Candidates.load(folder / "retrieve" / "dev.npz")
    for index, text in enumerate(collection.query_texts(dev.queries.tolist())):
        rows, scores = searcher.search(text)
        assert scores.tolist() == pytest.approx(dev.scores[index].tolist(), abs=1e-3)
        same = dict(zip(dev.documents[index].tolist(), dev.scores[index].tolist(), strict=True))
        assert [same[row] for row in rows.tolist()] == pytest.approx(dev.scores[index].tolist(), abs=1e-3)
    shutil.rmtree(cache)
    again = Searcher.open(recipe.retriever, collection, settings, cache)
    assert again.search(text)[0].tolist() == rows.tolist()


def test_a_query_without_a_known_word_finds_nothing(corpus, reranker, folder):
    _, answer = ask(Engine(reranker, "exported"), corpus, {"query": "zzz"})
    assert answer.json()["results"] == []
    result = CliRunner().invoke(reranker_app, ["search", str(folder), "zzz"])
    assert "shares a word with the query" in result.output


def test_the_server_refuses_what_it_cannot_search(corpus, reranker):
    engine = Engine(reranker, "exported")
    info, missing = ask(engine, None, {"query": "disk"})
    assert info.json()["search"] is None
    assert missing.status_code == 404
    assert "start it with the folder of a run (reranker serve runs/NAME)" in missing.json()["message"]
    _, empty, wrong, one, raw = ask(
        engine,
        corpus,
        {"query": " "},
        {"query": 3},
        {"query": "disk", "top_k": 1},
        {"query": "disk", "top_k": 1, "raw_scores": True},
    )
    assert (empty.status_code, wrong.status_code) == (400, 422)
    (hit,), (same,) = one.json()["results"], raw.json()["results"]
    assert hit["relevance_score"] == pytest.approx(1 / (1 + np.exp(-same["relevance_score"])))
    assert one.json()["fused"]
    assert [answer.status_code for answer in ask(engine, corpus, {"query": "disk"}, settings=Settings(key="k"))] == [
        401,
        401,
    ]


def test_waiting_searches_are_limited(corpus, reranker, monkeypatch):
    monkeypatch.setattr("trainer.serving.search.MOST", 2)
    _, *answers = ask(Engine(reranker, "exported"), corpus, *[{"query": "disk"}] * 5)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    assert {answer.headers.get("retry-after") for answer in answers} == {None, "1"}


def test_the_command_prints_json_lines_or_two_columns(folder, corpus, reranker, monkeypatch):
    text = next(iter(queries_of(folder).values()))
    (_, answer) = ask(Engine(reranker, "exported"), corpus, {"query": text, "top_k": 3})
    result = CliRunner().invoke(reranker_app, ["search", str(folder), text, "--json", "--top-k", "3"])
    printed, served = json.loads(result.output), answer.json()
    assert printed.keys() == served.keys()
    assert [hit["id"] for hit in printed["results"]] == [hit["id"] for hit in served["results"]]
    plain = CliRunner().invoke(reranker_app, ["search", str(folder), text, "--top-k", "2"])
    lines = [line.split("\t") for line in plain.output.splitlines() if "\t" in line]
    assert [line[3] for line in lines] == [hit["id"] for hit in served["results"][:2]]
    monkeypatch.setattr(console.console, "_force_terminal", True)
    shown = CliRunner().invoke(reranker_app, ["search", str(folder), text]).output
    assert "before" in shown
    assert "moved" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["{run}", " "], "the query is empty"),
        (["{run}/no", "disk"], "no such folder"),
        (["{root}", "disk"], "is not the folder of a run"),
    ],
)
def test_the_command_says_what_is_wrong(folder, line, message):
    given = [word.format(run=folder, root=folder.parent) for word in line]
    result = CliRunner().invoke(reranker_app, ["search", *given])
    assert message in str(result.exception)


def test_a_first_stage_of_another_recipe_is_refused(folder, tmp_path):
    copy = tmp_path / "exported"
    shutil.copytree(folder, copy)
    done = json.loads((copy / "retrieve" / "done.json").read_text())
    (copy / "retrieve" / "done.json").write_text(json.dumps(done | {"content": "other"}))
    with pytest.raises(RunError, match="is of another recipe than its exported model"):
        Corpus.open(copy)
    shutil.rmtree(copy / "data")
    with pytest.raises(RunError, match="has no finished stage data; finish the run"):
        Corpus.open(copy)


def test_the_users_own_engine_cannot_be_asked(folder, tmp_path):
    (tmp_path / "my.trec").touch()
    section = load_recipe(folder / "retrieve" / "recipe.json").retriever.model_copy(
        update={"kind": "run", "run": tmp_path / "my.trec"}
    )
    with pytest.raises(RunError, match="TREC run of your own engine, which has no results for new queries"):
        Searcher.open(section, None, Tuning.load(folder / "retrieve").settings, tmp_path)
