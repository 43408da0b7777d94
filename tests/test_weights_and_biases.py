"""Weights & Biases: no wait for a missing network, one run per training, no local path sent."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import wandb

from trainer.errors import RunError
from trainer.recipe import Recipe
from trainer.tracking import weights_and_biases
from trainer.tracking.log import Log
from trainer.tracking.weights_and_biases import _run_id, answers, key_problem, start, without_local_paths


@pytest.fixture
def hanging():
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering():
    """The address of a server that has no page."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No settings and no key of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def recipe(mode="online", **more):
    return Recipe.model_validate(
        {"name": "tiny", "data": {"path": "/secret/place/set"}, "track": {"mode": mode}} | more
    )


@pytest.mark.parametrize("server", ["hanging", "nobody"])
def test_without_a_network_the_run_continues_offline_within_seconds(home, monkeypatch, capsys, hanging, server):
    address = hanging if server == "hanging" else "http://127.0.0.1:1"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(weights_and_biases, "CONNECT_TIMEOUT", 0.5)
    started = time.monotonic()
    log = Log(home / "train", recipe())
    log.write(1, loss=0.5)
    log.close()
    wandb.teardown()
    assert time.monotonic() - started < 30  # seconds; without the look beforehand it is more than 90
    assert f"{address} does not respond, so W&B records offline" in capsys.readouterr().out
    assert list((home / "train" / "wandb").glob("offline-run-*/*.wandb"))
    assert json.loads((home / "train" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5}


def test_any_response_counts_as_a_server(hanging, answering, monkeypatch):
    monkeypatch.setattr(weights_and_biases, "CONNECT_TIMEOUT", 0.5)
    assert not answers(hanging)
    assert not answers("http://127.0.0.1:1")
    assert not answers("nonsense")
    assert answers(answering)


def test_a_missing_or_broken_key_is_found_before_any_compute(home, monkeypatch):
    assert key_problem(recipe("off")) == key_problem(recipe("offline")) == ""
    assert key_problem(recipe()).startswith("track.mode: online, but no key is known; run `wandb login`")
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "API key" in key_problem(recipe())
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert key_problem(recipe()) == ""


def test_refused_settings_are_reported(home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "nonsense")
    with pytest.raises(RunError, match="track: W&B did not start"):
        start(home, recipe(), resumed=False)


def test_only_a_resumed_training_continues_its_run(tmp_path):
    first = _run_id(tmp_path, resumed=False)
    assert _run_id(tmp_path, resumed=True) == first
    assert _run_id(tmp_path, resumed=False) != first
    (tmp_path / "wandb-id.txt").write_bytes(b"\xff\0")
    assert _run_id(tmp_path, resumed=True).isalnum()


def test_no_local_path_is_sent(tmp_path):
    (tmp_path / "base").mkdir()
    sent = without_local_paths(
        recipe(
            data={
                "corpus": ["/secret/a.csv"],
                "queries": "/secret/b.csv",
                "qrels": "/secret/c.csv",
                "corpus_id": "a/b",
            },
            retriever={"kind": "run", "run": "/secret/my.trec"},
            reranker={"model": str(tmp_path / "base")},
            mine={"teacher": "owner/teacher"},
        )
    )
    assert "secret" not in json.dumps(sent)
    assert str(tmp_path) not in json.dumps(sent)
    assert (sent["data"]["corpus"], sent["data"]["queries"], sent["data"]["corpus_id"]) == (["a.csv"], ["b.csv"], "a/b")
    assert (sent["reranker"]["model"], sent["mine"]["teacher"]) == ("base", "owner/teacher")
    assert without_local_paths(recipe(data={"path": "hub:owner/name"}))["data"]["path"] == "owner/name"
