"""Things cut out of the photographs, by given masks, by disparity or by outlines of our own."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from rsc_seg.data.photos import load_masked_photo, load_photo, motorcycle_disparity
from rsc_seg.data.scenes.sprite import Point, Sketch, Sprite
from rsc_seg.data.scenes.textures import Rng, photo_surface

_ASTRONAUT: tuple[Point, ...] = (
    (19, 512), (20, 420), (24, 360), (32, 318), (40, 292), (54, 266), (77, 241), (107, 219), (122, 208), (116, 190),
    (124, 170), (142, 154), (166, 150), (182, 149), (181, 134), (172, 119), (160, 106), (155, 85), (157, 66), (169, 49),
    (189, 39), (201, 26), (226, 18), (250, 20), (274, 33), (290, 53), (299, 80), (298, 105), (289, 121), (275, 134),
    (265, 141), (258, 160), (256, 172), (275, 191), (291, 211), (302, 232), (324, 249), (340, 275), (350, 305),
    (358, 344), (345, 351), (325, 365), (306, 387), (290, 419), (280, 459), (278, 512),
)  # fmt: skip
_CAT_HEAD: tuple[Point, ...] = (
    (36, 60), (34, 90), (38, 118), (46, 142), (58, 165), (78, 192), (104, 220), (136, 246), (172, 264), (214, 276),
    (252, 281), (280, 275), (297, 264), (308, 247), (313, 225), (326, 200), (345, 177), (357, 150), (360, 120),
    (354, 95), (348, 62), (330, 30), (304, 8), (290, 2), (90, 2), (60, 22),
)  # fmt: skip
_CAT_FACE: tuple[Point, ...] = (
    (60, 70), (52, 110), (66, 150), (92, 190), (126, 226), (164, 254), (214, 274), (252, 280), (280, 274), (297, 263),
    (308, 246), (313, 224), (326, 199), (343, 176), (351, 150), (352, 112), (344, 74), (322, 36), (288, 10), (240, 2),
    (160, 4), (100, 26),
)  # fmt: skip
_PAGODA: tuple[Point, ...] = (
    (197, 30), (214, 30), (214, 45), (217, 60), (235, 76), (262, 96), (285, 106), (318, 120), (318, 125), (303, 133),
    (294, 138), (294, 158), (310, 166), (327, 174), (326, 182), (320, 188), (320, 228), (328, 239), (340, 246),
    (349, 254), (347, 261), (340, 268), (341, 300), (348, 306), (348, 317), (345, 322), (370, 340), (352, 371),
    (330, 372), (315, 388), (300, 398), (240, 388), (205, 371), (195, 352), (150, 340), (76, 339), (75, 323), (80, 312),
    (80, 285), (65, 270), (66, 263), (76, 251), (95, 243), (97, 235), (99, 190), (86, 181), (87, 171), (105, 163),
    (119, 158), (119, 140), (96, 129), (97, 109), (120, 101), (150, 93), (175, 79), (192, 61), (197, 45),
)  # fmt: skip
_PAGODA_TOP: tuple[Point, ...] = (*_PAGODA[:17], (100, 234), *_PAGODA[44:])
_DAHLIA: tuple[Point, ...] = (
    (315, 86), (340, 93), (362, 93), (385, 107), (402, 114), (411, 132), (428, 148), (434, 176), (443, 196), (445, 222),
    (439, 252), (429, 272), (426, 290), (416, 304), (404, 312), (396, 327), (370, 342), (348, 351), (325, 358),
    (296, 358), (280, 350), (250, 350), (232, 338), (216, 322), (203, 310), (190, 295), (180, 283), (172, 262),
    (170, 240), (168, 212), (174, 194), (178, 172), (188, 158), (190, 140), (205, 128), (211, 116), (226, 112),
    (240, 101), (262, 96), (285, 92),
)  # fmt: skip

# Instance number, and the share of its height that is kept (tables and chairs hide parts of the rest).
_VOC_PEOPLE = {"train": ((11, 0.85), (15, 1.0), (17, 1.0)), "val": ((9, 0.6), (14, 0.62), (16, 0.93))}


def _cut(rgb: np.ndarray, outline: Sequence[Point]) -> Sprite:
    height, width = rgb.shape[:2]
    mask = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(mask).polygon([(x * 4, y * 4) for x, y in outline], fill=255)
    return _trimmed(rgb, np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float32) / 255)


def _trimmed(rgb: np.ndarray, alpha: np.ndarray) -> Sprite:
    rows, cols = np.flatnonzero(alpha.max(1) > 0), np.flatnonzero(alpha.max(0) > 0)
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    return Sprite(rgb[box].astype(np.float32) / 255, alpha[box].astype(np.float32))


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
    return parts == 1 + int(np.argmax(sizes))


@functools.cache
def _outlined(photo: str, outline: tuple[Point, ...]) -> Sprite:
    return _cut(np.asarray(load_photo(photo)), outline)


@functools.cache
def people(split: str) -> tuple[tuple[Sprite, int], ...]:
    """Photographed people, cut at the waist or the chest; train and val show different people.

    With each stands the side on which the photograph's border cuts it: -1 left, 1 right, 0 neither.
    """
    photo = load_masked_photo("voc")
    found = [(_outlined("astronaut", _ASTRONAUT), 0)] if split == "train" else []
    for i, kept in _VOC_PEOPLE[split]:
        mask = photo.masks[i]
        side = int(mask[:, -3:].any()) - int(mask[:, :3].any())
        sprite = _trimmed(photo.image, _largest(ndimage.binary_erosion(mask, border_value=1)))
        rows = round(sprite.height * kept)
        found.append((Sprite(sprite.rgb[:rows], sprite.alpha[:rows]), side))
    return tuple(found)


@functools.cache
def motorcycle(split: str) -> Sprite:
    """The motorcycle of the stereo pair: its left view for train, its right view for val.

    What stands before the floor plane is the motorcycle; gaps between the spokes stay open.
    """
    disparity = motorcycle_disparity()
    height, width = disparity.shape
    y, x = np.mgrid[:height, :width]
    known = np.isfinite(disparity)
    floor_at = known & (y > 330) & ((x < 100) | (x > 700) | (y > 465))
    system = np.stack([x[floor_at], y[floor_at], np.ones(floor_at.sum())], 1)
    a, b, c = np.linalg.lstsq(system, disparity[floor_at], rcond=None)[0]
    mask = known & (disparity > np.maximum(a * x + b * y + c + 1.2, 38))
    mask = ndimage.binary_closing(mask, iterations=2) & (mask | ~known)
    mask = ndimage.binary_opening(mask)
    if split == "val":
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        shift = disparity[tuple(nearest)]
        moved = np.zeros_like(mask)
        moved[y[mask], np.clip(x[mask] - np.round(shift[mask]).astype(int), 0, width - 1)] = True
        mask = ndimage.binary_closing(moved)
    view = load_photo("motorcycle_left" if split == "train" else "motorcycle_right")
    return _trimmed(np.asarray(view), _largest(mask))


def pagoda(split: str) -> Sprite:
    """A whole pagoda for train, its two upper storeys for val."""
    return _outlined("china", _PAGODA if split == "train" else _PAGODA_TOP)


@functools.cache
def dahlia(split: str) -> Sprite:
    """The whole bloom for train, its inner rosette for val."""
    if split == "train":
        return _outlined("flower", _DAHLIA)
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    radius = 88 + 7 * np.cos(9 * turn)
    return _outlined("flower", tuple(zip(305 + radius * np.cos(turn), 222 + radius * np.sin(turn), strict=True)))


@functools.cache
def conifer(split: str) -> Sprite:
    """The tree that the right (train) or left (val) border of a photograph cuts through, made whole by its mirror."""
    rgb = np.asarray(load_photo("china"))
    region = rgb[134:360, 568:640] if split == "train" else rgb[140:280, 75::-1]
    dark = region.mean(-1) < (150 if split == "train" else 135)
    dark = ndimage.binary_closing(ndimage.binary_opening(dark), iterations=2)
    return _trimmed(np.concatenate([region, region[:, ::-1]], 1), _largest(np.concatenate([dark, dark[:, ::-1]], 1)))


def cat_head(split: str) -> tuple[Sprite, tuple[Point, Point]]:
    """The photographed head without ears (the picture cuts them off), and where they belong, in units of its height."""
    sprite = _outlined("chelsea", _CAT_HEAD if split == "train" else _CAT_FACE)
    return sprite, ((0.22, 0.16), (sprite.width / sprite.height - 0.2, 0.14))


def sitting_cat(rng: Rng, split: str, height: int) -> Sprite:
    """The photographed head with ears, on a body that wears the same fur."""
    head, ears = cat_head(split)
    head = head.scaled(round(height * 0.52))
    pad = Sketch(height, 0.86)
    fur = photo_surface(
        "fur", split, rng, height=pad.alpha.shape[0], width=pad.alpha.shape[1], zoom=max(pad.unit / 420, 0.2)
    )
    lean = rng.uniform(-0.03, 0.03)
    pad.limb([(0.62, 0.93), (0.76, 0.9), (0.8, 0.76 + rng.uniform(-0.1, 0.1))], 0.055, fur * 0.8)
    pad.ellipse((0.43 + lean, 0.74), 0.25, 0.25, fur * 0.9)
    pad.ellipse((0.43 + lean, 0.6), 0.18, 0.22, fur)
    for x in (0.34, 0.5):
        pad.limb([(x + lean, 0.68), (x, 0.95)], 0.1, fur * 1.04)
        pad.ellipse((x, 0.962), 0.065, 0.033, fur * 1.1)
    left = 0.42 - 0.5 * head.width / height
    for (x, y), side in zip(ears, (-1, 1), strict=True):
        cx, cy = left + x * 0.52, 0.15 + y * 0.52
        tip = (cx + side * 0.05, cy - 0.2)
        pad.poly([(cx - 0.11, cy + 0.03), tip, (cx + 0.11, cy + 0.03)], fur * 0.85)
        pad.poly([(cx - 0.06, cy), (tip[0], tip[1] + 0.05), (cx + 0.06, cy)], (0.72, 0.5, 0.45))
    body = pad.finish()
    return _over(body.lit(rng), head, round(left * height), round(0.13 * height))


def _over(below: Sprite, above: Sprite, left: int, top: int) -> Sprite:
    """`above` painted onto `below`; what falls outside the frame is lost."""
    rgb, alpha = below.rgb.copy(), below.alpha.copy()
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + above.width, below.width), min(top + above.height, below.height)
    a = above.alpha[y0 - top : y1 - top, x0 - left : x1 - left]
    paint = above.rgb[y0 - top : y1 - top, x0 - left : x1 - left]
    old = alpha[y0:y1, x0:x1]
    total = a + old * (1 - a)
    mixed = paint * a[..., None] + rgb[y0:y1, x0:x1] * (old * (1 - a))[..., None]
    rgb[y0:y1, x0:x1] = mixed / np.maximum(total, 1e-3)[..., None]
    alpha[y0:y1, x0:x1] = total
    return Sprite(rgb, alpha)
