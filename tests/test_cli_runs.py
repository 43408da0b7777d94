"""The commands that take run folders: what they print of whole, unfinished and damaged runs, and what they delete."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from trainer.commands import run_folders
from trainer.commands.cli import reranker_command
from trainer.errors import TrainerError
from trainer.evaluation.results import Results
from trainer.model.teacher import Teacher
from trainer.pipeline import STAGES
from trainer.recipe import load_recipe
from trainer.retriever import BiEncoder
from trainer.runtime import console
from trainer.runtime.lock import hold

ALONE: Any = SimpleNamespace(num_processes=1)  # an accelerator, as far as it is asked
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def reranker(monkeypatch, capsys) -> Callable[..., Answer]:
    """`reranker(word, ...)` runs the command in this process, on a wide terminal."""
    monkeypatch.setattr(console.console, "width", 300)

    def call(*words: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["reranker", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            reranker_command()
        out, err = capsys.readouterr()
        return Answer(ended.value.code or 0, out, err)

    return call


@pytest.fixture
def runs(exported, tmp_path) -> Path:
    """A copy of the folder with the finished run, to be changed."""
    return Path(shutil.copytree(exported[1], tmp_path / "runs"))


@pytest.fixture
def run(runs) -> Path:
    """The copy of the finished run."""
    return runs / "exported"


def edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def files(folder: Path) -> dict[str, int]:
    """Name and size of every file below a folder, without the locks."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def assert_one_sentence(answer: Answer, *parts: str) -> None:
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1), answer
    for part in parts:
        assert part in answer.err


# Damage of every kind: what is done to the run, and the words with which it is shown.


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "record cut": (lambda run: cut_short(run / "train/done.json"), "train/done.json is damaged"),
    "record a list": (lambda run: (run / "data/done.json").write_text("[]"), "data/done.json is damaged"),
    "record a folder": (lambda run: _folder_at(run / "mine/done.json"), "mine/done.json is damaged"),
    "record of nothing": (lambda run: (run / "export/done.json").write_text('{"files": 7}'), "export/done.json is"),
    "weights cut": (lambda run: cut_short(run / "export/model/model.safetensors"), "model.safetensors differs in size"),
    "model gone": (lambda run: shutil.rmtree(run / "export/model"), "export/model/README.md is missing"),
    "results cut": (lambda run: cut_short(run / "evaluate/results.json"), "evaluate/results.json"),
    "results a list": (lambda run: (run / "evaluate/results.json").write_text("[]"), "evaluate: its files are damaged"),
    "results empty": (lambda run: (run / "evaluate/results.json").write_text("{}"), "evaluate: its files are damaged"),
    "results without systems": (lambda run: edit(run / "evaluate/results.json", systems={}), "its files are damaged"),
    "results of another kind": (lambda run: edit(run / "evaluate/results.json", systems=[1]), "its files are damaged"),
    "results gone": (lambda run: (run / "evaluate/results.json").unlink(), "evaluate/results.json"),
}
DAMAGES["model gone"] = (DAMAGES["model gone"][0], " is missing")


def _folder_at(path: Path) -> None:
    path.unlink()
    path.mkdir()


# reranker runs


def test_runs_shows_a_finished_run_with_its_figures(reranker, exported):
    answer = reranker("runs", "--runs", exported[1])
    results = Results.load(exported[1] / "exported/evaluate")
    first = results.systems["first_stage"]["nDCG@10"].mean
    assert (answer.code, answer.err) == (0, "")
    second = results.systems[results.shipped]["nDCG@10"].mean
    line, details = answer.out.splitlines()
    assert re.fullmatch(rf"exported +{results.verdict}, \d{{4}}-\d\d-\d\d \d\d:\d\d", line)
    figures = f"nDCG@10 {first:.3f} -> {second:.3f} ({second - first:+.3f})"
    assert re.fullmatch(rf" +set with bert; {re.escape(figures)}; [\d.]+ [kM]B", details)


def test_runs_as_json_are_one_document_also_when_quiet(reranker, exported):
    answer = reranker("runs", "--json", "-q", "--runs", exported[1])
    (listed,) = json.loads(answer.out)
    recipe = load_recipe(exported[0])
    assert (listed["name"], listed["state"], listed["stage"], listed["fault"]) == (
        "exported",
        "finished",
        "export",
        None,
    )
    assert (listed["data"], listed["base"]) == (str(recipe.data.path), recipe.reranker.model)
    assert listed["gain"] == pytest.approx(listed["shipped"] - listed["first_stage"])
    assert listed["bytes"] == sum(
        path.stat().st_size for path in (exported[1] / "exported").rglob("*") if path.is_file()
    )


