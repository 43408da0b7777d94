"""The recipe: all problems are reported at once, with line, key, value and the most similar valid word."""

import os
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from trainer import Recipe, load_recipe
from trainer.errors import RecipeError
from trainer.recipe import OPTIONAL_SECTIONS, Push, schema_table, sections

LEAST = "name: least\ndata:\n  path: somewhere\n"  # three lines, so what a test adds begins on line 4


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("somewhere", "a", "b", "c"):
        Path(name).mkdir()


def read(text, *overrides):
    path = Path("r.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides)


def faults(text, *overrides):
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    return caught.value.faults


def fault(text, *overrides):
    (only,) = faults(text, *overrides)
    return only


# What is right


def test_a_name_and_a_data_folder_are_enough():
    recipe = read(LEAST)
    assert (recipe.name, recipe.data.path) == ("least", Path("somewhere"))
    assert recipe == Recipe.model_validate({"name": "least", "data": {"path": "somewhere"}})


def test_every_default_passes_its_own_check():
    recipe = read(LEAST)
    # pydantic does not check defaults; written out and read again they are given values, and those are checked
    assert read(yaml.safe_dump(recipe.model_dump(mode="json"))) == recipe
    push = Push(repository="owner/name")
    assert read(yaml.safe_dump(recipe.model_dump(mode="json") | {"push": push.model_dump()})).push == push


def test_a_recipe_cannot_be_changed_once_it_is_read():
    with pytest.raises(ValidationError, match="frozen"):
        read(LEAST).train.epochs = 3


@pytest.mark.parametrize("text", [b"\xef\xbb\xbf" + LEAST.encode(), LEAST.replace("\n", "\r\n")], ids=["mark", "crlf"])
def test_a_byte_order_mark_and_windows_line_ends_are_fine(text):
    assert read(text) == read(LEAST)


@pytest.mark.parametrize("name", [name for name in sections() if name != "data"])
def test_a_section_whose_keys_are_all_commented_out_is_the_default(name):
    assert read(f"{LEAST}{name}:\n  # key: value\n") == read(LEAST)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert yaml.safe_load("2e-5") == "2e-5"  # YAML 1.1 wants 2.0e-5
    assert read(f"{LEAST}train:\n  learning_rate: 2e-5\n").train.learning_rate == 2e-5
    assert read(LEAST, "train.learning_rate=2e-5").train.learning_rate == 2e-5


@pytest.mark.parametrize("date", ["2026-01-31", "2026-13-45"])
def test_a_date_is_a_name_although_yaml_reads_it_as_a_date(date):
    assert read(LEAST.replace("least", date)).name == date
    assert read(LEAST, f"name={date}").name == date


def test_off_is_a_mode_although_yaml_reads_it_as_false():
    assert yaml.safe_load("off") is False
    assert read(f"{LEAST}track:\n  mode: off\n").track.mode == "off"
    assert read(f"{LEAST}track:\n  mode: online\n", "track.mode=off").track.mode == "off"


def test_the_best_20_candidates_are_reranked_unless_the_recipe_says_otherwise():
    assert read(LEAST).rerank_depth == 20
    assert read(f"{LEAST}retriever:\n  depth: 12\n").rerank_depth == 12
    assert read(f"{LEAST}retriever:\n  depth: 40\nreranker:\n  depth: 40\n").rerank_depth == 40
    assert read(f"{LEAST}retriever:\n  depth: 40\nreranker:\n  depth: 15\n").rerank_depth == 15


# All at once, with places


def test_problems_are_reported_by_line_and_those_of_the_command_line_last():
    text = """name: two words
data:
  path: somewhere
train:
  epochs: -1
  epohcs: 2
retriever:
  kind: hybird
  depth: 20
  depth: 30
"""
    told = faults(text, "mine.pick=best")
    assert [line.split(": ")[:2] for line in told] == [
        ["r.yaml:1", "name"],
        ["r.yaml:5", "train.epochs"],
        ["r.yaml:6", "train.epohcs"],
        ["r.yaml:8", "retriever.kind"],
        ["r.yaml:10", "retriever.depth"],
        ["command line", "mine.pick"],
    ]


def test_lines_are_ordered_as_numbers():
    told = faults(LEAST + "# a comment\n" * 5 + "a_key: 1\nb_key: 1\n")  # lines 9 and 10
    assert [line.split(": ")[0] for line in told] == ["r.yaml:9", "r.yaml:10"]


def test_a_missing_key_is_reported_at_its_section():
    assert fault("name: a\n") == "r.yaml:1: data: is required but missing"
    assert fault(f"{LEAST}push:\n  private: false\n") == "r.yaml:4: push.repository: is required but missing"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{LEAST}seed: 1\nmine:\nseed: 2\n", ["r.yaml:6: seed: given twice, first on line 4; keep one"]),
        (
            f"{LEAST}train:\n  epochs: 1\n  epochs: 1\n",
            ["r.yaml:6: train.epochs: given twice, first on line 5; keep one"],
        ),
        (f"{LEAST}train:\n  epochs: 1\nmine:\ntrain:\n", ["r.yaml:7: train: given twice, first on line 4; keep one"]),
    ],
    ids=["top", "in a section", "section"],
)
def test_a_key_given_twice_is_an_error_that_names_both_lines(text, told):
    assert faults(text) == told


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ("Train:\n  epochs: 3\n", "r.yaml:4: Train: no such key; did you mean train?"),
        ("train:\n  epoch: 3\n", "r.yaml:5: train.epoch: no such key; did you mean epochs?"),
        ("reranker:\n  max_lenght: 9\n", "r.yaml:5: reranker.max_lenght: no such key; did you mean max_length?"),
        ("export:\n  zzz: 3\n", "r.yaml:5: export.zzz: no such key; known here: formats, adapter"),
        ("epochs: 3\n", "r.yaml:4: epochs: no such key; did you mean train.epochs or distil.epochs?"),
        ("evaluate:\n  depth: 30\n", "r.yaml:5: evaluate.depth: is now reranker.depth"),
        ("mine:\n  layers: [0]\n", "r.yaml:5: mine.layers: no such key; did you mean reranker.layers?"),
    ],
)
def test_an_unknown_key_is_reported_with_the_most_similar_one_or_all(added, told):
    assert fault(LEAST + added) == told


