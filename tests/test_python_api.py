"""The public API: its names and signatures, and the notebook of docs/python.md, run from top to bottom."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import trainer
from trainer import RunResult

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

SIGNATURES = {
    "run": "(recipe, runs='runs', *, until='push', force=False)",
    "load_recipe": "(path, overrides=())",
    "mine": "(collection, first_stage=None, *, teacher=None, seed=13, runs='runs', **settings)",
    "evaluate": "(collection, reranker, first_stage=None, *, split='test', depth=20, "
    "metrics=('nDCG@10', 'RR@10', 'R@50'), seed=13, runs='runs')",
    "Collection.from_memory": "(documents, queries, qrels, **settings)",
    "Reranker.load": "(reference, *, device=None, precision=None, engine='torch', max_length=None, "
    "trust_remote_code=False, head='auto', layers=None, "
    "prompting=Prompting(template=None, instruction=None, tokens=()))",
    "Reranker.rank": "(self, query, documents, *, top_k=None, first_stage_scores=None, first_stage=None)",
    "Reranker.score": "(self, pairs)",
}


def test_public_names():
    assert sorted(trainer.__all__) == [
        *("Collection", "Recipe", "Reranker", "RunResult", "TrainerError"),
        *("evaluate", "load_recipe", "mine", "run"),
    ]
    assert all(getattr(trainer, name).__module__.startswith("trainer.") for name in trainer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Rerankers'"):
        trainer.Rerankers  # noqa: B018


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    first, *rest = name.split(".")
    function = getattr(trainer, first)
    for part in rest:
        function = getattr(function, part)
    parameters = inspect.signature(function).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]


def test_what_a_result_offers():
    offered = {name for name in vars(RunResult) if not name.startswith("_")} | set(RunResult.__annotations__)
    assert offered == {"folder", "refused", "results", "table", "queries", "verdict", "passed", "model_folder"}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, models_of):
    """The names that the page leaves when its blocks run in order, with a tiny model for MODEL, and what it prints."""
    root = tmp_path_factory.mktemp("notebook")
    words = sorted(set(re.findall(r"[a-z]+", PAGE.lower())))
    tiny = models_of(root / "models", words)["reranker"]
    names: dict = {"__name__": "notebook"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("trainer.runtime.precision.has_native_bf16", lambda: False)
        (setting,) = [place for place, block in enumerate(BLOCKS) if block.startswith("MODEL = ")]
        for place, block in enumerate(BLOCKS):
            source = f"MODEL = {str(tiny)!r}" if place == setting else block
            exec(compile(source, f"docs/python.md, block {place + 1}", "exec"), names)  # noqa: S102
    return root, names


def test_the_page_names_the_public_api():
    (line,) = [line for line in BLOCKS[0].splitlines() if line.startswith("from trainer import ")]
    assert sorted(line.removeprefix("from trainer import ").split(", "), key=str) == sorted(trainer.__all__)


def test_the_notebook_runs_from_top_to_bottom(notebook):
    root, names = notebook
    result = names["result"]
    assert [row["system"] for row in result.table][0] == "first_stage"
    assert {*result.table[0]} == {"system", "nDCG@10", "RR@10", "R@50"}
    assert result.model_folder.samefile(root / "runs" / "faq" / "export" / "model")
    assert result.refused is None  # it was forced


def test_the_notebooks_negatives_are_no_positives(notebook):
    _, names = notebook
    train = names["collection"].named_qrels("train")
    for negatives in (names["negatives"], names["negatives_of_mine"]):
        assert set(negatives) <= set(train)
        assert negatives
        for query, documents in negatives.items():
            assert 1 <= len(documents) <= 3
            assert not set(documents) & set(train[query])


def test_the_notebooks_evaluation_is_that_of_ir_measures(notebook):
    import ir_measures

    _, names = notebook
    measured, my_run = names["measured"], names["my_run"]
    assert [row["system"] for row in measured.table] == ["first_stage", "reranked", "fused", "ceiling"]
    qrels = names["collection"].named_qrels("test")
    # Ties in the user's scores are broken by their order in the dict, which falling scores make plain here.
    ordered = {query: sorted(my_run[query], key=lambda one: -my_run[query][one]) for query in qrels}
    plain = {query: {one: -float(rank) for rank, one in enumerate(found)} for query, found in ordered.items()}
    expected = ir_measures.calc_aggregate([ir_measures.RR @ 10], qrels, plain)
    assert measured.table[0]["RR@10"] == pytest.approx(expected[ir_measures.RR @ 10])
    values = measured.per_query["reranked"]["RR@10"]
    assert set(values) == set(qrels)
    assert measured.table[1]["RR@10"] == pytest.approx(np.mean(list(values.values())))
    assert measured.results.systems["reranked"]["RR@10"].low <= measured.table[1]["RR@10"]


def test_the_reranked_system_is_what_rank_gives(notebook):
    _, names = notebook
    query, *_ = names["collection"].named_qrels("test")
    ordered = sorted(names["my_run"][query], key=lambda one: -names["my_run"][query][one])
    ranked = names["model"].rank(names["queries"][query], [names["documents"][one] for one in ordered])
    rank = next(place for place, one in enumerate(ranked, start=1) if ordered[one.index] == query.rpartition("-")[0])
    assert names["measured"].per_query["reranked"]["RR@10"][query] == pytest.approx(1 / rank)


def test_the_run_can_be_repeated_without_the_dicts(notebook):
    root, names = notebook
    from trainer.runtime.run_folder import read_json

    written = read_json(root / "runs" / "faq" / "export" / "recipe.json")
    assert written["data"]["path"] == "runs/faq/faq-collection"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        before = (root / "runs" / "faq" / "export" / "done.json").stat().st_mtime_ns
        again = trainer.run(trainer.Recipe.model_validate(written), force=True)
        assert (root / "runs" / "faq" / "export" / "done.json").stat().st_mtime_ns == before
    assert again.table == names["result"].table
    assert "faq-collection" in (root / "runs" / "faq" / "export" / "model" / "README.md").read_text()
