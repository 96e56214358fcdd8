"""Coupling examples: what a query token of image A resembles in image B, encoded side by side and apart (Eq. 15)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.viz.colors import ColorScale
from rsc_seg.viz.maps import Token

Array = np.ndarray
Dense = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B D h w"]]


@dataclass(frozen=True)
class CouplingMaps:
    """One model's cosines of the query token of A with every token of B."""

    joint: Float[Array, "h w"]  # A and B encoded side by side
    alone: Float[Array, "h w"]  # each encoded by itself

    @property
    def match(self) -> Token:
        """The token of B most like the query when encoded side by side (j of Eq. 15)."""
        row, column = np.unravel_index(int(self.joint.argmax()), self.joint.shape)
        return int(row), int(column)

    @property
    def levels(self) -> tuple[float, float]:
        """Cosine of that pair of tokens side by side and apart: numerator and denominator of Eq. 15."""
        return float(self.joint[self.match]), float(self.alone[self.match])


@dataclass
class CouplingExample:
    """A pair of pictures, the query token in A and every compared model's maps, in the order to show them."""

    name: str
    image_a: Image.Image
    image_b: Image.Image
    query: Token
    models: dict[str, CouplingMaps] = field(default_factory=dict)


@torch.no_grad()
def coupling_maps(dense: Dense, a: Float[Tensor, "3 H W"], b: Float[Tensor, "3 H W"], query: Token) -> CouplingMaps:
    """Encodes A and B apart and side by side (A left) and compares the query token of A with all of B.

    `a` and `b` are normalised as the encoder wants them and of equal size; `dense` gives (B, D, h, w).
    UserError for unequal sizes or a query off A's map.
    """
    if a.shape != b.shape:
        raise UserError(f"coupling pair of sizes {tuple(a.shape)} and {tuple(b.shape)}: both images need one size.")
    apart = F.normalize(dense(torch.stack([a, b])).float(), dim=1)
    height, width = apart.shape[2:]
    row, column = query
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"query token {query}: image A has {height} x {width} tokens.")
    pair = F.normalize(dense(torch.cat([a, b], dim=2)[None]).float(), dim=1)[0]
    joint = torch.einsum("d,dhw->hw", pair[:, row, column], pair[:, :, width:])
    alone = torch.einsum("d,dhw->hw", apart[0, :, row, column], apart[1])
    return CouplingMaps(joint.cpu().numpy(), alone.cpu().numpy())


def difference_scale(examples: list[CouplingExample]) -> ColorScale:
    """One scale, symmetric about zero, for `joint - alone` of all examples: pooled 99th percentile of size."""
    pooled = np.concatenate([(m.joint - m.alone).ravel() for e in examples for m in e.models.values()])
    reach = max(0.05, float(np.percentile(np.abs(pooled), 99)))
    return ColorScale(-reach, reach, "difference", "change of the cosine by encoding side by side")