@pytest.mark.parametrize(
    ("added", "place", "said"),
    [
        (
            "retriever:\n  kind: hybird\n",
            "r.yaml:5: retriever.kind: ",
            "'dense', 'bm25', 'hybrid' or 'run', got 'hybird'",
        ),
        ("retriever:\n  depth: 0\n", "r.yaml:5: retriever.depth: ", "greater than or equal to 1, got 0"),
        ("mine:\n  max_share_of_positive: 95\n", "r.yaml:5: mine.max_share_of_positive: ", "to 1, got 95"),
        ("train:\n  epochs: 1.5\n", "r.yaml:5: train.epochs: ", "got 1.5"),
        ("train:\n  learning_rate: -1e-4\n", "r.yaml:5: train.learning_rate: ", "greater than 0, got '-1e-4'"),
        ("train:\n  learning_rate: fast\n", "r.yaml:5: train.learning_rate: ", "got 'fast'"),
        ("train:\n  learning_rate: .nan\n", "r.yaml:5: train.learning_rate: ", "got nan"),
        ("train:\n  learning_rate: .inf\n", "r.yaml:5: train.learning_rate: ", "got inf"),
        ("train:\n  epochs: yes\n", "r.yaml:5: train.epochs: ", "got True"),
        ("seed: true\n", "r.yaml:4: seed: ", "got True"),
        ("track:\n  mode: on\n", "r.yaml:5: track.mode: ", "'off', 'offline' or 'online', got True"),
        ("train: 5\n", "r.yaml:4: train: ", "a section with keys of its own, got 5"),
        ("push:\n  repository: mine\n", "r.yaml:5: push.repository: ", "got 'mine'"),
        (
            "export:\n  formats: [onxx]\n",
            "r.yaml:5: export.formats: ",
            "'onnx', 'onnx-fused' or 'onnx-int8', got 'onxx'",
        ),
        ("retriever:\n  language: klingon\n", "r.yaml:5: retriever.language: ", "'klingon'"),
        ("retriever:\n  language: englisch\n", "r.yaml:5: retriever.language: ", "did you mean english?"),
    ],
)
def test_a_wrong_value_is_reported_with_line_key_and_value(added, place, said):
    told = fault(LEAST + added)
    assert told.startswith(place)
    assert said in told


