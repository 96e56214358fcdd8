"""Surfaces: noise, tinted photographic textures, and textures laid on a ground plane."""

import colorsys
import functools

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from rsc_seg.data.photos import load_photo

Rng = np.random.Generator
Map = np.ndarray

# Left, upper, right, lower pixel of each source; the two splits never see the same pixels of one surface.
_CROPS: dict[tuple[str, str], tuple[tuple[str, tuple[int, int, int, int]], ...]] = {
    ("brick", "train"): (("brick", (0, 0, 256, 512)),),
    ("brick", "val"): (("brick", (256, 0, 512, 512)),),
    ("grass", "train"): (("grass", (0, 0, 256, 512)),),
    ("grass", "val"): (("grass", (256, 0, 512, 512)),),
    ("gravel", "train"): (("gravel", (0, 0, 256, 512)),),
    ("gravel", "val"): (("gravel", (256, 0, 512, 512)),),
    ("foliage", "train"): (("china", (385, 305, 535, 420)), ("china", (565, 280, 640, 420))),
    ("foliage", "val"): (("china", (0, 355, 150, 425)), ("china", (0, 195, 55, 262))),
    ("leaves", "train"): (("flower", (0, 60, 170, 330)),),
    ("leaves", "val"): (("flower", (455, 40, 640, 380)),),
    ("sky", "train"): (("china", (380, 0, 640, 125)),),
    ("sky", "val"): (("china", (0, 0, 180, 55)), ("rocket", (100, 30, 290, 130))),
    ("water", "train"): (("china", (355, 245, 420, 300)),),
    ("water", "val"): (("china", (425, 245, 545, 272)),),
    ("wood", "train"): (("coffee", (0, 180, 75, 400)),),
    ("wood", "val"): (("coffee", (480, 90, 600, 400)),),
    ("fur", "train"): (("chelsea", (60, 5, 130, 80)), ("chelsea", (90, 150, 215, 240))),
    ("fur", "val"): (("chelsea", (205, 5, 300, 60)),),
    ("concrete", "train"): (("motorcycle_left", (110, 440, 310, 500)),),
    ("concrete", "val"): (("motorcycle_right", (0, 340, 80, 500)),),
    ("cloth", "train"): (("astronaut", (0, 130, 40, 330)), ("voc", (205, 140, 240, 205))),
    ("cloth", "val"): (("arc2017", (180, 200, 420, 400)), ("voc", (410, 150, 480, 195))),
}

_PATCHED = ("foliage", "fur")  # surfaces that may change their pattern anywhere


@functools.cache
def surface_crops(kind: str, split: str) -> tuple[Float[Map, "H W 3"], ...]:
    """Photographic crops of one surface, values 0..1; train and val come from disjoint pixels."""
    crops = []
    for photo, box in _CROPS[kind, split]:
        crop = np.asarray(load_photo(photo).crop(box), np.float32) / 255
        if kind == "concrete":  # its grain alone: the light on the floor would show as a repeated pattern
            crop = crop - ndimage.gaussian_filter(crop, (6, 6, 0)) + crop.mean((0, 1))
        crops.append(crop.swapaxes(0, 1) if kind == "brick" else crop)  # courses run across the picture
    return tuple(crops)


def resize(array: Float[Map, "H W *C"], height: int, width: int) -> Float[Map, "h w *C"]:
    """Bilinear (antialiased) resampling of a float array."""
    planes = array[..., None] if array.ndim == 2 else array
    bands = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., c])).resize((width, height), Image.Resampling.BILINEAR)
        )
        for c in range(planes.shape[2])
    ]
    return np.stack(bands, -1).reshape(height, width, *array.shape[2:])


