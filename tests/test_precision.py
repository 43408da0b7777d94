"""The precision of a model's computations, and the differences of half precision from float32."""

import json
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from scipy.stats import kendalltau

from trainer.errors import RecipeError
from trainer.model import Reranker
from trainer.retriever import BiEncoder
from trainer.runtime import precision
from trainer.runtime.launch import start_accelerator
from trainer.runtime.precision import Precisions, autocast, bf16_speedup, faster, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_fp32_on_a_cpu_without_bf16_units_and_measured_on_one_that_has_them(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # the launcher speaks for GPUs only
    assert resolve("auto", CPU) == "fp32"
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    assert resolve("auto", CPU) is None
    assert resolve("fp32", CPU) == "fp32"
    assert resolve("bf16", CPU) == "bf16"


def test_auto_on_a_gpu_follows_the_launcher(monkeypatch):
    for told, expected in (("bf16", "bf16"), ("fp16", "fp16"), ("no", "fp32")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
        assert resolve("auto", CUDA) == expected
    assert resolve("fp32", CUDA) == "fp32"
    assert resolve("fp16", CUDA) == "fp16"


def test_fp16_needs_a_gpu_and_emulated_bf16_is_warned_about(capsys):
    with pytest.raises(
        RecipeError, match="train.precision: fp16 needs a CUDA GPU, and there is none here; set it to auto"
    ):
        resolve("fp16", CPU)
    assert resolve("bf16", CPU) == "bf16"
    assert "this CPU emulates bf16" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx2": True, "cpu_name": "slow"}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True, "neon": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_native_bf16_depends_on_the_processors_units(capabilities, native, monkeypatch):
    monkeypatch.undo()  # of what conftest sets
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.has_native_bf16() is native


def test_a_speedup_is_the_ratio_of_medians_and_decides(monkeypatch):
    clock = iter(range(10**6))
    seconds = {torch.float32: 6, torch.bfloat16: 2}
    now = [0.0]

    def compute():
        half = torch.is_autocast_enabled("cpu")
        now[0] += seconds[torch.bfloat16 if half else torch.float32] + 1e-9 * next(clock)

    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert bf16_speedup(compute, partial(autocast, CPU)) == pytest.approx(3.0, abs=1e-6)
    assert faster(1.3) == "bf16"
    assert faster(1.2) == "fp32"


def test_a_model_is_measured_once_on_a_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_native_bf16", lambda: True)
    choices = Precisions("auto", CPU, tmp_path / "measured.json")
    assert choices.of("train", "training", "a" * 64, lambda: 2.25) == "bf16"
    assert "training in bf16: bf16 is 2.2 times as fast as fp32" in " ".join(capsys.readouterr().out.split())
    assert choices.of("teacher", "scoring", "a" * 64, lambda: 1.1) == "fp32"
    assert choices.of("train", "training", "a" * 64, lambda: pytest.fail("measured twice")) == "bf16"
    assert choices.of("train", "training", "b" * 64, lambda: 1.0) == "fp32"
    (name, _), *_ = json.loads((tmp_path / "measured.json").read_text()).items()
    assert f"torch {torch.__version__}" in name


@pytest.mark.parametrize("kind", ["bert", "reranker", "modernbert"])
def test_precision_belongs_to_the_reranker_even_if_another_accelerator_exists(tiny, kind):
    documents = ["kernel kills the process", "certificate expired", "disk shows free space", ""]
    reranker = Reranker.load(tiny[kind], max_length=32, device="cpu")
    assert (reranker.precision, reranker.device) == ("fp32", CPU)
    before = reranker.score([("why does memory run out", text) for text in documents])
    Accelerator(cpu=True)
    np.testing.assert_array_equal(reranker.score([("why does memory run out", text) for text in documents]), before)
    half = Reranker.load(tiny[kind], max_length=32, precision="bf16")
    rounded = half.score([("why does memory run out", text) for text in documents])
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - before).max() < 0.02 * max(1.0, np.abs(before).max())
    half.compute_in("fp32")
    np.testing.assert_array_equal(half.score([("why does memory run out", text) for text in documents]), before)


def test_a_run_starts_whatever_precision_another_library_left_behind():
    AcceleratorState._reset_state()
    Accelerator(cpu=True, mixed_precision="bf16")
    assert start_accelerator("fp32").mixed_precision == "no"
    AcceleratorState._reset_state()


@pytest.mark.parametrize("kind", ["bert", "reranker"])
def test_logits_are_not_rounded_to_bf16(tiny, kind):
    """Under autocast a linear layer gives bf16; logits near 100 would then be .5 apart and tie."""
    reranker = Reranker.load(tiny[kind], max_length=32, precision="bf16")
    with torch.no_grad():
        reranker.model.classifier.bias.fill_(100.0)
    scores = reranker.score(
        [
            ("why does memory run out", text)
            for text in [f"kernel kills {word}" for word in ["a", "b", "c", "d", "e", "f", "g", "h"]]
        ]
    )
    assert any(score != torch.tensor(score).bfloat16().float() for score in scores)
    with torch.no_grad():
        reranker.model.classifier.bias.zero_()
    again = reranker.score(
        [
            ("why does memory run out", text)
            for text in [f"kernel kills {word}" for word in ["a", "b", "c", "d", "e", "f", "g", "h"]]
        ]
    )
    assert kendalltau(scores, again).statistic > 0.9


def test_a_model_can_be_measured_and_a_bi_encoder_too(tiny):
    reranker = Reranker.load(tiny["bert"], max_length=32)
    assert reranker.bf16_speedup() > 0
    assert reranker.bf16_speedup(training=True) > 0
    assert all(weight.grad is None for weight in reranker.model.parameters())
    assert BiEncoder(tiny["bert"], max_length=16).bf16_speedup("cpu") > 0


def test_embeddings_of_another_precision_have_another_fingerprint(tiny):
    full = BiEncoder(tiny["bert"], max_length=16)
    half = BiEncoder(tiny["bert"], max_length=16, precision="bf16")
    assert full.fingerprint("query") != half.fingerprint("query")
    texts = ["kernel kills the process when memory runs out", "certificate expired"]
    exact, rounded = (one.encode(one.load("cpu"), texts, "document", 2).astype(np.float32) for one in (full, half))
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1.0, atol=1e-3)
    assert ((exact * rounded).sum(axis=1) > 0.999).all()


def test_autocast_of_fp32_changes_nothing():
    with autocast(CPU, "fp32"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.fixture
def no_cast_cache() -> Iterator[None]:
    """Torch keeps no cast weights, as exporters and other libraries may leave it."""
    torch.set_autocast_cache_enabled(False)
    yield
    torch.set_autocast_cache_enabled(True)


@pytest.mark.usefixtures("no_cast_cache")
def test_scoring_in_bf16_casts_every_weight_once_and_not_in_every_bucket(tiny):
    reranker = Reranker.load(tiny["bert"], max_length=32, device="cpu", precision="bf16")
    layers = reranker.model.encoder.encoder.layer
    shape = list(layers[0].intermediate.dense.weight.shape)
    reranker.tokens_per_bucket = 1  # a bucket for every document
    documents = ["kernel", "kernel kills the process " * 2, "kernel kills the process " * 5]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        reranker.score([("why", text) for text in documents])
    events = [event for event in seen.key_averages(group_by_input_shape=True) if event.input_shapes[:1] == [shape]]
    assert sum(event.count for event in events if event.key == "aten::_to_copy") == len(layers)