def test_a_list_is_not_called_by_its_python_name():
    told = fault(f"{LEAST}evaluate:\n  metrics: nDCG@10\n")
    assert told.startswith("r.yaml:5: evaluate.metrics: ")
    assert "list" in told
    assert "tuple" not in told


@pytest.mark.parametrize(
    "metric",
    ["ndgc@10", "nDCG@", "R", "P@0", "nDCG(foo=2)@10", "AP(rel=0)", "SDCG@10", "__import__('os').getcwd()@3"],
)
def test_a_metric_that_cannot_be_measured_is_refused_before_anything_runs(metric):
    told = fault(f'{LEAST}evaluate:\n  metrics: [nDCG@10, "{metric}"]\n')
    assert told.startswith("r.yaml:5: evaluate.metrics: ")
    assert metric in told
    assert "e.g. nDCG@10" in told


def test_no_metric_at_all_is_refused():
    assert "name at least one metric" in fault(f"{LEAST}evaluate:\n  metrics: []\n")


@pytest.mark.parametrize("key", ["name", "seed"])
def test_a_key_without_a_value_is_not_given_back_as_a_mapping(key):
    text = "name: a\nseed: 1\ndata:\n  path: b\n".replace({"name": "name: a", "seed": "seed: 1"}[key], f"{key}:")
    told = fault(text)
    assert told.startswith(f"r.yaml:{1 if key == 'name' else 2}: {key}: ")
    assert "{}" not in told


# Contradictions


@pytest.mark.parametrize(
    ("added", "place", "said"),
    [
        ("retriever:\n  kind: run\n", "r.yaml:4: retriever.run: ", "run: my_engine.trec"),
        ("retriever:\n  kind: bm25\n  run: a.trec\n", "r.yaml:6: retriever.run: ", "but kind is bm25"),
        ("retriever:\n  run: a.trec\n", "r.yaml:5: retriever.run: ", "but kind is hybrid"),
        ("retriever:\n  depth: 20\nreranker:\n  depth: 21\n", "r.yaml:7: reranker.depth: ", "21 is more than"),
        ("reranker:\n  depth: 51\n", "r.yaml:5: reranker.depth: ", "51 is more than retriever.depth 50"),
        ("mine:\n  first_rank: 9\n  last_rank: 8\n", "r.yaml:6: mine.last_rank: ", "first_rank is 9, last_rank 8"),
        ("mine:\n  first_rank: 2000\n", "r.yaml:", "2000"),
        (
            "mine:\n  bm25_share: 0.5\n",
            "r.yaml:5: mine.bm25_share: ",
            "was removed; negatives come from the fused ranks",
        ),
        ("mine:\n  margin: 0.1\n", "r.yaml:5: mine.margin: ", "was removed; use mine.max_share_of_positive"),
        ("train:\n  loss: kl\n", "r.yaml:5: train.loss: ", "name one as mine.teacher"),
        ("reranker:\n  head: classifier\ndistil: {}\n", "r.yaml:6: distil: ", "with reranker.head: classifier"),
        ("distil:\n  depth: 1\n", "r.yaml:5: distil.depth: ", "greater than or equal to 2, got 1"),
        ("distil:\n  teacher: base\n", "r.yaml:5: distil.teacher: ", "a folder or an endpoint, got 'base'"),
        ("distil:\n  loss: listwise\n", "r.yaml:5: distil.loss: ", "'mse', 'margin_mse' or 'kl', got 'listwise'"),
    ],
    ids=[
        "run missing",
        "run with bm25",
        "run with default kind",
        "rerank deeper than retrieved",
        "rerank deeper than the default",
        "the window is empty",
        "window begins behind the default end",
        "quota of an engine that is not asked",
        "more shares than negatives",
        "distillation without a teacher",
        "distillation of what is standard",
        "lists of one",
        "no teacher",
        "labels in distillation",
    ],
)
def test_a_contradiction_is_reported_with_its_line_and_both_values(added, place, said):
    told = fault(LEAST + added)
    assert told.startswith(place)
    assert said in told


