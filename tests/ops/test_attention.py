"""Attention backends: one result whatever the backend, and choices that a device cannot serve refused in words."""

import logging
import math

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.ops import attention
from rsc_seg.ops.attention import BACKENDS, attend, resolve_backend

torch.set_num_threads(1)
CPU = torch.device("cpu")


def qkv(lq: int = 7, lk: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, lq, 8, generator=g)
    k, v = torch.randn(2, 2, 3, lk, 8, generator=g)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    out = torch.zeros(*q.shape[:3], v.shape[-1])
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = [float(q[b, n, i] @ k[b, n, j]) / math.sqrt(q.shape[-1]) for j in range(k.shape[2])]
                weights = [math.exp(s + float(bias[i, j])) for j, s in enumerate(scores)]
                out[b, n, i] = sum(w * v[b, n, j] for j, w in enumerate(weights)) / sum(weights)
    return out


@pytest.mark.parametrize("backend", ["auto", "sdpa", "eager"])
def test_every_cpu_backend_equals_the_definition(backend: str) -> None:
    q, k, v = qkv(5, 9)
    bias = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attend(q, k, v, bias, backend=backend), by_hand(q, k, v, bias), atol=1e-5, rtol=0)
    no_bias = by_hand(q, k, v, torch.zeros(5, 9))
    torch.testing.assert_close(attend(q, k, v, backend=backend), no_bias, atol=1e-5, rtol=0)


def backends_of(device: str) -> list[tuple[str, torch.dtype]]:
    """What this machine can run there: the CPU's SDPA, on CUDA also xformers where its probe call works."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        found.append(("sdpa", dtype))
        if resolve_backend("auto", torch.device(device), dtype) == "xformers":
            found.append(("xformers", dtype))
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize("tokens", [7, 197])
def test_every_backend_of_this_machine_equals_eager_forward_and_backward(device: str, tokens: int) -> None:
    for backend, dtype in backends_of(device):
        results = []
        for name in ("eager", backend):
            parts = [t.to(device, dtype).requires_grad_(True) for t in qkv(tokens, tokens)]
            out = attend(*parts, backend=name)
            out.float().square().sum().backward()
            results.append([out.float(), *(t.grad.float() for t in parts)])
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", [(7, 7), (2, 1, 7, 7), (2, 3, 7, 7)])
def test_bias_broadcasts_alike_in_eager_and_sdpa(shape: tuple[int, ...]) -> None:
    q, k, v = qkv()
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    eager, sdpa = attend(q, k, v, bias, backend="eager"), attend(q, k, v, bias, backend="sdpa")
    torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=0)


def test_minus_infinity_in_the_bias_hides_a_token() -> None:
    q, k, v = qkv()
    bias = torch.zeros(7, 7)
    bias[:, 3] = -math.inf
    keep = [0, 1, 2, 4, 5, 6]
    for backend in ("eager", "sdpa"):
        hidden = attend(q, k, v, bias, backend=backend)
        torch.testing.assert_close(hidden, attend(q, k[:, :, keep], v[:, :, keep], backend=backend), atol=1e-5, rtol=0)


def test_gradients_are_equal_in_eager_and_sdpa() -> None:
    grads = []
    for backend in ("eager", "sdpa"):
        inputs = [t.requires_grad_() for t in qkv()]
        grads.append(torch.autograd.grad(attend(*inputs, backend=backend).square().sum(), inputs))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_eager_keeps_the_dtype_and_computes_in_float32() -> None:
    low = qkv(dtype=torch.bfloat16)
    out = attend(*low, backend="eager")
    exact = attend(*(t.float() for t in low), backend="eager")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.to(torch.bfloat16))


def test_auto_on_cpu_is_sdpa_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="rsc_seg"):
        assert [resolve_backend("auto", CPU, torch.float32) for _ in range(3)] == ["sdpa"] * 3
    lines = [r.message for r in caplog.records if "attention backend" in r.message]
    assert len(lines) == 1 and "cpu" in lines[0] and "sdpa" in lines[0]


def test_named_cpu_backends_are_taken_at_their_word() -> None:
    assert resolve_backend("eager", CPU, torch.float32) == "eager"
    assert resolve_backend("sdpa", CPU, torch.bfloat16) == "sdpa"


def test_xformers_away_from_cuda_is_refused() -> None:
    with pytest.raises(UserError, match=r"attention=xformers.*'cpu', only on CUDA; use attention=auto or sdpa"):
        resolve_backend("xformers", CPU, torch.float32)
    with pytest.raises(UserError, match="only on CUDA"):
        attend(*qkv(), backend="xformers")


def test_unknown_backend_names_all_and_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'xformers'") as e:
        resolve_backend("xformer", CPU, torch.float32)
    assert all(name in str(e.value) for name in BACKENDS)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_probe_call_has_gradients_in_every_mode_of_its_caller(
    monkeypatch: pytest.MonkeyPatch, mode: type[torch.no_grad]
) -> None:
    """Its outcome is kept for good: a first call from inside no_grad must not count as a missing operator."""
    seen = []

    class Ops:
        @staticmethod
        def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            seen.append(q.requires_grad)
            return attend(q, k, v, backend="eager")

    monkeypatch.setattr(attention, "_xformers_ops", lambda: Ops)
    with mode():
        attention._probe_xformers(CPU, torch.float32)
    assert seen == [True]
