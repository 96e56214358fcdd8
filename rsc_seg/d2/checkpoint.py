"""Checkpoints of Cat-Seg's training: whole or not at all, the last two kept, with all that an exact resume needs."""

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Optional

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim import Optimizer

from rsc_seg.d2.ema import WeightAverage
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.training.checkpoint import saved_steps

_log = logging.getLogger(__name__)
_KEEP = 2


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return folder / f"step_{step:08d}.pt"


class TrainingState:
    """What training changes: the weights that train, the optimiser, the loss scaler and the average of the weights.

    Weights that do not train are not kept, but their digest is: they must be the same ones when a run goes on. No
    random state is kept, because nothing in a step draws from the global one: views are drawn by seed and step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        average: Optional[WeightAverage] = None,
    ) -> None:
        self.optimizer, self.scaler, self.average = optimizer, scaler, average
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.frozen = _frozen_digest(model)

    def weights(self) -> dict[str, Tensor]:
        """The weights that train and their average, by name."""
        average = {} if self.average is None else self.average.average
        return dict(self.trained) | {f"average of {name}": value for name, value in average.items()}

    def content(self, step: int) -> dict[str, Any]:
        """Tensors and plain values only, so that the file is read without running code."""
        return {
            "step": step,
            "model": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "frozen": self.frozen,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Takes `content` over; ValueError saying what does not fit, before anything is changed but for the average."""
        held: dict[str, Tensor] = content["model"]
        odd = sorted(held.keys() ^ self.trained.keys())
        odd += [k for k, p in self.trained.items() if k in held and held[k].shape != p.shape]
        if odd:
            raise ValueError(f"written with another set-up: parameters differ, such as '{odd[0]}'")
        bad = not_finite(held) or not_finite((content["average"] or {}).get("average", {}))
        if bad:
            raise ValueError(f"its values are not finite in {bad[0]}")
        if content["frozen"] != self.frozen:
            raise ValueError("the weights that do not train are not those that the run began with")
        if (content["average"] is None) != (self.average is None):
            raise ValueError("written with another solver.ema")
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(held[name])


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those that hold a NaN or an infinity; one look at the device where there are none."""
    if not tensors:
        return []
    largest = torch._foreach_norm([value.detach() for value in tensors.values()], math.inf)
    finite = torch.isfinite(torch.stack([value.float() for value in largest]))
    return [] if bool(finite.all()) else [k for k, fine in zip(tensors, finite.tolist(), strict=True) if not fine]


def _frozen_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all that does not train, buffers included."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name not in trained:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, step: int, state: TrainingState) -> None:
    """Writes the state after `step` steps and removes all but the last two; called by all processes.

    Raises UserError when the disk refuses; older checkpoints then stand as they were.
    """
    if comm.is_main_process():
        try:
            atomic_write(checkpoint_path(folder, step), lambda path: torch.save(state.content(step), path))
        except RuntimeError as e:  # how torch reports a disk that is full
            raise UserError(f"{checkpoint_path(folder, step)}: not written ({e}); earlier checkpoints stand.") from e
        for old in saved_steps(folder)[:-_KEEP]:
            checkpoint_path(folder, old).unlink(missing_ok=True)
    comm.synchronize()


def last_step(folder: Path) -> int:
    """Steps of the newest checkpoint, 0 without one."""
    return max(saved_steps(folder), default=0)


def load_checkpoint(folder: Path, step: int, state: TrainingState) -> None:
    """Restores what `save_checkpoint` wrote; UserError when it is damaged or belongs to another set-up."""
    path = checkpoint_path(folder, step)
    try:
        state.restore(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, UnpicklingError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{path}: cannot be resumed from ({reason}); remove it, or start again in a new folder.") from e
    _log.info("going on after step %d", step)
