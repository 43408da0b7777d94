"""Scoring in bf16 on a CPU with prepared linear layers."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertSelfAttention

from trainer.model import Reranker
from trainer.runtime import linear
from trainer.runtime.linear import MANY, prepare, scoring_in, share_casts
from trainer.runtime.precision import Float32Linear, autocast

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not linear.can_prepare("bf16"), reason="this CPU has no bf16 units, or torch no operators"
)


def products(model: nn.Module, texts: int, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), scoring_in(model, CPU, "bf16", texts):
        return model(*inputs)


class Intermediate(nn.Module):
    """A layer and its activation, with the names that BERT gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(48, 96)
        self.intermediate_act_fn = GELUActivation()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(hidden))


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (1, 48), (2, 129, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_autocast(shape, bias):
    torch.manual_seed(0)
    layer, hidden = nn.Linear(48, 33, bias=bias), torch.randn(shape)
    with torch.no_grad(), autocast(CPU, "bf16"):
        expected = layer(hidden)
    found = products(nn.Sequential(layer), MANY, hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-3)  # one unit in the last place of bf16


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (1, 48), (2, 129, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_in_float32_are_those_of_torch(shape, bias, monkeypatch):
    monkeypatch.setattr(linear, "can_prepare", lambda _: True)
    torch.manual_seed(0)
    layer, hidden = Intermediate(), torch.randn(shape)
    layer.dense = nn.Linear(48, 33, bias=bias)
    with torch.no_grad(), scoring_in(layer, CPU, "fp32", 1):
        assert "forward" in vars(layer)
        found = layer(hidden)
        with autocast(CPU, "bf16"):
            half = layer(hidden)
    torch.testing.assert_close(found, layer(hidden).detach(), rtol=1e-5, atol=1e-6)
    assert half.dtype == torch.bfloat16


def test_float32_products_are_onednns_on_amd_with_avx512_only(monkeypatch):
    for name, avx512, expected in (("AMD EPYC", True, True), ("AMD EPYC", False, False), ("Intel Xeon", True, False)):
        found = {"cpu_name": name, "avx512_f": avx512, "avx512_bf16": avx512}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert linear.can_prepare("fp32") is expected
        assert linear.can_prepare("bf16") is avx512
        assert not linear.can_prepare("fp16")


def test_a_gelu_is_applied_once_and_before_rounding():
    torch.manual_seed(0)
    layer, hidden = Intermediate(), torch.randn(64, 48)
    with torch.no_grad():
        exact = layer(hidden.bfloat16().float())
        with autocast(CPU, "bf16"):
            rounded_twice = layer(hidden)
    found = products(layer, MANY, hidden)
    torch.testing.assert_close(found.float(), exact, rtol=2**-6, atol=2e-3)
    assert (found - exact).abs().mean() <= (rounded_twice - exact).abs().mean()


def test_layers_are_restored_also_after_an_error():
    model = nn.Sequential(Intermediate(), nn.Linear(96, 8))

    def fail() -> None:
        with scoring_in(model, CPU, "bf16", MANY):
            assert [module for module in model.modules() if "forward" in vars(module)]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize(("precision", "texts"), [("fp32", MANY), ("bf16", MANY - 1)])
def test_nothing_is_prepared_where_it_does_not_pay(precision, texts, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Intel", "avx512_f": True})
    model = nn.Sequential(nn.Linear(8, 8))
    with scoring_in(model, CPU, precision, texts):
        assert "forward" not in vars(model[0])


def test_layers_may_be_prepared_while_another_thread_computes_with_them():
    torch.manual_seed(0)
    part, hidden = Intermediate(), torch.randn(5, 48)
    plain = products(part, 1, hidden)
    dense = part.dense.forward

    def enter(given: torch.Tensor) -> torch.Tensor:  # another thread prepares the layers between layer and activation
        found = dense(given)
        prepare(part, CPU, "bf16")
        return found

    part.dense.forward = enter
    assert torch.equal(products(part, 1, hidden), plain)
    prepared = products(part, 1, hidden)
    torch.testing.assert_close(prepared, plain, rtol=2**-6, atol=2e-3)
    assert not prepare(part, CPU, "bf16")


def test_weights_are_prepared_anew_each_time():
    layer, hidden = nn.Linear(16, 16), torch.randn(4, 16)
    before = products(nn.Sequential(layer), MANY, hidden)
    with torch.no_grad():
        layer.weight.data.mul_(-1)
        layer.bias.data.mul_(-1)
    assert torch.equal(products(nn.Sequential(layer), MANY, hidden), -before)


@pytest.mark.parametrize("named", [False, True])
def test_a_shared_input_is_cast_once_with_the_same_products(named):
    torch.manual_seed(0)
    model, seen = BertSelfAttention(BertConfig(hidden_size=32, num_attention_heads=2)).eval(), []
    hidden = torch.randn(2, 5, 32, requires_grad=True)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(CPU, "bf16"):
            found = model(hidden_states=hidden)[0] if named else model(hidden)[0]
        (gradient,) = torch.autograd.grad(found.float().square().sum(), hidden)
        return found, gradient

    expected, gradient = outputs()
    share_casts(model)
    share_casts(model)
    model.key.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    found, same = outputs()
    assert torch.equal(found, expected)
    torch.testing.assert_close(same, gradient, rtol=2**-7, atol=1e-3)
    assert seen == [torch.bfloat16]
    model(hidden)
    assert seen == [torch.bfloat16, torch.float32]
    assert len(model._forward_pre_hooks) == 1


def test_parts_in_float32_and_layers_of_other_kinds_stay_exact():
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.logit = Intermediate(), Float32Linear(48, 1)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                part = self.part(hidden)
            return torch.cat([part, self.logit(hidden)], dim=-1)

    torch.manual_seed(0)
    model, hidden = Exact(), torch.randn(5, 48)
    with torch.no_grad():
        expected = torch.cat(
            [
                functional.gelu(model.part.dense(hidden)),
                functional.linear(hidden, model.logit.weight, model.logit.bias),
            ],
            dim=-1,
        )
    assert torch.equal(products(model, MANY, hidden), expected)


@pytest.mark.parametrize("base", ["bert", "roberta", "modernbert", "reranker"])
def test_scores_of_models_stay_within_rounding(tiny: dict[str, Any], base, monkeypatch):
    reranker = Reranker.load(tiny[base], precision="bf16", head="auto")
    pairs = [(f"query {number}", f"document {number} " * (1 + number % 7)) for number in range(MANY)]
    found = reranker.score(pairs)
    monkeypatch.setattr(linear, "can_prepare", lambda _: False)
    expected = reranker.score(pairs)
    reranker.compute_in("fp32")
    exact = reranker.score(pairs)
    assert abs(found - exact).max() <= 2 * abs(expected - exact).max() + 1e-6
