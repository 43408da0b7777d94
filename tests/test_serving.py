"""The server: protocols, limits, batches across requests, fairness, and its end."""

import asyncio
import gzip
import json
import logging
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
import yaml
from httpx import ASGITransport, AsyncClient, Response
from prometheus_client.parser import text_string_to_metric_families

from trainer.commands.cli import reranker_app
from trainer.errors import ModelError, ServeError
from trainer.model import Calibration, Fusion, Reranker
from trainer.model.calibration import Platt
from trainer.recipe import Passages
from trainer.serving.app import create_app
from trainer.serving.batching import FairClock, slices
from trainer.serving.bodies import RerankBody, ScoreBody
from trainer.serving.engine import Engine
from trainer.serving.scoring import REASONS
from trainer.serving.server import GRACE, KEY, api_key, listen_at, model_folder, require_packages
from trainer.serving.settings import Settings

QUERY = "kernel kills the process"
DOCUMENTS = ["disk shows free space", "memory of the node runs out", "certificate expired", "", "a b c d e f g h"]


@pytest.fixture(scope="module")
def reranker(tiny) -> Reranker:
    return Reranker.load(tiny["reranker"], device="cpu")


@pytest.fixture(scope="module")
def engine(reranker) -> Engine:
    return Engine(reranker, "tiny")


@pytest.fixture
def calibrated(tiny) -> Reranker:
    model = Reranker.load(tiny["reranker"], device="cpu")
    model.calibration = Calibration({1: Platt(3.0, -2.0), 2: Platt(2.0, -4.0)})
    return model


def talk(engine: Engine, scenario: Callable[[AsyncClient], Awaitable[Any]], **settings: Any) -> Any:
    """Run a scenario against a server in this process."""

    async def run() -> Any:
        app = create_app(engine, Settings(**settings))
        transport = ASGITransport(app)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://test") as client:
            client.batcher = app.state.batcher
            return await asyncio.wait_for(scenario(client), 60)

    return asyncio.run(run())


@pytest.fixture
def ask(engine) -> Callable[..., Response]:
    """`ask(path, body)` posts JSON, `ask(path, content=...)` anything, `ask(path, method="GET")` nothing."""

    def ask(path: str, body: Any = None, method: str = "POST", settings: dict | None = None, **rest: Any) -> Response:
        if body is not None:
            rest["json"] = body
        return talk(engine, lambda client: client.request(method, path, **rest), **settings or {})

    return ask


def rows(response: Response, name: str = "results") -> list[tuple[int, float]]:
    assert response.status_code == 200, response.text
    return [(row["index"], row["relevance_score"]) for row in response.json()[name]]


def expected(reranker: Reranker, documents: list[str] = DOCUMENTS, query: str = QUERY) -> list[tuple[int, float]]:
    return [(row.index, 1 / (1 + np.exp(-row.score))) for row in reranker.rank(query, documents)]


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    """The same documents in the same order; what rounding cannot tell apart may change places."""
    scores = dict(found)
    assert scores == pytest.approx(dict(wanted), abs=1e-7)
    assert [scores[index] for index, _ in wanted] == pytest.approx([score for _, score in found], abs=1e-7)


class Slow(Engine):
    """Computes nothing before `gate` is set, and notes what was computed together."""

    def __init__(self, reranker: Reranker, seconds: float = 0.0) -> None:
        super().__init__(reranker, "slow")
        self.seconds = seconds
        self.batches: list[int] = []
        self.fails_on: int | None = None  # a pair with so many tokens

    def score(self, pairs):
        time.sleep(self.seconds)
        self.batches.append(len(pairs))
        if self.fails_on in [self.length(pair) for pair in pairs]:
            raise RuntimeError("device lost")
        return super().score(pairs)


