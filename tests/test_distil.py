"""Distillation: pseudo-queries without dev and test, groups in the teacher's order, a standard student."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification

from trainer.check import check
from trainer.data import build_collection, pseudo_queries
from trainer.errors import RecipeError
from trainer.mining import from_teacher
from trainer.model import Reranker
from trainer.pipeline import open_run, run, run_stage
from trainer.recipe import Data, Recipe, Retriever, load_recipe
from trainer.retriever import NOTHING, Candidates, retrieve_unjudged
from trainer.runtime.run_folder import StageFolder
from trainer.training import student as student_of
from trainer.training.losses import LOSSES

QUERY, DOCUMENTS = "why does the probe restart", ["liveness probe restarts the container", "inodes run out", "queue"]


@pytest.fixture
def collection(beir, tmp_path):
    return build_collection(Data(path=beir), tmp_path / "data")


def write(tmp_path: Path, documents: list[tuple[str, str]], queries: dict[str, str]) -> Path:
    """A BEIR folder of documents (title, text) and one query a split, all with the first document as positive."""
    folder = tmp_path / "by-hand"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{row}", "title": title, "text": text} for row, (title, text) in enumerate(documents)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [{"_id": split, "text": text} for split, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in queries:
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{split}\td0\t1\n")
    return folder


# Pseudo-queries


def test_pseudo_queries_are_titles_and_sentences_and_never_a_query_of_any_split(tmp_path):
    documents = [
        ("How do I reset it?", "Hold the button for ten seconds. Then wait until the light is green! OK."),
        ("Reset", "def reset(self, x):\n    return self.x[0]\n\n* See the manual for details.\nhow do i  RESET it"),
        ("", "再起動するにはボタンを十秒間押し続けてください。緑のランプが点灯するまでお待ちください。"),
        ("x", "The light stays red after a reset. Hold the button for ten seconds."),
    ]
    queries = {"train": "the light stays RED after a reset?", "dev": "how do I reset it", "test": "wait and see"}
    collection = build_collection(Data(path=write(tmp_path, documents, queries)), tmp_path / "data")
    drawn = pseudo_queries.pseudo_queries(collection, 100, seed=1)
    assert {query.text for query in drawn} == {
        "Hold the button for ten seconds",
        "Then wait until the light is green!",
        "Reset",
        "See the manual for details",
        "再起動するにはボタンを十秒間押し続けてください",
        "緑のランプが点灯するまでお待ちください",
    }
    passages = collection.documents["passage"][:]
    assert all(query.text in passages[query.document] for query in drawn)


def test_as_many_as_wanted_are_drawn_by_seed_and_every_document_gives_one_before_any_gives_two(collection):
    drawn = pseudo_queries.pseudo_queries(collection, 30, seed=1)
    assert len(drawn) == 30
    assert drawn == pseudo_queries.pseudo_queries(collection, 30, seed=1)
    assert drawn[:12] == pseudo_queries.pseudo_queries(collection, 12, seed=1)
    assert drawn != pseudo_queries.pseudo_queries(collection, 30, seed=2)
    assert len({query.document for query in drawn[:20]}) == 20
    everything = pseudo_queries.pseudo_queries(collection, 1000, seed=1)
    assert len(everything) == 48  # 40 texts of one sentence under 8 titles
    assert len({query.text for query in everything}) == 48


def test_pseudo_queries_are_appended_after_the_existing_rows(collection):
    drawn = pseudo_queries.pseudo_queries(collection, 5, seed=1)
    extended, rows = pseudo_queries.add_queries(collection, drawn)
    assert rows == [40, 41, 42, 43, 44]
    assert extended.queries["text"][:][:40] == collection.queries["text"][:]
    assert extended.queries.select(rows)["text"][:] == [query.text for query in drawn]
    assert extended.query_ids[40:] == [f"pseudo-{place}" for place in range(5)]
    assert extended.qrels == collection.qrels


def test_the_source_document_of_a_pseudo_query_is_among_its_candidates(collection):
    drawn = pseudo_queries.pseudo_queries(collection, 20, seed=1)
    extended, rows = pseudo_queries.add_queries(collection, drawn)
    own = [query.document for query in drawn]
    found = retrieve_unjudged(Retriever(kind="bm25"), extended, rows, None)
    assert found.queries.tolist() == rows
    assert np.isnan(found.positive_similarity).all()
    shallow = found.top(2)
    assert any(row not in shallow.documents[place] for place, row in enumerate(own))  # a title has five documents
    kept = from_teacher.with_source_documents(shallow, own)
    for place, row in enumerate(own):
        if row in shallow.documents[place]:
            assert kept.documents[place].tolist() == shallow.documents[place].tolist()
        else:
            assert kept.documents[place].tolist() == [shallow.documents[place, 0], row]
    assert kept.scores.tolist() == shallow.scores.tolist()


def candidates(documents: list[list[int]]) -> Candidates:
    rows = np.array(documents, dtype=np.int32)
    scores = np.tile(np.arange(rows.shape[1], 0, -1, dtype=np.float32), (len(rows), 1))
    positive, ranks = np.full(len(rows), np.nan, dtype=np.float32), np.ones((*rows.shape, 1), dtype=np.int16)
    return Candidates(np.arange(len(rows), dtype=np.int32), rows, scores, scores, positive, ranks, np.array(["bm25"]))


def test_a_short_list_gets_the_source_document_at_its_end():
    kept = from_teacher.with_source_documents(candidates([[4, 5, NOTHING, NOTHING], [NOTHING] * 4]), [9, 8])
    assert kept.documents.tolist() == [[4, 5, 9, NOTHING], [8, NOTHING, NOTHING, NOTHING]]
    assert kept.scores[0, 2] == kept.scores[0, 1]
    assert np.isnan(kept.similarities[0, 2])
    assert kept.ranks[0, :, 0].tolist() == [1, 1, 0, 1]


def test_train_queries_are_sampled_by_seed():
    fifty = candidates([[row] for row in range(50)])
    some = from_teacher.sample_queries(fifty, 10, seed=3)
    assert some.queries.tolist() == sorted(some.queries.tolist())
    assert (len(some.queries), some.documents[:, 0].tolist()) == (10, some.queries.tolist())
    assert some.queries.tolist() != from_teacher.sample_queries(fifty, 10, seed=4).queries.tolist()
    assert from_teacher.sample_queries(some, 99, seed=3).queries.tolist() == some.queries.tolist()


# Groups


def test_groups_are_in_the_teachers_order_and_lists_of_one_give_no_group():
    found = candidates([[4, 5, 6], [7, NOTHING, NOTHING], [1, 2, NOTHING]])
    scores = found.scored(lambda rows: np.array([document for _, document in rows], dtype=np.float32))
    assert scores.tolist() == [[4, 5, 6], [7, -np.inf, -np.inf], [1, 2, -np.inf]]
    first, last = from_teacher.groups_by_teacher(found, scores)
    assert (first.query, first.documents, first.grades, first.teacher) == (0, [6, 5, 4], [2, 1], [6, 5, 4])
    assert (last.query, last.documents, last.grades, last.teacher) == (2, [2, 1], [1], [2, 1])


def test_margin_mse_takes_the_difference_of_every_two_documents():
    (group,) = from_teacher.groups_by_teacher(candidates([[4, 5, 6]]), np.array([[1.0, 5.0, 2.0]]))
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    labels = torch.tensor([[*group.grades, 0]]) / 2
    loss = LOSSES["margin_mse"](scores, labels, torch.ones(1, 3, dtype=torch.bool), torch.tensor([group.teacher]))
    # The teacher's 5 2 1 against 3 1 2: differences 3 4 1 against 2 1 -1.
    assert loss.item() == pytest.approx((1 + 9 + 4) / 3)


def test_fused_scores_are_rescaled_to_the_logits():
    logits = np.array([[10.0, 30.0, 20.0, -np.inf], [5.0, -np.inf, -np.inf, -np.inf]], dtype=np.float32)
    unit = np.array([[-1.0, 2.0, -1.0, -np.inf], [0.7, -np.inf, -np.inf, -np.inf]])
    spread = (200 / 3) ** 0.5
    expected = [[20 - spread, 20 + 2 * spread, 20 - spread, -np.inf], [5, -np.inf, -np.inf, -np.inf]]
    np.testing.assert_allclose(from_teacher.rescale_to_logits(unit, logits), expected, rtol=1e-6)


# The student


def recipe_of(base: Path, student: Path | None = None, **sections: object) -> Recipe:
    given = {"reranker": {"model": str(base), "max_length": 32}, "distil": {"model": student and str(student)}}
    return Recipe.model_validate({"name": "mine", "data": {"path": "set"}} | given | sections)


@pytest.mark.parametrize("base", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("layers", [None, (0, 2)], ids=["whole", "cut"])
def test_the_student_has_the_tuned_encoder_and_scores_alike_in_sentence_transformers(tiny, tmp_path, base, layers):
    tuned = Reranker.load(tiny[base], max_length=32, layers=layers)
    with torch.no_grad():
        for weight in tuned.model.encoder.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    tuned.save(tmp_path / "tuned")
    student = student_of.load_student(recipe_of(tiny[base]), tmp_path / "tuned")
    own = student.model.base_model.state_dict()
    for name, weight in tuned.model.encoder.state_dict().items():
        assert torch.equal(own[name], weight), name
    assert student.model.config.num_hidden_layers == (2 if layers else 3)
    head = student.model.classifier.out_proj if base == "roberta" else student.model.classifier
    torch.nn.init.normal_(head.weight)

    student.save(tmp_path / "student")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert type(plain).__module__.startswith("transformers.models.")
    assert type(plain).__name__.lower() == f"{base}forsequenceclassification"
    scores = student.score(QUERY, DOCUMENTS)
    assert np.std(scores) > 1e-3
    outside = CrossEncoder(str(tmp_path / "student"), device="cpu", activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(outside.predict([(QUERY, text) for text in DOCUMENTS]), scores, atol=1e-5)


def test_a_base_with_an_interaction_head_of_its_own_is_distilled_too(tiny, tmp_path):
    Reranker.load(tiny["bert"], max_length=32).save(tmp_path / "base")
    student = student_of.load_student(recipe_of(tmp_path / "base"), tmp_path / "base")
    assert type(student.model).__name__ == "BertForSequenceClassification"
    base = load_file(tmp_path / "base" / "model.safetensors")
    for name, weight in student.model.base_model.state_dict().items():
        assert name.startswith("pooler.") or torch.equal(weight, base[f"encoder.{name}"]), name


def test_a_named_student_keeps_its_own_template_and_a_reranker_its_classifier(tiny, tmp_path):
    recipe = recipe_of(tiny["bert"], tiny["reranker"])
    student = student_of.load_student(recipe, tmp_path)
    assert not student_of.has_fresh_classifier(recipe)
    np.testing.assert_array_equal(
        student.score(QUERY, DOCUMENTS), Reranker.load(tiny["reranker"], max_length=32).score(QUERY, DOCUMENTS)
    )
    assert student_of.has_fresh_classifier(recipe_of(tiny["bert"], tiny["roberta"]))
    assert student_of.has_fresh_classifier(recipe_of(tiny["bert"]))


def test_the_student_trains_by_its_own_keys_and_the_rest_of_train():
    given = {"train": {"loss": "lambdarank", "frozen_layers": 2, "head_learning_rate": 0.1, "warmup_share": 0.3}}
    recipe = recipe_of(Path("base"), **given, distil={"loss": "kl", "epochs": 4, "learning_rate": 0.5})
    settings = student_of.student_recipe(recipe)
    expected = {"loss": "kl", "epochs": 4, "queries_per_step": 16, "learning_rate": 0.5}
    expected |= {"frozen_layers": 0, "head_learning_rate": None}
    assert settings.train == recipe.train.model_copy(update=expected)
    assert settings.train.warmup_share == 0.3


# The stage


DISTIL = "distil={queries: 20, depth: 5, teacher: fused, epochs: 6, queries_per_step: 20, learning_rate: 0.001}"


@pytest.fixture(scope="module")
def finished(exported, tmp_path_factory):
    """Recipe and runs folder of a whole run whose student learned from the fusion; it goes on from a run without."""
    runs = tmp_path_factory.mktemp("distilled") / "runs"
    shutil.copytree(exported[1], runs)
    recipe = load_recipe(exported[0], [DISTIL])
    run(recipe, runs, force=True)
    return recipe, runs


def notes(folder: Path) -> dict:
    return json.loads((folder / "done.json").read_text())


def test_the_section_does_not_change_the_stages_before_it(exported, finished):
    before, after = (open_run(load_recipe(exported[0], words), exported[1]) for words in ([], [DISTIL]))
    assert list(after.records) == ["data", "retrieve", "mine", "train", "distil", "evaluate", "export"]
    assert "distil" not in before.records
    same = {name for name, stage in before.records.items() if stage.fingerprint == after.records[name].fingerprint}
    assert same == {"data", "retrieve", "mine", "train"}
    assert all((finished[1] / "exported" / name / "done.json").is_file() for name in after.records)


def test_the_student_learned_from_train_and_pseudo_queries_and_its_best_on_dev_is_kept(finished):
    folder = finished[1] / "exported" / "distil"
    said = re.match(r"(\d+) pairs of 8 train and 12 pseudo-queries; best dev nDCG@10 ", notes(folder)["said"])
    assert said
    assert 80 < int(said[1]) <= 20 * 5  # BM25 lists no document without a word in common
    texts = [json.loads(line)["text"] for line in (folder / "pseudo_queries.jsonl").read_text().splitlines()]
    assert len(texts) == 12
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 6  # all 20 queries in one step, six times
    assert losses == sorted(losses, reverse=True)
    best = load_file(folder / "best" / "model.safetensors")
    assert "classifier.weight" in best
    assert "bert.embeddings.word_embeddings.weight" in best


def test_the_student_is_in_the_results_table_and_is_exported(finished):
    recipe, runs = finished
    folder = runs / "exported"
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    assert notes(folder / "train")["best_dev"] == 1.0  # nothing that the first stage's score could add
    assert list(results["systems"]) == ["first_stage", "fitted", "distilled", "fused", "ceiling"]
    assert (folder / "evaluate" / "distilled.trec").is_file()

    model = folder / "export" / "model"
    config = json.loads((model / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["BertForSequenceClassification"], "bert")
    assert "auto_map" not in config
    assert not list(model.glob("*.py"))
    assert set(notes(folder / "export")["differences"]) == {
        "transformers",
        "padded batches",
        "sentence-transformers",
        "onnx",
    }
    outside = CrossEncoder(str(model), device="cpu")
    scores = Reranker.load(folder / "distil" / "best").score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(outside.predict([(QUERY, text) for text in DOCUMENTS]), scores, atol=1e-5)

    card = (model / "README.md").read_text()
    assert "| distilled model | " in card
    assert "This is the distilled model" in card
    assert "trust_remote_code=True" not in card
    measured = f"{results['systems']['distilled']['nDCG@10']['mean']:.4f}".rstrip("0")
    assert f"value: {measured}" in card
    assert str(runs.parent) not in card
    shown = json.loads(card.split("```json\n")[1].split("```")[0])
    assert Recipe.model_validate(shown).distil == recipe.distil


def distil(recipe, runs):
    opened = open_run(recipe, runs)
    run_stage(opened, next(stage for stage in opened.stages if stage.name == "distil"))


def test_after_a_kill_it_resumes_with_its_pseudo_queries_and_the_last_checkpoint(finished, tmp_path, capsys):
    recipe, runs = finished
    shutil.copytree(runs, tmp_path / "runs")
    folder = tmp_path / "runs" / "exported"
    shutil.rmtree(folder / "distil")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageFolder, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distil(recipe, folder.parent)
    capsys.readouterr()
    kept = {
        path: path.stat().st_mtime_ns for path in [*folder.glob("distil/pseudo*"), *folder.parent.glob(".teachers/*/*")]
    }
    distil(recipe, folder.parent)
    assert "resumed at step 6" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == 3
    assert len(list(folder.parent.glob(".teachers/*/*"))) == 1
    assert notes(folder / "distil")["said"] == notes(runs / "exported" / "distil")["said"]


def test_the_students_own_dev_values_decide_whether_it_is_exported(finished):
    folder = finished[1] / "exported" / "evaluate"
    results = json.loads((folder / "results.json").read_text())
    ways = json.loads((folder / "dev.json").read_text())["ways"]
    assert results["shipped"] == "distilled"
    assert len(ways["alone"]["values"]) == 1  # dev chose among the teacher's weights, not among the student's
    assert np.mean(ways["alone"]["values"][0]) == pytest.approx(notes(folder)["dev"]["distilled"])


def test_a_run_has_no_candidates_for_new_queries_and_the_stage_says_so(exported, tmp_path, capsys):
    runs, trec = tmp_path / "runs", tmp_path / "own.trec"
    shutil.copytree(exported[1], runs, ignore=shutil.ignore_patterns("export"))
    opened = open_run(load_recipe(exported[0]), runs)
    lines = []
    for split in ("train", "dev", "test"):
        found = opened.candidates(split)
        for place, query in enumerate(found.queries.tolist()):
            names = [opened.collection.document_ids[row] for row in found.found(place)]
            query_id = opened.collection.query_ids[query]
            lines += [f"{query_id} Q0 {name} {rank} {-rank} own\n" for rank, name in enumerate(names)]
    trec.write_text("".join(lines))
    recipe = load_recipe(exported[0], ["retriever.kind=run", f"retriever.run={trec}", "distil={queries: 20, depth: 3}"])
    run(recipe, runs, until="distil")
    assert "retriever.run has no candidates for pseudo-queries" in capsys.readouterr().out
    assert " pairs of 8 train and 0 pseudo-queries; " in notes(runs / "exported" / "distil")["said"]


# What cannot be distilled


def test_a_reranker_base_and_a_non_standard_student_are_reported_at_once(tiny, beir, tmp_path):
    Reranker.load(tiny["bert"], max_length=32).save(tmp_path / "interaction")
    recipe = recipe_of(tiny["reranker"], tmp_path / "interaction", data={"path": beir}, retriever={"kind": "bm25"})
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    base, student = caught.value.faults
    assert base.startswith(f"distil: {tiny['reranker']} is a reranker with a standard classifier")
    assert student.startswith(f"distil.model: {tmp_path / 'interaction'} has the interaction head")


def test_the_step_needs_the_section(exported, tmp_path):
    with pytest.raises(RecipeError, match=re.escape("the recipe has no distil section; add `distil: {}`")):
        run(load_recipe(exported[0]), tmp_path, until="distil")