def test_a_contradiction_on_the_command_line_is_reported_there():
    told = fault(f"{LEAST}reranker:\n  max_length: 64\n", "reranker.depth=51")
    assert told.startswith("command line: reranker.depth: ")


def test_a_wrong_value_is_not_reported_again_as_a_contradiction():
    assert len(faults(f"{LEAST}retriever:\n  kind: rnu\n  run: a.trec\n")) == 1
    assert len(faults(f"{LEAST}retriever:\n  depth: 0\nreranker:\n  depth: 60\n")) == 1
    assert len(faults(f"{LEAST}mine:\n  first_rank: 0\n  last_rank: 5\n")) == 1


def test_equal_limits_are_no_contradiction():
    recipe = read(f"{LEAST}retriever:\n  depth: 20\nmine:\n  first_rank: 20\n  last_rank: 20\nreranker:\n  depth: 20\n")
    assert (recipe.mine.first_rank, recipe.rerank_depth) == (20, 20)
    assert read(f"{LEAST}retriever:\n  kind: run\n  run: a.trec\n").retriever.run == Path("a.trec")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("", "2: data.path: names no collection; give path: FOLDER, or corpus, queries and qrels, or pairs: FILE"),
        ("path: a\n  corpus: b", "4: data.corpus: path and corpus cannot be combined; keep one of them"),
        ("pairs: b\n  path: a", "3: data.pairs: path and pairs cannot be combined; keep one of them"),
        (
            "corpus: a\n  qrels: c",
            "2: data.queries: is missing: corpus, queries and qrels belong together; name its file",
        ),
        (
            "queries: a",
            "2: data.corpus: is missing: corpus, queries and qrels belong together; "
            "name its file (also missing: qrels)",
        ),
        ("path: a\n  dev: b", "4: data.dev: is not used with path, which has its own splits; remove one of them"),
        ("path: a\n  pairs_query: b", "4: data.pairs_query: is not used with path; remove one of them"),
        ("pairs: a\n  corpus_id: b", "4: data.corpus_id: is not used with pairs; remove one of them"),
        ("path: a\n  dev_share: 0.5\n  test_share: 0.5", "5: data.test_share: 0.5 and dev_share 0.5 leave nothing"),
        ("path: a\n  dev_share: 1", "4: data.dev_share: input should be less than 1, got 1"),
        ("pairs: []", "3: data.pairs: is an empty list; name at least one, or remove the key"),
    ],
)
def test_exactly_one_data_format_is_allowed(section, told):
    assert fault(f"name: a\ndata:\n  {section}\n").startswith(f"r.yaml:{told}")


def test_one_file_is_a_list_of_files():
    data = read("name: a\ndata:\n  pairs: a/*.csv\n  pairs_negatives: bad\n").data
    assert (data.pairs, data.pairs_negatives) == ((Path("a/*.csv"),), ("bad",))
    assert read("name: a\ndata:\n  pairs: [b.csv, c.csv]\n").data.pairs == (Path("b.csv"), Path("c.csv"))


def test_a_set_on_the_hub_is_a_path():
    data = read("name: a\ndata:\n  path: hub:owner/name\n  pairs_query: q\n").data
    assert (data.hub, data.title) == ("owner/name", "owner/name")
    assert read(LEAST).data.hub is None


