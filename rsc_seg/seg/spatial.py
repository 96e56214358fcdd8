"""Attention among the tokens of one class: two window blocks, the second shifted, guided by the image."""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.ops.attention import attend
from rsc_seg.seg.volume import GuidedProjections, by_chunks

BETWEEN_ZONES = -100.0  # Swin's mask, as the official checkpoints were trained with


@dataclass(frozen=True)
class Windows:
    """How a grid is cut: windows of `side` tokens on the grid rolled by `shift` and padded to `padded`."""

    grid: tuple[int, int]
    side: int
    shift: int

    @classmethod
    def of(cls, grid: tuple[int, int], side: int, shifted: bool) -> "Windows":
        """Windows no larger than the grid; a grid of one window in either direction is not shifted."""
        if min(grid) <= side:
            return cls(grid, min(grid), 0)
        return cls(grid, side, side // 2 if shifted else 0)

    @property
    def padded(self) -> tuple[int, int]:
        """The grid filled up to whole windows, at the right and below."""
        h, w = (-(-n // self.side) * self.side for n in self.grid)
        return h, w

    def split(self, x: Float[Tensor, "N H W C"]) -> Float[Tensor, "N S L C"]:
        """The S windows of a map, tokens of a window in rows."""
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        (h, w), s = self.padded, self.side
        if (h, w) != self.grid:
            x = F.pad(x, (0, 0, 0, w - self.grid[1], 0, h - self.grid[0]))
        # (N, h, s, w, s, C) -> (N, h, w, s, s, C)
        return x.unflatten(1, (h // s, s)).unflatten(3, (w // s, s)).transpose(2, 3).flatten(1, 2).flatten(2, 3)

    def join(self, x: Float[Tensor, "N S L C"]) -> Float[Tensor, "N H W C"]:
        """The map of its windows."""
        (h, w), s = self.padded, self.side
        x = x.unflatten(2, (s, s)).unflatten(1, (h // s, w // s)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x[:, : self.grid[0], : self.grid[1]]
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2)) if self.shift else x


@lru_cache(maxsize=64)
def window_biases(windows: Windows, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, ...] | None:
    """Additive masks (L, L), one a window; None for a window without one, and for all where no window has one.

    Tokens that rolling brought together from opposite borders see each other at `BETWEEN_ZONES`; padding is seen by
    padding alone.
    """

    def zones(size: int, padded: int) -> Tensor:
        places = torch.arange(padded)
        return (places >= size - windows.shift).int().masked_fill(places >= size, 3)

    # one number for a pair of zones; a padded token has a 3 in it
    pairs = [zones(size, padded) for size, padded in zip(windows.grid, windows.padded, strict=True)]
    marks = Windows(windows.padded, windows.side, 0).split((pairs[0][:, None] * 4 + pairs[1])[None, ..., None])[
        0, ..., 0
    ]
    padding = (marks >= 12) | (marks % 4 == 3)  # (S, L)
    biases: list[Tensor | None] = []
    with torch.inference_mode(False):  # kept, and training may use them later
        for mark, pad in zip(marks.clone(), padding.clone(), strict=True):
            bias = torch.zeros(len(mark), len(mark)).masked_fill(mark[:, None] != mark[None, :], BETWEEN_ZONES)
            bias = bias.masked_fill(pad[None, :] & ~pad[:, None], float("-inf"))
            biases.append(bias.to(device, dtype) if bool((bias != 0).any()) else None)
    return tuple(biases) if any(bias is not None for bias in biases) else None


class WindowAttention(GuidedProjections):
    """Multi-head attention inside windows, without position bias."""

    def __init__(self, dim: int, guidance_dim: int, heads: int) -> None:
        super().__init__(dim, guidance_dim)
        self.heads = heads
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B T S L C"], guidance: Float[Tensor, "B S L C3"], windows: Windows
    ) -> Float[Tensor, "N S L C"]:
        """Normed tokens of the windows of B images and T classes in, N = B * T; `guidance` is `of_guidance`'s share."""
        qkv = self.of_tokens(x)
        qkv = qkv + guidance[:, None] if torch.is_grad_enabled() else qkv.add_(guidance[:, None])
        qkv = qkv.flatten(0, 1).unflatten(-1, (3, self.heads, -1))  # (N, S, L, 3, heads, K)
        biases = window_biases(windows, x.device, qkv.dtype)
        if biases is None:
            q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind(0)  # each (N * S, heads, L, K)
            out = attend(q, k, v).transpose(1, 2).flatten(2).unflatten(0, qkv.shape[:2])
        else:
            q, k, v = qkv.permute(3, 1, 0, 4, 2, 5).unbind(0)  # each (S, N, heads, L, K)
            done = [attend(q[i], k[i], v[i], bias) for i, bias in enumerate(biases)]
            out = torch.stack([part.transpose(1, 2).flatten(2) for part in done], dim=1)
        return self.proj(out)


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Tokens in, tokens out."""
        return self.fc2(F.gelu(self.fc1(x)))


class WindowBlock(nn.Module):
    """Pre-norm window attention and feed-forward part, each with its residual."""

    def __init__(self, dim: int, guidance_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, guidance_dim, heads)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(
        self, x: Float[Tensor, "B T H W C"], guidance: Float[Tensor, "B S L C3"], windows: Windows
    ) -> Float[Tensor, "B T H W C"]:
        """`guidance`: this block's share of it, cut into the same windows."""
        batch = x.shape[:2]
        cut = windows.split(self.norm1(x).flatten(0, 1)).unflatten(0, batch)
        x = x + windows.join(self.attn(cut, guidance, windows)).unflatten(0, batch)
        return x + self.mlp(self.norm2(x))


class SpatialBlocks(nn.Module):
    """Both blocks of a layer; every class of every image is a map of its own. Matches CAT-Seg's Swin part."""

    def __init__(self, dim: int, guidance_dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.block_1 = WindowBlock(dim, guidance_dim, heads)
        self.block_2 = WindowBlock(dim, guidance_dim, heads)
        self.guidance_norm = nn.LayerNorm(guidance_dim)

    def forward(
        self,
        x: Float[Tensor, "B T H W C"],
        guidance: Float[Tensor, "B G H W"],
        *,
        chunk: int,
        checkpointed: bool = False,
    ) -> Float[Tensor, "B T H W C"]:
        """`guidance` is the image's own, normed and projected here once for all its classes."""
        normed = self.guidance_norm(guidance.permute(0, 2, 3, 1))
        grid = (x.shape[2], x.shape[3])
        plan = []
        for block, shifted in ((self.block_1, False), (self.block_2, True)):
            windows = Windows.of(grid, self.window, shifted)
            plan.append(partial(block, guidance=windows.split(block.attn.of_guidance(normed)), windows=windows))

        def both(part: Tensor) -> Tensor:
            return plan[1](plan[0](part))

        return by_chunks(both, x, chunk=chunk, checkpointed=checkpointed)
