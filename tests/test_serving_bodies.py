"""Bodies drawn at random: each is answered, or refused with a reason, and none makes the server fail."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response

from trainer.model import Reranker
from trainer.serving.app import create_app
from trainer.serving.bodies import RerankBody, ScoreBody
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None), max_size=5),  # with half surrogate pairs
    st.sampled_from(["disk lock", "", " ", "\x00", "\u202e", "\ud800", "queue " * 100]),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, 2, 10**30]))  # NaN and Infinity too
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
DOCUMENTS = st.lists(st.one_of(TEXTS, st.dictionaries(st.sampled_from(["text", "title"]), ANYTHING)), max_size=6)
SENSIBLE = {
    "query": TEXTS,
    "queries": st.one_of(TEXTS, st.lists(TEXTS, max_size=3)),
    "documents": DOCUMENTS,
    "texts": st.lists(TEXTS, max_size=6),
    "rank_fields": st.lists(st.sampled_from(["text", "title"]), max_size=2),
    "first_stage": st.just("order"),
    "first_stage_scores": st.lists(NUMBERS, max_size=6),
    "truncation_direction": st.just("Right"),
}


def bodies(model: Any, *required: str) -> Any:
    """Bodies with the keys of a model, most of them with values of the right type."""

    def value(name: str) -> Any:
        sensible = SENSIBLE.get(name, st.one_of(st.booleans(), st.integers(0, 5), st.none()))
        return st.one_of(sensible, sensible, sensible, ANYTHING)

    optional = {name: value(name) for name in model.model_fields if name not in required}
    return st.fixed_dictionaries({name: value(name) for name in required}, optional=optional)


@pytest.fixture(scope="module")
def send(tiny) -> Iterator[Callable[[str, bytes], Response]]:
    """`send(path, content)` posts to one server, which runs while the module does."""
    loop = asyncio.new_event_loop()
    app = create_app(Engine(Reranker.load(tiny["reranker"], device="cpu"), "tiny"), Settings())
    client = AsyncClient(transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://test")

    def send(path: str, content: bytes) -> Response:
        return loop.run_until_complete(client.post(path, content=content, headers={"Content-Type": "application/json"}))

    running = app.router.lifespan_context(app)
    loop.run_until_complete(running.__aenter__())
    yield send
    loop.run_until_complete(running.__aexit__(None, None, None))
    loop.run_until_complete(client.aclose())
    loop.close()


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def check(answer: Response, body: Any) -> None:
    """A response is JSON without NaN: finite scores of all documents, or one sentence in the keys of all protocols."""
    found = json.loads(answer.content, parse_constant=no_constant)
    if answer.status_code != 200:
        assert answer.status_code in (400, 422), (answer.status_code, answer.text)
        assert set(found) == {"error", "error_type", "message", "detail"}
        assert found["error"] == found["message"]
        return
    rows = found if isinstance(found, list) else found.get("results", found.get("data"))
    assert rows
    count = len(given) if isinstance(given := body.get("documents") or body.get("texts"), list) else 1
    assert {row["index"] for row in rows} <= set(range(count))
    assert all(isinstance(row.get("score", row.get("relevance_score")), float) for row in rows)


RUN = hypothesis.settings(max_examples=80, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("path", ["/rerank", "/infinity/rerank"])
@RUN
@hypothesis.given(body=bodies(RerankBody, "query"))
def test_no_body_makes_rerank_fail(send, path, body):
    check(send(path, json.dumps(body).encode()), body)


@RUN
@hypothesis.given(body=bodies(ScoreBody, "queries", "documents"))
def test_no_body_makes_score_fail(send, body):
    check(send("/score", json.dumps(body).encode()), body)


@RUN
@hypothesis.given(content=st.one_of(st.binary(max_size=50), ANYTHING.map(lambda value: json.dumps(value).encode())))
def test_no_bytes_make_the_server_fail(send, content):
    for path in ("/rerank", "/score", "/search"):
        assert send(path, content).status_code in (400, 404, 422)
