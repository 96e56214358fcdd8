"""The canvas: colour, class and instance of every pixel, painted from far to near."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from rsc_seg.data.scenes.classes import CLASS_INDEX, CLASS_TABLE, VOID
from rsc_seg.data.scenes.sprite import Sprite
from rsc_seg.data.scenes.textures import Map, Rng


@dataclass
class Canvas:
    """A scene while it is painted.

    A pixel takes the class of the last layer that covers at least half of it, so labels stay exact under occlusion.
    `horizon` is the row where the ground ends; `eye` is the height of the eye over the ground in metres.
    """

    rgb: Float[Map, "H W 3"]
    semantic: np.ndarray
    instances: np.ndarray
    horizon: float
    eye: float
    rng: Rng
    split: str
    count: int = 0

    @classmethod
    def empty(cls, rng: Rng, split: str, *, height: int, width: int, horizon: float, eye: float) -> "Canvas":
        """A canvas without any class."""
        shape = height, width
        return cls(
            rgb=np.full((*shape, 3), 0.5, np.float32),
            semantic=np.full(shape, VOID, np.uint8),
            instances=np.zeros(shape, np.int32),
            horizon=horizon,
            eye=eye,
            rng=rng,
            split=split,
        )

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.semantic.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.semantic.shape[1])

    def size_at(self, row: float, metres: float) -> int:
        """Height in pixels of something `metres` high that stands on the ground at `row`."""
        return max(round((row - self.horizon) * metres / self.eye), 1)

    def fill(self, where: Bool[Map, "H W"], rgb: np.ndarray, name: str) -> None:
        """Paint a region of stuff, with a full-size picture or one colour."""
        self.rgb[where] = rgb[where] if rgb.ndim == 3 else rgb
        self.semantic[where] = CLASS_INDEX[name]
        self.instances[where] = 0

    def paste(self, sprite: Sprite, x: float, foot: float, name: str | None, *, shadow: float = 0.0) -> None:
        """Put a sprite with its foot at row `foot` and its middle at column `x`; no name means void.

        A shadow darkens the ground beneath; it changes no label.
        """
        if shadow > 0:
            self._shadow(x, foot, sprite.width, sprite.height, shadow)
        left, top = round(x - sprite.width / 2), round(foot - sprite.height)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + sprite.width, self.width), min(top + sprite.height, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        alpha, here = sprite.alpha[part], (slice(y0, y1), slice(x0, x1))
        self.rgb[here] += (sprite.rgb[part] - self.rgb[here]) * alpha[..., None]
        covered = alpha >= 0.5
        thing = name is not None and CLASS_TABLE[CLASS_INDEX[name]].thing
        self.count += int(thing)
        self.semantic[here][covered] = VOID if name is None else CLASS_INDEX[name]
        self.instances[here][covered] = self.count if thing else 0

    def _shadow(self, x: float, foot: float, width: int, height: int, strength: float) -> None:
        rx, ry = width * 0.55, max(width * 0.09, 2.0)
        x0, x1 = max(int(x - 2 * rx), 0), min(int(x + 2 * rx) + 1, self.width)
        y0, y1 = max(int(foot - 3 * ry), 0), min(int(foot + 3 * ry) + 1, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        rows, cols = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        far = ((cols - x) / rx) ** 2 + ((rows - foot) / ry) ** 2
        self.rgb[y0:y1, x0:x1] *= (1 - strength * np.exp(-far))[..., None]

    def haze(self, amount: float, color: np.ndarray) -> None:
        """Mix everything painted so far with a colour: distance."""
        self.rgb += (color - self.rgb) * amount

    def soften(self, sigma: float) -> None:
        """Blur everything painted so far: out of focus. Labels stay where the unblurred edges were."""
        self.rgb = ndimage.gaussian_filter(self.rgb, (sigma, sigma, 0)).astype(np.float32)


Maker = Callable[[Rng, str, int], Sprite]
