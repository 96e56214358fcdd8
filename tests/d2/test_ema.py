"""The running average: a hand-worked sum, and weights that come back as they were."""

import pytest
import torch
from torch import nn

from rsc_seg.d2.ema import WeightAverage
from rsc_seg.errors import UserError


def test_average_of_three_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(8.0)
    average, expected = WeightAverage(model, 0.2), 8.0
    for step, value in enumerate((2.0, 4.0, 6.0)):
        model.weight.data.fill_(value)
        average.update()
        rate = min(0.2, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * value
    assert average.average["weight"].item() == pytest.approx(expected) and average.steps == 3


def test_in_place_for_a_while() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    own, pointer = model.weight.detach().clone(), model.weight.data_ptr()
    average.average["weight"] += 1
    assert average.average.keys() == {"weight"}
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert torch.equal(model.weight, own + 1)
        raise ZeroDivisionError
    assert torch.equal(model.weight, own) and model.weight.data_ptr() == pointer


def test_it_is_kept_whole() -> None:
    one, two = (WeightAverage(nn.Linear(2, 3), 0.9) for _ in range(2))
    one.update()
    two.load_state_dict(one.state_dict())
    assert two.steps == 1 and all(torch.equal(one.average[k], two.average[k]) for k in one.average)
    with pytest.raises(ValueError, match="other parameters"):
        two.load_state_dict(WeightAverage(nn.Linear(3, 2), 0.9).state_dict())
    for decay in (0.0, 1.0):
        with pytest.raises(UserError, match=f"solver.ema={decay}"):
            WeightAverage(nn.Linear(1, 1), decay)
