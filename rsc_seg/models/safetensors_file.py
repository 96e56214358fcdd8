"""Tensors written as one safetensors file, with the system's refusals as OSError."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes contiguous float32 copies; OSError when the system refuses (the library has an error of its own)."""
    tensors = {key: value.detach().to("cpu", torch.float32, copy=True).contiguous() for key, value in state.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as e:
        raise OSError(str(e)) from e