def state(reranker, runs: Path, name: str = "exported") -> tuple[str, str | None]:
    answer = reranker("runs", "--json", "--runs", runs)
    assert (answer.code, answer.err) == (0, "")
    (listed,) = [one for one in json.loads(answer.out) if one["name"] == name]
    return listed["state"], listed["fault"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_runs_names_what_is_damaged(reranker, runs, run, damage):
    harm, said = DAMAGES[damage]
    harm(run)
    found, fault = state(reranker, runs)
    assert found == "damaged"
    assert fault is not None
    assert said in fault
    answer = reranker("runs", "--runs", runs)
    assert answer.code == 0
    assert f"exported: {fault}" in answer.out


def test_runs_tells_unfinished_running_and_outdated_runs_from_finished_ones(reranker, runs, run):
    for name in ("begun", "older"):
        shutil.copytree(run, runs / name)
    shutil.rmtree(runs / "begun/export")
    shutil.rmtree(runs / "begun/evaluate")
    (runs / "begun/train/done.json").unlink()
    edit(runs / "older/train/done.json", content="another")
    with hold(run / ".lock", "run"):
        states = {name: state(reranker, runs, name) for name in ("exported", "begun", "older")}
        table = reranker("runs", "--runs", runs).out
    assert states["exported"] == ("running", None)
    assert states["begun"] == ("unfinished", None)
    assert states["older"] == ("out of date", "of older inputs: evaluate; run the recipe again")
    assert re.search(r"begun .*unfinished, after mine", table)
    assert re.search(r"older .*\(out of date\)", table)


def test_a_run_whose_model_was_worse_is_finished_without_an_export(reranker, runs, run):
    assert Results.load(run / "evaluate").verdict == "worse"
    shutil.rmtree(run / "export")
    assert state(reranker, runs) == ("finished", None)


def test_runs_passes_over_what_is_no_run_and_says_where_there_is_none(reranker, tmp_path):
    (tmp_path / "runs/.embeddings/x").mkdir(parents=True)
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/list.txt").touch()
    answer = reranker("runs", "--runs", tmp_path / "runs")
    assert (answer.code, answer.out) == (
        0,
        f"runs      there are no runs in {tmp_path}/runs yet; train RECIPE makes one\n",
    )
    assert reranker("runs", "--json", "--runs", tmp_path / "runs").out == "[]\n"


@pytest.mark.parametrize("command", ["runs", "clean"])
def test_a_folder_that_holds_no_runs_is_named(reranker, exported, tmp_path, command):
    assert_one_sentence(reranker(command, "--runs", tmp_path / "no"), f"{tmp_path}/no: no such folder", "--runs")
    (tmp_path / "file").touch()
    assert_one_sentence(reranker(command, "--runs", tmp_path / "file"), "file: no such folder")
    one = exported[1] / "exported"
    assert_one_sentence(reranker(command, "--runs", one), f"{one}: is the folder of one run")


@pytest.mark.parametrize("value", [7, [], {"a": []}, None, "text", True, 1e999])
def test_odd_values_in_the_files_of_a_run_are_no_tracebacks(reranker, runs, run, value):
    edit(run / "evaluate/results.json", verdict=value, shipped=value)
    edit(run / "train/done.json", before=value, content=value, files=value)
    edit(run / "evaluate/recipe.json", data=value, reranker={"model": value})
    found, fault = state(reranker, runs)
    assert (found, bool(fault)) == ("damaged", True)
    assert reranker("runs", "--runs", runs).code == 0
    assert reranker("clean", "--runs", runs).code == 0
    for words in (["show"], ["show", "--query", "test-probe"], ["push", "--dry-run", "push.repository=me/tiny"]):
        assert reranker(words[0], run, *words[1:]).code in (0, 2, 3)


# reranker show


@pytest.fixture
def changed(run) -> Path:
    """The run with the queries' values changed: test-probe lost, test-disk and test-cert won."""
    path = run / "evaluate/queries.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        before, after = {"test-probe": (0.9, 0.3), "test-disk": (0.2, 0.5), "test-cert": (0.1, 0.9)}.get(
            record["id"], (0.5, 0.5)
        )
        record["scores"] |= {"first_stage": before, record["shipped"]: after}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.mark.parametrize("by_recipe", [False, True])
