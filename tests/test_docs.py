"""The documents for people: commands parse, recipes load, links lead somewhere, examples run."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

import trainer
from trainer import errors, pipeline
from trainer.commands.cli import reranker_app, train_app
from trainer.errors import RecipeError, TrainerError
from trainer.recipe import load_recipe, sections

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
EXPECTED = (
    "own-data",
    "mining",
    "training",
    "evaluation",
    "serving",
    "recipe",
    "troubleshooting",
    "python",
    "benchmarks",
    "results",
)
APPS = {"train": train_app, "reranker": reranker_app}
# Programs of other people, whose options are not ours to check.
FOREIGN = {"cat", "curl", "docker", "git", "grep", "hf", "pip", "python3", "pytest", "ulimit", "wandb"}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)?=")
UsageError = typer.BadParameter.__bases__[0]  # of the click that this typer uses, which may be its own copy


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language; further words after it, as in `bash run`, select nothing here."""
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, without comments, continued lines joined."""
    for line in block.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word in ("&&", "|", ";"):
                yield words
                words = []
            elif words or not ASSIGNMENT.fullmatch(word):
                words.append(word)
        if words and words[0] != ".":
            yield words


def arguments(program: str, words: list[str]) -> dict[str, Any]:
    """Return what the real parser reads from a command of ours; raises UsageError or KeyError for a wrong one."""
    command: Any = typer.main.get_command(APPS[program])
    if hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(program, list(words), resilient_parsing=False).params


def check_commands(block: str) -> None:
    """Check every command of a shell block."""
    for words in commands(block):
        check_command(words)


def check_command(words: list[str]) -> None:
    """Raise for a command that its program would refuse, or that names a file of this repository that is not there."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program in APPS:
        given = arguments(program, rest)
        stages = {stage.name for stage in pipeline.STAGES} | {pipeline.PUSH}
        assert given.get("until", pipeline.PUSH) in stages, given["until"]
        overrides = given.get("overrides") or [word for word in given.get("words") or () if OVERRIDE.match(word)]
        check_recipe(given.get("recipe") or given.get("run"), overrides)
    elif program == "accelerate":
        options = launch_command_parser().parse_args(rest[1:])
        assert (ROOT / options.config_file).is_file(), options.config_file
        started = options.training_script if options.no_python else "train"
        check_command([started, *options.training_script_args])
    elif program == "torchrun":
        check_command(["train", *get_args_parser().parse_args(rest).training_script_args])
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), f"{rest[0]} is not there"
        recipes = [word for word in rest if word.endswith(".yaml")]
        check_recipe(Path(recipes[0]) if recipes else None, [word for word in rest if OVERRIDE.match(word)])
    elif program.startswith("scripts/"):
        assert (ROOT / program).stat().st_mode & 0o111, f"{program} cannot be run"
    else:
        assert program in FOREIGN, f"{program} is no program that is known here"


def check_recipe(path: Path | None, overrides: list[str]) -> None:
    """Load a recipe of this repository with its overrides; one of the reader's own is let be."""
    if path is not None and path.is_relative_to("recipes"):
        load_recipe(ROOT / path, overrides)


