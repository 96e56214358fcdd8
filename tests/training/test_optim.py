"""The schedule by hand, decay groups, and the number of steps."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rsc_seg.config import OptimConfig
from rsc_seg.errors import UserError
from rsc_seg.training.optim import check_optim, lr_factor, make_optimizer, parameter_groups, set_lr, total_steps


def test_schedule_by_hand() -> None:
    factors = [lr_factor(s, total=10, warmup=2) for s in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)  # half of the cosine
    assert factors[4] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factors[10] == pytest.approx(0.0)
    assert all(a >= b for a, b in zip(factors[1:], factors[2:], strict=False))


def test_warmup_is_cut_in_short_runs() -> None:
    assert [lr_factor(s, total=4, warmup=1000) for s in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert lr_factor(0, total=1, warmup=1000) == 1.0
    assert [lr_factor(s, total=2, warmup=0) for s in range(2)] == pytest.approx([1.0, 0.5])


def test_every_step_of_a_run_has_a_positive_rate() -> None:
    for total in (1, 2, 3, 7, 50):
        for warmup in (0, 1, 5, 1000):
            factors = [lr_factor(s, total=total, warmup=warmup) for s in range(total)]
            assert min(factors) > 0 and max(factors) == 1


def test_weight_decay_is_for_matrices_only() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    module[2].weight.requires_grad_(False)
    groups = parameter_groups(module.named_parameters(), OptimConfig(lr=0.3, weight_decay=0.1, betas=[0.9, 0.98]))
    assert [(g["weight_decay"], g["lr"], g["base_lr"], g["betas"]) for g in groups] == [
        (0.1, 0.3, 0.3, (0.9, 0.98)),
        (0.0, 0.3, 0.3, (0.9, 0.98)),
    ]
    ids = [{id(p) for p in g["params"]} for g in groups]
    assert ids == [{id(module[0].weight)}, {id(module[0].bias), id(module[1].weight), id(module[1].bias)}]


def test_set_lr_keeps_the_groups_proportions() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = parameter_groups(a.named_parameters(), OptimConfig(lr=1.0))
    groups += parameter_groups(b.named_parameters(), OptimConfig(lr=0.1))
    optimizer = make_optimizer(groups)
    assert set_lr(optimizer, 0.5) == 0.5
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    set_lr(optimizer, 1.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_nothing_that_trains_is_a_user_error() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="nothing trains"):
        make_optimizer(parameter_groups(frozen.named_parameters(), OptimConfig()))
    assert isinstance(make_optimizer([{"params": [nn.Parameter(torch.ones(2, 2))]}]), torch.optim.AdamW)


@pytest.mark.parametrize(
    ("config", "images", "world", "steps"),
    [
        (OptimConfig(epochs=4, batch_size=16), 160, 1, 40),
        (OptimConfig(epochs=4, batch_size=16), 175, 1, 40),  # the last incomplete batch of an epoch is dropped
        (OptimConfig(epochs=4, batch_size=16, accumulate=2), 160, 1, 20),
        (OptimConfig(epochs=4, batch_size=16), 160, 2, 20),
        (OptimConfig(epochs=0.5, batch_size=16), 160, 1, 5),
        (OptimConfig(epochs=3, batch_size=16), 5, 1, 3),  # fewer images than a batch: one step an epoch
        (OptimConfig(epochs=4, max_steps=7), 160, 1, 7),
    ],
)
def test_total_steps(config: OptimConfig, images: int, world: int, steps: int) -> None:
    assert total_steps(config, images, world) == steps


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimConfig(batch_size=0), r"optim\.batch_size=0"),
        (OptimConfig(accumulate=0), r"optim\.accumulate=0"),
        (OptimConfig(max_steps=0), r"optim\.max_steps=0"),
        (OptimConfig(epochs=0), r"optim\.epochs=0"),
    ],
)
def test_no_steps_are_a_user_error(config: OptimConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        total_steps(config, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": [0.9]}, r"distill\.optim\.betas=\[0\.9\]"),
        ({"betas": [0.9, 1.0]}, r"distill\.optim\.betas"),
        ({"lr": -1.0}, r"distill\.optim\.lr=-1"),
        ({"weight_decay": math.nan}, r"distill\.optim\.weight_decay=nan"),
        ({"warmup_steps": -1}, r"distill\.optim\.warmup_steps=-1"),
        ({"clip_norm": 0.0}, r"distill\.optim\.clip_norm=0"),
    ],
)
def test_values_that_no_optimiser_takes_are_named_in_full(changes: dict[str, Any], message: str) -> None:
    check_optim(OptimConfig(clip_norm=1.0), "distill.optim")
    with pytest.raises(UserError, match=message):
        check_optim(OptimConfig(**changes), "distill.optim")


def test_steps_are_named_in_full() -> None:
    with pytest.raises(UserError, match=r"^refine\.optim\.batch_size=0"):
        total_steps(OptimConfig(batch_size=0), 10, section="refine.optim")
