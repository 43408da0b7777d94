"""Requests of real clients, recorded by scripts/check_clients.py, are answered in the form that each client reads."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import ASGITransport, AsyncClient, Response

from trainer.model import Reranker
from trainer.serving.app import create_app
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

ROOT = Path(__file__).parents[1]
REQUESTS = json.loads(Path(__file__).with_name("clients.json").read_text(encoding="utf-8"))
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """The tiny model of check_clients.py, whose vocabulary has the words of the requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        from gpu_models import save_classifier
    folder = tmp_path_factory.mktemp("clients") / "model"
    save_classifier("minilm", True, "cpu", folder)
    return Reranker.load(folder, head="classifier", device="cpu")


@pytest.fixture(scope="module")
def answers(reranker) -> list[Response]:
    """Return the responses to all requests."""
    app = create_app(Engine(reranker, "tiny"), Settings())

    async def ask() -> list[Response]:
        transport = ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.post(one["path"], content=one["body"].encode(), headers=one["headers"]) for one in REQUESTS
            ]

    return asyncio.run(ask())


def texts(body: dict[str, Any]) -> list[str]:
    documents = body.get("texts") or body.get("documents") or body["text_2"]
    return [document["text"] if isinstance(document, dict) else document for document in documents]


def of_results(answer: Any) -> list[tuple[int, float]]:
    return [(row["index"], row["relevance_score"]) for row in answer["results"]]


def of_tei(answer: Any) -> list[tuple[int, float]]:
    return [(row["index"], row["score"]) for row in answer]


def of_voyage(answer: Any) -> list[tuple[int, float]]:
    assert answer["usage"]["total_tokens"] > 0
    return [(row["index"], row["relevance_score"]) for row in answer["data"]]


def of_scores(answer: Any) -> list[tuple[int, float]]:
    return sorted(((row["index"], row["score"]) for row in answer["data"]), key=lambda row: -row[1])


READERS: dict[str, Callable[[Any], list[tuple[int, float]]]] = {"voyage": of_voyage, "TEI": of_tei, "score": of_scores}
READERS |= {"huggingface": of_tei, "Elasticsearch": of_tei}


@pytest.mark.parametrize("number", range(len(REQUESTS)), ids=[one["client"] for one in REQUESTS])
def test_every_client_reads_the_order_of_the_reranker(reranker, answers, number):
    request, answer = REQUESTS[number], answers[number]
    assert answer.status_code == 200, answer.text
    body = json.loads(request["body"])
    read = next((reader for name, reader in READERS.items() if name in request["client"]), of_results)
    rows = read(answer.json())
    ranked = reranker.rank(body.get("query") or body["text_1"], texts(body), top_k=len(rows))
    assert [index for index, _ in rows] == [row.index for row in ranked]
    logits = np.array([row.score for row in ranked])
    assert [score for _, score in rows] == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-7)
    assert len(rows) == (body.get("top_n") or body.get("top_k") or len(texts(body)))


@pytest.mark.parametrize("number", range(len(REQUESTS)), ids=[one["client"] for one in REQUESTS])
def test_documents_come_back_in_the_shape_of_the_client(answers, number):
    request, answer = REQUESTS[number], answers[number].json()
    body = json.loads(request["body"])
    rows = answer if isinstance(answer, list) else answer.get("results", answer.get("data", []))
    wanted = body.get("return_documents") or body.get("return_text")
    given = [row.get("document", row.get("text")) for row in rows]
    shape = str if isinstance(answer, list) or request["path"].startswith("/infinity") else dict
    assert {type(document) for document in given} == ({shape} if wanted else {type(None)})


def test_the_documentation_names_every_client_and_the_version_that_was_checked():
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in DOCS.splitlines()}
    for one in REQUESTS:
        assert not one["version"] or (one["client"], one["version"], f"`{one['path']}`") in rows
