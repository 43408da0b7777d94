"""`Reranker.load`, `score` and `rank` as a notebook calls them: what they accept, and what they refuse."""

import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from trainer import Reranker
from trainer.errors import MachineError, ModelError
from trainer.model.calibration import Calibration, Platt

QUERY = "why does the queue lag"
DOCUMENTS = ["queue lag grows while one partition holds all messages", "disk", "certificate expired"]


@pytest.fixture(scope="module")
def model(tiny):
    return Reranker.load(tiny["reranker"], device="cpu")


def test_pairs_are_scored_in_their_order_and_as_rank_scores_them(model):
    scores = model.score([(QUERY, DOCUMENTS[1]), ("disk", DOCUMENTS[0]), [QUERY, DOCUMENTS[0]]])
    assert scores.shape == (3,)
    assert scores.dtype == np.float32
    ranked = {one.document: one.score for one in model.rank(QUERY, DOCUMENTS)}
    assert [ranked[DOCUMENTS[1]], ranked[DOCUMENTS[0]]] == pytest.approx([scores[0], scores[2]], abs=1e-6)
    assert abs(scores[1] - scores[2]) > 1e-6  # the query counts


def test_probabilities_follow_the_curve_of_a_grade(tiny):
    model, pairs = Reranker.load(tiny["reranker"], device="cpu"), [(QUERY, text) for text in DOCUMENTS]
    with pytest.raises(ModelError, match=r"has no calibration\.json"):
        model.probability(pairs)
    model.calibration = Calibration({1: Platt(2.0, 0.0), 2: Platt(2.0, np.log(0.5))})
    odds = np.exp(2.0 * model.score(pairs).astype(np.float64))
    assert model.probability(pairs) == pytest.approx(odds / (1 + odds))
    assert model.probability(pairs, grade=2) == pytest.approx(odds / 2 / (1 + odds / 2))  # half the odds
    with pytest.raises(ModelError, match="no curve for grade 3"):
        model.probability(pairs, grade=3)


def test_any_iterable_of_pairs_or_documents_will_do(model):
    pairs = [(QUERY, text) for text in DOCUMENTS]
    np.testing.assert_array_equal(model.score(iter(pairs)), model.score(pairs))
    np.testing.assert_array_equal(model.score(zip([QUERY] * 3, DOCUMENTS, strict=True)), model.score(pairs))
    expected = model.rank(QUERY, DOCUMENTS)
    assert model.rank(QUERY, tuple(DOCUMENTS)) == model.rank(QUERY, (text for text in DOCUMENTS)) == expected
    assert [str(one.document) for one in model.rank(QUERY, np.array(DOCUMENTS))] == [one.document for one in expected]
    assert model.score([]).shape == (0,)
    assert model.rank(QUERY, []) == []


def test_the_best_k_are_the_first_k_of_all(model):
    everything = model.rank(QUERY, DOCUMENTS)
    assert model.rank(QUERY, DOCUMENTS, top_k=2) == everything[:2] == model.rank(QUERY, DOCUMENTS, top_k=np.int64(2))
    assert model.rank(QUERY, DOCUMENTS, top_k=99) == everything
    scores = [one.score for one in everything]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("query", "documents", "top_k", "message"),
    [
        (QUERY, "one text", None, "documents must be a list of texts; put a single text in a list"),
        (QUERY, b"one text", None, "documents must be a list of texts; put a single text in a list"),
        (QUERY, {"d1": "one text"}, None, "documents must be a list of texts, not dict"),
        (QUERY, None, None, "documents must be a list of texts, not NoneType"),
        (QUERY, ["a text", None], None, r"documents\[1\] is NoneType"),
        (QUERY, [["a text"]], None, r"documents\[0\] is list"),
        ([QUERY], ["a text"], None, "query must be a text, not list"),
        (None, ["a text"], None, "query must be a text, not NoneType"),
        (QUERY, ["a text"], 1.0, "top_k must be a whole number or None, not 1.0"),
        (QUERY, ["a text"], True, "top_k must be a whole number or None, not True"),
        (QUERY, ["a text"], "2", "top_k must be a whole number or None, not '2'"),
    ],
)
def test_the_wrong_kind_of_argument_is_a_type_error(model, query, documents, top_k, message):
    with pytest.raises(TypeError, match=message) as error:
        model.rank(query, documents, top_k=top_k)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_count_below_one_is_a_value_error(model, top_k):
    with pytest.raises(ValueError, match=f"top_k must be 1 or more, not {top_k}"):
        model.rank(QUERY, DOCUMENTS, top_k=top_k)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((QUERY, "a text"), r"pairs\[0\] is a text; put a single pair in a list"),
        (["ab", "cd"], r"pairs\[0\] is a text"),  # two characters are no pair
        (QUERY, "pairs must be a list of .* not str"),
        ({QUERY: "a text"}, "pairs must be a list of .* not dict"),
        (None, "pairs must be a list of .* not NoneType"),
        ([(QUERY, "a text"), (QUERY,)], r"pairs\[1\] must be \(query, document\), two texts"),
        ([(QUERY, "a text", 1.0)], r"pairs\[0\] must be \(query, document\), two texts"),
        ([(QUERY, None)], r"pairs\[0\] must be \(query, document\), two texts"),
        ([(QUERY, ["a text"])], r"pairs\[0\] must be \(query, document\), two texts"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(model, pairs, message):
    with pytest.raises(TypeError, match=message):
        model.score(pairs)


def test_the_old_order_of_arguments_is_refused(model):
    with pytest.raises(TypeError):
        model.score(QUERY, DOCUMENTS)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"precision": "int8"}, ValueError, "precision must be one of None, auto, fp32, bf16, fp16, not 'int8'"),
        ({"precision": "fp16", "device": "cpu"}, MachineError, "fp16 needs a CUDA GPU, and the device is cpu"),
        ({"device": "gpu"}, ValueError, "device must be one that torch knows, such as cpu, cuda or cuda:1, not 'gpu'"),
        ({"device": "cuda:77"}, MachineError, "device: cuda:77 cannot be used on this machine"),
        ({"max_length": 0}, ValueError, "max_length must be 8 tokens or more, not 0"),
        ({"max_length": -5}, ValueError, "max_length must be 8 tokens or more, not -5"),
        ({"max_length": 32.0}, TypeError, "max_length must be a whole number of tokens, not 32.0"),
        ({"max_length": 10_000}, ModelError, "max_length: 10000 tokens, but .* reads 66 at most"),
    ],
)
def test_options_without_a_meaning_are_refused(tiny, options, kind, message):
    with pytest.raises(kind, match=message):
        Reranker.load(tiny["reranker"], **options)


