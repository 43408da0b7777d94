"""The commands: what they print, where, and with which exit code."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from trainer import __version__
from trainer.commands.apps import EXIT_CODES
from trainer.commands.cli import _guarded, reranker_app, train_app, train_command
from trainer.commands.recipe_commands import STEPS
from trainer.errors import DataError, NotBetterError
from trainer.pipeline import PUSH, STAGES
from trainer.recipe import Recipe, schema_table, sections
from trainer.runtime import console

HEAVY = {"accelerate", "datasets", "faiss", "pyarrow", "sentence_transformers", "torch", "transformers", "wandb"}
SIX_FAULTS = """name: two words
data:
  path: nowhere
retriever:
  kind: hybird
train:
  batch_size: 8
  epochs: -1
evaluate:
  metrics: [ndgc@10]
"""
SIX_PLACES = [
    "1: name: ",
    "3: data.path: no such file or folder: 'nowhere'",
    "5: retriever.kind: ",
    "7: train.batch_size: ",
    "8: train.epochs: ",
    "10: evaluate.metrics: ",
]


@pytest.fixture
def six_faults(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("six.yaml").write_text(SIX_FAULTS)
    return Path("six.yaml")


def script(name: str) -> str:
    """Path of an installed command."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed beside {sys.executable}"
    return found


# Check


def test_check_prints_all_six_faults_of_a_recipe_in_order(call, six_faults):
    answer = call("reranker", "check", six_faults)
    lines = answer.err.splitlines()
    assert answer.code == 2
    assert answer.out == ""
    assert len(lines) == 6
    for line, place in zip(lines, SIX_PLACES, strict=True):
        assert line.startswith(f"six.yaml:{place}")


def test_check_answers_in_under_a_second_of_work(six_faults):
    command, seconds = [script("reranker"), "check", "six.yaml"], []
    for _ in range(2):  # the first one warms up
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(command, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 6), ended.stderr
    assert min(seconds) < 1, seconds


