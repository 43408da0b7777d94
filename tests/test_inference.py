"""Formats for ONNX Runtime: fused attention, int8 weights, the gate, and the engines of a reranker."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from httpx import ASGITransport, AsyncClient

from trainer import inference
from trainer.errors import ModelError, ServeError
from trainer.inference import Quality, Session
from trainer.inference.graph import write_graph
from trainer.inference.quantize import quantize
from trainer.model import Reranker
from trainer.serving.app import create_app
from trainer.serving.engine import Engine
from trainer.serving.server import serve
from trainer.serving.settings import Settings

QUERIES = ["why does the probe restart", "memory", "fix dropped packets at night because the path drops large"]
DOCUMENTS = [
    "liveness probe restarts the container when its endpoint fails check the log first",
    "disk",
    " ".join(["kernel kills the process when memory of the node runs out"] * 6),
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
# name: (tiny base, head, layers whose attention is one operator)
MODELS = {
    "classifier": ("reranker", "auto", 2),  # the last layer only computes the first token's state
    "interaction": ("bert", "interaction", 3),
    "interaction on modernbert": ("modernbert", "interaction", 3),  # with sliding windows
}


def spread(base: Path, head: str) -> Reranker:
    """A model whose scores differ from pair to pair."""
    torch.manual_seed(5)
    reranker = Reranker.load(base, head=head, max_length=32)
    with torch.no_grad():
        for parameter in reranker.model.base_model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
        reranker.model.classifier.weight.normal_()
    return reranker


@pytest.fixture(scope="module")
def rerankers(tiny: dict[str, Path]) -> dict[str, Reranker]:
    return {name: spread(tiny[base], head) for name, (base, head, _) in MODELS.items()}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def batch_of(reranker: Reranker) -> dict[str, torch.Tensor]:
    return reranker.pairs.pad(reranker.pairs.tokenize_pairs(PAIRS))


def example_of(reranker: Reranker) -> dict[str, torch.Tensor]:
    return reranker.pairs.pad(reranker.pairs.tokenize_pairs(PAIRS[:2]))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_attention_is_one_operator_a_layer_and_the_scores_are_the_models(rerankers, name, tmp_path):
    reranker = rerankers[name]
    write_graph(reranker.model, example_of(reranker), tmp_path / "fused.onnx", fused=True)
    assert operators(tmp_path / "fused.onnx")["MultiHeadAttention"] == MODELS[name][2]
    scores = Session(tmp_path / "fused.onnx").logits(batch_of(reranker)).numpy()
    expected = reranker.score(PAIRS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_a_plain_graph_has_only_standard_operators_and_the_model_is_left_as_it_was(rerankers, name, tmp_path):
    reranker = rerankers[name]
    before = reranker.score(PAIRS)
    for path, fused in (("fused.onnx", True), ("plain.onnx", False)):
        write_graph(reranker.model, example_of(reranker), tmp_path / path, fused=fused)
    assert {node.domain for node in onnx.load(tmp_path / "plain.onnx").graph.node} == {""}
    assert not any(module.training for module in reranker.model.modules())
    np.testing.assert_array_equal(reranker.score(PAIRS), before)


def test_matrices_and_tables_become_integers_and_the_order_stays(rerankers, name, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.inference.quantize.SMALLEST_TABLE", 32)
    reranker = rerankers[name]
    write_graph(reranker.model, example_of(reranker), tmp_path / "exact.onnx", fused=True)
    quantize(tmp_path / "exact.onnx", tmp_path / "int8.onnx", batch_of(reranker))
    graph = onnx.load(tmp_path / "int8.onnx").graph
    wide = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT and one.dims[1:] > [4]}
    read = Counter(node.op_type for node in graph.node if wide & set(node.input))
    assert not read.keys() & {"MatMul", "Gather"}, read
    products = operators(tmp_path / "int8.onnx")["MatMulIntegerToFloat"]
    assert products >= 4 * MODELS[name][2]  # 4 to 6 matrices in a layer
    expected, scores = reranker.score(PAIRS), Session(tmp_path / "int8.onnx").logits(batch_of(reranker)).numpy()
    # Random weights of 32 numbers a token round badly; MiniLM-L6 has a tau of .98 (docs/benchmarks.md).
    assert np.corrcoef(scores, expected)[0, 1] > 0.9
    assert 0 < np.abs(scores - expected).max() < 0.4 * np.ptp(expected)


def test_a_share_of_the_products_stays_float32_and_all_of_them_lose_nothing(rerankers, name, tmp_path):
    reranker = rerankers[name]
    write_graph(reranker.model, example_of(reranker), tmp_path / "exact.onnx", fused=True)
    errors, counts = [], []
    for share in (0.0, 0.5, 1.0):
        quantize(tmp_path / "exact.onnx", tmp_path / "int8.onnx", batch_of(reranker), share)
        scores = Session(tmp_path / "int8.onnx").logits(batch_of(reranker)).numpy()
        errors.append(float(np.abs(scores - reranker.score(PAIRS)).max()))
        counts.append(operators(tmp_path / "int8.onnx")["MatMulIntegerToFloat"])
    assert counts[0] > counts[1] > counts[2] == 0
    assert min(errors[:2]) > 100 * errors[2]


def test_a_table_that_other_operators_read_stays_float32(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.inference.quantize.SMALLEST_TABLE", 10)

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 4)
            self.alone = torch.nn.Embedding(20, 4)

        def forward(self, input_ids: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            states = (self.table(input_ids) + self.alone(input_ids)).sum(dim=1)
            return ((states[:, None] * self.table.weight).sum(dim=2)[:, :1],)

    model, batch = Tied(), {"input_ids": torch.arange(6).view(2, 3)}
    expected = model(batch["input_ids"], False)[0][:, 0].detach().numpy()
    write_graph(model, batch, tmp_path / "exact.onnx")
    quantize(tmp_path / "exact.onnx", tmp_path / "int8.onnx", batch)
    kinds = Counter(one.data_type for one in onnx.load(tmp_path / "int8.onnx").graph.initializer if len(one.dims) == 2)
    assert kinds[onnx.TensorProto.INT8] == 1
    np.testing.assert_allclose(Session(tmp_path / "int8.onnx").logits(batch).numpy(), expected, rtol=0, atol=0.1)


# The gate.


@pytest.mark.parametrize(
    ("quality", "exact", "fault"),
    [
        (Quality(9e-4, 1.0, 1), True, ""),
        (Quality(2e-3, 1.0, 1), True, "2.0e-03, more than the 0.001"),
        (Quality(float("inf"), float("nan"), 1), True, "inf"),
        (Quality(0.4, 0.95, 1), False, ""),
        (Quality(0.4, 0.89, 1), False, "tau to the float32 scores is 0.890, less than 0.9"),
        (Quality(0.4, float("nan"), 1), False, "nan"),
        (Quality(0.4, 0.95, 1, 0.600, 0.6049), False, ""),
        (Quality(0.4, 0.95, 1, 0.600, 0.606), False, "0.6000 instead of 0.6060"),
        (Quality(0.4, 0.95, 1, 0.606, 0.600), False, "0.6060 instead of 0.6000"),
        (Quality(0.4, 0.95, 1, float("nan"), 0.600), False, "nan instead of"),
        (Quality(0.4, 0.5, 1, 0.1, 0.6), False, "; the dev metric is"),
    ],
)
def test_the_gate_names_what_is_wrong(quality, exact, fault):
    assert (fault in quality.fault(exact)) if fault else quality.fault(exact) == ""


def test_tau_is_that_of_the_pairs_and_a_missing_score_is_infinitely_far():
    expected = np.array([1.0, 2.0, 3.0, 4.0])
    quality = Quality.of(np.array([1.0, 3.0, 2.5, 4.0]), expected, 7)
    assert (quality.tau, quality.difference, quality.size) == (pytest.approx(2 / 3), 1.0, 7)  # five of six pairs agree
    assert Quality.of(np.array([1.0, 2.0, np.nan, 4.0]), expected, 7).difference == np.inf
    assert Quality.of(np.array([1.0, 3.0, 2.5, 4.0]), expected, 7, real=2).tau == 1.0
    assert np.isnan(Quality.of(np.full(4, np.nan), expected, 7).tau)


# Engines of a reranker.


@pytest.fixture(scope="module")
def folder(rerankers: dict[str, Reranker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with both formats, which passed."""
    made = tmp_path_factory.mktemp("formats") / "model"
    reranker = rerankers["interaction"]
    reranker.save(made)
    for one in inference.FORMATS:
        inference.write(one, reranker.model, example_of(reranker), made)
    inference.record({one: Quality(0.0, 1.0, 1) for one in inference.FORMATS}, made)
    return made


