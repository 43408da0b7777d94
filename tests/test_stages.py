"""Stages: a new one is a file and a line, as docs/architecture.md says; and none leaves something else unnoticed."""

import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from trainer import pipeline
from trainer.context.run import Stage
from trainer.recipe import load_recipe

DOCS = Path(__file__).parents[1] / "docs" / "architecture.md"
GOLDEN = Path(__file__).with_name("golden_stages.json")


@pytest.fixture
def count(tmp_path) -> Stage:
    """The stage that docs/architecture.md writes, as somebody copies it into a file."""
    code = re.search(r"```python\n(\"\"\"Count:.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    path = tmp_path / "count_words.py"
    path.write_text(code[1])
    spec = spec_from_file_location("count_words", path)
    assert spec
    assert spec.loader
    module = sys.modules["count_words"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Count()


def test_the_stage_of_the_docs_is_added_by_one_line(count, exported, tmp_path, monkeypatch, capsys):
    first, *others = pipeline.STAGES
    monkeypatch.setattr(pipeline, "STAGES", [first, count, *others])
    recipe, runs = load_recipe(exported[0]), tmp_path / "runs"
    pipeline.run(recipe, runs, until="retrieve")
    documents = [json.loads(line) for line in (recipe.data.path / "corpus.jsonl").read_text().splitlines()]
    words = sum(len(document["text"].split()) for document in documents)
    assert json.loads((runs / "exported" / "count" / "words.json").read_text()) == words
    assert json.loads((runs / "exported" / "count" / "done.json").read_text())["words"] == words
    assert f"count     {words} words in 16 documents\n" in capsys.readouterr().out
    pipeline.run(recipe, runs, until="count")
    assert f"{words} words in 16 documents  (up to date)" in capsys.readouterr().out
    (runs / "exported" / "count" / "words.json").write_text("0")
    pipeline.run(recipe, runs, until="count")
    assert "words.json" in capsys.readouterr().out
    assert json.loads((runs / "exported" / "count" / "words.json").read_text()) == words


def test_every_stage_has_the_shape(exported):
    recipe = load_recipe(exported[0])
    names = [(stage.folder, stage.version, stage.processes) for stage in pipeline.STAGES]
    assert len({folder for folder, _, _ in names}) == len(names)
    for stage in pipeline.STAGES:
        assert stage.processes in ("all", "main")
        assert json.loads(json.dumps(stage.inputs(recipe), default=str)) is not None


def left_by(run: Path) -> dict[str, dict]:
    """What each stage of a finished run left, without what differs from machine to machine."""
    metrics = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "evaluate" / "results.json").read_text())
    opened = pipeline.open_run(load_recipe(run.parents[1] / "exported.yaml"), run.parent)
    collection = opened.collection
    groups = json.loads((run / "mine" / "groups.json").read_text())
    return {
        "data": {
            "ids": collection.document_ids[:4],
            "queries": collection.query_ids[:4],
            "texts": collection.passages([0]),
        },
        "retrieve": {split: opened.candidates(split).documents.tolist() for split in ("train", "dev", "test")},
        "mine": {"groups": [[group["query"], group["positives"], group["negatives"]] for group in groups]},
        "train": {"loss": [row["loss"] for row in metrics if "loss" in row], "steps": metrics[-1]["step"]},
        "evaluate": {system: values["nDCG@10"]["mean"] for system, values in results["systems"].items()},
        "export": {
            "files": sorted(str(path.relative_to(run)) for path in (run / "export").rglob("*") if path.is_file())
        },
    }


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(np.isclose(one, other, atol=2e-3)) if isinstance(one, float) else one == other


def test_a_stage_that_leaves_something_else_has_a_new_version(exported):
    """To record what the stages leave now, delete the file named in GOLDEN and run this test twice."""
    versions = {stage.name: stage.version for stage in pipeline.STAGES}
    left = left_by(exported[1] / "exported")
    if not GOLDEN.exists():
        golden = {name: {"version": versions[name], "left": values} for name, values in left.items()}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was written; look at the difference, and commit it")
    for name, recorded in json.loads(GOLDEN.read_text()).items():
        assert recorded["version"] == versions[name], f"{name}: {GOLDEN.name} is of another version; record it again"
        assert same(recorded["left"], left[name]), (
            f"{name} leaves something else: raise its version, and record it again"
        )