def noise(rng: Rng, height: int, width: int, cell: float, octaves: int = 3) -> Float[Map, "H W"]:
    """Smooth noise of about zero mean and unit range; `cell` is the largest feature in pixels."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        rows, cols = int(height / size) + 2, int(width / size) + 2
        grid = rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
        image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(image) * 0.6**octave
    return total


def mirror_tile(
    source: Float[Map, "h w 3"], height: int, width: int, rng: Rng, patches: int = 1
) -> Float[Map, "H W 3"]:
    """A random window of the plane that the source and its mirror images tile.

    More than one patch: blobs about as large as the source, each at its own place in it, which hides the mirrors.
    """
    h, w = source.shape[:2]
    offsets = rng.integers(0, (2 * h, 2 * w), (patches, 2))
    if patches > 1:
        blobs = np.stack([noise(rng, height, width, 0.6 * min(h, w), 2) for _ in range(patches)])
        offsets = offsets[blobs.argmax(0)]
    else:
        offsets = offsets[None]
    rows = (np.arange(height)[:, None] + offsets[..., 0]) % (2 * h)
    cols = (np.arange(width)[None] + offsets[..., 1]) % (2 * w)
    return source[np.where(rows < h, rows, 2 * h - 1 - rows), np.where(cols < w, cols, 2 * w - 1 - cols)]


def photo_surface(kind: str, split: str, rng: Rng, *, height: int, width: int, zoom: float) -> Float[Map, "H W 3"]:
    """A photographic surface of any size, enlarged by `zoom`."""
    crops = surface_crops(kind, split)
    crop = crops[int(rng.integers(len(crops)))]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    size = max(int(crop.shape[0] * zoom), 4), max(int(crop.shape[1] * zoom), 4)
    return mirror_tile(resize(crop, *size), height, width, rng, 4 if kind in _PATCHED else 1)


def tinted(surface: Float[Map, "H W 3"], color: np.ndarray, contrast: float) -> Float[Map, "H W 3"]:
    """The surface's light and dark in another colour, with a given contrast around its mean."""
    grey = surface.mean(-1)
    relief = (grey - grey.mean()) / (grey.std() + 1e-4)
    return (color * (1 + contrast * relief[..., None])).astype(np.float32)


def on_ground(
    surface: Float[Map, "h w 3"], height: int, width: int, *, depth: float, scale: float
) -> Float[Map, "H W 3"]:
    """The surface seen on a plane that recedes from the lower border to a horizon above the first row.

    `depth` (0..1) is where the first row lies between horizon (0) and lower border (1); `scale` enlarges the texture.
    Far rows fade to the mean, as the eye (and any camera) averages them.
    """
    t = depth + (1 - depth) * (np.arange(height, dtype=np.float32) + 0.5) / height
    rows = (0.9 * height / t / scale)[:, None].repeat(width, 1)
    cols = (np.arange(width, dtype=np.float32) - width / 2)[None] / t[:, None] / scale + surface.shape[1] / 2
    planes = [
        ndimage.map_coordinates(surface[..., c], [rows, cols], order=1, mode="mirror") for c in range(surface.shape[2])
    ]
    laid = np.stack(planes, -1)
    sharp = np.clip(t * 1.6, 0.12, 1)[:, None, None]
    return (laid * sharp + surface.mean((0, 1)) * (1 - sharp)).astype(np.float32)


def random_color(
    rng: Rng, low: tuple[float, float, float], high: tuple[float, float, float], free: float = 0.15
) -> np.ndarray:
    """A colour between two: along the line between them, with a share `free` of independent channels."""
    a, b = np.asarray(low, np.float32), np.asarray(high, np.float32)
    along, channels = a + (b - a) * rng.random(), a + (b - a) * rng.random(3)
    return np.clip((1 - free) * along + free * channels, 0.02, 0.98).astype(np.float32)


def paint_color(rng: Rng) -> np.ndarray:
    """A colour that people paint or dye things in: half of them greys, half of any hue."""
    value = rng.uniform(0.08, 0.95)
    saturation = rng.uniform(0, 0.12) if rng.random() < 0.4 else rng.uniform(0.35, 0.9)
    return np.asarray(colorsys.hsv_to_rgb(rng.random(), saturation, max(value, 0.5 * saturation)), np.float32)