def imported_by(*words: str | Path) -> tuple[int, set[str]]:
    """Exit code of `reranker word ...`, and the packages that it imported."""
    program = (
        "import sys\n"
        "from trainer.__main__ import reranker\n"
        "try:\n    reranker()\n"
        "finally:\n    print('imported', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    return ended.returncode, set(ended.stdout.splitlines()[-1].split())


def test_check_imports_nothing_heavy_where_there_are_faults(six_faults):
    code, imported = imported_by("check", six_faults)
    assert code == 2
    assert {"trainer", "yaml"} <= imported
    assert not imported & HEAVY


def test_check_imports_nothing_heavy_once_the_models_are_measured(call, recipe_file, tmp_path):
    words = ("check", recipe_file, "--runs", tmp_path / "runs")
    first = call("reranker", *words)
    assert (first.code, first.err) == (0, "")
    assert "minutes" in first.out
    assert "training needs about" in first.out
    code, imported = imported_by(*words)
    assert code == 0
    assert {"trainer", "yaml"} <= imported
    assert not imported & HEAVY


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_import_neither_models_nor_recipes(option):
    code, imported = imported_by(option)
    assert code == 0
    assert {"trainer", "typer"} <= imported
    assert not imported & (HEAVY | {"numpy", "scipy", "pydantic", "yaml", "huggingface_hub", "jinja2"})


def test_check_tells_what_a_good_recipe_is_about(call, recipe_file):
    answer = call("reranker", "check", recipe_file)
    assert (answer.code, answer.err) == (0, "")
    assert "40 documents; judged queries: 24 train, 8 dev, 8 test" in answer.out
    assert "8 dev queries are too few to compare models reliably" in answer.out
    assert f"{recipe_file} can run" in answer.out


def test_a_path_with_brackets_is_printed_as_it_is(call, recipe_file):
    odd = recipe_file.rename(recipe_file.with_name("[red]odd.yaml"))
    assert "[red]odd.yaml can run" in call("reranker", "check", odd).out


def test_check_judges_model_run_file_and_data_together(call, recipe_file, beir):
    (beir / "qrels/dev.tsv").write_text("q-probe-3\tnowhere\t1\n")
    answer = call(
        "reranker", "check", recipe_file, "reranker.model=./no-model", "retriever.kind=run", "retriever.run=no.trec"
    )
    assert answer.code == 2
    for said in ("model './no-model'", "no such file: no.trec", "document 'nowhere' is not in"):
        assert said in answer.err


def test_check_shows_every_key_even_on_a_narrow_terminal(call, monkeypatch):
    monkeypatch.setattr(console.console, "width", 80)
    answer = call("reranker", "check", "--schema")
    first_words = [match[1] for line in answer.out.splitlines() if (match := re.match(r"\W*(\w+)", line))]
    assert answer.code == 0
    for name, section in {"recipe": Recipe, **sections()}.items():
        for key in section.model_fields:
            assert key in first_words, f"{name}: {key}"


def test_check_shows_every_default_and_meaning_on_a_wide_terminal(call, monkeypatch):
    monkeypatch.setattr(console.console, "width", 500)
    out = call("reranker", "check", "--schema").out
    for shown in ("[nDCG@10, RR@10, R@50]", "[onnx]", "sentence-transformers/all-MiniLM-L6-v2", "required"):
        assert shown in out
    for section in sections().values():
        for _, _, meaning in schema_table(section):
            assert meaning in out


# Exit codes


def test_train_with_bad_data_ends_with_2_and_no_traceback(command, recipe_file, beir, tmp_path):
    with (beir / "corpus.jsonl").open("a") as file:
        file.write("not json\n")
    (beir / "qrels/test.tsv").write_text("q-probe-0\tprobe-0\t1\n")
    ended = command(recipe_file, "--runs", tmp_path / "runs")
    assert ended.returncode == 2
    assert f"{beir}/corpus.jsonl:41: not valid JSON" in ended.stderr
    assert f"{beir}/qrels/test.tsv:1: query 'q-probe-0' is in two splits" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train nowhere.yaml", "nowhere.yaml: no such recipe"),
        ("train RECIPE train.epochs", "command line: 'train.epochs' is not an override"),
        ("train RECIPE trian.epochs=3", "command line: trian: no such key; did you mean train?"),
        ("train RECIPE data.path=nowhere", "nowhere: no such folder"),
        ("train RECIPE reranker.model=./nowhere", "model './nowhere': no such folder"),
        ("train RECIPE reranker.model=package:no_such/model", "the Python package 'no_such' is not installed"),
        ("train RECIPE retriever.kind=run retriever.run=no.trec", "retriever.run: no such file: no.trec"),
        ("reranker check", "check: name a recipe, or use --schema"),
        ("reranker mine nowhere.yaml", "nowhere.yaml: no such recipe"),
        ("reranker push RECIPE", "push: the recipe has no push section"),
        ("reranker push RECIPE push.repository=owner/name", "does not contain this recipe's exported model"),
        ("train", "Missing argument 'RECIPE'"),
        ("train RECIPE --epochs 3", "No such option: --epochs"),
        ("reranker mien RECIPE", "No such command 'mien'"),
    ],
)
def test_what_the_user_can_mend_ends_with_2_and_one_message(call, recipe_file, tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    answer = call(*(recipe_file if word == "RECIPE" else word for word in line.split()))
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "runs").exists()


def test_our_own_fault_ends_with_1_and_its_traceback():
    program = "from trainer.commands.cli import _guarded\n_guarded(lambda: 1 / 0)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_every_fault_is_one_line_on_standard_error_as_it_stands(capsys):
    faults = ["corpus.jsonl:1: [red]not[/red] markup", "corpus.jsonl:2: " + "long " * 100 + "end"]

    def fail() -> None:
        raise DataError(faults)

    with pytest.raises(SystemExit) as ended:
        _guarded(fail)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.splitlines() == faults


def test_of_several_processes_only_the_main_one_speaks(call, six_faults, monkeypatch):
    monkeypatch.setattr(console.console, "quiet", False)  # put back afterwards
    monkeypatch.setenv("RANK", "1")
    assert call("train", six_faults) == (2, "", "")
    monkeypatch.setattr(console.console, "quiet", False)
    monkeypatch.setenv("RANK", "0")
    answer = call("train", six_faults)
    assert (answer.code, len(answer.err.splitlines())) == (2, 6)


def test_control_c_ends_with_130_and_says_that_the_same_command_goes_on(tmp_path):
    # A recipe that is a pipe: the command is known to be at work once it has opened it, and waits there.
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from trainer.commands.cli import train_command\ntrain_command()"
    )
    words = [sys.executable, "-c", program, pipe]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:  # nobody reads yet
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        os.close(end)
    assert process.returncode == 130
    assert "run the same command again to resume from the last checkpoint" in err
    assert "Traceback" not in err


def stopped(program, **environment):
    """Exit code and standard error of a program that is sent Ctrl-C by itself."""
    program = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{program}"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )
    return ended.returncode, ended.stderr