def anchors(text: str) -> set[str]:
    """Return the anchors that a code host makes of the headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", one).lower()).replace(" ", "-") for one in headings
    }


def dead_links(page: str, text: str) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def missing_paths(text: str) -> list[str]:
    """Return the paths into folders of this repository, named in code, that are not there."""
    named = re.findall(r"(?<![\w/.])((?:recipes|scripts|docs|tests|data/runbooks)/[\w./-]*\w)", text)
    return [name for name in named if not (ROOT / name).exists()]


def unknown_keys(text: str) -> list[str]:
    """Return the recipe keys in code, as in `train.epochs`, that no section has."""
    named = re.findall(rf"`({'|'.join(sections())})\.([a-z_]+)\b(?!\.?[/(])", text)
    files = {"jsonl", "json", "npz", "yaml", "csv"}
    return [f"{name}.{key}" for name, key in named if key not in sections()[name].model_fields and key not in files]


def test_the_documents_are_there():
    assert {f"docs/{name}.md" for name in EXPECTED} <= set(PAGES)


def test_readme_is_read_in_a_few_minutes():
    assert len(PAGES["README.md"].splitlines()) < 150


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_that_the_programs_know(page):
    for block in blocks(PAGES[page], "bash"):
        check_commands(block)


@pytest.mark.parametrize(
    "line",
    [
        "train recipes/quickstart.yaml trian.epochs=2",
        "train recipes/quickstart.yaml --epochs 2",
        "train recipes/no-such-recipe.yaml",
        "reranker mien recipes/quickstart.yaml",
        "reranker run recipes/quickstart.yaml --until mien",
        "reranker show recipes/no-such-recipe.yaml",
        "reranker push recipes/quickstart.yaml push.repo=me/my-reranker",
        "reranker compare recipes/quickstart.yaml some/model reranker.deepth=3",
        "KEY=... reranker serve runs/quickstart --prot 8080",
        "reranker check \\\n recipes/quickstart.yaml --no-such-option",
        "accelerate launch --no-such-option -m trainer recipes/quickstart.yaml",
        "accelerate launch --config_file no-such-file.yaml -m trainer recipes/quickstart.yaml",
        "torchrun --nproc-per-node 2 -m trainer recipes/quickstart.yaml trian.epochs=2",
        "python scripts/no_such_script.py",
        "python scripts/bench_quality.py recipes/cosqa.yaml reranker.deepth=10",
        "scripts/no-such-script",
        "cat file && rreranker check recipes/quickstart.yaml",
    ],
)
def test_a_command_that_would_be_refused_is_found(line):
    with pytest.raises((UsageError, RecipeError, KeyError, OSError, SystemExit, AssertionError)):
        check_commands(line)


def test_there_are_commands_to_check():
    lines = [words for text in PAGES.values() for block in blocks(text, "bash") for words in commands(block)]
    assert {"train", "reranker", "accelerate", "torchrun", "scripts/quickstart"} <= {words[0] for words in lines}


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_parts_of_recipes_load(page, tmp_path):
    for number, block in enumerate(blocks(PAGES[page], "yaml")):
        whole = block.startswith("name:")
        before = (
            ""
            if whole
            else "name: part\n" + ("" if re.search(r"^data:", block, re.MULTILINE) else "data: {path: set}\n")
        )
        path = tmp_path / f"{number}.yaml"
        path.write_text(before + block, encoding="utf-8")
        load_recipe(path)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert dead_links(page, PAGES[page]) == []


def test_a_dead_link_is_found():
    text = "# A heading: `code`, (1)\n[a](#a-heading-code-1) [b](#nowhere) [c](docs/no.md) [d](docs/recipe.md#no) [e](https://x.org/y)"
    assert anchors(text) == {"a-heading-code-1"}
    assert set(dead_links("README.md", text)) >= {"docs/no.md", "docs/recipe.md#no", "#nowhere"}


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_recipe_keys_exist(page):
    assert missing_paths(PAGES[page]) == []
    assert unknown_keys(PAGES[page]) == []


def test_a_wrong_path_or_key_is_found():
    text = "`scripts/nothing.py`, [x](../recipes/none.yaml), `runs/scripts/a`, `train.epoch: 2`, `train.epochs`"
    assert missing_paths(text.replace("../", "")) == ["scripts/nothing.py", "recipes/none.yaml"]
    assert unknown_keys(text) == ["train.epoch"]


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_are_python(page):
    for block in blocks(PAGES[page], "python"):
        ast.parse(block + "]" * (block.count("[") - block.count("]")))  # an excerpt may show the beginning of a list


def test_readme_imports_public_names_only():
    trees = [ast.parse(block) for block in blocks(PAGES["README.md"], "python")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes if node.module == "trainer" for alias in node.names}
    assert names
    assert names <= set(trainer.__all__)


def test_recipe_tables_are_those_of_the_schema(scripts):
    import recipe_table

    page = PAGES["docs/recipe.md"]
    assert recipe_table.replaced(page) == page, "run: python scripts/recipe_table.py"
    assert page.count("| `train.") == len(sections()["train"].model_fields)


def test_troubleshooting_has_every_family_of_errors_and_its_exit_code():
    page = PAGES["docs/troubleshooting.md"]
    families = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, TrainerError)}
    rows = re.findall(r"^\| `(\w+)` \| (\d) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((one.__name__, str(one.exit_code)) for one in families - {TrainerError})
    assert set(re.findall(r"^### .*`(\w+Error)`$", page, re.MULTILINE)) == {name for name, _ in rows}


@pytest.mark.slow
def test_runnable_examples_run(page_folder, tiny):
    """Run the blocks that begin with ```bash run, in one folder, on tiny models."""
    small = ["retriever.kind=bm25", f"reranker.model={tiny['bert']}", "reranker.max_length=32"]
    small += ["train.precision=fp32", "train.frozen_layers=0", "export.formats=[]"]
    done = []
    for name in EXPECTED:  # in the order of a reader: later pages use what earlier ones left
        page = PAGES[f"docs/{name}.md"].replace("```bash run", "```runnable")
        for block in blocks(page, "runnable"):
            for words in commands(block):
                run_here(words, small)
                done.append(words[0])
    assert {"train", "reranker"} <= set(done)


def run_here(words: list[str], small: list[str]) -> None:
    """Run a command in this process with further overrides, and by force: tiny models are not shown to be better."""
    program, *rest = words
    given = arguments(program, rest)
    of_recipe = "overrides" in given and any(word.endswith(".yaml") for word in rest)  # a run is taken as it is
    further = [*(small if of_recipe else []), *(["--force"] if "force" in given else [])]
    command: Any = typer.main.get_command(APPS[program])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", None)
        command.main([*rest, *further], prog_name=program, standalone_mode=False)


@pytest.fixture
def page_folder(tmp_path, beir, monkeypatch):
    """The working directory that the runnable examples expect: a folder `support` and the recipe of the quickstart."""
    beir.rename(tmp_path / "support")
    (tmp_path / "recipes").mkdir()
    quickstart = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipes" / "quickstart.yaml").write_text(quickstart.replace("data/runbooks", "support"))
    (tmp_path / "lists.jsonl").write_text('{"query": "disk", "documents": ["disk shows free space", "expired"]}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path
