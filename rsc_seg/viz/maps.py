"""Dense features in, pictures out: affinity, joint PCA and token-norm maps, upsampling and marks.

Every function that compares models takes all of them at once and uses one scale for all, so that a difference in colour
is a difference in numbers. Feature maps are (D, h, w), torch tensors on any device or numpy arrays.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.viz.colors import ColorScale

Array = np.ndarray
Features = Float[Tensor, "D h w"] | Float[Array, "D h w"]
Token = tuple[int, int]  # row, column on the token grid

UPSAMPLING = ("nearest", "bilinear")
FAR = 6.0  # tokens: beyond this distance a query's affinity is called long-range


def as_tensor(features: Features) -> Float[Tensor, "D h w"]:
    """A feature map as a float32 tensor on the CPU, without gradient; UserError unless it has three axes."""
    tensor = torch.as_tensor(features).detach().to("cpu", torch.float32)
    if tensor.ndim != 3:
        raise UserError(
            f"feature map of shape {tuple(tensor.shape)}: expected (D, h, w), one image without a batch axis."
        )
    return tensor


def query_points(height: int, width: int, count: int) -> list[Token]:
    """`count` query tokens by a fixed rule that never looks at the image or the features.

    The first is the centre, the next follow the additive recurrence of the plastic number (an even spread in two axes),
    inside the middle 80 % of the map. The points of a smaller count are the first points of a larger one.
    """
    plastic = 1.32471795724474602596
    points = []
    for k in range(count):
        across = 0.1 + 0.8 * ((0.5 + k / plastic) % 1.0)
        down = 0.1 + 0.8 * ((0.5 + k / plastic**2) % 1.0)
        points.append(token_at(height, width, across, down))
    return points


def token_at(height: int, width: int, across: float, down: float) -> Token:
    """The token under a point given by hand as shares of width and height, both in 0..1, (0, 0) at the top left.

    UserError outside that range.
    """
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise UserError(f"query point {across},{down}: both numbers are shares of width and height, between 0 and 1.")
    return min(int(down * height), height - 1), min(int(across * width), width - 1)


def affinity(features: Features, query: Token) -> Float[Array, "h w"]:
    """Cosine of the query token with every token of the map, in -1..1. UserError for a query off the map."""
    tensor = F.normalize(as_tensor(features), dim=0)
    row, column = query
    height, width = tensor.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"query token {query}: the map has {height} x {width} tokens.")
    return torch.einsum("d,dhw->hw", tensor[:, row, column], tensor).numpy()


def affinity_scale(maps: Sequence[Float[Array, "h w"]]) -> ColorScale:
    """One scale for all compared affinity maps: from their pooled 1st percentile, rounded down to a tenth, up to 1."""
    pooled = np.concatenate([m.ravel() for m in maps])
    low = math.floor(float(np.nanpercentile(pooled, 1)) * 10) / 10
    return ColorScale(min(low, 0.9), 1.0, "affinity", "cosine with the query token")


def affinity_levels(values: Float[Array, "h w"], query: Token, radius: float = FAR) -> tuple[float, float]:
    """Mean cosine of the tokens within `radius` tokens of the query (not itself) and of those beyond; NaN if none."""
    rows, columns = np.indices(values.shape)
    distance = np.hypot(rows - query[0], columns - query[1])
    near, far = (distance > 0) & (distance <= radius), distance > radius
    return tuple(float(values[mask].mean()) if mask.any() else math.nan for mask in (near, far))  # type: ignore[return-value]


def token_norms(features: Features) -> Float[Array, "h w"]:
    """Euclidean length of every token."""
    return as_tensor(features).norm(dim=0).numpy()


def norm_scale(maps: Sequence[Float[Array, "h w"]]) -> ColorScale:
    """One scale for all compared norm maps: pooled minimum to pooled maximum, so an outlier token stays visible."""
    low, high = min(float(np.nanmin(m)) for m in maps), max(float(np.nanmax(m)) for m in maps)
    return ColorScale(low, high if high > low else low + 1.0, "norm", "token norm")


@dataclass(frozen=True)
class JointPca:
    """Pictures of a joint PCA, in the order of the maps, and each component's share of the pooled variance."""

    pictures: list[UInt8[Array, "h w 3"]]
    variance: tuple[float, ...]


