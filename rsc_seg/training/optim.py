"""AdamW with CLIPSelf's decay rule and a schedule that is a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from rsc_seg.config import OptimConfig
from rsc_seg.errors import UserError


def check_optim(config: OptimConfig, section: str) -> None:
    """UserError, by the options' full names, for values that the optimiser or the schedule cannot take."""
    betas, clip = config.betas, config.clip_norm
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"{section}.betas={betas}: must be two numbers from 0 to below 1.")
    if not (math.isfinite(config.lr) and config.lr >= 0):
        raise UserError(f"{section}.lr={config.lr}: must be 0 or more.")
    if not (math.isfinite(config.weight_decay) and config.weight_decay >= 0):
        raise UserError(f"{section}.weight_decay={config.weight_decay}: must be 0 or more.")
    if config.warmup_steps < 0:
        raise UserError(f"{section}.warmup_steps={config.warmup_steps}: must be 0 or more.")
    if clip is not None and not clip > 0:
        raise UserError(f"{section}.clip_norm={clip}: must be above 0, or null for no clipping.")


def total_steps(config: OptimConfig, images: int, world_size: int = 1, *, section: str = "optim") -> int:
    """Optimiser steps of a stage: `max_steps`, else epochs times the whole global batches of one (at least one).

    `section` is the options' place in the configuration, for messages.
    """
    for key, value in (("batch_size", config.batch_size), ("accumulate", config.accumulate)):
        if value < 1:
            raise UserError(f"{section}.{key}={value}: must be at least 1.")
    steps = (
        config.max_steps
        if config.max_steps is not None
        else round(config.epochs * max(1, images // (config.batch_size * config.accumulate * world_size)))
    )
    if steps < 1:
        raise UserError(
            f"{section}.max_steps={config.max_steps}, {section}.epochs={config.epochs}: at least one step is needed."
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
    return torch.optim.AdamW(groups, fused=True)  # one pass over the memory, on a CPU too


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to factor * base_lr and returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
    return float(optimizer.param_groups[0]["lr"])