# Overrides


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["train.epochs=3"], "train.epochs", 3),
        (["train.epochs=3", "train.epochs=4"], "train.epochs", 4),
        (["seed=7"], "seed", 7),
        (["name=other"], "name", "other"),
        (["data.path=else where"], "data.path", Path("else where")),
        (["evaluate.metrics=[AP, RR@5]"], "evaluate.metrics", ("AP", "RR@5")),
        (["mine.max_share_of_positive=null"], "mine.max_share_of_positive", None),
        (["reranker.trust_remote_code=true"], "reranker.trust_remote_code", True),
        (["push.repository=owner/name"], "push.repository", "owner/name"),
        (["push.repository=owner/name", "push.message=a = b"], "push.message", "a = b"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_override_replaces_the_value_of_the_file(overrides, key, value):
    found = read(f"{LEAST}train:\n  epochs: 2\n", *overrides)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_an_override_corrects_an_error_of_the_file():
    assert read(f"{LEAST}train:\n  epochs: 0\n", "train.epochs=1").train.epochs == 1


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epoch=3", "command line: train.epoch: no such key; did you mean epochs?"),
        ("trian.epochs=3", "command line: trian: no such key; did you mean train?"),
        ("epochs", "command line: 'epochs' is not an override; write section.key=value, e.g. train.epochs=3"),
        ("=3", "command line: '=3' is not an override; write section.key=value, e.g. train.epochs=3"),
        ("train.=3", "command line: 'train.=3' is not an override; write section.key=value, e.g. train.epochs=3"),
        ("train.a.b=3", "command line: 'train.a.b=3' is not an override; write section.key=value, e.g. train.epochs=3"),
        ("name.first=a", "command line: name.first: name is not a section"),
        ("train.epochs=[1", "command line: train.epochs: '[1' is not a YAML value; quote it"),
        ("seed=!!int x", "command line: seed: '!!int x' is not a YAML value; quote it"),
        ("train.epochs=-1", "command line: train.epochs: input should be greater than or equal to 0, got -1"),
        ("train={epochs: -1}", "command line: train.epochs: input should be greater than or equal to 0, got -1"),
    ],
)
def test_a_wrong_override_is_reported_on_the_command_line(override, told):
    assert fault(f"{LEAST}train:\n  epochs: 2\n", override) == told


# Files that are no recipe


def test_a_missing_recipe_is_reported_with_the_most_similar_name():
    Path("quickstart.yaml").touch()
    with pytest.raises(RecipeError, match=r"^quikstart.yaml: no such recipe; did you mean quickstart.yaml\?$"):
        load_recipe("quikstart.yaml")
    with pytest.raises(RecipeError, match=r"^nowhere/r.yaml: no such recipe; (?!did you mean)"):
        load_recipe("nowhere/r.yaml")


def test_a_dangling_link_is_not_reported_as_a_misspelt_name():
    Path("r.yaml").unlink(missing_ok=True)
    Path("r.yaml").symlink_to("moved.yaml")
    with pytest.raises(RecipeError, match="^r.yaml: is a link to moved.yaml, which does not exist; correct the link$"):
        load_recipe("r.yaml")


def test_a_recipe_is_utf8():
    assert fault("name: caf\xe9\n".encode("latin-1")).startswith("r.yaml: cannot be read as UTF-8 text: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("# nothing yet\n", 1),
        ("- name\n- data\n", 1),
        ("name\n", 1),
        ("name: a: b\n", 1),
        ("name: a\n\tseed: 1\n", 2),
        (f"{LEAST}seed: [1\n", 5),
        (f"{LEAST}---\n{LEAST}", 4),
        (f"{LEAST}seed: !number 3\n", 4),
        (f"{LEAST}seed: !!python/object/apply:os.getcwd []\n", 4),
        (f"{LEAST}train:\n  epochs: !!int x\n", 5),
        ("name: a\nseed: \x07\n", 2),
        (f"{LEAST}train: &loop\n  epochs: *loop\n", 5),
        (f"{LEAST}? [a, b]\n: 1\n", 4),
    ],
    ids=[
        "empty",
        "comment",
        "list",
        "text",
        "two colons",
        "tab",
        "open bracket",
        "two documents",
        "tag",
        "python tag",
        "int that is none",
        "control character",
        "holds itself",
        "key of two words",
    ],
)
def test_invalid_recipes_are_reported_with_their_line(text, line):
    for told in faults(text):
        assert told.startswith(f"r.yaml:{line}: ")
        assert "Node(" not in told


@pytest.mark.parametrize(
    "nested",
    [
        "[" * 3000,
        "[" * 3000 + "]" * 3000,
        "\n" + "- " * 3000 + "a",
        "{a: " * 2000 + "1" + "}" * 2000,
        "[" * 30 + "]" * 30,
    ],
)
def test_endless_nesting_is_reported(nested):
    assert "nested more than 20 levels deep" in fault(f"{LEAST}seed: {nested}\n")
    assert fault(LEAST, f"seed={nested}").startswith("command line: seed: ")