STOPPED = "stopped; run the same command again to resume from the last checkpoint\n"


def test_control_c_while_the_command_is_imported_ends_in_one_line(tmp_path):
    (tmp_path / "typer.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(9)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert stopped("from trainer.__main__ import train\ntrain()", PYTHONPATH=path) == (130, STOPPED)


@pytest.fixture
def ctrl_c(monkeypatch):
    """Send Ctrl-C to this process, as from a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_control_c_that_an_import_turns_into_another_error_is_still_one_line(ctrl_c, capsys):
    def app():
        try:
            ctrl_c()
            time.sleep(9)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    with pytest.raises(SystemExit) as ended:
        _guarded(app)
    assert (ended.value.code, capsys.readouterr().err) == (130, STOPPED)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_control_c_ends_at_once():
    program = """
import os, time
from trainer.commands.cli import _guarded
def app():
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(9)
        except KeyboardInterrupt:
            pass  # somebody else's code swallows it
    print("never reached")
_guarded(app)
"""
    assert stopped(program) == (130, STOPPED)


def test_control_c_that_a_destructor_loses_ends_at_once():
    program = """
import os, time
from trainer.commands.cli import _guarded
class Kept:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(9)
def app():
    Kept()
    time.sleep(9)
_guarded(app)
"""
    assert stopped(program) == (130, STOPPED)


def test_a_file_that_ends_too_early_is_not_taken_for_the_end_of_the_input(monkeypatch):
    def fail(path, overrides):
        raise EOFError("No data left in file")

    monkeypatch.setattr("trainer.recipe.load_recipe", fail)
    monkeypatch.setattr(sys, "argv", ["train", "r.yaml"])
    with pytest.raises(RuntimeError, match="a file ends too early: No data left in file"):
        train_command()


def test_measured_and_not_better_has_an_exit_code_of_its_own(capsys):
    def refuse():
        raise NotBetterError("export: dev nDCG@10 0.6 is no better")

    with pytest.raises(SystemExit) as ended:
        _guarded(refuse)
    assert (ended.value.code, capsys.readouterr().err) == (3, "export: dev nDCG@10 0.6 is no better\n")


def test_check_says_where_a_relative_path_was_looked_for(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/r.yaml").write_text("name: a\ndata: {path: set}\nretriever: {kind: bm25}\nreranker: {model: ./gone}\n")
    answer = call("reranker", "check", "sub/r.yaml")
    assert answer.code == 2
    assert "model './gone': no such folder" in answer.err
    assert "set: no such folder" in answer.err
    assert f"data.path: set does not exist in {tmp_path}/sub and {tmp_path}\n" in answer.err


def test_check_looks_at_the_run_folder(call, recipe_file, tmp_path):
    (tmp_path / "runs").touch()
    answer = call("reranker", "check", recipe_file, "--runs", tmp_path / "runs")
    assert answer.code == 2
    assert answer.err.startswith(f"{tmp_path}/runs: a file exists where a folder is needed")


@pytest.mark.parametrize("rounds", [1, 2])
def test_review_takes_the_list_of_the_last_round(call, recipe_file, tmp_path, rounds):
    name = "mine" if rounds == 1 else "mine-2"
    answer = call("reranker", "review", recipe_file, f"mine.rounds={rounds}", "--runs", tmp_path / "runs")
    assert answer.code == 2
    assert f"/tiny/{name}/suspected_false_negatives.jsonl is not there" in answer.err


# Steps


def test_reranker_alone_lists_its_commands(call):
    answer = call("reranker")
    for command in ("run", "init", "check", "compare", "runs", "show", "report", "review", "push", "clean", "serve"):
        assert re.search(rf"\b{command} ", answer.out + answer.err)


def test_an_unknown_stage_is_refused_with_the_names_of_all(call, recipe_file):
    answer = call("reranker", "run", recipe_file, "--until", "vocab")
    assert answer.code == 2
    assert "'vocab' is not a stage; " in answer.err.replace("\n", " ")
    assert all(name in answer.err for name in (*{stage.name for stage in STAGES}, PUSH))


@pytest.mark.parametrize("step", [["retrieve"], ["run", "--until", "retrieve"]])
def test_a_step_runs_the_recipe_up_to_itself_and_overrides_reach_it(call, recipe_file, tmp_path, step):
    answer = call("reranker", *step, recipe_file, "retriever.depth=7", "--runs", tmp_path / "elsewhere")
    assert answer.code == 0, answer.err
    assert f"stopped after retrieve, as requested; to continue: train {recipe_file}" in answer.out
    assert "bm25 (bm25 in english): 7 candidates for each" in answer.out
    left = {path.name for path in (tmp_path / "elsewhere/tiny").iterdir()}
    assert {"data", "retrieve"} <= left
    assert not {"mine", "train", "evaluate", "export"} & left


def test_steps_that_had_a_command_keep_it_and_it_says_that_it_uploads_nothing(call):
    for step in STEPS:
        answer = call("reranker", step, "--help")
        assert answer.code == 0
        text = " ".join(answer.out.split())
        assert f"up to the stage {step}, and upload nothing: short for `run --until {step}`." in text


@pytest.mark.parametrize("step", [["export"], ["run", "--until", "export"]])
def test_the_step_export_uploads_nothing_also_where_the_recipe_has_the_section(call, exported, monkeypatch, step):
    recipe, runs = exported
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    line = [recipe, "push.repository=me/model", "--force", "--runs", runs]
    answer = call("reranker", *step, *line)
    assert (answer.code, answer.err) == (0, "")
    assert f"nothing was uploaded; to upload: reranker push {runs / 'exported'}" in answer.out
    assert call("train", *line).err.startswith("push: ")  # the whole run asks for a token, or for the network


# Help, version, completion


def _commands():
    group = get_command(reranker_app)
    context = group.make_context("reranker", [], resilient_parsing=True)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {"train": get_command(train_app), "reranker": group, **found}


@pytest.mark.parametrize(
    ("name", "command"), _commands().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_every_option_is_explained_in_a_sentence(name, command):
    sentence = re.compile(r"[A-Z].*\.", re.DOTALL)
    assert sentence.fullmatch(command.help.strip()), name
    for option in command.params:
        assert sentence.fullmatch((option.help or "").strip()), f"{name}: {option.name}: {option.help!r}"


def test_help_ends_with_the_exit_codes(call):
    text = call("reranker", "--help").out
    end = " ".join(text.partition("Exit codes:")[2].split())
    assert end == " ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    assert list(EXIT_CODES) == [0, 1, 2, 3, 130]


@pytest.mark.parametrize("name", ["train", "reranker"])
def test_both_commands_know_their_version(call, name):
    assert call(name, "--version") == (0, f"domain-reranker {__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "typed", "offered"),
    [
        ("reranker", "reranker rev", {"review"}),
        ("reranker", "reranker run --until e", {"evaluate", "export"}),
        ("reranker", "reranker show --wo", {"--worst"}),
        ("train", "train --ver", {"--version", "--verbose"}),
    ],
)
def test_shells_complete_commands_options_and_stages(call, monkeypatch, name, typed, offered):
    monkeypatch.setenv(f"_{name.upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    answer = call(name)
    assert (answer.code, set(answer.out.split())) == (0, offered)


@pytest.mark.parametrize("name", ["train", "reranker"])
def test_the_script_for_completion_is_printed(call, monkeypatch, name):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    answer = call(name, "--show-completion", "bash")
    assert answer.code == 0
    assert f"_{name.upper()}_COMPLETE=complete_bash" in answer.out


# Quiet and verbose


def test_quiet_leaves_the_result_and_the_errors(call, recipe_file, six_faults):
    answer = call("reranker", "check", recipe_file, "--quiet")
    assert answer == (0, f"check     {recipe_file} can run\n", "")
    console.console.quiet = False
    answer = call("reranker", "check", six_faults, "-q")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 6)


def test_a_quiet_run_ends_with_the_verdict_alone(call, exported):
    recipe, runs = exported
    answer = call("train", recipe, "-q", "--force", "--runs", runs)
    assert (answer.code, answer.err, len(answer.out.splitlines())) == (0, "", 1)
    assert answer.out.startswith("evaluate  worse: on dev, the model alone +")
    console.console.quiet = False
    answer = call("train", recipe, "-q", "--runs", runs)
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (3, "", 1)


def test_a_verbose_run_ends_with_predicted_and_real_time_memory_and_folder_of_every_stage(call, exported, monkeypatch):
    recipe, runs = exported
    monkeypatch.setattr(console.console, "width", 500)
    answer = call("train", recipe, "--verbose", "--force", "--runs", runs)
    for stage in ("data", "retrieve", "mine", "train", "evaluate", "export"):
        assert re.search(rf"\b{stage} .* s .* s .*[kMG]B .*{runs}/exported/{stage}\b", answer.out)
