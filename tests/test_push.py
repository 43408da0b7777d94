"""Push: the real Hub client against a loopback server that speaks the upload protocol and keeps the bytes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
import pytest
from loopback_hub import Hub, serving

from trainer.errors import NotBetterError, PushError, RecipeError, RunError
from trainer.evaluation.gate import BETTER, ONLY_FUSED, UNCLEAR, WORSE
from trainer.export.hub import EXPORTED, files_to_push, upload
from trainer.export.signature import is_unedited, signed
from trainer.model import Calibration, Reranker
from trainer.model.calibration import Platt
from trainer.pipeline import open_run
from trainer.pipeline import push as push_run
from trainer.pipeline import run as train
from trainer.recipe import Push, load_recipe

TOKEN = "hf_ThisMustNeverBePrinted"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


# `reranker WORDS` for each line, or `load NAME` for what Reranker.load makes of it; a process costs a second.
SCRIPT = """
import contextlib, io, json, sys, traceback
from trainer.commands.cli import reranker_command

def load(name, pairs):
    from trainer.model import Reranker
    model = Reranker.load(name)
    fusion, calibration = model.fusion, model.calibration
    print(json.dumps([model.score(pairs).tolist(), repr(fusion), repr(calibration)]))

for words in json.loads(sys.argv[1]):
    sys.argv = ["reranker", *words]
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            reranker_command() if words[0] != "load" else load(words[1], [tuple(pair) for pair in words[2]])
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
PAIRS = [("why does the probe restart", "liveness probe restarts the container"), ("memory", "disk")]


class Done(NamedTuple):
    code: int
    out: str
    err: str


def environment_of(endpoint: str, **variables: str) -> dict[str, str]:
    """The variables of a process that talks to the loopback Hub alone: the endpoint is read at import."""
    kept = {name: value for name, value in os.environ.items() if name[:3] != "HF_" and "proxy" not in name.lower()}
    kept |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nowhere", "HF_TOKEN": TOKEN}
    kept["HF_HUB_DISABLE_TELEMETRY"] = "1"  # else once a day, without the token, a list of tools is asked for
    return kept | variables


def run_all(endpoint: str, lines: list[list[object]], **variables: str) -> list[Done]:
    """What `reranker` answers to each line, in a process of its own."""
    words = [[word if isinstance(word, list) else str(word) for word in line] for line in lines]
    command = [sys.executable, "-c", SCRIPT, json.dumps(words)]
    done = subprocess.run(
        command, env=environment_of(endpoint, **variables), capture_output=True, text=True, timeout=240
    )
    assert TOKEN not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    return [Done(*json.loads(answer)) for answer in done.stdout.splitlines()]


def push_all(endpoint: str, names: list[str], *words: object, **variables: str) -> list[Done]:
    """What `reranker push` answers for each repository."""
    return run_all(endpoint, [["push", *words, f"push.repository={name}"] for name in names], **variables)


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
    assert hub.tags == {}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert done.err == ""  # no bar is drawn where there is no terminal


def test_dry_run_lists_every_file_and_sends_nothing(hub, reranker_push, exported):
    done = reranker_push(hub.url, "--dry-run", HF_TOKEN="")
    assert done.code == 0, done.err
    files = on_disk(exported)
    assert [line.split()[1:] for line in done.out.splitlines() if " bytes " in line] == [
        [f"{len(files[name]):,}", "bytes", name] for name in sorted(files)
    ]
    assert "me/tiny (created as private if it does not exist); nothing was sent" in done.out
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
    hub.files = dict.fromkeys([*old, *others, "config.json"], b"of the first push")
    hub.files["README.md"] = signed("# The card of the first push").encode()
    done = reranker_push(hub.url)
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported) | dict.fromkeys(others, b"of the first push")
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_a_second_push_with_fewer_formats_leaves_no_stale_file(hub, exported, tmp_path):
    recipe, runs = exported[0], shutil.copytree(exported[1], tmp_path / "runs")
    line = ["push", recipe, "--runs", runs, "--force", "push.repository=me/tiny"]
    (first,) = run_all(hub.url, [line])
    assert first.code == 0, first.err
    assert "onnx/model.onnx" in hub.files
    train(load_recipe(recipe, ["export.formats=[]"]), runs, force=True)  # runs the export again, and nothing before it
    (second,) = run_all(hub.url, [[*line, "export.formats=[]"]])
    assert second.code == 0, second.err
    assert [name for name in hub.files if name.startswith("onnx")] == []
    assert hub.files == on_disk((recipe, runs))
    assert len(hub.committed) == 2


def test_a_private_repository_stays_private_and_is_reported_as_it_is(hub, reranker_push, exported):
    hub.repository = {"private": True}
    done = reranker_push(hub.url, "push.private=false")
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported)
    assert "existed already and is private" in done.out
    assert "done (private): " in done.out
    assert "(public)" not in done.out


def test_a_push_sends_what_has_changed_and_a_push_without_changes_nothing(hub, exported):
    hub.repository = {"private": True}
    disk = on_disk(exported)
    hub.files = disk | {"config.json": b"{}", "vocab.txt": b"of an earlier export", "notes.txt": b"mine"}
    line = ["push", exported[0], "--runs", exported[1], "--force", "push.repository=me/tiny"]
    first, second = run_all(hub.url, [line, line])
    assert first.code == second.code == 0, first.err + second.err
    assert hub.committed == [["config.json"]]
    assert hub.uploads == {}  # no large file was sent
    assert hub.files == disk | {"notes.txt": b"mine"}
    assert "nothing has changed since the last push (private): " in second.out
    assert second.err == ""


