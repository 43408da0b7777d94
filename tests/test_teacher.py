"""The teacher: its answers are the cross-encoder's, kept by content, and no pair is scored twice."""

import shutil

import numpy as np
import pytest
from accelerate import Accelerator

from trainer.data import build_collection
from trainer.model import Reranker
from trainer.model.teacher import Teacher
from trainer.recipe import Data


@pytest.fixture
def collection(beir, tmp_path):
    return build_collection(Data(path=beir), tmp_path / "data")


@pytest.fixture
def ask(tiny, collection, tmp_path):
    """`ask(rows, model)` gives the answers of a new teacher and how many pairs it had to score."""

    def ask(rows, model=tiny["reranker"], collection=collection, max_length=32):
        teacher = Teacher(str(model), collection, tmp_path / "kept", Accelerator(cpu=True), max_length=max_length)
        return teacher(rows), teacher.num_scored

    return ask


def test_scores_are_the_cross_encoders_in_the_order_of_the_pairs(ask, tiny, collection):
    rows = [(3, 7), (0, 1), (3, 2), (0, 1)]
    reranker = Reranker.load(tiny["reranker"], max_length=32)
    expected = [
        reranker.score(collection.queries[query]["text"], [collection.documents[document]["passage"]])[0]
        for query, document in rows
    ]
    scores, asked = ask(rows)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (scores.dtype, asked) == (np.float32, 3)


def test_a_pair_is_scored_once_and_cached_for_the_next_teacher(ask):
    first, _ = ask([(0, 1), (0, 2)])
    again, asked = ask([(0, 2), (0, 1), (5, 5)])
    assert asked == 1
    np.testing.assert_array_equal(again[:2], first[::-1])
    assert ask([(5, 5)])[1] == 0


def test_another_model_length_or_text_is_scored_again(ask, tiny, beir, tmp_path):
    ask([(0, 1), (0, 2)])
    assert ask([(0, 1)], max_length=16)[1] == 1
    other = tmp_path / "other"
    shutil.copytree(tiny["reranker"], other)
    assert ask([(0, 1)], model=other)[1] == 0  # the same weights elsewhere
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.1')
    )
    assert ask([(0, 1)], model=other)[1] == 1
    corpus = (beir / "corpus.jsonl").read_text().splitlines()
    corpus[1] = corpus[1].replace("liveness", "readiness")
    (beir / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    changed = build_collection(Data(path=beir), tmp_path / "changed")
    assert ask([(0, 1), (0, 2)], collection=changed)[1] == 1


def test_a_deleted_cache_file_loses_only_its_own_pairs(ask, tmp_path):
    for row in range(3):
        ask([(0, row)])
    sorted(tmp_path.glob("kept/*/*.npz"))[0].unlink()
    ask([(0, 3)])
    assert ask([(0, row) for row in range(4)])[1] == 1
    assert len(list(tmp_path.glob("kept/*/*.npz"))) == 4


def test_another_teachers_scores_are_not_used(ask, tiny, tmp_path, capsys):
    other = shutil.copytree(tiny["reranker"], tmp_path / "other")
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.1')
    )
    ask([(0, 1)])
    (kept,) = tmp_path.glob("kept/*/*.npz")
    ask([(0, 2)], model=other)
    (folder,) = set(tmp_path.glob("kept/*")) - {kept.parent}
    shutil.copy(kept, folder)
    assert ask([(0, 1)], model=other)[1] == 1
    assert "is damaged; it is deleted" in capsys.readouterr().out


def test_scores_cut_off_by_a_kill_are_not_read(ask, tmp_path):
    ask([(0, 1)])
    (kept,) = tmp_path.glob("kept/*/*.npz")
    kept.with_name("000001.partial").write_bytes(kept.read_bytes()[:100])
    assert ask([(0, 1), (0, 3)])[1] == 1