def test_onnx_scores_as_torch_and_int8_nearly(folder):
    expected = Reranker.load(folder).score(PAIRS)
    for name in inference.EXACT:
        exact = Reranker.load(folder, engine=name)
        assert exact.engine == name
        np.testing.assert_allclose(exact.score(PAIRS), expected, rtol=0, atol=1e-4)
    rounded = Reranker.load(folder, engine="onnx-int8")
    assert rounded.engine == "onnx-int8"
    difference = np.abs(rounded.score(PAIRS) - expected).max()
    assert 1e-4 < difference < 0.2 * np.ptp(expected)
    ranked = rounded.rank(QUERIES[0], DOCUMENTS)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)


def test_auto_takes_what_measures_fastest_and_prints_why(folder, monkeypatch, capsys):
    speeds = {"torch": 0.5, "onnx": 0.4, "onnx-fused": 0.3, "onnx-int8": 0.1}
    monkeypatch.setattr("trainer.model.engines.median_seconds", lambda computes: {one: speeds[one] for one in computes})
    assert Reranker.load(folder, engine="auto").engine == "onnx-int8"
    shown = capsys.readouterr().out
    assert "onnx-int8 is the fastest here" in shown
    assert "torch 24.0, onnx 30.0, onnx-fused 40.0, onnx-int8 120.0 pairs/s; torch in fp32" in " ".join(shown.split())
    speeds["torch"] = 0.05
    assert Reranker.load(folder, engine="auto").engine == "torch"


