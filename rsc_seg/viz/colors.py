"""Colour tables made by formula and the one rule that turns numbers into colours."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError

Array = np.ndarray

# Paths through OKLCh: lightness, chroma and hue (degrees) at evenly spaced places; lightness rises (or peaks) in even
# steps, so equal steps of a number look equally large and the picture survives a print in grey.
_PATHS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "affinity": ((0.20, 0.05, 285), (0.39, 0.11, 265), (0.58, 0.10, 205), (0.77, 0.15, 145), (0.96, 0.15, 105)),
    "norm": ((0.28, 0.05, 320), (0.44, 0.13, 350), (0.61, 0.17, 28), (0.78, 0.14, 65), (0.96, 0.10, 100)),
    "difference": ((0.42, 0.13, 255), (0.69, 0.09, 245), (0.96, 0.00, 150), (0.69, 0.12, 55), (0.42, 0.13, 40)),
}
COLORMAPS = tuple(_PATHS)


@dataclass(frozen=True)
class ColorScale:
    """What a colour means: range of numbers, table and name of the quantity. Numbers outside take the end's colour."""

    low: float
    high: float
    colormap: str = "affinity"
    quantity: str = "cosine"


def _oklab_to_srgb(lab: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
    l_, m_, s_ = (
        lab[:, 0] + 0.3963377774 * lab[:, 1] + 0.2158037573 * lab[:, 2],
        lab[:, 0] - 0.1055613458 * lab[:, 1] - 0.0638541728 * lab[:, 2],
        lab[:, 0] - 0.0894841775 * lab[:, 1] - 1.2914855480 * lab[:, 2],
    )
    lms = np.stack([l_, m_, s_], axis=1) ** 3
    matrix = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(lms @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@lru_cache
def _table(name: str) -> UInt8[Array, "256 3"]:
    path = np.array(_PATHS[name])
    # Interpolate in Cartesian OKLab, where a grey anchor has no hue that could leak into its neighbours.
    angle = np.deg2rad(path[:, 2])
    lab = np.stack([path[:, 0], path[:, 1] * np.cos(angle), path[:, 1] * np.sin(angle)], axis=1)
    at = np.linspace(0, len(path) - 1, 256)
    dense = np.stack([np.interp(at, np.arange(len(path)), lab[:, k]) for k in range(3)], axis=1)
    table = np.round(_oklab_to_srgb(dense) * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def color_table(name: str) -> UInt8[Array, "256 3"]:
    """The 256 RGB colours of a table, lowest number first. UserError for an unknown name."""
    require_choice("colormap", name, COLORMAPS)
    return _table(name)


def colorize(values: Float[Array, "H W"], scale: ColorScale) -> UInt8[Array, "H W 3"]:
    """RGB of every number under one scale; the same number has the same colour in every picture of that scale.

    Not-a-number is mid grey. UserError when the scale is empty (low not below high).
    """
    if not scale.low < scale.high:
        raise UserError(f"colour scale {scale.low}..{scale.high}: the lower end must be below the upper end.")
    share = (values.astype(np.float64) - scale.low) / (scale.high - scale.low)
    index = np.round(np.clip(np.nan_to_num(share), 0, 1) * 255).astype(np.int64)
    rgb = color_table(scale.colormap)[index]
    rgb[~np.isfinite(share)] = 128
    return rgb


def css_gradient(name: str) -> str:
    """The table as a CSS gradient from left (low) to right (high)."""
    stops = color_table(name)[np.linspace(0, 255, 9).round().astype(int)]
    return "linear-gradient(90deg," + ",".join("#" + bytes(stop).hex() for stop in stops) + ")"
