"""SSD's changes of brightness, contrast, saturation and hue on 8-bit RGB, without OpenCV."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
from jaxtyping import UInt8

BRIGHTNESS = 32.0  # added at most
FACTORS = (0.5, 1.5)  # of contrast and saturation
HUE = 18  # at most, in steps of 2 degrees
_TURN = 180  # steps of a full circle in 8-bit HSV
_FRACTION = 12  # bits behind the point of the integer divisions
_LEVELS = np.arange(256)


@dataclass(frozen=True)
class ColorDraw:
    """What was drawn for one view; None: that change is left out. Contrast comes first or last of the other three."""

    brightness: Optional[float] = None
    contrast: Optional[float] = None
    saturation: Optional[float] = None
    hue: Optional[int] = None
    contrast_first: bool = False


def draw_color(rng: np.random.Generator) -> ColorDraw:
    """Each change with probability one half, evenly from its range."""
    brightness = float(rng.uniform(-BRIGHTNESS, BRIGHTNESS)) if rng.random() < 0.5 else None
    contrast = float(rng.uniform(*FACTORS)) if rng.random() < 0.5 else None
    saturation = float(rng.uniform(*FACTORS)) if rng.random() < 0.5 else None
    hue = int(rng.integers(-HUE, HUE + 1)) if rng.random() < 0.5 else None
    return ColorDraw(brightness, contrast, saturation, hue, bool(rng.random() < 0.5))


def _level_table(factor: float = 1.0, offset: float = 0.0) -> UInt8[np.ndarray, "256"]:
    """Every level times `factor` plus `offset`, cut to 0..255 and rounded down, in float32."""
    return np.clip(_LEVELS.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _division_table(numerator: int, scale: int) -> np.ndarray:
    """numerator / (scale * i) with `_FRACTION` bits behind the point; 0 for i = 0."""
    table = np.zeros(256, np.int32)
    table[1:] = np.rint((numerator << _FRACTION) / (scale * _LEVELS[1:]))
    return table


_PER_VALUE = _division_table(255, 1)
_PER_SPREAD = _division_table(_TURN, 6)


def rgb_to_hsv(rgb: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Hue 0..179 in steps of 2 degrees, saturation and value 0..255; equal to OpenCV's 8-bit conversion."""
    red, green, blue = (rgb[..., i].astype(np.int32) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (_FRACTION - 1)
    saturation = (spread * _PER_VALUE[value] + half) >> _FRACTION
    sector = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    hue = (sector * _PER_SPREAD[spread] + half) >> _FRACTION
    hue += np.where(hue < 0, _TURN, 0)
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def _one_less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - a * b of float32, rounded once as by a fused multiply-add: the product is exact in float64."""
    return (1 - a.astype(np.float64) * b).astype(np.float32)


def hsv_to_rgb(hsv: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The way back, in float32 and rounded down.

    Equal to OpenCV's vector code on processors with fused multiply-add. Without that, and in the last pixels of a row,
    which OpenCV rounds to the nearest, its result may lie one level off.
    """
    place = hsv[..., 0].astype(np.float32) * np.float32(6 / _TURN)
    sector = np.floor(place)
    rest = place - sector
    saturation = hsv[..., 1].astype(np.float32) * np.float32(1 / 255)
    value = hsv[..., 2].astype(np.float32) * np.float32(1 / 255)
    low = value * (1 - saturation)
    falling = value * _one_less(saturation, rest)
    rising = value * _one_less(saturation, 1 - rest)
    which = sector.astype(np.int64)  # 0..5
    by_sector = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    channels = [np.choose(which, choices) for choices in by_sector]
    return (np.stack(channels, axis=-1) * np.float32(255)).astype(np.uint8)


def _saturate(image: np.ndarray, factor: float) -> np.ndarray:
    hsv = rgb_to_hsv(image)
    hsv[..., 1] = _level_table(factor)[hsv[..., 1]]
    return hsv_to_rgb(hsv)


def _turn(image: np.ndarray, steps: int) -> np.ndarray:
    hsv = rgb_to_hsv(image)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + steps) % _TURN
    return hsv_to_rgb(hsv)


def change_color(image: UInt8[np.ndarray, "H W 3"], draw: ColorDraw) -> UInt8[np.ndarray, "H W 3"]:
    """An RGB image with what was drawn applied in SSD's order, each step rounded to 8 bit as officially."""
    if draw.brightness is not None:
        image = _level_table(offset=draw.brightness)[image]
    if draw.contrast is not None and draw.contrast_first:
        image = _level_table(draw.contrast)[image]
    if draw.saturation is not None:
        image = _saturate(image, draw.saturation)
    if draw.hue is not None:
        image = _turn(image, draw.hue)
    if draw.contrast is not None and not draw.contrast_first:
        image = _level_table(draw.contrast)[image]
    return image