def test_show_gives_the_table_and_the_largest_changes(reranker, changed, exported, by_recipe):
    words = [exported[0], "--runs", changed.parent] if by_recipe else [changed]
    answer = reranker("show", *words)
    assert (answer.code, answer.err) == (0, "")
    for said in (
        Results.load(changed / "evaluate").sentence,
        "first stage",
        "ceiling",
        "2 better, 5 the same, 1 worse",
    ):
        assert said in answer.out
    rows = [
        re.split(r"\s*[│|]\s*", line.strip("│| ")) for line in answer.out.splitlines() if re.match("[│|] test-", line)
    ]
    assert [row[:4] for row in rows] == [
        ["test-probe", "0.900", "0.300", "−0.600"],
        ["test-cert", "0.100", "0.900", "+0.800"],
        ["test-disk", "0.200", "0.500", "+0.300"],
    ]
    assert rows[0][5].startswith("at night liveness probe restarts")


def test_show_worst_gives_so_many_losses_and_nothing_else(reranker, changed):
    answer = reranker("show", changed, "--worst", "3")
    assert [word for word in re.findall(r"test-\w+", answer.out)] == ["test-probe"]
    assert "ceiling" not in answer.out


def test_show_query_gives_one_query_with_its_documents_before_and_after(reranker, changed):
    answer = reranker("show", changed, "--query", "test-probe", "-q")
    assert (answer.code, answer.err) == (0, "")
    assert "test-probe: at night liveness probe restarts the container when its endpoint fails\n" in answer.out
    assert "nDCG@10 0.900 -> 0.300 (−0.600); first relevant 1 -> 1" in answer.out
    assert re.search(r"probe-0 +[│|] +1 +[│|] +1 +[│|] +relevant \(1\) ", answer.out)
    assert re.search(r"probe-1 .* not judged ", answer.out)


def test_show_names_the_nearest_query(reranker, run):
    assert_one_sentence(reranker("show", run, "--query", "test-prope"), "'test-prope'; did you mean test-probe?")


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name.startswith("results")])
@pytest.mark.parametrize("asked", [[], ["--worst", "1"], ["--query", "test-probe"]])
def test_show_of_damaged_results_is_one_sentence(reranker, run, damage, asked):
    DAMAGES[damage][0](run)
    assert_one_sentence(reranker("show", run, *asked), str(run))


@pytest.mark.parametrize("content", ["", '{"id": "cut', "[]\n", '{"id": 1}\n', '{"scores": {}, "id": "a"}\n'])
@pytest.mark.parametrize("asked", [["show"], ["show", "--query", "test-probe"], ["report"]])
def test_damaged_queries_are_one_sentence(reranker, run, content, asked):
    (run / "evaluate/queries.jsonl").write_text(content)
    assert_one_sentence(reranker(asked[0], run, *asked[1:]), str(run / "evaluate"))


def test_show_without_the_queries_is_one_sentence(reranker, run):
    (run / "evaluate/queries.jsonl").unlink()
    assert_one_sentence(reranker("show", run), f"queries.jsonl: is not there; reranker report {run} makes it again")


@pytest.mark.parametrize("command", ["show", "report", "push", "review"])
def test_what_is_no_run_is_told_in_one_sentence(reranker, runs, run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    near = "no such recipe and no such run; did you mean runs/exported?"
    assert_one_sentence(reranker(command, "exportde"), f"exportde: {near}")
    assert_one_sentence(reranker(command, "runs/exporte"), f"runs/exporte: {near}")
    assert_one_sentence(reranker(command, "empty"), "empty: is not the folder of a run; it has no stage of a run")
    assert_one_sentence(reranker(command, "runs"), "runs: is not the folder of a run; it holds the runs runs/exported;")


def test_overrides_of_a_run_that_is_only_shown_are_refused(reranker, run):
    assert_one_sentence(reranker("show", run, "mine.rounds=2"), "to which overrides do not apply; remove mine.rounds=2")


# Recipes in run folders


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_comes_back_from_a_run_folder_as_it_was(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parents[1])
    recipe = load_recipe(path, ["train.learning_rate=2e-05"])
    stage = tmp_path / "mine"
    stage.mkdir()
    (stage / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False))
    assert run_folders.recipe_in(tmp_path).model_dump() == recipe.model_dump()