class TestProtocols:
    @pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank", "/invocations", "/"])
    def test_every_route_orders_as_the_reranker_does(self, ask, reranker, path):
        same(rows(ask(path, {"query": QUERY, "documents": DOCUMENTS})), expected(reranker))

    def test_cohere(self, ask):
        body = {"model": "m", "query": QUERY, "documents": DOCUMENTS * 30, "top_n": 2, "max_tokens_per_doc": None}
        answer = ask("/v2/rerank", body | {"priority": 1, "relevant_spans": {"mode": "enabled"}}).json()
        assert set(answer) == {"id", "object", "model", "results", "meta", "usage"}
        assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 2}}
        assert [set(row) for row in answer["results"]] == [{"index", "relevance_score"}] * 2
        assert ask("/v1/rerank", body).json()["meta"]["api_version"]["version"] == "1"

    def test_documents_are_returned_as_objects_on_request(self, ask):
        body = {"query": QUERY, "documents": ["disk", {"text": "lock", "id": 7}], "return_documents": True}
        found = {row["index"]: row["document"] for row in ask("/v1/rerank", body).json()["results"]}
        assert found == {0: {"text": "disk"}, 1: {"text": "lock", "id": 7}}

    def test_infinity_gives_documents_as_strings(self, ask):
        body = {"query": QUERY, "documents": ["disk", "lock"], "return_documents": True, "raw_scores": False}
        answer = ask("/infinity/rerank", body).json()
        assert answer["object"] == "rerank"
        assert {row["document"] for row in answer["results"]} == {"disk", "lock"}

    @pytest.mark.parametrize(
        "first", [{"first_stage_scores": [3.5, -1.0, 12.0, 0.0, 2.5]}, {"first_stage": "order"}, {}]
    )
    def test_first_stage_scores_are_fused_as_the_reranker_fuses_them(self, tiny, first):
        fusing = Reranker.load(tiny["reranker"], device="cpu")
        fusing.fusion = Fusion(scores=0.8, order=0.4)
        body = {"query": QUERY, "documents": DOCUMENTS} | first
        answer = talk(Engine(fusing, "tiny"), lambda client: client.post("/rerank", json=body))
        ranked = fusing.rank(QUERY, DOCUMENTS, **first)
        same(rows(answer), [(row.index, 1 / (1 + np.exp(-row.score))) for row in ranked])

    def test_probabilities_are_the_rerankers_and_keep_the_order(self, calibrated):
        documents = [*DOCUMENTS, DOCUMENTS[0]]
        expected = calibrated.probability([(QUERY, document) for document in documents])
        order = [row.index for row in calibrated.rank(QUERY, documents)]

        async def scenario(client):
            asked = {"query": QUERY, "probabilities": True}
            pairs = {"queries": QUERY, "documents": documents, "probabilities": True}
            return [
                await client.post("/rerank", json=asked | {"documents": documents}),
                await client.post("/rerank", json=asked | {"texts": documents}),
                await client.post("/score", json=pairs),
                await client.get("/info"),
            ]

        ranked, texts, scored, info = talk(Engine(calibrated, "tiny"), scenario)
        assert [index for index, _ in rows(ranked)] == order
        same(rows(ranked), [(index, expected[index]) for index in order])
        assert [row["score"] for row in texts.json()] == pytest.approx(expected[order], abs=1e-7)
        assert [row["score"] for row in scored.json()["data"]] == pytest.approx(expected, abs=1e-7)
        assert info.json()["probabilities"] is True

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [
            ({"first_stage_scores": [1.0, 2.0]}, "fused scores depend on the other documents of a request"),
            ({"first_stage": "order"}, "fused scores depend on the other documents of a request"),
            ({"raw_scores": True}, "give either `probabilities` or one of"),
            ({"use_activation": False}, "give either `probabilities` or one of"),
        ],
    )
    def test_impossible_probabilities_are_refused_before_anything_is_computed(self, calibrated, keys, reason):
        calibrated.fusion = Fusion(scores=0.8, order=0.4)
        slow = Slow(calibrated)
        body = {"query": QUERY, "documents": ["a", "b"], "probabilities": True} | keys
        refused = talk(slow, lambda client: client.post("/rerank", json=body))
        assert refused.status_code == 422
        assert reason in refused.json()["message"]
        assert slow.batches == []

    def test_a_model_without_a_calibration_has_no_probabilities(self, ask):
        for path, body in (
            ("/rerank", {"query": QUERY, "documents": ["a"]}),
            ("/score", {"queries": QUERY, "documents": ["a"]}),
        ):
            refused = ask(path, body | {"probabilities": True})
            assert refused.status_code == 422
            assert "no calibration.json" in refused.json()["message"]
            assert ask(path, body | {"probabilities": False}).status_code == 200
        assert ask("/info", method="GET").json()["probabilities"] is False

    @pytest.mark.parametrize("keys", [{"top_k": None}, {"top_k": 2}, {"truncation": True}])
    def test_voyage(self, ask, reranker, keys):
        answer = ask("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "model": "m", **keys})
        same(rows(answer, "data"), expected(reranker)[: keys.get("top_k")])
        assert answer.json()["usage"]["total_tokens"] > 0

    def test_the_tei_response_has_only_the_keys_that_elasticsearch_reads(self, ask, reranker):
        body = {"query": QUERY, "texts": DOCUMENTS, "truncate": None, "truncation_direction": "Right"}
        plain = ask("/rerank", body | {"raw_scores": False}).json()
        assert [set(row) for row in plain] == [{"index", "score"}] * len(DOCUMENTS)
        same([(row["index"], row["score"]) for row in plain], expected(reranker))
        raw = ask("/rerank", body | {"raw_scores": True, "return_text": True, "top_n": 3}).json()
        assert [(row["index"], row["text"]) for row in raw] == [
            (row.index, row.document) for row in reranker.rank(QUERY, DOCUMENTS, top_k=3)
        ]
        assert [row["score"] for row in raw] == pytest.approx(
            [row.score for row in reranker.rank(QUERY, DOCUMENTS, top_k=3)], abs=1e-7
        )

    @pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
    def test_score_keeps_the_order_of_the_documents(self, ask, reranker, names):
        answer = ask("/v1/score", dict(zip(names, (QUERY, DOCUMENTS), strict=True)) | {"use_activation": False}).json()
        assert [row["index"] for row in answer["data"]] == [0, 1, 2, 3, 4]
        assert [row["score"] for row in answer["data"]] == pytest.approx(
            reranker.score([(QUERY, text) for text in DOCUMENTS]), abs=1e-7
        )

    def test_score_pairs_queries_with_documents(self, ask, reranker):
        queries = ["disk", "lock", "queue"]
        answer = ask("/score", {"queries": queries, "documents": DOCUMENTS[:3], "use_activation": False}).json()
        alone = [reranker.score([(query, text)])[0] for query, text in zip(queries, DOCUMENTS[:3], strict=True)]
        assert [row["score"] for row in answer["data"]] == pytest.approx(alone, abs=1e-7)
        assert ask("/score", {"queries": queries[:2], "documents": DOCUMENTS[:3]}).status_code == 422

    def test_every_optional_key_may_be_null(self, ask, reranker):
        optional = dict.fromkeys(set(RerankBody.model_fields) - {"query", "documents"})
        same(rows(ask("/rerank", {"query": QUERY, "documents": DOCUMENTS, **optional})), expected(reranker))

    @pytest.mark.parametrize(
        ("document", "fields", "text"),
        [
            ({"text": "disk full", "title": "ignored"}, None, "disk full"),
            ({"title": "disk", "size": 3, "é": None}, None, "title: disk\nsize: 3\né: null"),
            ({"title": "disk", "body": "free space", "text": "t"}, ["body", "title"], "body: free space\ntitle: disk"),
            ({"parts": ["a", "b"]}, [], 'parts: ["a", "b"]'),
            ({"text": 5}, None, "text: 5"),
        ],
    )
    def test_structured_documents_are_read_key_by_key(self, ask, reranker, document, fields, text):
        body = {"query": QUERY, "documents": [document], "rank_fields": fields, "return_documents": True}
        answer = ask("/v1/rerank", body)
        same(rows(answer), expected(reranker, [text]))
        assert answer.json()["results"][0]["document"] == {"text": text} | document

    @pytest.mark.parametrize(
        ("limits", "count"), [({"top_n": 0}, 5), ({"top_n": 99}, 5), ({"top_n": 2, "top_k": 4}, 2)]
    )
    def test_the_number_of_results(self, ask, limits, count):
        assert len(rows(ask("/rerank", {"query": QUERY, "documents": DOCUMENTS, **limits}))) == count

    def test_equal_scores_keep_the_order_of_the_request(self, ask):
        assert [index for index, _ in rows(ask("/rerank", {"query": QUERY, "documents": ["disk"] * 9}))] == [*range(9)]

    def test_a_repeated_document_is_scored_once(self, reranker):
        slow = Slow(reranker)

        async def scenario(client):
            same_query = await client.post("/rerank", json={"query": "disk", "documents": ["a", "lock", "a", "a"]})
            pairs = {"queries": ["disk", "lock", "disk"], "documents": ["a", "a", "a"], "use_activation": False}
            return same_query, (await client.post("/score", json=pairs)).json()["data"]

        ranked, scored = talk(slow, scenario)
        same(rows(ranked), expected(reranker, ["a", "lock", "a", "a"], "disk"))
        assert slow.batches == [2, 3]
        alone = [reranker.score([(query, "a")])[0] for query in ("disk", "lock", "disk")]
        assert [row["score"] for row in scored] == pytest.approx(alone, abs=1e-7)

    def test_scores_that_saturate_in_float32_remain_distinct(self):
        from trainer.serving.protocol import public_scores_of

        public = public_scores_of(ScoreBody(queries="a", documents="b"), None)
        high, higher = public(np.array([20.0, 25.0], dtype=np.float32))
        assert 0.5 < high < higher < 1
        low, lower = public(np.array([-50.0, -60.0], dtype=np.float32))
        assert 0 < lower < low
        assert public(np.array([-1e4, 1e4], dtype=np.float32)) == pytest.approx([0, 1])

    def test_documents_are_cut_to_their_own_limit_first(self, ask, reranker):
        body = {"query": QUERY, "documents": ["disk lock queue", "lock disk cert"], "max_tokens_per_doc": 1}
        same(rows(ask("/v2/rerank", body)), expected(reranker, ["disk", "lock"]))

    def test_long_documents_are_cut_unless_that_is_refused(self, ask, reranker):
        body = {"query": QUERY, "documents": ["disk", "lock " * 500]}
        same(rows(ask("/rerank", body)), expected(reranker, body["documents"]))
        for refusing in ({"truncate": False}, {"truncation": False}):
            answer = ask("/rerank", body | refusing)
            assert answer.status_code == 422
            assert "document 1 has 507 tokens with the query, more than 64" in answer.json()["detail"]

    def test_info_names_the_limits(self, ask):
        info = ask("/info", method="GET", settings={"max_documents": 7}).json()
        assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        assert (info["model_id"], info["max_input_length"], info["max_client_batch_size"]) == ("tiny", 64, 7)
        of_tei = {"model_sha", "model_dtype", "served_model_name", "max_concurrent_requests", "max_batch_tokens"}
        assert of_tei | {"max_batch_requests", "auto_truncate", "version"} <= set(info)
        assert info["max_concurrent_requests"] == info["max_waiting_documents"] == 4000

    def test_the_schema_names_both_answers_and_every_error(self, ask):
        paths = ask("/openapi.json", method="GET").json()["paths"]
        assert set(paths["/rerank"]["post"]["responses"]) >= {"200", "400", "401", "413", "415", "422", "429"}
        assert {"/v1/rerank", "/v2/rerank", "/score", "/health", "/info", "/metrics"} <= set(paths)

    def test_the_schema_accepts_what_the_server_accepts(self):
        """`oneOf` and `minItems` are written by hand; pydantic does not check them."""
        schema = RerankBody.model_json_schema()
        assert [one["required"] for one in schema["oneOf"]] == [["documents"], ["texts"]]
        assert all(schema["properties"][name]["anyOf"][0]["minItems"] == 1 for name in ("documents", "texts"))
        assert schema["properties"]["query"]["pattern"] == r"\S"
        assert ScoreBody.model_json_schema()["properties"]["queries"]["anyOf"][1]["minItems"] == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "sentence"),
        [
            ({"query": QUERY, "documents": []}, 400, "list of documents must not be empty"),
            ({"query": QUERY, "texts": []}, 400, "list of texts must not be empty"),
            ({"query": " \n", "documents": ["a"]}, 400, "query must not be empty or only whitespace"),
            ({"documents": ["a"]}, 422, "query: Field required"),
            ({"query": QUERY}, 422, "give either `documents` or `texts`"),
            ({"query": QUERY, "documents": ["a"], "texts": ["a"]}, 422, "give either `documents` or `texts`"),
            ({"query": QUERY, "documents": ["a", 5]}, 422, "documents[1]: should be a valid string or "),
            ({"query": QUERY, "documents": "a"}, 422, "documents: should be a valid list"),
            ({"query": QUERY, "documents": ["a"], "top_n": -1}, 422, "top_n: should be greater than or equal to 0"),
            ({"query": QUERY, "documents": [{}]}, 422, "documents[0] has no keys"),
            ({"query": QUERY, "documents": [{"a": 1}], "rank_fields": ["b"]}, 422, "has none of the rank_fields"),
            ({"query": QUERY, "documents": ["a"] * 1001}, 422, "1001 documents, more than 1000"),
            ({"query": QUERY, "documents": ["a"], "truncation_direction": "left"}, 422, "truncation_direction: "),
            ({"query": QUERY, "documents": ["a"], "first_stage_scores": [1.0]}, 422, "no fusion.json"),
            (
                {"query": QUERY, "documents": ["a"], "first_stage_scores": [1.0, 2.0]},
                422,
                "for each of the 1 documents",
            ),
            ({"query": QUERY, "documents": ["a"], "first_stage_scores": ["b"]}, 422, "first_stage_scores[0]: "),
            ({"query": QUERY, "documents": ["a"], "first_stage": "rank"}, 422, "first_stage: "),
            (
                {"query": QUERY, "documents": ["a"], "first_stage": "order", "first_stage_scores": [1.0]},
                422,
                "give either `first_stage_scores` or `first_stage`",
            ),
            (["a"], 422, "body: "),
        ],
    )
    def test_an_invalid_body_is_one_sentence_in_the_keys_of_every_protocol(self, ask, body, status, sentence):
        answer = ask("/rerank", body)
        assert answer.status_code == status
        found = answer.json()
        assert set(found) == {"error", "error_type", "message", "detail"}
        assert found["error"] == found["message"] == found["detail"]
        assert sentence in found["error"]

    def test_infinitys_client_reads_the_reason_of_a_422_in_a_list(self, ask):
        bodies = ({"query": QUERY}, {"query": 5, "documents": ["a"]}, {"query": QUERY, "documents": ["a"] * 1001})
        for body in bodies:
            answer = ask("/infinity/rerank", body)
            (detail,) = answer.json()["detail"]
            assert (answer.status_code, detail["loc"], detail["type"]) == (422, ["body"], "value_error")
            assert detail["msg"] == answer.json()["error"] == ask("/rerank", body).json()["detail"]
        assert isinstance(ask("/infinity/rerank", {"query": " ", "documents": ["a"]}).json()["detail"], str)

    @pytest.mark.parametrize(
        ("content", "status"),
        [
            (b'{"query": ', 400),
            (b"", 422),
            (b"\xff\xfe", 400),
            (b"[" * 100_000, 400),
            (b'{"query": "a", "documents": [' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"]}", 422),
            (b'{"query": "a\\ud800", "documents": ["a"]}', 422),
            (b'{"query": "a", "documents": ["\\ud800"]}', 422),
            (b'{"query": "a", "documents": [{"\\ud800": "a"}]}', 422),
            (b'{"query": "a", "documents": [NaN]}', 422),
            (b'{"query": "a", "documents": [{"text": "a", "x": [NaN]}], "return_documents": true}', 422),
            (b'{"query": "a", "documents": [{"text": "a", "x": {"y": -Infinity}}]}', 422),
            (b'{"query": "a", "documents": ["a"], "first_stage_scores": [NaN]}', 422),
            ('{"query": "é", "documents": ["a"]}'.encode("latin-1"), 400),
            (b'{"query": "a", "documents": ["a"], "top_n": 1e400}', 422),
            (b'{"query": "a", "documents": ["a"], "top_n": ' + b"9" * 5000 + b"}", 400),
        ],
    )
    def test_broken_bodies(self, ask, content, status):
        answer = ask("/rerank", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error", "error_type", "message", "detail"}

    @pytest.mark.parametrize("content", [b"[" * 100_000, b'{"top_n": ' + b"9" * 5000 + b"}", b"\xff"])
    def test_the_reason_of_a_body_that_cannot_be_read_holds_for_each_of_them(self, ask, content):
        message = ask("/rerank", content=content, headers={"Content-Type": "application/json"}).json()["message"]
        assert all(reason in message for reason in ("UTF-8", "nested too deeply", "too many digits"))

    @pytest.mark.parametrize(
        "text", ["\x00", "\x1b[31m", "\u202e\u2028", "\ufffe", "💥" * 50, "word" * 30_000, " ", "<script>", "\r\n"]
    )
    def test_odd_texts_are_scored_like_any_other(self, ask, reranker, text):
        found = rows(ask("/rerank", {"query": f"disk {text}", "documents": [text, "lock"]}))
        same(found, expected(reranker, [text, "lock"], f"disk {text}"))

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    def test_a_body_that_is_not_declared_json(self, ask, kind):
        answer = ask("/rerank", content=b'{"query": "a", "documents": ["b"]}', headers={"Content-Type": kind})
        assert answer.status_code == 415

    def test_a_compressed_body_is_refused_with_the_reason(self, ask):
        kind = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        answer = ask("/rerank", content=gzip.compress(b'{"query": "a", "documents": ["b"]}'), headers=kind)
        assert answer.status_code == 415
        assert "uncompressed" in answer.json()["message"]
        plain = ask("/rerank", {"query": "a", "documents": ["b"]}, headers={"Content-Encoding": "identity"})
        assert plain.status_code == 200

    @pytest.mark.parametrize(
        "kind", ["application/json; charset=utf-8", "application/cloudevents+json", "APPLICATION/JSON"]
    )
    def test_content_types_of_json(self, ask, kind):
        content = b'{"query": "a", "documents": ["b"]}'
        assert ask("/rerank", content=content, headers={"Content-Type": kind}).status_code == 200

    def test_unknown_paths_and_methods(self, ask):
        assert ask("/nope", {}).status_code == 404
        assert ask("/rerank", method="GET").status_code == 405
        assert ask("/docs", method="GET").status_code == 404
        for path in ("/nope", "/v1/v1/rerank", "/rerank/"):
            assert ask(path, {"query": "a", "documents": ["a"]}).status_code == 404
        assert set(ask("/nope", {}).json()) == {"error", "error_type", "message", "detail"}
        assert "/rerank, /v1/rerank" in ask("/nope", {}).json()["error"]
        refused = ask("/rerank", method="OPTIONS")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert ask("/", method="OPTIONS").headers["allow"] == "GET, HEAD, POST"
        assert ask("/health", {}).headers["allow"] == "GET, HEAD"

    @pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/metrics", "/info", "/"])
    def test_head_is_answered_like_get(self, ask, path):
        head, get = ask(path, method="HEAD"), ask(path, method="GET")
        assert (head.status_code, get.status_code) == (200, 200)
        assert head.headers.get("content-type") == get.headers.get("content-type")

    def test_a_body_that_is_too_large(self, ask):
        body = {"query": QUERY, "documents": ["x" * 3000]}
        answer = ask("/rerank", body, settings={"max_body": 2000})
        assert (answer.status_code, answer.json()["detail"]) == (413, "the body is larger than 2000 bytes")

        async def chunks():
            for _ in range(5):
                yield b"x" * 1000

        kind = {"Content-Type": "application/json"}
        assert ask("/rerank", content=chunks(), headers=kind, settings={"max_body": 2000}).status_code == 413

    def test_a_body_that_does_not_arrive(self, ask):
        async def drip():
            yield b"{"
            await asyncio.sleep(20)
            yield b"}"

        kind = {"Content-Type": "application/json"}
        answer = ask("/rerank", content=drip(), headers=kind, settings={"body_seconds": 0.05})
        assert (answer.status_code, answer.json()["detail"]) == (408, "the body did not arrive within 0.05 seconds")

    def test_a_score_that_is_not_finite_is_not_returned(self, reranker):
        class Broken(Engine):
            def score(self, pairs):
                return np.full(len(pairs), np.nan, dtype=np.float32)

        body = {"query": QUERY, "documents": DOCUMENTS}
        answer = talk(Broken(reranker, "broken"), lambda client: client.post("/rerank", json=body))
        assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")


class TestKey:
    def test_routes_that_compute_need_the_key(self, ask):
        body, settings = {"query": QUERY, "documents": ["a"]}, {"key": "secret"}
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Basic secret"},
        ):
            answer = ask("/rerank", body, settings=settings, headers=header)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "secret" not in answer.text
        odd = ask("/rerank", body, settings=settings, headers={"Authorization": b"Bearer \xff\xe9"})
        assert odd.status_code == 401
        for scheme in ("Bearer", "bearer", "BEARER"):
            good = {"Authorization": f"{scheme} secret"}
            assert ask("/rerank", body, settings=settings, headers=good).status_code == 200

    def test_probes_and_the_page_need_no_key(self, ask):
        settings = {"key": "secret"}
        public = {
            path: ask(path, method="GET", settings=settings) for path in ("/health", "/ready", "/ping", "/metrics", "/")
        }
        assert {path: answer.status_code for path, answer in public.items()} == dict.fromkeys(public, 200)
        closed = {path: ask(path, method="GET", settings=settings).status_code for path in ("/info", "/openapi.json")}
        assert set(closed.values()) == {401}
        assert ask("/", {"query": "a", "texts": ["b"]}, settings=settings).status_code == 401

    def test_the_key_comes_from_the_environment(self, monkeypatch):
        monkeypatch.delenv(KEY, raising=False)
        assert api_key() is None
        monkeypatch.setenv(KEY, "a-key")
        assert api_key() == "a-key"
        assert "a-key" not in repr(Settings(key=api_key()))

    @pytest.mark.parametrize("key", ["", " ", "a\n", "schlüssel"])
    def test_a_key_that_no_client_can_send_is_refused(self, monkeypatch, key):
        monkeypatch.setenv(KEY, key)
        with pytest.raises(ServeError, match="is empty or has characters"):
            api_key()


