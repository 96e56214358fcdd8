"""One scene: layout, camera, labels."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from rsc_seg.data.scenes.canvas import Canvas
from rsc_seg.data.scenes.classes import SCENE_CLASSES, VOID
from rsc_seg.data.scenes.layouts import LAYOUT_SHARES, LAYOUTS
from rsc_seg.data.scenes.textures import Rng, noise
from rsc_seg.errors import UserError

SPLITS = ("train", "val")
DEFAULT_SIZE = (480, 360)
LEAST_SIDE, MOST_SIDE = 64, 2048
LEAST_AREA = 40  # pixels; smaller visible rests of a thing become void
SEEDS_PER_SPLIT = 1_000_000


@dataclass(frozen=True)
class SceneObject:
    """The visible part of a thing: its number in `Scene.instances`, class, box (x, y, width, height) and pixels."""

    instance: int
    name: str
    bbox: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class Scene:
    """A picture with exact labels.

    `semantic` (H,W) uint8: class 0..T-1, 255 void. `instances` (H,W) int32: 1..N on things, 0 elsewhere.
    """

    image: Image.Image
    semantic: np.ndarray
    instances: np.ndarray
    objects: tuple[SceneObject, ...]
    layout: str


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of scene `index` of a split; no two (seed, split, index) share one."""
    if not 0 <= index < SEEDS_PER_SPLIT:
        raise UserError(f"scene {index} of {split}: at most {SEEDS_PER_SPLIT} scenes in a split.")
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def check_size(size: tuple[int, int]) -> None:
    """Raises UserError unless both sides are in range."""
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in size):
        raise UserError(f"size {size[0]}x{size[1]}: width and height must be from {LEAST_SIDE} to {MOST_SIDE} pixels.")


def compose_scene(seed: int, size: tuple[int, int] = DEFAULT_SIZE, split: str = "train") -> Scene:
    """The scene of this seed; `size` is (width, height). The same arguments give the same scene.

    `split` chooses which photographs, views and crops the scene may show: train and val share as few as possible.
    Raises UserError for a size out of range, an unknown split, or missing photograph packages.
    """
    check_size(size)
    if split not in SPLITS:
        raise UserError(f"split '{split}': must be one of {', '.join(SPLITS)}.")
    rng = np.random.Generator(np.random.PCG64(seed))
    width, height = size
    layout = LAYOUTS[int(rng.choice(len(LAYOUTS), p=LAYOUT_SHARES))]
    canvas = Canvas.empty(
        rng, split, height=height, width=width, horizon=height * rng.uniform(0.28, 0.55), eye=rng.uniform(1.4, 2.8)
    )
    layout(canvas)
    instances, objects = _clean(canvas.semantic, canvas.instances)
    return Scene(photographed(rng, canvas.rgb), canvas.semantic, instances, objects, layout.__name__)


def _clean(semantic: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, tuple[SceneObject, ...]]:
    """Turns rests below LEAST_AREA to void (in place) and numbers the visible things 1..N in painting order."""
    area = np.bincount(instances.ravel())
    lost = (area < LEAST_AREA) & (np.arange(len(area)) > 0)
    semantic[lost[instances]] = VOID
    kept = np.flatnonzero(~lost & (area > 0))
    number = np.zeros(len(area), np.int32)
    number[kept] = np.searchsorted(kept[kept > 0], kept) + 1
    number[0] = 0
    renumbered = number[instances]
    objects = []
    for k, box in enumerate(ndimage.find_objects(renumbered), 1):
        mask = renumbered[box] == k
        rows, cols = box
        name = SCENE_CLASSES[int(semantic[box][mask][0])]
        bbox = int(cols.start), int(rows.start), int(cols.stop - cols.start), int(rows.stop - rows.start)
        objects.append(SceneObject(k, name, bbox, int(mask.sum())))
    return renumbered, tuple(objects)


def photographed(rng: Rng, rgb: np.ndarray) -> Image.Image:
    """The camera: uneven light, white balance, contrast, a little blur and noise, JPEG."""
    height, width = rgb.shape[:2]
    light = 1 + rng.uniform(0, 0.22) * noise(rng, height, width, width / 1.5, 1)[..., None]
    balance = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32) * rng.uniform(0.78, 1.06)
    out = np.clip(rgb * light * balance, 0, None) ** np.float32(rng.uniform(0.82, 1.25))
    out = 0.5 + (out - 0.5) * rng.uniform(0.82, 1.12)
    sigma = rng.uniform(0.2, 0.8) * height / 360
    out = ndimage.gaussian_filter(out.astype(np.float32), (sigma, sigma, 0))
    out = out + rng.normal(0, rng.uniform(0.003, 0.02), out.shape).astype(np.float32)
    picture = Image.fromarray((np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(rng.integers(75, 96)))
    return Image.open(data).convert("RGB")
