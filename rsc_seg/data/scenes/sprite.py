"""Sprites: a colour patch with its coverage, and the sketch pad that draws them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from scipy import ndimage

from rsc_seg.data.scenes.textures import Map, Rng, noise, resize

Point = tuple[float, float]
_Drawing = Callable[[ImageDraw.ImageDraw, int, int], None]


@dataclass(frozen=True)
class Sprite:
    """`rgb` (H,W,3) and `alpha` (H,W), both 0..1; a pixel belongs to the sprite where alpha is at least one half."""

    rgb: Float[Map, "H W 3"]
    alpha: Float[Map, "H W"]

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.alpha.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.alpha.shape[1])

    def flipped(self) -> "Sprite":
        """Left and right exchanged."""
        return Sprite(self.rgb[:, ::-1], self.alpha[:, ::-1])

    def scaled(self, height: int) -> "Sprite":
        """Resampled to a height; colours weighted by coverage, so that nothing of the old background bleeds in."""
        height = max(height, 2)
        width = max(round(self.width * height / self.height), 2)
        alpha = resize(self.alpha, height, width)
        rgb = resize(self.rgb * self.alpha[..., None], height, width) / np.maximum(alpha, 1e-3)[..., None]
        return Sprite(np.clip(rgb, 0, 1), alpha)

    def rotated(self, degrees: float) -> "Sprite":
        """Turned about the centre; the frame grows as needed."""
        alpha = np.clip(ndimage.rotate(self.alpha, degrees, order=1), 0, 1)
        rgb = ndimage.rotate(self.rgb * self.alpha[..., None], degrees, order=1, axes=(0, 1))
        return Sprite(np.clip(rgb / np.maximum(alpha, 1e-3)[..., None], 0, 1), alpha)

    def lit(self, rng: Rng, strength: float = 0.25) -> "Sprite":
        """Light from one side, darker towards the outline and the foot, and blotches: what makes a flat patch solid."""
        h, w = self.alpha.shape
        side = rng.uniform(-1, 1)
        ramp = (
            side * np.linspace(-1, 1, w, dtype=np.float32)[None]
            - 0.5 * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
        )
        inside = ndimage.gaussian_filter(self.alpha, max(h, w) / 18)
        light = 1 + strength * (0.5 * ramp + 0.6 * (inside - 0.75) + 0.3 * noise(rng, h, w, max(h, w) / 3))
        return Sprite(np.clip(self.rgb * light[..., None], 0, 1).astype(np.float32), self.alpha)

    def recolored(self, turn: int, gain: float) -> "Sprite":
        """Colour channels rotated by `turn` places on saturated pixels, and all multiplied by `gain`."""
        if turn % 3 == 0:
            return Sprite(np.clip(self.rgb * gain, 0, 1), self.alpha)
        saturation = self.rgb.max(-1, keepdims=True) - self.rgb.min(-1, keepdims=True)
        amount = np.clip(saturation * 3 - 0.5, 0, 1)
        turned = np.roll(self.rgb, turn, axis=-1)
        return Sprite(np.clip((self.rgb * (1 - amount) + turned * amount) * gain, 0, 1), self.alpha)


class Sketch:
    """A drawing pad in units of its height (y 0 top to 1 bottom, x 0 to `aspect`), drawn larger and then averaged."""

    def __init__(self, height: int, aspect: float) -> None:
        self.height, self.width = max(height, 4), max(round(height * aspect), 4)
        self.factor = 4 if height < 80 else 2
        self.unit = self.height * self.factor
        size = self.width * self.factor, self.height * self.factor
        self.rgb = np.full((size[1], size[0], 3), 0.5, np.float32)
        self.alpha = np.zeros((size[1], size[0]), np.float32)

    def _fill(
        self, box: tuple[float, float, float, float], draw: _Drawing, color: np.ndarray | Sequence[float]
    ) -> None:
        """Fill what `draw` draws inside `box` (pixels); only that part of the pad is touched."""
        rows, cols = self.alpha.shape
        x0, y0 = max(int(box[0]) - 1, 0), max(int(box[1]) - 1, 0)
        x1, y1 = min(int(box[2]) + 2, cols), min(int(box[3]) + 2, rows)
        if x1 <= x0 or y1 <= y0:
            return
        mask = Image.new("L", (x1 - x0, y1 - y0))
        draw(ImageDraw.Draw(mask), x0, y0)
        where = np.asarray(mask) > 0
        paint, here = np.asarray(color, np.float32), (slice(y0, y1), slice(x0, x1))
        self.rgb[here][where] = paint[here][where] if paint.ndim == 3 else paint
        self.alpha[here][where] = 1

    def poly(self, points: Sequence[Point], color: np.ndarray | Sequence[float]) -> None:
        """Fill a polygon with a colour or with a full-size texture."""
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        xs, ys = zip(*scaled, strict=True)

        def draw(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
            pen.polygon([(x - left, y - top) for x, y in scaled], fill=255)

        self._fill((min(xs), min(ys), max(xs), max(ys)), draw, color)

    def ellipse(self, center: Point, rx: float, ry: float, color: np.ndarray | Sequence[float]) -> None:
        """Fill an upright ellipse with a colour or with a full-size texture."""
        x, y, rx, ry = (v * self.unit for v in (*center, rx, ry))

        def draw(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
            pen.ellipse((x - rx - left, y - ry - top, x + rx - left, y + ry - top), fill=255)

        self._fill((x - rx, y - ry, x + rx, y + ry), draw, color)

    def limb(self, points: Sequence[Point], width: float, color: np.ndarray | Sequence[float]) -> None:
        """Fill a thick line with round joints with a colour or with a full-size texture."""
        scaled, thick = [(x * self.unit, y * self.unit) for x, y in points], max(round(width * self.unit), 1)
        xs, ys = zip(*scaled, strict=True)
        half = thick / 2

        def draw(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
            moved = [(x - left, y - top) for x, y in scaled]
            pen.line(moved, fill=255, width=thick, joint="curve")
            for x, y in moved:
                pen.ellipse((x - half, y - half, x + half, y + half), fill=255)

        self._fill((min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half), draw, color)

    def erase(self, where: np.ndarray) -> None:
        """Make pixels transparent."""
        self.alpha[where] = 0

    def finish(self) -> Sprite:
        """The averaged sprite."""
        f = self.factor
        shape = self.height, f, self.width, f
        alpha = self.alpha.reshape(shape).mean((1, 3))
        paint = (self.rgb * self.alpha[..., None]).reshape(*shape, 3).mean((1, 3))
        return Sprite(paint / np.maximum(alpha, 1e-3)[..., None], alpha)