class TestBatching:
    def test_answers_of_fifty_requests_at_once_are_not_mixed_up(self, reranker, words):
        draw = np.random.default_rng(5)
        requests = [
            (
                " ".join(draw.choice(words, 3)),
                [" ".join(draw.choice(words, draw.integers(1, 30))) for _ in range(draw.integers(1, 12))],
            )
            for _ in range(50)
        ]
        slow = Slow(reranker, 0.01)

        async def scenario(client):
            bodies = [{"query": query, "documents": documents} for query, documents in requests]
            return await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))

        for (query, documents), answer in zip(requests, talk(slow, scenario), strict=True):
            same(rows(answer), expected(reranker, documents, query))
        assert len(slow.batches) < 50 / 2, "requests were computed together"

    def test_a_large_request_does_not_hold_up_small_ones(self, reranker):
        slow = Slow(reranker, 0.005)
        done: list[str] = []

        async def post(client, name, count):
            body = {"query": QUERY, "documents": [f"disk lock {number}" for number in range(count)]}
            answer = await client.post("/rerank", json=body)
            assert len(rows(answer)) == count
            done.append(name)

        async def scenario(client):
            large = asyncio.create_task(post(client, "large", 10_000))
            while client.batcher.waiting < 10_000 or not slow.batches:
                await asyncio.sleep(0.001)
            for number in range(5):
                await post(client, f"small {number}", 10)
            at_small = sum(slow.batches)
            await large
            return at_small

        at_small = talk(slow, scenario, max_documents=10_000, max_waiting=20_000, batch_tokens=1000)
        assert done == [*(f"small {number}" for number in range(5)), "large"]
        assert at_small < 5_000

    def test_the_rest_of_a_batch_is_filled_with_the_next_request(self, reranker, words):
        slow = Slow(reranker, 0.05)

        async def scenario(client):
            documents = [[*words[:10]], [*words[10:20]], [*words[20:30]], [*words[30:40]]]  # of 5 tokens each
            bodies = [{"query": "disk", "documents": some} for some in documents]
            await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))

        talk(slow, scenario, batch_tokens=75)
        assert sum(slow.batches) == 40
        assert max(slow.batches) == 15
        assert len(slow.batches) <= 4

    def test_requests_over_the_limit_of_waiting_documents_are_refused(self, reranker):
        slow = Slow(reranker, 0.2)

        async def scenario(client):
            body = {"query": QUERY, "documents": ["a"] * 8}
            first = asyncio.create_task(client.post("/rerank", json=body))
            while not client.batcher.waiting:
                await asyncio.sleep(0.001)
            refused = await client.post("/rerank", json=body)
            ready = await client.get("/ready")
            assert (await first).status_code == 200
            return refused, ready, await client.post("/rerank", json=body), await client.get("/ready")

        refused, ready, again, ready_again = talk(slow, scenario, max_documents=8, max_waiting=8)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error_type"] == "Overloaded"
        assert (ready.status_code, again.status_code, ready_again.status_code) == (503, 200, 200)

    def test_a_request_of_the_largest_size_always_fits_an_idle_server(self, ask):
        body = {"query": QUERY, "documents": ["a"] * 9}
        assert ask("/rerank", body, settings={"max_documents": 9, "max_waiting": 1}).status_code == 200

    def test_work_of_a_disconnected_client_is_dropped(self, reranker):
        slow = Slow(reranker, 0.05)

        async def scenario(client):
            body = {"query": QUERY, "documents": [f"disk {number}" for number in range(200)]}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.post("/rerank", json=body), 0.12)
            waiting = client.batcher.waiting
            await client.post("/rerank", json={"query": QUERY, "documents": ["a"]})
            return waiting

        assert talk(slow, scenario, batch_tokens=100) == 0
        assert sum(slow.batches) < 100

    def test_a_request_that_the_device_cannot_compute_fails_alone(self, reranker):
        slow = Slow(reranker, 0.05)
        slow.fails_on = 27

        async def scenario(client):
            first = asyncio.create_task(client.post("/rerank", json={"query": "disk", "documents": ["a"]}))
            await asyncio.sleep(0.02)  # the others are computed together
            documents = [["lock"], ["lock " * 23], ["cert", "queue"]]
            bodies = [{"query": "disk", "documents": some} for some in documents]
            answers = await asyncio.gather(*(client.post("/rerank", json=body) for body in bodies))
            await first
            return [answer.status_code for answer in answers], answers[1].json(), await client.get("/health")

        statuses, fault, health = talk(slow, scenario)
        assert statuses == [200, 424, 200]
        assert fault["error"] == "the model could not compute this request: RuntimeError: device lost"
        assert health.status_code == 200, "one request says nothing about the device"

    def test_a_server_that_cannot_compute_fails_its_health_check(self, reranker):
        slow = Slow(reranker)
        slow.fails_on = 5

        async def scenario(client):
            seen = []
            for document in ("a", "b", "c", "lock lock"):
                await client.post("/rerank", json={"query": "disk", "documents": [document]})
                seen.append([(await client.get(path)).status_code for path in ("/health", "/ready")])
            return seen

        assert talk(slow, scenario) == [[200, 200], [200, 200], [503, 503], [200, 200]]

    def test_the_fair_clock_ends_requests_as_equal_shares_would(self):
        clock = FairClock()
        large = clock.enter(100)
        clock.advance(40)  # alone: 60 are left
        small = clock.enter(10)
        assert small < large
        clock.advance(20)  # shared by two: the small one would be done
        assert clock.now == pytest.approx(small)
        clock.advance(49)
        assert clock.now < large
        clock.advance(1)
        assert clock.now == pytest.approx(large)

    def test_under_a_steady_load_of_small_requests_a_large_one_ends_as_early_as_with_equal_shares(self):
        """Small requests of 10 tokens arrive every 20; the large one of 1,000 gets the other half of the time."""
        clock, left, now, waiting = FairClock(), {}, 0, []
        left[large := ("large", clock.enter(1000))] = 1000
        finished = {}
        while large in left and now < 5000:
            if now % 20 == 0:
                left[(f"small {now}", clock.enter(10))] = 10
            chosen = min(left, key=lambda work: work[1])
            left[chosen] -= 5
            clock.advance(5)
            now += 5
            if not left[chosen]:
                finished[chosen[0]] = now
                del left[chosen]
            waiting.append(len(left))
        assert 1900 <= finished["large"] <= 2100
        assert max(waiting) <= 3, "small ones never pile up behind the large one"

    def test_texts_are_tokenised_in_slices(self):
        texts = ["a" * 90_000, "b" * 90_000, "c" * 300_000, "d", "e"]
        assert [len(some) for some in slices(texts)] == [2, 1, 2]
        assert [text for some in slices(texts) for text in some] == texts
        assert list(slices([])) == []