def bomb(levels):
    """A list of 9 times the list before, and so on."""
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    for level in range(1, levels):
        lines.append(f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize("levels", [6, 18])
def test_aliases_that_repeat_too_much_are_reported_at_once(levels):
    text = f"{LEAST}{bomb(levels)}\ntrain:\n  epochs: *x{levels - 1}\n"
    assert "its aliases (*) repeat more than 5,000 values" in fault(text)


def test_aliases_that_nest_too_deep_are_reported():
    assert "nested more than 20 levels deep" in fault(f"{LEAST}{bomb(60)}\ntrain:\n  epochs: *x59\n")


def test_aliases_of_a_few_values_are_fine():
    assert read(f"{LEAST}mine: {{last_rank: &n 20}}\nretriever: {{depth: *n}}\n").retriever.depth == 20


def test_messages_are_short_whatever_the_value():
    for given in ("a" * 100_000, "[" + "a, " * 1_000 + "a]", "0x" + "f" * 20_000, '"' + "\\e" * 5000 + '"'):
        for key in ("train.epochs", "retriever.kind", "evaluate.metrics", "retriever.language", "a" * 3000):
            section, _, name = key.partition(".")
            told = faults(f"{LEAST}{section}: {{{name}: {given}}}\n" if name else f"{LEAST}{key}: {given}\n")
            assert all(len(line) < 4000 for line in told), [len(line) for line in told]
    assert len(fault(f"{LEAST}train:\n  epochs: {'a' * 100_000}\n")) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST.replace("least", "a" * 101), "1: name: string should have at most 100 characters"),
        (f"{LEAST}seed: 4294967296\n", "4: seed: input should be less than or equal to 4294967295, got 4294967296"),
        (f"{LEAST}seed: 1e20\n", "4: seed: "),
        (f"{LEAST}reranker:\n  model: {'a' * 5000}\n", "5: reranker.model: has 5,000 characters, more than 4,096"),
        ('name: a\ndata:\n  path: "a\\0b"\n', "3: data.path: holds a NUL character"),
        ('name: a\ndata:\n  pairs: ["a\\0b"]\n', "3: data.pairs: holds a NUL character"),
        ("name: a\ndata:\n  path: ~no-such-user/x\n", "3: data.path: ~no-such-user/x: there is no user 'no-such-user'"),
        (f"{LEAST}reranker:\n  model: ~no-such-user/x\n", "5: reranker.model: ~no-such-user/x: there is no user"),
    ],
    ids=["name", "seed", "seed of 1e20", "model", "NUL", "NUL in a list", "home", "home of a model"],
)
def test_values_beyond_the_limits_are_reported_with_their_line(text, said):
    assert fault(text).startswith(f"r.yaml:{said}")


def test_the_largest_seed_and_the_longest_name_are_fine():
    assert read(f"{LEAST}seed: 4294967295\n").seed == 2**32 - 1
    assert read(LEAST.replace("least", "a" * 100)).name == "a" * 100


def test_a_large_file_is_no_recipe():
    with pytest.raises(RecipeError, match="^/dev/zero: has more than 1,048,576 bytes, so it is not a recipe$"):
        load_recipe("/dev/zero")


def test_a_too_long_file_name_is_shortened_in_the_message():
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        load_recipe("a" * 5000)
    assert len(str(caught.value)) < 500


# Relative paths


@pytest.fixture
def apart():
    """A recipe in a folder of its own, with files beside it and others in the working directory."""
    for folder in ("sub/both", "sub/near", "both", "far"):
        Path(folder).mkdir(parents=True)
    for name in ("sub/a.csv", "sub/b.csv", "b.csv", "my.trec"):
        Path(name).touch()
    return Path("sub/r.yaml")


