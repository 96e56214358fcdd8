"""One hash for all weights of a module."""

import hashlib

from torch import nn


def module_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