def test_auto_measures_every_engine_on_the_same_batches(folder, capsys):
    reranker = Reranker.load(folder, engine="auto", max_length=16)
    assert reranker.engine in ("torch", *inference.FORMATS)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} " in shown.partition("(")[2] for name in ("torch", *inference.FORMATS))


def test_a_format_that_is_not_in_the_record_is_not_opened(folder, tmp_path, capsys):
    copied = tmp_path / "model"
    Reranker.load(folder).save(copied)
    (copied / "onnx").mkdir()
    (copied / "onnx" / "model.onnx").write_bytes((folder / "onnx" / "model.onnx").read_bytes())
    with pytest.raises(
        ModelError, match=r"no onnx that passed its quality gate; export it with export.formats: \[onnx\]"
    ):
        Reranker.load(copied, engine="onnx")
    assert Reranker.load(copied, engine="auto").engine == "torch"
    assert "no other format that passed" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_graph_is_an_error_by_name_and_left_out_by_auto(folder, tmp_path, capsys):
    copied = tmp_path / "model"
    Reranker.load(folder).save(copied)
    inference.record({"onnx-int8": Quality(0.0, 1.0, 1)}, copied)
    for content in (None, b"", b"no graph"):
        if content is not None:
            (copied / inference.FILES["onnx-int8"]).write_bytes(content)
        with pytest.raises(ModelError, match="ONNX Runtime cannot open .*model_int8.onnx"):
            Reranker.load(copied, engine="onnx-int8")
        assert Reranker.load(copied, engine="auto").engine == "torch"
        assert "left out" in capsys.readouterr().out
    (copied / inference.FILES["onnx-int8"].parent / "formats.json").write_text("[")
    with pytest.raises(ModelError, match="no onnx-int8 that passed"):
        Reranker.load(copied, engine="onnx-int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onxx"}, "engine must be one of auto, torch, onnx, onnx-fused, onnx-int8, not 'onxx'"),
        ({"engine": None}, "not None"),
        ({"engine": "onnx", "device": "cuda"}, "computes on the CPU, but device is cuda"),
        ({"engine": "onnx-int8", "precision": "bf16"}, "has a precision of its own, but precision is bf16"),
    ],
)
def test_engines_that_contradict_other_arguments_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Reranker.load(folder, **options)


def test_the_server_scores_with_the_engine_and_info_names_it(folder):
    reranker = Reranker.load(folder, engine="onnx-int8")
    app = create_app(Engine(reranker, "tiny"), Settings())

    async def ask() -> tuple[dict, dict]:
        async with (
            app.router.lifespan_context(app),
            AsyncClient(transport=ASGITransport(app), base_url="http://x") as to,
        ):
            body = {"query": QUERIES[0], "documents": DOCUMENTS, "raw_scores": True}
            return (await to.get("/info")).json(), (await to.post("/rerank", json=body)).json()

    info, answer = asyncio.run(ask())
    assert info["engine"] == "onnx-int8"
    scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
    expected = reranker.score([(QUERIES[0], text) for text in DOCUMENTS])
    np.testing.assert_allclose([scores[index] for index in range(len(DOCUMENTS))], expected, rtol=0, atol=1e-4)


def test_serve_refuses_a_precision_for_an_engine_that_has_its_own():
    with pytest.raises(ServeError, match="--engine onnx has a precision of its own; leave out --precision bf16"):
        serve("no/model", "127.0.0.1", 0, Settings(), "bf16", engine="onnx")


def test_weights_in_a_second_file_are_quantised_and_leave_nothing_behind(rerankers, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.inference.graph.LARGEST_FILE", 10_000)
    reranker = rerankers["interaction"]
    inference.write("onnx-int8", reranker.model, batch_of(reranker), tmp_path)
    names = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert names == {"model_int8.onnx", "model_int8.onnx_data"}
    assert inference.size("onnx-int8", tmp_path) == sum(path.stat().st_size for path in (tmp_path / "onnx").iterdir())
    scores = Session(tmp_path / "onnx" / "model_int8.onnx").logits(batch_of(reranker)).numpy()
    assert Quality.of(scores, reranker.score(PAIRS), 0).tau > 0.8
    inference.remove("onnx-int8", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_json_with_what_was_measured(tmp_path):
    (tmp_path / "onnx").mkdir()
    inference.record({"onnx-int8": Quality(0.25, 0.97, 5, 0.61, 0.612)}, tmp_path)
    content = json.loads((tmp_path / "onnx" / "formats.json").read_text())
    figures = {"difference": 0.25, "tau": 0.97, "size": 5, "dev": 0.61, "dev_float32": 0.612, "float32_share": 0.0}
    assert content == {"onnx-int8": figures}
    assert inference.passed(tmp_path) == ["onnx-int8"]
    assert inference.passed(tmp_path / "elsewhere") == []
