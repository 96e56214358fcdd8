"""AdamW with CLIPSelf's decay rule and a schedule that is a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from rsc_seg.config import OptimConfig
from rsc_seg.errors import UserError


def total_steps(config: OptimConfig, images: int, world_size: int = 1) -> int:
    """Optimiser steps of a stage: `max_steps`, else epochs times the whole global batches of one (at least one)."""
    if config.batch_size < 1 or config.accumulate < 1:
        raise UserError(
            f"optim.batch_size={config.batch_size}, optim.accumulate={config.accumulate}: both must be at least 1."
        )
    steps = (
        config.max_steps
        if config.max_steps is not None
        else round(config.epochs * max(1, images // (config.batch_size * config.accumulate * world_size)))
    )
    if steps < 1:
        raise UserError(
            f"optim.max_steps={config.max_steps}, optim.epochs={config.epochs}: at least one step is needed."
        )
    return steps


def lr_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at `step` (from 0): linear warm-up, then cosine to zero.

    The warm-up is cut to half of a run that is shorter than twice its length.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[dict[str, object]]:
    """AdamW groups of the parameters that train; `base_lr` is for the schedule.

    Weight decay for matrices only, as CLIPSelf.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 else decay).append(parameter)
    groups = [(decay, config.weight_decay), (plain, 0.0)]
    return [
        {"params": p, "weight_decay": wd, "lr": config.lr, "base_lr": config.lr, "betas": tuple(config.betas)}
        for p, wd in groups
        if p
    ]


def make_optimizer(groups: list[dict[str, object]]) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; UserError when nothing trains."""
    if not groups:
        raise UserError("nothing trains: distill.trainable leaves every parameter frozen.")
    return torch.optim.AdamW(groups)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to factor * base_lr and returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
    return float(optimizer.param_groups[0]["lr"])