def joint_pca(
    maps: Mapping[str, Features], *, normalize: bool = True, center: str = "joint", clip: float = 1.0
) -> JointPca:
    """Three principal components of all tokens of all compared maps together, shown as red, green and blue.

    One basis and one scale a component serve every map, so equal colours mean equal features. That needs maps of
    one feature space: a tuned model and its start, or blocks of one model. The same width does not make two spaces one.
    Rules: tokens are scaled to length 1 (`normalize`); `center` is `joint` (one mean) or `each` (every map loses its
    own mean: a constant offset between models, which can fill a component, does not show); a component's sign makes
    its largest loading positive; it goes from its pooled `clip`-th to (100 - `clip`)-th percentile onto 0..255.
    UserError when the widths differ.
    """
    require_choice("center", center, ("joint", "each"))
    tensors = {name: as_tensor(m) for name, m in maps.items()}
    widths = {name: t.shape[0] for name, t in tensors.items()}
    if len(set(widths.values())) != 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"joint PCA needs maps of one feature space, these have widths {listed}; use separate PCAs.")
    if normalize:
        tensors = {name: F.normalize(t, dim=0) for name, t in tensors.items()}
    tokens = [t.flatten(1).T.double() for t in tensors.values()]  # each (h w, D)
    if center == "each":
        centred = torch.cat([t - t.mean(0) for t in tokens])
    else:
        centred = torch.cat(tokens)
        centred -= centred.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    values, basis = values.flip(0).clamp(min=0), vectors.flip(1)[:, :3]
    loading = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(loading < 0, -1.0, 1.0)
    projected = centred @ basis
    ends = torch.quantile(projected, torch.tensor([clip / 100, 1 - clip / 100], dtype=torch.float64), dim=0)
    # A component without variance (a constant map) becomes mid grey instead of amplified rounding noise.
    flat = ends[1] - ends[0] <= 1e-9
    share = torch.where(flat, 0.5, (projected - ends[0]) / torch.where(flat, 1.0, ends[1] - ends[0]))
    rgb = (share.clamp(0, 1) * 255).round().to(torch.uint8)
    rgb = F.pad(rgb, (0, 3 - rgb.shape[1]))  # fewer than three feature channels
    total = float(values.sum())
    pictures, start = [], 0
    for t in tensors.values():
        height, width = t.shape[1:]
        pictures.append(rgb[start : start + height * width].reshape(height, width, 3).numpy())
        start += height * width
    return JointPca(pictures, tuple(float(v) / total if total > 0 else 0.0 for v in values[:3]))


def upsample(values: Array, size: tuple[int, int], mode: str = "nearest") -> Array:
    """A map of numbers (h, w) or colours (h, w, 3) at `size` (height, width).

    `nearest` shows the tokens as they are; `bilinear` draws values between them that no model computed (numbers: use it
    before colours are given). Dtype is kept.
    """
    require_choice("upsampling", mode, UPSAMPLING)
    tensor = torch.as_tensor(np.atleast_3d(values).copy()).permute(2, 0, 1)[None].float()
    if mode == "nearest":
        out = F.interpolate(tensor, size=size, mode="nearest-exact")
    else:
        out = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
    array = out[0].permute(1, 2, 0).numpy()
    array = array if values.ndim == 3 else array[..., 0]
    return (array.round() if values.dtype == np.uint8 else array).astype(values.dtype)


def draw_cross(
    picture: Image.Image, query: Token, grid: tuple[int, int], columns: tuple[int, int] = (0, 1)
) -> Image.Image:
    """A copy with a white, dark-edged cross at the centre of a token of the `grid` (h, w) that covers the picture.

    `columns=(k, n)`: the grid covers only the k-th of n equal columns, as in a side-by-side pair.
    """
    out = picture.convert("RGB").copy()
    part = out.width / columns[1]
    x = part * (columns[0] + (query[1] + 0.5) / grid[1])
    y = out.height * (query[0] + 0.5) / grid[0]
    arm = max(5.0, 0.045 * min(part, out.height))
    draw = ImageDraw.Draw(out)
    for color, width in (((20, 20, 20), max(4, round(arm * 0.55))), ((255, 255, 255), max(2, round(arm * 0.22)))):
        draw.line((x - arm, y, x + arm, y), fill=color, width=width)
        draw.line((x, y - arm, x, y + arm), fill=color, width=width)
    return out


def draw_ring(picture: Image.Image, token: Token, grid: tuple[int, int]) -> Image.Image:
    """A copy with a white, dark-edged ring round a token of the `grid` (h, w): the answer to a query, not the query."""
    out = picture.convert("RGB").copy()
    x, y = out.width * (token[1] + 0.5) / grid[1], out.height * (token[0] + 0.5) / grid[0]
    radius = max(6.0, 0.045 * min(out.size))
    line = max(2, round(radius * 0.25))
    draw = ImageDraw.Draw(out)
    for color, edge, width in (((20, 20, 20), line, 3 * line), ((255, 255, 255), 0, line)):
        reach = radius + edge
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=color, width=width)
    return out