def test_relative_paths_are_resolved_from_the_recipe_then_the_working_directory(apart):
    for given, found in (("near", "sub/near"), ("both", "sub/both"), ("far", "far"), ("../far", "sub/../far")):
        apart.write_text(f"name: a\ndata: {{path: {given}}}\nreranker: {{model: {given}}}\n")
        recipe = load_recipe(apart)
        assert (recipe.data.path, recipe.reranker.model, recipe.tried) == (Path(found), found, ())
        assert load_recipe(apart.absolute()).data.path == apart.parent.absolute() / given or given == "far"


def test_relative_paths_of_overrides_are_resolved_from_the_working_directory_first(apart):
    apart.write_text("name: a\ndata: {path: near}\n")
    for given, found in (("both", "both"), ("near", "sub/near"), ("far", "far")):
        assert load_recipe(apart, [f"data.path={given}"]).data.path == Path(found)
    assert load_recipe(apart, ["data={pairs: [both, near]}"]).data.pairs == (Path("both"), Path("sub/near"))


def test_globs_lists_runs_data_sets_and_home_folders_are_resolved(apart, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    apart.write_text("name: a\ndata: {pairs: ['*.csv', b.csv]}\nretriever: {kind: run, run: my.trec}\n")
    recipe = load_recipe(apart)
    assert (recipe.data.pairs, recipe.retriever.run) == ((Path("sub/*.csv"), Path("sub/b.csv")), Path("my.trec"))
    assert load_recipe(apart, ["data={path: 'hub:near'}"]).data.hub == "sub/near"
    assert load_recipe(apart, ["data={path: 'hub:owner/name'}"]).data.hub == "owner/name"
    assert load_recipe(apart, ["data={path: ~/set}"]).data.path == Path("/home/of/mine/set")
    model = "package:near/model"
    assert load_recipe(apart, [f"reranker.model={model}"]).reranker.model == model


def test_the_searched_folders_are_reported(apart):
    apart.write_text("name: a\ndata: {path: nowhere}\n")
    here, there = Path.cwd(), Path.cwd() / "sub"
    assert load_recipe(apart).tried == (f"data.path: nowhere does not exist in {there} and {here}",)
    assert load_recipe(apart, ["data.path=gone"]).tried == (f"data.path: gone does not exist in {here} and {there}",)
    assert load_recipe(apart, ["data.path=/gone"]).tried == ()


# The schema as a table


def test_the_table_names_every_field_in_order_with_its_meaning():
    assert [name for name in Recipe.model_fields if name not in ("name", "seed")] == list(sections())
    for section in (Recipe, *sections().values()):
        rows = schema_table(section)
        assert [key for key, _, _ in rows] == list(section.model_fields)
        if section is not Recipe:
            assert all(meaning and "\n" not in meaning for _, _, meaning in rows)


def test_the_table_shows_defaults_as_one_would_write_them_in_a_recipe():
    least = read(LEAST)
    for name, section in sections().items():
        for key, default, _ in schema_table(section):
            if (
                default != "required" and name not in OPTIONAL_SECTIONS and (name, key) != ("data", "path")
            ):  # the least has one
                assert read(LEAST, f"{name}.{key}={default}") == least, f"{name}.{key}: {default}"
    defaults = {key: default for key, default, _ in schema_table(Push)}
    others = {"revision": "main", "tag": "null", "card": "refuse"}
    assert defaults == {"repository": "required", "private": "true", "message": "Add reranker"} | others


def test_a_folder_given_as_a_recipe_is_answered_with_what_to_name(tmp_path):
    run = tmp_path / "faq"
    for number, stage in enumerate(("data", "export")):
        (run / stage).mkdir(parents=True)
        (run / stage / "recipe.json").write_text("{}")
        os.utime(run / stage / "recipe.json", ns=(number, number))
    with pytest.raises(RecipeError, match=rf"{run}: is a folder, and not a recipe; .* is {run}/export/recipe.json"):
        load_recipe(run)
    (tmp_path / "some.yaml").touch()
    with pytest.raises(RecipeError, match=f"it holds {tmp_path}/some.yaml"):
        load_recipe(tmp_path)
    for stage in ("data", "export"):
        (run / stage / "recipe.json").unlink()
    with pytest.raises(RecipeError, match=f"to make one: reranker init {run}"):
        load_recipe(run)
