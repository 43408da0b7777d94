"""Push: the real Hub client against a loopback server that speaks the upload protocol and keeps the bytes."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from trainer.errors import NotBetterError, PushError, RecipeError, RunError
from trainer.evaluation.gate import BETTER, ONLY_FUSED, UNCLEAR, WORSE
from trainer.export.hub import files_to_push, upload
from trainer.pipeline import open_run
from trainer.pipeline import push as push_run
from trainer.recipe import Push, load_recipe

TOKEN = "hf_ThisMustNeverBePrinted"


class Hub(ThreadingHTTPServer):
    """As much of the Hub as an upload needs; what arrives is kept in `files`, by name.

    Some repositories are refused: `refuses` maps a name to the step's address, status and answer.
    """

    refuses: dict[str, tuple[str, int, dict[str, Any]]] = {
        "expired": ("/api/repos/create", 401, {"error": "Invalid username or password."}),
        "foreign": ("/api/repos/create", 403, {"error": "You don't have the rights to create a model here"}),
        "broken": ("/api/repos/create", 500, {"error": "Internal Error - We're working hard to fix this"}),
        "bad-card": ("/api/validate-yaml", 400, {"errors": [{"message": '"base_model" is not a valid Hub id'}]}),
        "quota": (
            "/me/quota.git",
            200,
            {"objects": [{"oid": "0", "size": 1, "error": {"code": 403, "message": "No quota"}}]},
        ),
        "full": ("/lfs/", 403, {"error": "Storage limit reached"}),
        "gone": ("/api/models/me/gone/commit/", 404, {"error": "Repository not found"}),
        "moved": ("/api/models/me/moved/commit/", 412, {"error": "A commit has happened since"}),
    }

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.repository: dict[str, Any] | None = None
        self.summary = ""
        self.uploads: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for one request."""
        content = [] if path.startswith("/lfs/") else [json.loads(line) for line in body.splitlines()]
        if path == "/api/repos/create":
            self.created = content[0]
            assert self.created.get("type", "model") == "model"
        step, status, refusal = self.refuses.get(self.created.get("name", ""), ("never", 0, {}))
        if path.startswith(step):
            return status, refusal
        if path == "/api/repos/create":
            status = 409 if self.repository else 200
            self.repository = self.repository or {"private": self.created["visibility"] == "private"}
            return status, {"url": f"{self.url}/me/{self.created['name']}"}
        if path.startswith("/lfs/"):
            self.uploads[path.removeprefix("/lfs/")] = body
            return 200, {}
        if "/preupload/" in path:
            return 200, {"files": [self._mode(file) for file in content[0]["files"]]}
        if path.endswith("/objects/batch"):
            objects = [
                {**file, "actions": {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}}
                for file in content[0]["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            self._commit(content)
            return 200, {"commitUrl": f"{self.url}/me/{self.created['name']}/commit/abc", "commitOid": "abc"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/tree/main" in path:
            return 200, [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.files]
        return (
            (200, self.repository | {"id": "me/tiny"}) if self.repository else (404, {"error": "Repository not found"})
        )

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".onnx"))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.summary = value["summary"]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                assert value["algo"] == "sha256"
                self.files[value["path"]] = self.uploads[value["oid"]]
                assert hashlib.sha256(self.files[value["path"]]).hexdigest() == value["oid"]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        if not self.path.startswith("/lfs/"):  # an upload goes to a signed address and must not carry the token
            self.server.tokens.add(self.headers.get("Authorization") or f"none at {self.path}")
        elif self.headers.get("Authorization"):
            self.server.tokens.add("token sent to the storage")
        status, content = self.server.answer(self.path.partition("?")[0], body)
        answer = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - names that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


# `reranker push RECIPE ... --runs RUNS push.repository=NAME`, once for each name; a process costs a second.
SCRIPT = """
import contextlib, io, json, sys, traceback
from trainer.commands.cli import reranker_command
names, words = json.loads(sys.argv[1]), sys.argv[2:]
for name in names:
    sys.argv = ["reranker", "push", *words, "push.repository=" + name]
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            reranker_command()
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def push_all(endpoint: str, names: list[str], *words: object, **environment: str) -> list[Done]:
    """What `reranker push` answers for each repository, in a process of its own: the endpoint is read at import."""
    kept = {name: value for name, value in os.environ.items() if name[:3] != "HF_" and "proxy" not in name.lower()}
    kept |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nowhere", "HF_TOKEN": TOKEN}
    kept["HF_HUB_DISABLE_TELEMETRY"] = "1"  # else once a day, without the token, a list of tools is asked for
    line = [sys.executable, "-c", SCRIPT, json.dumps(names), *map(str, words)]
    done = subprocess.run(line, env=kept | environment, capture_output=True, text=True, timeout=60)
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return [Done(*json.loads(answer)) for answer in done.stdout.splitlines()]


@pytest.fixture
def reranker_push(exported: tuple[Path, Path]) -> Callable[..., Done]:
    """`reranker_push(endpoint, word, ..., VARIABLE=value)` pushes the exported run to me/tiny by force."""
    recipe, runs = exported

    def start(endpoint: str, *words: object, **environment: str) -> Done:
        return push_all(endpoint, ["me/tiny"], recipe, "--runs", runs, "--force", *words, **environment)[0]

    return start


def on_disk(exported: tuple[Path, Path]) -> dict[str, bytes]:
    folder = exported[1] / "exported" / "export" / "model"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "splits.json"]  # stays here
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_one_sentence(done: Done, *parts: str) -> None:
    """Exit code 2 and one line on standard error that holds the parts; no traceback."""
    assert done.code == 2, done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(("asked", "visibility"), [((), "private"), (("push.private=false",), "public")])
def test_the_uploaded_bytes_are_the_bytes_on_disk_in_a_repository_of_the_requested_visibility(
    hub, reranker_push, exported, asked, visibility
):
    done = reranker_push(hub.url, "push.message=First try", *asked)
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported)
    assert len(hub.uploads) == 2  # weights and graph went as large files, the rest with the commit
    assert (hub.created["organization"], hub.created["name"]) == ("me", "tiny")
    assert hub.created["visibility"] == visibility
    assert hub.summary == "First try"
    assert f"done ({visibility}): {hub.url}/me/tiny/commit/abc" in done.out
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert done.err == ""  # no bar is drawn where there is no terminal


def test_dry_run_lists_every_file_and_sends_nothing(hub, reranker_push, exported):
    done = reranker_push(hub.url, "--dry-run", HF_TOKEN="")
    assert done.code == 0, done.err
    files = on_disk(exported)
    assert [line.split()[1:] for line in done.out.splitlines() if " bytes " in line] == [
        [f"{len(files[name]):,}", "bytes", name] for name in sorted(files)
    ]
    assert "me/tiny (private); nothing was sent" in done.out
    assert hub.requests == []


@pytest.fixture(scope="module")
def refused(exported: tuple[Path, Path]) -> dict[str, Done]:
    """What the command says to each repository that the server refuses."""
    names = [f"me/{name}" for name in Hub.refuses]
    words = (exported[0], "--runs", exported[1], "--force")
    with serving() as server:
        answers = push_all(server.url, names, *words, HF_HUB_DISABLE_PROGRESS_BARS="1")
        assert server.files == {}
    return dict(zip(Hub.refuses, answers, strict=True))


@pytest.mark.parametrize(
    ("repository", "parts"),
    [
        ("expired", ["401", "token is not valid", "`hf auth login`", "Invalid username or password"]),
        ("foreign", ["403", "no write permission there", "choose a repository", "You don't have the rights to create"]),
        ("broken", ["500", "working hard to fix this"]),
        ("bad-card", ["README.md", '"base_model" is not a valid Hub id']),
        ("quota", ["No quota"]),
        ("full", ["403", "Storage limit reached"]),
        ("gone", ["404", "does not exist", "Repository not found"]),
        ("moved", ["412", "A commit has happened since"]),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence_with_its_message(refused, repository, parts):
    assert_one_sentence(refused[repository], "push", f"me/{repository}", *parts)


def test_an_existing_private_repository_takes_the_upload(hub, reranker_push, exported):
    hub.repository = {"private": True}
    done = reranker_push(hub.url)
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported)


def test_a_second_push_deletes_files_of_the_first_and_keeps_files_of_others(hub, reranker_push, exported):
    hub.repository = {"private": True}
    old = ["onnx/model.onnx.data", "onnx/old.onnx", "model-00001-of-00002.safetensors", "vocab.txt", "modeling_mine.py"]
    others = ["LICENSE", ".gitattributes", "pictures/table.png", "evaluation/results.json", "notes/config.md"]
    hub.files = dict.fromkeys([*old, *others, "config.json", "README.md"], b"of the first push")
    done = reranker_push(hub.url)
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported) | dict.fromkeys(others, b"of the first push")
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_a_private_repository_stays_private_and_is_reported_as_it_is(hub, reranker_push, exported):
    hub.repository = {"private": True}
    done = reranker_push(hub.url, "push.private=false")
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported)
    assert "existed already and is private" in done.out
    assert "done (private): " in done.out
    assert "(public)" not in done.out


def test_nothing_private_goes_into_an_existing_public_repository(hub, reranker_push):
    hub.repository = {"private": False}
    assert_one_sentence(reranker_push(hub.url), "push.private", "me/tiny", "public")
    assert hub.files == {}


def test_no_token_is_one_sentence_and_no_request(hub, reranker_push):
    done = reranker_push(hub.url, HF_TOKEN="")
    assert_one_sentence(done, "push", "no Hugging Face token", "`hf auth login`", "HF_TOKEN")
    assert hub.requests == []


def test_a_token_with_invalid_characters_is_one_sentence_that_does_not_show_it(hub, reranker_push):
    assert_one_sentence(reranker_push(hub.url, HF_TOKEN=f"{TOKEN}é"), "push", "token", "ASCII")
    assert hub.requests == []


def test_no_network_is_one_sentence_that_names_the_endpoint(reranker_push):
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert_one_sentence(reranker_push(endpoint), "push", endpoint, "cannot be reached", "network")


def test_offline_mode_is_named_as_the_reason(hub, reranker_push):
    assert_one_sentence(reranker_push(hub.url, HF_HUB_OFFLINE="1"), "push", "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_a_name_that_the_client_refuses_is_one_sentence_and_no_request(hub, exported):
    names = ["me/-tiny", "me/a..b", "me/tiny.git"]
    answers = push_all(hub.url, names, exported[0], "--runs", exported[1], "--force")
    for name, done in zip(names, answers, strict=True):
        assert_one_sentence(done, "push.repository", name)
    assert hub.requests == []


@pytest.mark.parametrize("repository", ["tiny", "me/tiny/too", "me/ti ny", ""])
def test_a_name_that_is_not_owner_and_name_is_a_fault_of_the_recipe(exported, repository):
    with pytest.raises(RecipeError, match=r"push\.repository"):
        load_recipe(exported[0], [f"push.repository='{repository}'"])


def test_a_recipe_without_the_section_cannot_push(exported):
    recipe, runs = exported
    with pytest.raises(RecipeError, match="no push section; add `push:`"):
        push_run(load_recipe(recipe), runs, force=True)


def test_a_run_that_was_never_exported_refuses(hub, reranker_push, exported, tmp_path):
    shutil.copytree(exported[1], tmp_path / "runs", ignore=shutil.ignore_patterns("export"))
    done = reranker_push(hub.url, "--runs", tmp_path / "runs")
    assert_one_sentence(done, "push", str(tmp_path / "runs" / "exported" / "export"), "run the recipe first")
    assert hub.requests == []


def test_an_export_of_another_recipe_is_not_pushed(exported):
    recipe, runs = exported
    changed = load_recipe(recipe, ["train.learning_rate=3e-4", "push.repository=me/tiny"])
    with pytest.raises(RunError, match="does not contain this recipe's exported model"):
        push_run(changed, runs, dry_run=True, force=True)


# Dev scores: first stage, base before training, trained. The worst to beat is the first stage where the base is an
# encoder, since its untrained head is nobody's model, and the better of both where the base is a reranker.
@pytest.mark.parametrize(("verdict", "refused"), [(BETTER, False), (ONLY_FUSED, False), (UNCLEAR, True), (WORSE, True)])
def test_only_a_model_that_dev_shows_to_be_better_is_pushed_unforced(exported, tmp_path, capsys, verdict, refused):
    recipe = load_recipe(exported[0], ["push.repository=me/tiny"])
    opened = open_run(recipe, tmp_path)
    opened.records["evaluate"].finish(verdict=verdict, judged=f"{verdict}: on dev, alone -0.1")
    opened.records["export"].finish()
    if refused:
        with pytest.raises(NotBetterError, match=f"export: {verdict}: on dev, alone -0.1, so .*--force") as error:
            push_run(recipe, tmp_path, dry_run=True)
        assert error.value.exit_code == 3
    push_run(recipe, tmp_path, dry_run=True, force=refused)
    said = capsys.readouterr().out
    assert "nothing was sent" in said
    assert ("; forced" in said) == refused


def test_hidden_files_are_not_pushed(tmp_path):
    for name in ("onnx/model.onnx", "config.json", ".partial", ".cache/notes.json", "onnx/.swap"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    assert files_to_push(tmp_path) == [("config.json", 4), ("onnx/model.onnx", 4)]


def test_push_without_a_token_raises_for_callers_in_python(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(PushError, match="no Hugging Face token"):
        upload(Push(repository="me/tiny"), tmp_path)


def test_what_is_pushed_contains_no_text_of_the_collection(exported):
    recipe, runs = exported
    texts = [
        json.loads(line)["text"].encode()
        for name in ("corpus.jsonl", "queries.jsonl")
        for line in (recipe.parent / "set" / name).read_text().splitlines()
    ]
    folder = runs / "exported" / "export" / "model"
    pushed = {name: (folder / name).read_bytes() for name, _ in files_to_push(folder)}
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= pushed.keys()
    assert not [name for name, content in pushed.items() for text in texts if text in content]
    written = (runs / "exported" / "evaluate" / "queries.jsonl").read_bytes()  # which is not among them
    assert any(text in written for text in texts)
