"""Bodies drawn at random: each is answered, or refused with a reason, and none makes the server fail."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient, Response

from trainer.model import Calibration, Fusion, Reranker
from trainer.model.calibration import Platt
from trainer.serving.app import create_app
from trainer.serving.bodies import RerankBody, ScoreBody
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

QUERIES = st.one_of(st.text(min_size=1, max_size=20), st.sampled_from(["disk lock", "\x00", "\u202e", "queue " * 100]))
TEXTS = st.one_of(QUERIES, st.sampled_from(["", " ", "\ud800"]), st.text(st.characters(codec=None), max_size=5))
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([float("nan"), float("inf"), 10**30]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries({"text": QUERIES, "more": st.one_of(NUMBERS, ANYTHING)}, optional={"title": QUERIES})
SWITCHES = st.sampled_from([None, False, True])
COUNTS = st.one_of(st.none(), st.integers(0, 5), st.just(10**30))
SENSIBLE = {
    "queries": QUERIES,
    "rank_fields": st.lists(st.sampled_from(["text", "title"]), max_size=2),
    "first_stage": st.just("order"),
    "truncation_direction": st.just("Right"),
    "top_n": COUNTS,
    "top_k": COUNTS,
    "max_tokens_per_doc": st.integers(1, 10**30),
    "model": TEXTS,
}
LISTS = st.one_of(
    st.fixed_dictionaries({"documents": st.lists(st.one_of(QUERIES, OBJECTS), min_size=1, max_size=5)}),
    st.fixed_dictionaries({"texts": st.lists(QUERIES, min_size=1, max_size=5)}),
)


def damaged(bodies: Any, names: list[str]) -> Any:
    """Draw a body, every other time with anything at all as the value of one key."""
    damage = st.dictionaries(st.sampled_from(names), ANYTHING, max_size=1)
    return st.tuples(bodies, damage).map(lambda drawn: drawn[0] | drawn[1])


def options(model: Any, *others: str) -> Any:
    """Draw some of a model's optional keys, with values of the right type."""
    names = [name for name in model.model_fields if name not in others]
    return st.fixed_dictionaries({}, optional={name: SENSIBLE.get(name, SWITCHES) for name in names})


RERANK_BODIES = damaged(
    st.tuples(QUERIES, LISTS, options(RerankBody, "query", "documents", "texts", "first_stage_scores")).map(
        lambda drawn: {"query": drawn[0], "return_documents": True} | drawn[1] | drawn[2]
    ),
    [*RerankBody.model_fields],
)
PAIRS = st.lists(st.tuples(QUERIES, TEXTS), min_size=1, max_size=4)
SCORE_BODIES = damaged(
    st.tuples(PAIRS, options(ScoreBody, "queries", "documents")).map(
        lambda drawn: (
            {"queries": [query for query, _ in drawn[0]], "documents": [text for _, text in drawn[0]]} | drawn[1]
        )
    ),
    [*ScoreBody.model_fields],
)


@pytest.fixture(scope="module")
def send(tiny) -> Iterator[Callable[[str, bytes], Response]]:
    """`send(path, content)` posts to one server, which runs while the module does."""
    loop = asyncio.new_event_loop()
    reranker = Reranker.load(tiny["reranker"], device="cpu")
    reranker.fusion = Fusion(scores=0.8, order=0.4)
    reranker.calibration = Calibration({1: Platt(3.0, -2.0), 2: Platt(2.0, -4.0)})
    app = create_app(Engine(reranker, "tiny"), Settings())
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


RUN = hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("path", ["/rerank", "/infinity/rerank"])
@RUN
@hypothesis.given(body=RERANK_BODIES)
def test_no_body_makes_rerank_fail(send, path, body):
    check(send(path, json.dumps(body).encode()), body)


@RUN
@hypothesis.given(body=SCORE_BODIES)
def test_no_body_makes_score_fail(send, body):
    check(send("/score", json.dumps(body).encode()), body)


@RUN
@hypothesis.given(content=st.one_of(st.binary(max_size=50), ANYTHING.map(lambda value: json.dumps(value).encode())))
def test_no_bytes_make_the_server_fail(send, content):
    for path in ("/rerank", "/score", "/search"):
        assert send(path, content).status_code in (400, 404, 422)
