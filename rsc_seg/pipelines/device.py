"""The device that a command measures or draws on."""

import torch

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """The device of run.device; auto takes CUDA when there is one, else the CPU.

    Raises UserError for an unknown name and for a device that this machine has not.
    """
    require_choice("run.device", name, DEVICES)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda: this machine has no usable CUDA device; use --device cpu or auto.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("run.device=mps: this machine has no usable MPS device; use --device cpu or auto.")
    return torch.device(name)