class TestOperations:
    def test_the_access_log_holds_numbers_and_no_texts(self, ask, caplog):
        with caplog.at_level(logging.INFO, "trainer.serving.access"):
            header = {"X-Request-ID": "mine-1"}
            answer = ask("/rerank", {"query": "secret words", "documents": ["hidden", "text"]}, headers=header)
            ask("/secret/path?query=words", {"query": 5})
            ask("/health", method="GET")
            odd = ask("/info", method="GET", headers={"X-Request-ID": "two\tsecret words"})
        first, second, third = (json.loads(record.message) for record in caplog.records)
        assert first | {"time": 0, "ms": 0, "queue_ms": 0} == {
            "time": 0, "ms": 0, "queue_ms": 0, "method": "POST", "route": "/rerank", "id": "mine-1", "status": 200,
            "documents": 2, "tokens": 12,
        }  # fmt: skip
        assert answer.headers["x-request-id"] == "mine-1"
        assert (second["route"], second["status"]) == ("other", 404)
        assert third["id"] == odd.headers["x-request-id"] != "two\tsecret words"
        assert not re.search("secret|hidden|words", " ".join(record.message for record in caplog.records))

    def test_metrics_count_requests_documents_and_tokens(self, engine):
        async def scenario(client):
            await client.post("/rerank", json={"query": "disk", "documents": ["lock", "cert"]})
            await client.post("/rerank", json={"query": "", "documents": ["lock"]})
            await client.get("/made-up-by-a-client")
            return (await client.get("/metrics")).text

        text = talk(engine, scenario)
        assert 'reranker_requests_total{route="/rerank",status="200"} 1.0' in text
        assert 'reranker_requests_total{route="/rerank",status="400"} 1.0' in text
        assert 'reranker_requests_total{route="other",status="404"} 1.0' in text
        assert "reranker_tokens_total 10.0" in text
        assert "reranker_request_documents_sum 2.0" in text
        assert "reranker_waiting_documents 0.0" in text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert {"reranker_requests", "reranker_batch_seconds", "reranker_waiting_documents"} <= set(families)
        assert all(family.documentation and family.type != "unknown" for family in families.values())

    def test_every_answer_carries_the_headers_that_protect_a_browser(self, ask):
        for answer in (ask("/", method="GET"), ask("/nope", {}), ask("/rerank", {"query": "a", "texts": ["b"]})):
            assert answer.headers["x-content-type-options"] == "nosniff"


