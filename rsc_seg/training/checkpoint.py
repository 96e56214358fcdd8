"""Checkpoints of a stage: whole or not at all, the last two kept, everything that an exact resume needs."""

import logging
import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)
_KEEP = 2


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    found = [re.fullmatch(r"step_(\d{8})\.pt", p.name) for p in folder.glob("step_*.pt")]
    return sorted(int(m.group(1)) for m in found if m)


def forget_checkpoints(fabric: Fabric, folder: Path) -> None:
    """Removes what an earlier run left in `folder`: a new run must never be resumed from it."""
    if fabric.is_global_zero:
        for step in saved_steps(folder):
            _path(folder, step).unlink(missing_ok=True)
    fabric.barrier()


def trainable_names(task: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, p in task.named_parameters() if p.requires_grad]


def save_checkpoint(
    fabric: Fabric, folder: Path, step: int, task: nn.Module, optimizer: Optimizer, names: list[str]
) -> None:
    """Writes the trainable parameters, optimiser state and every rank's RNG; called by all ranks.

    The file appears under its name only when it is complete. Raises UserError when the disk refuses; older checkpoints
    then stand as they were.
    """
    target = _path(folder, step)
    temporary = folder / f".{target.stem}.tmp"
    wanted = set(names)
    rng = fabric.all_gather(torch.get_rng_state())
    assert isinstance(rng, torch.Tensor)  # a tensor was given
    state: dict[str, Any] = {
        "model": task,
        "optimizer": optimizer,
        "step": step,
        "names": sorted(wanted),
        "rng": rng.reshape(fabric.world_size, -1).cpu(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fabric.save(temporary, state, filter={"model": lambda name, _: name in wanted})
        if fabric.is_global_zero:
            os.replace(temporary, target)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{target}: not written ({e.strerror or e}); earlier checkpoints stand. Free some space and use --resume."
        ) from e
    if fabric.is_global_zero:
        for old in saved_steps(folder)[:-_KEEP]:
            _path(folder, old).unlink(missing_ok=True)
        for stale in folder.glob(".step_*.tmp"):
            stale.unlink(missing_ok=True)
    fabric.barrier()


def load_checkpoint(
    fabric: Fabric, folder: Path, step: int, task: nn.Module, optimizer: Optimizer, names: list[str]
) -> None:
    """Restores what `save_checkpoint` wrote; UserError when it belongs to another set-up or is damaged."""
    path = _path(folder, step)
    try:
        rest = fabric.load(path, {"model": task, "optimizer": optimizer}, strict=False, weights_only=True)
        written, rng = set(rest["names"]), rest["rng"]
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, UnpicklingError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{path}: cannot be resumed from ({reason}); remove it, or start again in a new folder.") from e
    odd = written ^ set(names)
    if odd:
        raise UserError(
            f"{path}: written with another set-up (parameters differ, such as '{min(odd)}'); "
            "restore its config or start again in a new folder."
        )
    torch.set_rng_state(rng[min(fabric.global_rank, len(rng) - 1)].cpu())
    _log.info("resumed %s at step %d", folder.name, step)


def final_parameters(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The trainable parameters of a checkpoint by name, on CPU."""
    path = _path(folder, step)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    return torch.load(path, map_location="cpu", weights_only=True)["model"]