def test_a_push_that_was_killed_sends_no_large_file_again(hub, exported):
    hub.hold = Event()
    line = ["push", *map(str, [exported[0], "--runs", exported[1]]), "--force", "push.repository=me/tiny"]
    started = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps([line])], env=environment_of(hub.url), stdout=subprocess.DEVNULL
    )
    assert hub.held.wait(60)  # the large files are there, the commit is not
    started.kill()
    started.wait()
    hub.hold.set()
    hub.hold = None
    assert len(hub.uploads) == 2
    assert hub.files == {}
    (done,) = run_all(hub.url, [line])
    assert done.code == 0, done.err
    assert hub.files == on_disk(exported)
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 2


def test_a_branch_and_a_tag_get_the_files_and_a_tag_is_not_moved(hub, exported):
    hub.files = {"LICENSE": b"mine"}
    line = ["push", exported[0], "--runs", exported[1], "--force", "push.repository=me/tiny"]
    words = ["push.revision=trial/second", "push.tag=v2.0"]
    first, again, other = run_all(hub.url, [[*line, *words], [*line, *words], [*line, "push.tag=v2.1", words[0]]])
    assert first.code == 0, first.err
    assert hub.files == {"LICENSE": b"mine"}
    assert hub.branches["trial/second"] == hub.tags["v2.0"] == on_disk(exported) | {"LICENSE": b"mine"}
    assert_one_sentence(again, "push.tag", "has a tag 'v2.0' already")
    assert other.code == 0, other.err  # nothing has changed, and the tag is new
    assert hub.tags["v2.1"] == hub.tags["v2.0"]
    assert len(hub.committed) == 1


@pytest.mark.parametrize("name", ["a b", "../up", "x..", "-x", "/x", "x/"])
def test_a_branch_or_tag_that_git_refuses_is_a_fault_of_the_recipe(exported, name):
    for key in ("revision", "tag"):
        with pytest.raises(RecipeError, match=rf"push\.{key}"):
            load_recipe(exported[0], ["push.repository=me/tiny", f"push.{key}={json.dumps(name)}"])


def test_a_card_that_someone_edited_is_kept_or_replaced_as_asked(hub, exported):
    hub.repository = {"private": True}
    hub.files = {"README.md": signed("# mine").encode() + b"and more"}
    line = ["push", exported[0], "--runs", exported[1], "--force", "push.repository=me/tiny"]
    refused, kept, replaced = run_all(hub.url, [line, [*line, "push.card=keep"], [*line, "push.card=replace"]])
    assert_one_sentence(refused, "push.card", "someone wrote or edited README.md", "push.card=keep")
    assert kept.code == replaced.code == 0, kept.err + replaced.err
    first, second = hub.committed
    assert "README.md" not in first
    assert "model.safetensors" in first
    assert second == ["README.md"]
    assert hub.files == on_disk(exported)


def test_an_exported_card_is_signed_and_an_edit_shows(exported):
    card = on_disk(exported)["README.md"].decode()
    assert is_unedited(card)
    assert is_unedited(card.replace("\n", "\r\n"))
    for edited in (card.replace("Results", "results"), card + "\nmore", "", card.rpartition("<!--")[0], f"x{card}"):
        assert not is_unedited(edited)


def test_every_file_of_an_export_is_deleted_by_the_next_one_that_lacks_it(exported):
    names = on_disk(exported).keys() - {"README.md"}  # is always replaced
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in EXPORTED)] == []


# Pull.


def test_a_pushed_model_comes_back_whole_with_fusion_and_calibration(hub, exported, tmp_path):
    model = shutil.copytree(exported[1] / "exported" / "export" / "model", tmp_path / "model")
    Calibration({1: Platt(0.5, -1.0)}).save(model)
    (model / "splits.json").unlink()  # is not pushed
    hub.files = {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    hub.tags, hub.repository = {"v1": dict(hub.files)}, {"private": True}
    hub.breaks, pulled = {"tokenizer.json"}, tmp_path / "mine"
    line = ["pull", "me/tiny", pulled]
    lines = [
        *[line] * 3,
        ["pull", "me/tiny", tmp_path / "tagged", "--revision", "v1"],
        ["pull", "me/tiny", tmp_path / "other", "--revision", "v9"],
        ["load", "me/tiny", PAIRS],
    ]
    broken, done, again, tagged, unknown, loaded = run_all(hub.url, lines, HF_HOME=str(tmp_path / "home"))
    assert_one_sentence(broken, "me/tiny", "refused the download", "not now")
    assert done.code == 0, done.err
    assert {str(path.relative_to(pulled)): path.read_bytes() for path in pulled.rglob("*") if path.is_file()} == (
        hub.files
    )
    gets = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert sum("model.safetensors" in request for request in gets) == 3  # not again after the fault
    said = "".join(done.out.split())  # a long path is broken at the width of the terminal
    assert f"in{pulled},withfusion,calibration,ONNX" in said
    assert_one_sentence(again, "pull", "exists already")
    assert tagged.code == 0, tagged.err
    assert_one_sentence(unknown, "me/tiny", "refused the download")
    assert not list(tmp_path.glob(".*"))
    assert loaded.code == 0, loaded.err
    scores, fusion, calibration = json.loads(loaded.out)
    ours = Reranker.load(model)
    np.testing.assert_allclose(scores, ours.score(PAIRS), rtol=0, atol=1e-6)
    assert (fusion, calibration) == (repr(ours.fusion), repr(ours.calibration))
    assert "None" not in (fusion, calibration)


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
