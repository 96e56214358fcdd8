"""Scaled dot-product attention behind one function, with the backend decided once for a device and dtype."""

import ctypes
import functools
import importlib.util
import logging
from pathlib import Path
from types import ModuleType
from typing import Optional

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rsc_seg.errors import UserError, suggestion

BACKENDS = ("auto", "sdpa", "xformers", "eager")
_log = logging.getLogger(__name__)


def _preload_cuda12_runtime() -> None:
    """Makes libcudart.so.12 visible, which the xformers wheel wants even beside a CUDA 13 build of torch."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        library = Path(root) / "cuda_runtime" / "lib" / "libcudart.so.12"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _xformers_ops() -> ModuleType:
    """xformers.ops; UserError that names the extra when it is not installed."""
    if importlib.util.find_spec("xformers") is None:
        raise UserError("attention=xformers: xformers is not installed (pip install 'rsc-seg[xformers]').")
    _preload_cuda12_runtime()
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns about its build at every import
    import xformers.ops

    return xformers.ops


def _probe_xformers(device: torch.device, dtype: torch.dtype) -> None:
    """Runs forward and backward once; whatever xformers raises when it has no operator goes through.

    The outcome is kept, so it must not depend on the caller's mode: gradients are on and autocast is off here.
    """
    ops = _xformers_ops()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        q = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype, requires_grad=True)
        ops.memory_efficient_attention(q, q, q).sum().backward()


@functools.cache
def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that `name` means on this device and dtype: sdpa, xformers or eager.

    `auto` takes xformers on CUDA when a probe call works there, SDPA otherwise. `xformers` raises UserError when the
    probe fails, and always away from CUDA. The outcome is logged once for each device and dtype.
    """
    if name not in BACKENDS:
        raise UserError(f"attention={name}: must be one of {', '.join(BACKENDS)}.{suggestion(name, BACKENDS)}")
    if name == "xformers" and device.type != "cuda":
        raise UserError(
            f"attention=xformers: xformers has no operator on '{device.type}', only on CUDA; "
            "use attention=auto or sdpa."
        )
    chosen, reason = ("sdpa" if name == "auto" else name), f"attention={name}"
    if device.type == "cuda" and name in ("auto", "xformers"):
        try:
            _probe_xformers(device, dtype)
            chosen, reason = "xformers", "probe call worked"
        except Exception as e:  # xformers raises many kinds; each means that it cannot serve here
            if name == "xformers":
                raise UserError(
                    f"attention=xformers does not work on {device} with {dtype}: {_first_line(e)}; "
                    "use attention=auto or sdpa."
                ) from e
            reason = f"xformers: {_first_line(e)}"
    _log.info("attention backend on %s, %s: %s (%s)", device, dtype, chosen, reason)
    return chosen


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def attend(
    q: Float[Tensor, "B N Lq K"],
    k: Float[Tensor, "B N Lk K"],
    v: Float[Tensor, "B N Lk K"],
    bias: Optional[Float[Tensor, "*batch Lq Lk"]] = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "B N Lq K"]:
    """softmax(q k^T / sqrt(K) + bias) v over N heads of width K.

    `bias` is additive and broadcasts over batch and heads; xformers is left for SDPA when there is one, because its
    kernels put alignment conditions on dense biases.
    """
    backend = resolve_backend(backend, q.device, q.dtype)
    if backend == "eager":
        scores = (q.float() @ k.float().transpose(-2, -1)) * q.shape[-1] ** -0.5
        weights = (scores if bias is None else scores + bias.float()).softmax(dim=-1)
        return (weights @ v.float()).to(v.dtype)
    if backend == "xformers" and bias is None:
        # xformers wants (B, L, N, K)
        out = _xformers_ops().memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