def test_options_are_keywords(tiny):
    with pytest.raises(TypeError):
        Reranker.load(tiny["reranker"], "cpu")


@pytest.mark.parametrize("reference", [None, 5, ["a"]])
def test_a_reference_is_a_name_or_a_folder(reference):
    with pytest.raises(TypeError, match="reference must be a Hub id or a folder, not") as error:
        Reranker.load(reference)
    assert ("exported no model" in str(error.value)) == (reference is None)


def test_a_run_folder_gives_its_exported_model(exported):
    _, runs = exported
    pairs = [(QUERY, text) for text in DOCUMENTS]
    expected = Reranker.load(runs / "exported" / "export" / "model", device="cpu").score(pairs)
    for reference in (runs / "exported", f"{runs / 'exported'}/"):
        np.testing.assert_array_equal(Reranker.load(reference, device="cpu").score(pairs), expected)


def test_a_run_folder_without_an_exported_model_names_its_checkpoint(exported, tmp_path):
    _, runs = exported
    folder = tmp_path / "unfinished"
    for part in ("data", "train/best"):
        shutil.copytree(runs / "exported" / part, folder / part)
    with pytest.raises(ModelError, match=f"no exported model; finish its run, or name .*{folder}/train/best"):
        Reranker.load(folder)
    assert Reranker.load(folder / "train" / "best").is_interaction


def test_device_and_precision_are_attributes(tiny):
    plain = Reranker.load(tiny["reranker"], device="cpu")
    assert (plain.device, plain.precision, plain.max_length) == (torch.device("cpu"), "fp32", 64)
    half = Reranker.load(tiny["reranker"], device=torch.device("cpu"), precision="bf16", max_length=32)
    assert (half.device.type, half.precision, half.max_length) == ("cpu", "bf16", 32)
    assert Reranker.load(tiny["reranker"], device="cpu", precision="auto").precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accelerate_before_or_after_changes_no_score(tiny, monkeypatch, precision):
    pairs = [(QUERY, text) for text in DOCUMENTS]
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Reranker.load(tiny["bert"], device="cpu", precision=precision)
    before = model.score(pairs)
    try:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        Accelerator(cpu=True, mixed_precision="bf16" if precision == "fp32" else "no")
        np.testing.assert_array_equal(model.score(pairs), before)
        later = Reranker.load(tiny["bert"], device="cpu", precision=precision)
        np.testing.assert_array_equal(later.score(pairs), before)
        assert Reranker.load(tiny["bert"], device="cpu", precision="auto").precision == "fp32"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_two_models_of_different_precision_do_not_disturb_each_other(tiny):
    pairs = [(QUERY, text) for text in DOCUMENTS]
    full = Reranker.load(tiny["bert"], device="cpu")
    expected = full.score(pairs)
    half = Reranker.load(tiny["bert"], device="cpu", precision="bf16")
    rounded = half.score(pairs)
    np.testing.assert_array_equal(full.score(pairs), expected)
    assert np.abs(rounded - expected).max() > 0