def test_the_recipe_is_that_of_the_newest_finished_stage(run):
    for age, name in enumerate(["export", "mine", "evaluate"]):
        edit(run / name / "recipe.json", seed=age)
        os.utime(run / name / "done.json", (2e9 + age, 2e9 + age))
    assert run_folders.recipe_in(run).seed == 2
    (run / "evaluate/done.json").unlink()
    assert run_folders.recipe_in(run).seed == 1
    for path in run.glob("*/done.json"):
        path.unlink()
    os.utime(run / "export/recipe.json", (3e9, 3e9))
    assert run_folders.recipe_in(run).seed == 0


def test_a_recipe_of_another_version_in_a_run_is_told_with_its_key(run):
    edit(run / "export/recipe.json", minne={"depth": 3})
    with pytest.raises(TrainerError, match=r"export/recipe\.json:\d+: minne: no such key; did you mean mine\?"):
        run_folders.recipe_in(run)


def test_the_texts_of_a_score_come_from_recipe_run_or_folder(run, exported, beir):
    data = load_recipe(exported[0]).data
    assert run_folders.data_section(run) == run_folders.data_section(exported[0]) == data
    assert run_folders.data_section(beir).path == beir


def test_only_folders_of_stages_make_a_run(tmp_path):
    for stage in STAGES:
        run = tmp_path / stage.folder
        (run / stage.folder).mkdir(parents=True)
        assert not run_folders.is_run(run)  # begin would have written its records
        (run / stage.folder / "begun.json").touch()
        assert run_folders.is_run(run)
    assert not run_folders.is_run(tmp_path / "mine.0123abcd")


# reranker push RUN, review RUN