class TestPage:
    def test_its_policy_allows_its_own_code_and_nothing_else(self, ask):
        answer = ask("/", method="GET")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert policy.count("sha256-") == 2
        assert "unsafe" not in policy
        assert not re.search(r"\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)
        assert set(re.findall(r"https?://[\w.]+", answer.text)) == {"http://www.w3.org"}, (
            "the name of SVG, not a request"
        )
        assert len(answer.content) < 60_000

    def test_the_page_can_be_disabled(self, ask):
        assert ask("/", method="GET", settings={"page": False}).status_code == 405


class TestStart:
    def test_a_run_folder_means_its_exported_model(self, tmp_path):
        inside = tmp_path / "faq" / "export" / "model"
        inside.mkdir(parents=True)
        assert model_folder(str(tmp_path / "faq")) == (str(inside), "faq")
        assert model_folder(str(inside)) == (str(inside), "faq")
        assert model_folder(str(tmp_path)) == (str(tmp_path), tmp_path.name)
        assert model_folder("owner/name") == ("owner/name", "owner/name")
        (tmp_path / "unfinished" / "mine").mkdir(parents=True)
        with pytest.raises(ServeError, match="has no exported model"):
            model_folder(str(tmp_path / "unfinished"))

    def test_a_port_in_use_is_an_error_before_a_model_is_loaded(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ServeError, match=rf"cannot listen on 127.0.0.1:{port}: .*; choose another"):
                listen_at("127.0.0.1", port)
        with pytest.raises(ServeError, match="cannot listen on no such host:80"):
            listen_at("no such host", 80)

    def test_missing_packages_are_one_sentence(self, monkeypatch):
        monkeypatch.setattr("trainer.serving.server.PACKAGES", ("json", "no_such_package"))
        with pytest.raises(
            ServeError, match=r"^serve: no_such_package not installed; pip install 'domain-reranker\[serve\]'$"
        ):
            require_packages()

    def test_a_base_that_was_never_trained_is_refused(self, tiny, monkeypatch):
        from trainer.serving.server import serve

        with pytest.raises(ModelError):
            serve(str(tiny["bert"]), "127.0.0.1", 0, Settings())


class TestDocs:
    """docs/serving.md and scripts/docker."""

    ROOT = Path(__file__).parents[1]
    DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")

    def options(self, words: list[str]) -> dict[str, Any]:
        """Return the options of a `reranker serve ...` as its parser reads them."""
        assert words[0] == "serve"
        command = typer.main.get_command(reranker_app)
        return command.commands["serve"].make_context("serve", words[1:]).params

    def test_commands_are_those_that_the_program_knows(self):
        commands = re.findall(r"^(?:RERANKER_API_KEY=\S+ )?reranker (serve .*)$", self.DOCS, re.MULTILINE)
        assert len(commands) >= 3
        assert {self.options(shlex.split(line, comments=True))["port"] for line in commands} == {8000, 8080}

    def test_limits_are_the_defaults(self):
        rows = dict(re.findall(r"^\| `--([\w-]+)` \| ([\d,]+|fp32)", self.DOCS, re.MULTILINE))
        defaults = self.options(["serve", "model"]) | {"batch_tokens": 4096}
        assert rows == {
            name: f"{defaults[name.replace('-', '_')]:,}" if name != "precision" else "fp32" for name in rows
        }
        assert set(rows) == {"max-documents", "max-waiting", "max-body", "batch-tokens", "precision"}

    def test_every_metric_and_status_is_named(self, engine):
        text = talk(engine, lambda client: client.get("/metrics")).text
        names = set(re.findall(r"^# TYPE (reranker_\w+) (?:counter|histogram|gauge)$", text, re.MULTILINE))
        assert set(re.findall(r"`(reranker_\w+)`", self.DOCS)) == {name for name in names if "_created" not in name}
        assert {str(status) for status in REASONS} <= set(re.findall(r"\b[45]\d\d\b", self.DOCS))

    def test_python_examples_are_python(self):
        blocks = re.findall(r"```python\n(.*?)```", self.DOCS, re.DOTALL)
        assert len(blocks) == 7
        for block in blocks:
            compile(block, "docs/serving.md", "exec")

    def test_docker_files(self):
        docker = self.ROOT / "scripts" / "docker"
        dockerfile = (docker / "Dockerfile").read_text(encoding="utf-8")
        start = self.options(json.loads(re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)[0]))
        assert (start["model"], start["host"], start["port"]) == ("/model", "0.0.0.0", 8000)
        copied = " ".join(re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE)).split()
        assert all((self.ROOT / name).exists() for name in copied)
        ignored = (docker / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
        assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
        check = json.loads(re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", dockerfile, re.MULTILINE)[0])
        compile(check[2], "HEALTHCHECK", "exec")
        assert f":{start['port']}/health" in check[2]
        assert int(re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE)[0]) > 0
        service = yaml.safe_load((docker / "compose.yaml").read_text(encoding="utf-8"))["services"]["reranker"]
        assert (
            docker / service["build"]["context"] / service["build"]["dockerfile"]
        ).resolve() == docker / "Dockerfile"
        assert service["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
        assert service["volumes"] == [f"${{MODEL_FOLDER:?set the folder of an exported model}}:{start['model']}:ro"]
        assert "${RERANKER_API_KEY:?" in service["environment"]["RERANKER_API_KEY"]
        assert int(service["stop_grace_period"].removesuffix("s")) > GRACE


class TestSockets:
    """What a client in the same process cannot do."""

    HEAD = "POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    def connect(self, address: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10)

    def read(self, client: socket.socket) -> tuple[int, dict]:
        """Return status and body of an answer after which the connection is closed."""
        received = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = received.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def test_slow_clients_do_not_keep_others_waiting(self, engine, listening):
        address = listening(create_app(engine, Settings(body_seconds=0.5)))
        body = {"query": "disk", "documents": ["lock"]}
        with ExitStack() as opened:
            slow = [opened.enter_context(self.connect(address)) for _ in range(20)]
            for client in slow:
                client.sendall(f'{self.HEAD}Connection: close\r\nContent-Length: 100\r\n\r\n{{"query'.encode())
            started = time.monotonic()
            assert httpx.post(f"{address}/rerank", json=body).status_code == 200
            assert time.monotonic() - started < 5
            for client in slow:
                status, fault = self.read(client)
                assert (status, fault["detail"]) == (408, "the body did not arrive within 0.5 seconds")

    def test_a_body_in_single_bytes_is_read(self, engine, listening):
        address = listening(create_app(engine, Settings()))
        content = b'{"query": "disk", "documents": ["lock"]}'
        with self.connect(address) as client:
            client.sendall(f"{self.HEAD}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode())
            for byte in content:
                client.sendall(bytes([byte]))
            status, answer = self.read(client)
        assert (status, len(answer["results"])) == (200, 1)

    def test_http_1_0_and_bodies_in_chunks_are_read(self, engine, listening):
        content = b'{"query": "disk", "documents": ["lock", "cert"]}'
        old = self.HEAD.replace("HTTP/1.1", "HTTP/1.0") + f"Content-Length: {len(content)}\r\n\r\n"
        parts = b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in (content[:9], content[9:]))
        chunked = f"{self.HEAD}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        address = listening(create_app(engine, Settings()))
        for sent in (old.encode() + content, chunked.encode() + parts + b"0\r\n\r\n"):
            with self.connect(address) as client:
                client.sendall(sent)
                status, answer = self.read(client)
            assert (status, len(answer["results"])) == (200, 2)

    @pytest.mark.parametrize("sent", [9, 60, 200, None])
    def test_a_client_that_disconnects_at_any_moment_leaves_nothing_behind(self, engine, listening, sent):
        app = create_app(engine, Settings())
        address = listening(app)
        content = json.dumps({"query": "disk", "documents": ["lock"] * 50}).encode()
        with self.connect(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
            client.sendall((f"{self.HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content)[:sent])
        assert httpx.post(f"{address}/rerank", json={"query": "disk", "documents": ["a"]}).status_code == 200
        until = time.monotonic() + 10
        while app.state.batcher.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert app.state.batcher.waiting == 0

    def test_a_client_that_sends_too_much_still_reads_its_answer(self, engine, listening):
        address = listening(create_app(engine, Settings(max_body=100_000)))
        answer = httpx.post(f"{address}/rerank", json={"query": "disk", "documents": ["x" * 900_000]})
        assert (answer.status_code, answer.json()["detail"]) == (413, "the body is larger than 100000 bytes")

    def test_the_work_of_a_connection_that_is_cut_is_dropped(self, reranker, listening):
        slow = Slow(reranker, 0.05)
        app = create_app(slow, Settings(batch_tokens=50))
        address = listening(app)
        content = json.dumps({"query": "disk", "documents": [f"lock {number}" for number in range(300)]}).encode()
        with self.connect(address) as client:
            client.sendall(f"{self.HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            until = time.monotonic() + 10
            while not slow.batches and time.monotonic() < until:
                time.sleep(0.01)
        assert httpx.post(f"{address}/rerank", json={"query": "disk", "documents": ["a"]}).status_code == 200
        assert app.state.batcher.waiting == 0
        assert sum(slow.batches) < 200


@pytest.fixture
def process(tiny, request):
    """A server in a process of its own: the process and its port. A parameter is the grace after SIGTERM in seconds."""
    code = (
        f"from trainer.serving import server; server.GRACE = {getattr(request, 'param', GRACE)}\n"
        "import sys, time; from trainer.serving.engine import Engine; score = Engine.score\n"
        "Engine.score = lambda self, pairs: (time.sleep(0.1), score(self, pairs))[1]\n"
        "sys.argv = ['reranker', 'serve', sys.argv[1], '--port', '0', '--batch-tokens', '60']\n"
        "from trainer.__main__ import reranker; reranker()"
    )
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny["reranker"])], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            line = server.stdout.readline()
            yield server, int(re.search(r"http://127.0.0.1:(\d+)/", line)[1])
        finally:
            server.kill()


class TestWindows:
    """A model that reads long documents in windows, up to 24 tokens with the query."""

    LONG = [" ".join(["disk shows free space a b c d e f g h lock queue cert"] * times) for times in (1, 2, 3)]

    @pytest.fixture
    def windowed(self, tiny) -> Reranker:
        reranker = Reranker.load(tiny["reranker"], device="cpu", max_length=24)
        reranker.passages = Passages(length=10, overlap=3)
        return reranker

    def test_the_server_scores_long_documents_as_the_library_does(self, windowed):
        documents = [*DOCUMENTS, *self.LONG]
        body = {"query": QUERY, "documents": documents}
        engine = Engine(windowed, "tiny")

        async def scenario(client: AsyncClient) -> Response:
            answer = await client.post("/rerank", json=body)
            assert client.batcher.waiting == 0
            return answer

        answer = talk(engine, scenario, batch_tokens=48)
        same(rows(answer), expected(windowed, documents))
        counts = [len(windowed.passages.windows(len(text.split()), 17)) for text in documents]
        assert counts[-3:] == [2, 4, 6]  # of 15, 30 and 45 words
        sizes = [4 + 3 + min(10, len(text.split())) for text in documents]
        read = sum(size * count for size, count in zip(sizes, counts, strict=True))
        score = talk(engine, lambda client: client.post("/score", json={"text_1": QUERY, "text_2": documents}))
        assert score.json()["usage"]["total_tokens"] == read

    def test_only_a_query_that_is_too_long_is_refused_where_nothing_may_be_cut(self, windowed):
        engine = Engine(windowed, "tiny")
        body = {"query": QUERY, "documents": self.LONG, "truncation": False}
        assert talk(engine, lambda client: client.post("/v1/rerank", json=body)).status_code == 200
        long = body | {"query": " ".join(["disk"] * 30)}
        refused = talk(engine, lambda client: client.post("/v1/rerank", json=long))
        assert refused.status_code == 422
        assert "document 0 has" in refused.json()["message"]

    def test_windows_that_wait_count_like_documents(self, windowed):
        engine = Slow(windowed, seconds=0.2)

        async def scenario(client: AsyncClient) -> tuple[int, int]:
            first = asyncio.create_task(client.post("/rerank", json={"query": QUERY, "documents": self.LONG}))
            while not engine.batches:
                await asyncio.sleep(0.01)
            waiting = client.batcher.waiting
            assert (await first).status_code == 200
            return waiting, client.batcher.waiting

        assert talk(engine, scenario, batch_tokens=100) == (12, 0)


class TestProcess:
    def test_sigterm_answers_what_was_accepted(self, process, reranker):
        server, port = process

        async def scenario():
            async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                documents = [f"disk {word}" for word in ["a", "b", "c", "d", "e", "f", "g", "h"] * 4]
                bodies = [{"query": query, "documents": documents} for query in ("lock", "queue", "cert")]
                asked = [asyncio.create_task(client.post("/rerank", json=body)) for body in bodies]
                while "reranker_waiting_documents 96.0" not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.01)
                server.send_signal(signal.SIGTERM)
                answers = await asyncio.gather(*asked)
                with pytest.raises(OSError):
                    socket.create_connection(("127.0.0.1", port), 1)
                return bodies, answers

        bodies, answers = asyncio.run(scenario())
        for body, answer in zip(bodies, answers, strict=True):
            same(rows(answer), expected(reranker, body["documents"], body["query"]))
        out, _ = server.communicate(timeout=20)
        assert server.returncode == 0
        assert out.rstrip().endswith("stopped; all accepted requests are answered")
        assert out.count('"status": 200, "documents": 32') == 3

    @pytest.mark.parametrize("process", [1], indirect=True)
    def test_what_cannot_be_computed_in_the_grace_after_sigterm_is_refused_and_counted(self, process):
        server, port = process

        async def scenario():
            async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                body = {"query": "lock", "documents": [f"disk {number}" for number in range(60)]}
                asked = [asyncio.create_task(client.post("/rerank", json=body)) for _ in range(8)]
                while "reranker_waiting_documents 480.0" not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.01)
                server.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        answers = asyncio.run(scenario())
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert refused
        assert all(set(answer.json()) == {"error", "error_type", "message", "detail"} for answer in refused)
        out, _ = server.communicate(timeout=20)
        assert server.returncode == 0
        assert f"stopped before {len(refused)} accepted requests were computed" in " ".join(out.split())
        assert "Traceback" not in out
        assert "all accepted requests are answered" not in out
