"""Between the model before training and the trained one: which weights leave, and what dev has to do with it."""

import math

import pytest
import torch
from accelerate import Accelerator

from trainer.training.checkpoints import START, TRAINED, Progress
from trainer.training.interpolate import between, choose


class Toy:
    """A model of one weight, which is 1 before training and 2 after it, and an index that is no number to mix."""

    def __init__(self, weight: float):
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.model.register_buffer("index", torch.tensor([int(weight)]))
        torch.nn.init.constant_(self.model.weight, weight)

    def save(self, folder):
        folder.mkdir()
        torch.save(self.model.state_dict(), folder / "weights.pt")


def chosen(tmp_path, dev, progress):
    """The weight that leaves, and the curve; `dev` gives the dev score of a weight."""
    loaded = {START: Toy(1.0), TRAINED: Toy(2.0)}
    curve = choose(
        tmp_path,
        progress,
        lambda path: loaded[path.name],
        lambda toy: dev(toy.model.weight.item()),
        Accelerator(cpu=True),
    )
    return torch.load(tmp_path / "best" / "weights.pt")["weight"].item(), curve


def trained(start, end, step=4):
    return Progress(
        step=step, best_score=end, best_step=step if end > -math.inf else 0, curve=[(0, start), (step, end)]
    )


@pytest.mark.parametrize(("top", "weight"), [(1.0, 1.0), (1.3, 1.25), (1.5, 1.5), (1.8, 1.75), (2.0, 2.0)])
def test_dev_chooses_the_share_of_the_trained_weights(tmp_path, top, weight):
    def dev(value):
        return 1 - abs(value - top)

    left, curve = chosen(tmp_path, dev, trained(dev(1.0), dev(2.0)))
    assert left == pytest.approx(weight)
    assert sorted(share for share, _ in curve) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert curve[0] == pytest.approx((weight - 1, dev(weight)))


def test_ties_go_to_the_model_closest_to_the_start(tmp_path):
    left, curve = chosen(tmp_path, lambda value: 0.5, trained(0.5, 0.5))
    assert left == 1.0
    assert curve[0] == (0.0, 0.5)


def test_without_an_evaluated_step_the_start_is_saved(tmp_path):
    left, curve = chosen(tmp_path, lambda value: math.nan, Progress(curve=[(0, 0.4)]))
    assert left == 1.0
    assert curve == [(0.0, 0.4)]


def test_both_ends_are_exact_and_indices_are_not_mixed():
    start, end = (torch.tensor([0.1, 1e-30, 3e18]) * sign for sign in (1, -1))
    assert torch.equal(between(start, end, 0.0), start)
    assert torch.equal(between(start, end, 1.0), end)
    assert between(start, end, 0.25)[0].item() == pytest.approx(0.05)
    assert between(torch.tensor(3), torch.tensor(4), 0.5).item() == 4
