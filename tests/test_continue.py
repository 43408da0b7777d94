"""Continuing from an exported model: what carries over, and that its test queries stay out of training."""

import json
import shutil

import pytest

from trainer.check import check
from trainer.data import EarlierSplits, check_collection
from trainer.data.earlier_splits import FILE, hash_of
from trainer.errors import DataError, ModelError, RecipeError
from trainer.export.hub import files_to_push
from trainer.model import Reranker
from trainer.model_files import references
from trainer.pipeline import open_run, run
from trainer.recipe import Data, load_recipe

SPLITS = ("train", "dev", "test")


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def qrels(rows):
    return ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in rows)]


@pytest.fixture
def old(tmp_path):
    """A model folder whose run had two train queries, one dev and one test query."""
    folder = tmp_path / "old-model"
    folder.mkdir()
    texts = {"train": ["Why  disk", "why cert"], "dev": ["why queue"], "test": ["why lock"]}
    EarlierSplits("old", {}).updated(texts).save(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def new(tmp_path):
    """`new(**qrels)` writes a collection of six queries with the ids of these splits."""
    texts = ["why disk", "why cert", "why queue", "why lock", "what else", "and then"]

    def make(**judged):
        folder = tmp_path / "new"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "qrels").mkdir(parents=True)
        write_lines(folder / "corpus.jsonl", [json.dumps({"_id": f"d{n}", "text": f"text {n}"}) for n in range(9)])
        queries = [json.dumps({"_id": f"q{number}", "text": text}) for number, text in enumerate(texts)]
        write_lines(folder / "queries.jsonl", queries)
        for split, numbers in judged.items():
            write_lines(folder / "qrels" / f"{split}.tsv", qrels((f"q{number}", f"d{number}") for number in numbers))
        return Data(path=folder, dev_share=0.3, test_share=0.3)

    return make


def test_queries_keep_the_split_that_they_had_whatever_their_hash(old, new):
    earlier = EarlierSplits.of(str(old))
    summary = check_collection(new(train=range(6)), earlier)
    assert summary.judged == {"train": 4, "dev": 1, "test": 1} or sum(summary.judged.values()) == 6
    (note,) = [note for note in summary.notes if "earlier runs" in note]
    assert note == f"{old} knows 2 train, 1 dev, 1 test queries of earlier runs; 2 queries are new"
    swapped = EarlierSplits("swapped", {hash_of("why disk"): "test", hash_of("why cert"): "dev"})
    first, second = (
        {split: set(rows) for split, rows in _splits(new(train=range(6)), one).items()} for one in (earlier, swapped)
    )
    assert {"q0", "q1"} <= first["train"]
    assert "q2" in first["dev"]
    assert "q3" in first["test"]
    assert "q0" in second["test"]
    assert "q1" in second["dev"]


def _splits(section, earlier):
    from trainer.data.qrels import reader_of, split_qrels
    from trainer.data.records import normalised

    reader = reader_of(section)
    list(reader.documents())
    texts = {query.id: normalised(query.text) for query in reader.queries()}
    return split_qrels(reader, section, texts, ("train",), earlier)[0]


def test_new_splits_that_move_a_query_between_training_and_test_are_one_error(old, new):
    section = new(train=[3, 4], dev=[2], test=[0, 5])
    with pytest.raises(DataError) as raised:
        check_collection(section, EarlierSplits.of(str(old)))
    (fault,) = raised.value.faults
    assert fault.startswith(f"reranker.model: {old} comes from a run with other splits: ")
    assert "1 of its test queries are train queries here (e.g. 'q3')" in fault
    assert "1 of its train queries are dev or test queries here (e.g. 'q0')" in fault
    assert "leave out the files of dev and test, so that the old splits are kept" in fault
    check_collection(new(train=[0, 1, 4], dev=[2, 5], test=[3]), EarlierSplits.of(str(old)))
    check_collection(section, None)