def test_push_of_a_run_needs_neither_recipe_nor_data_nor_its_name(reranker, run):
    moved = run.rename(run.with_name("renamed"))
    for path in moved.glob("*/recipe.json"):
        edit(path, data=json.loads(path.read_text())["data"] | {"path": "/nowhere"}, push={"repository": "me/tiny"})
    answer = reranker("push", moved, "--dry-run", "--force")
    assert (answer.code, answer.err) == (0, "")
    size = (moved / "export/model/model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in answer.out
    assert "would be uploaded to me/tiny (created as private if it does not exist); nothing was sent" in answer.out
    assert reranker("push", moved, "--dry-run", "push.repository=me/other", "--force", "-q").out.count("me/other") == 1


def test_push_of_a_run_keeps_the_gate(reranker, run):
    answer = reranker("push", run, "--dry-run", "push.repository=me/tiny")
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("export: worse: on dev, the model alone +")


def test_push_of_a_run_without_the_section_asks_for_the_repository(reranker, run):
    assert_one_sentence(reranker("push", run), f"reranker push {run} push.repository=OWNER/NAME")


@pytest.mark.parametrize("damage", ["record of nothing", "weights cut", "model gone"])
def test_push_of_a_damaged_export_sends_nothing(reranker, run, damage):
    DAMAGES[damage][0](run)
    answer = reranker("push", run, "push.repository=me/tiny", "--dry-run", "--force")
    assert answer.code == 2
    assert "nothing was sent" not in answer.out
    assert f"{run / 'export'} does not contain this recipe's exported model" in answer.err


def test_push_of_a_run_without_a_verdict_is_one_sentence(reranker, run):
    path = run / "evaluate/done.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "verdict"}))
    assert_one_sentence(reranker("push", run, "push.repository=me/tiny"), f"{run / 'evaluate'} holds no verdict")


def test_push_of_an_export_that_was_made_from_another_evaluation_sends_nothing(reranker, run):
    edit(run / "export/done.json", before="another")
    answer = reranker("push", run, "push.repository=me/tiny", "--dry-run", "--force")
    assert (answer.code, answer.out.count("nothing was sent")) == (2, 0)


def test_review_of_a_run_takes_the_newest_list(reranker, run, monkeypatch):
    line = {"query_id": "train-probe", "document_id": "probe-1", "query": "new one", "why": "rank 1"}
    (run / "mine-2").mkdir()
    (run / "mine-2/suspected_false_negatives.jsonl").write_text(json.dumps(line) + "\n")
    with (run.parent / "keys").open("w+") as keys:
        keys.write("y\n")
        keys.seek(0)
        monkeypatch.setattr(sys, "stdin", keys)
        answer = reranker("review", run)
    assert (answer.code, answer.err) == (0, "")
    assert "new one" in answer.out
    assert f"to train with them: train RECIPE data.judgements={run}/judgements.jsonl" in answer.out
    assert json.loads((run / "judgements.jsonl").read_text())["relevant"] is True


# reranker clean


@pytest.fixture
def untidy(runs, run, tiny, shared_beir) -> dict[str, Path]:
    """A folder of runs with something of everything; returns what can be deleted by name."""
    recipe = load_recipe(run / "export/recipe.json")
    bi_encoder = BiEncoder(tiny["bert"], recipe.retriever.max_length)
    needed = runs / ".embeddings" / bi_encoder.fingerprint("document")[:16]
    trained = Teacher(str(run / "train/best"), ALONE, runs / ".teachers", ALONE, max_length=32)._folder
    gone = {
        "older stage": run / "train.0123abcd",
        "damaged stage": run / "mine.damaged",
        "checkpoint": run / "train/checkpoint-0000003",
        "embeddings": runs / ".embeddings/0123456789abcdef",
        "teacher": runs / ".teachers/0123456789abcdef",
    }
    kept = [
        needed,
        trained,
        run / "train.yaml",
        run / "notes.0123abcd",
        run / "mine.2",
        runs / "other/mine/checkpoint-1",
    ]
    for folder in (*gone.values(), *kept):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_text("x" * 1000)
    for stage in ("older stage", "damaged stage"):
        (gone[stage] / "file").rename(gone[stage] / "recipe.json")  # by which a stage's folder is known
    shutil.copy(run / "mine/begun.json", runs / "other/mine/begun.json")
    return gone


def test_clean_lists_what_can_be_deleted_and_deletes_nothing(reranker, untidy, runs):
    before = files(runs)
    answer = reranker("clean", "--runs", runs)
    assert (answer.code, answer.err) == (0, "")
    for path in untidy.values():
        assert re.search(rf"{re.escape(str(path))} +[│|] +1.0 kB", answer.out)
    assert "5.0 kB can be freed; nothing was deleted; to delete it: --yes" in answer.out
    assert re.search(r"other .*unfinished, kept to continue from: mine \(", answer.out)
    assert files(runs) == before


def test_clean_deletes_what_it_listed_and_no_more(reranker, untidy, runs):
    before = files(runs)
    answer = reranker("clean", "--runs", runs, "--yes")
    assert (answer.code, answer.err) == (0, "")
    assert "5.0 kB freed" in answer.out
    names = {"older stage": "recipe.json", "damaged stage": "recipe.json"}
    lost = {str((path / names.get(kind, "file")).relative_to(runs)) for kind, path in untidy.items()}
    assert before.keys() - files(runs).keys() == lost
    assert not any(path.exists() for path in untidy.values())
    assert state(reranker, runs) == ("finished", None)
    assert "nothing can be deleted" in reranker("clean", "--runs", runs, "--yes").out


@pytest.mark.parametrize("asked", [[], ["--yes"]])
def test_clean_leaves_a_running_run_and_all_caches_alone(reranker, untidy, runs, run, asked):
    before = files(runs)
    with hold(run / ".lock", "run"):
        answer = reranker("clean", "--runs", runs, *asked)
    assert (answer.code, answer.err) == (0, "")
    assert "all caches are kept while exported is running" in answer.out
    assert "nothing can be deleted" in answer.out
    assert files(runs) == before


def test_clean_keeps_all_caches_where_a_run_does_not_say_which_it_needs(reranker, untidy, runs, run):
    (run / "retrieve/done.json").write_text("{}")
    (run / "retrieve/begun.json").write_text("{}")
    answer = reranker("clean", "--runs", runs, "--yes")
    assert "so all caches are kept" in answer.out
    assert untidy["embeddings"].exists()
    assert not untidy["older stage"].exists()


def test_clean_keeps_a_stage_that_is_still_moving_aside_from_a_linked_folder(reranker, runs, run, tmp_path):
    (run / "train").rename(tmp_path / "disk")
    (run / "train").symlink_to(tmp_path / "disk")
    (run / "train.0123abcd").mkdir()
    assert "nothing can be deleted" in reranker("clean", "--runs", runs, "--yes").out
    assert (run / "train.0123abcd").exists()


def test_clean_deletes_a_link_and_not_what_it_leads_to(reranker, runs, run, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (run / "mine.0123abcd").symlink_to(tmp_path / "precious")
    (run / "train/checkpoint-1").symlink_to(tmp_path / "precious")
    assert reranker("clean", "--runs", runs, "--yes").code == 0
    assert (tmp_path / "precious/file").exists()
