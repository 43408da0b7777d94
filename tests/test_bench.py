"""What the benches reckon rather than measure: padding, FLOPs, a chip's peak; and that the draws of a curve nest."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from trainer.data.groups import Group

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_padding_fills_each_batch_to_its_longest_pair(scripts):
    from bench_sides import padding

    assert padding([5, 5, 5], [[0, 2], [1]]) == 0
    assert padding([10, 6, 4], [[0, 1, 2]]) == pytest.approx(10 / 30)
    assert padding([10, 6, 4], [[1, 2], [0]]) == pytest.approx(2 / 22)


def test_passes_of_their_training_are_slices_of_one_step(scripts):
    from bench_train import passes

    task = {"queries_per_step": 2, "negatives": 2, "pass": 4}
    assert passes(12, task) == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]


def test_flops_of_a_bert_are_those_of_its_matrices_and_its_attention(scripts):
    from bench_sides import model_flops

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=1, **sizes))
    layer = 4 * 8 * 8 + 2 * 8 * 20  # query, key, value, output; up and down
    head = 8 * 8 + 8  # pooler and classifier
    matrices = 2 * (3 * layer * (5 + 7) + 2 * head)
    attention = 3 * 4 * 8 * (5 * 5 + 7 * 7)
    assert model_flops(model, [5, 7]) == matrices + attention


def test_flops_are_those_that_torch_counts(scripts):
    from bench_sides import model_flops
    from torch.utils.flop_counter import FlopCounterMode

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    config = BertConfig(vocab_size=50, num_labels=1, attn_implementation="eager", **sizes)
    model = BertForSequenceClassification(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(3, 11, dtype=torch.long))
    assert model_flops(model, [11] * 3) == counter.get_total_flops()


def test_a_layer_with_a_window_attends_within_it(scripts):
    from bench_sides import model_flops

    def flops(window: int) -> float:
        config = ModernBertConfig(
            vocab_size=60,
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=12,
            local_attention=window,
            num_labels=1,
            **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
        )
        return model_flops(ModernBertForSequenceClassification(config), [100])

    # Every third layer sees all, the first of them layer 0.
    assert flops(100) - flops(20) == 2 * 4 * 8 * 100 * (100 - 20)
    assert flops(1000) == flops(100)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", None),
    ],
)
def test_the_peak_is_looked_up_by_the_name_of_the_gpu(scripts, device, peak):
    from bench_sides import peak_tflops

    assert peak_tflops(device) == peak


def test_a_seed_takes_every_query_once_and_always_in_one_order(scripts):
    from learning_curve import shuffled_queries

    groups = [Group(query, [0], [1], [1]) for query in (7, 3, 3, 9, 1, 5, 8)]
    order = shuffled_queries(groups, seed=13)
    assert sorted(order) == [1, 3, 5, 7, 8, 9]
    assert shuffled_queries(groups[::-1], seed=13) == order
    assert shuffled_queries(groups, seed=14) != order