def test_a_query_that_was_in_two_splits_has_none():
    splits = EarlierSplits("old", {hash_of("a"): "train"}).updated({"train": ["b"], "dev": [], "test": ["B ", "c"]})
    assert [splits.split_of(text) for text in "abcd"] == ["train", None, "test", None]


def test_splits_are_those_of_all_runs_before(old, tmp_path):
    later = EarlierSplits.of(str(old)).updated({"train": ["new"], "dev": ["why lock"], "test": []})
    later.save(tmp_path)
    again = json.loads((tmp_path / FILE).read_text())
    assert {split: len(again[split]) for split in SPLITS} == {"train": 3, "dev": 2, "test": 0}


def test_a_damaged_file_is_named_and_a_missing_one_means_a_new_start(old):
    (old / FILE).write_text('{"version": 1, "train": 3}')
    with pytest.raises(ModelError, match=r"splits.json: not the splits of a run"):
        EarlierSplits.of(str(old))
    (old / FILE).write_text("half a fi")
    with pytest.raises(ModelError, match=r"splits.json: not the splits of a run"):
        EarlierSplits.of(str(old))
    (old / FILE).unlink()
    assert EarlierSplits.of(str(old)) is None
    assert EarlierSplits.of("no/such folder") is None
    assert EarlierSplits.of("owner/name") is None  # the file is not uploaded


def test_an_exported_model_knows_its_splits_which_are_not_uploaded(exported):
    recipe, runs = exported
    folder = runs / "exported" / "export" / "model"
    collection = open_run(load_recipe(recipe), runs).collection
    splits = EarlierSplits.of(str(folder))
    for split, judged in collection.qrels.items():
        assert {splits.split_of(text) for text in collection.query_texts(list(judged))} == {split}
    assert (folder / FILE).is_file()
    assert FILE not in [name for name, _ in files_to_push(folder)]
    assert not [text for text in collection.queries["text"][:] if text in (folder / FILE).read_text()]


def test_a_run_folder_means_its_exported_model(exported, tmp_path):
    _, runs = exported
    assert references.locate(str(runs / "exported")) == runs / "exported" / "export" / "model"
    assert references.is_local(str(runs / "exported"))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs / "exported", unfinished)
    shutil.rmtree(unfinished / "export")
    with pytest.raises(
        ModelError, match=r"no exported model; finish its run, or name its best checkpoint .*train/best"
    ):
        references.locate(str(unfinished))


def test_a_run_does_not_start_from_its_own_export(exported):
    recipe, runs = exported
    for model in ("exported", "exported/export/model"):
        with pytest.raises(RecipeError, match=r"in the folder of this run, which replaces it; .* name=exported-2"):
            check(load_recipe(recipe, [f"reranker.model={runs / model}"]), runs)
    check(load_recipe(recipe, [f"reranker.model={runs / 'exported'}", "name=later"]), runs)


@pytest.mark.slow
def test_a_continued_run_keeps_the_mixture_and_fits_the_rest_anew(exported, tmp_path):
    recipe, runs = exported
    base = Reranker.load(runs / "exported")
    labels = tmp_path / "labels.jsonl"
    write_lines(labels, ['{"query_id": "train-disk", "document_id": "disk-1", "relevant": true}'])
    overrides = [f"reranker.model={runs / 'exported'}", "name=later", f"data.judgements={labels}", "data.dev_share=0.3"]
    result = run(load_recipe(recipe, overrides), tmp_path / "runs", force=True)
    later = Reranker.load(result.folder)
    own, old = (
        {name: value for name, value in model.model.state_dict().items() if "encoder" not in name}
        for model in (later, base)
    )
    assert own.keys() == old.keys()
    assert all((own[name] == old[name]).all() for name in own if not name.startswith("bert"))
    assert set(result.results.systems) >= {"first_stage", "base"}
    assert not (result.folder / "train" / "fitted.json").exists()
    kept, first = (EarlierSplits.of(str(folder)).by_hash for folder in (result.folder, runs / "exported"))
    assert kept == first
    assert not (result.folder / "train" / "best" / "calibration.json").exists()
    assert not (result.folder / "train" / "best" / "fusion.json").exists()
