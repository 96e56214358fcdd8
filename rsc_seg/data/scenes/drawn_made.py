"""Drawn man-made things: cars, boats, balls, buildings, and clutter that has no class."""

import numpy as np

from rsc_seg.data.scenes.sprite import Sketch, Sprite
from rsc_seg.data.scenes.textures import Rng, noise, paint_color, photo_surface, random_color, tinted

_DARK = (0.06, 0.06, 0.07)


def _wheel(pad: Sketch, x: float, y: float, r: float, rim: np.ndarray) -> None:
    pad.ellipse((x, y), r, r, _DARK)
    pad.ellipse((x, y), r * 0.62, r * 0.62, rim)
    for k in range(5):
        angle = k * 2 * np.pi / 5 + x
        pad.limb([(x, y), (x + r * 0.58 * np.cos(angle), y + r * 0.58 * np.sin(angle))], r * 0.12, rim * 0.5)
    pad.ellipse((x, y), r * 0.16, r * 0.16, rim * 0.7)


def car_side(rng: Rng, split: str, height: int) -> Sprite:
    """A saloon, an estate or a van from the side."""
    pad = Sketch(height, 2.9)
    paint = paint_color(rng)
    gloss = np.linspace(1.25, 0.65, pad.alpha.shape[0], dtype=np.float32)[:, None, None]
    body = np.clip(paint * gloss * np.ones((1, pad.alpha.shape[1], 1), np.float32), 0, 1)
    glass_tone = rng.uniform(0.12, 0.4)
    sky = np.linspace(1.7, 0.6, pad.alpha.shape[0], dtype=np.float32)[:, None, None] * glass_tone
    glass = np.clip(
        sky * np.array([0.85, 0.95, 1.1], np.float32) * np.ones((1, pad.alpha.shape[1], 1), np.float32), 0, 1
    )
    hood, rear = rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.5)
    front_x, back_x = 2.12 + rng.uniform(-0.1, 0.1), rng.choice([0.18, 0.4, 0.62])
    roof_front, roof_back = front_x - rng.uniform(0.35, 0.5), back_x + rng.uniform(0.12, 0.35)
    top = rng.uniform(0.02, 0.1)
    pad.poly([(0.06, rear + 0.16), (back_x, rear + 0.08), (roof_back, top), (roof_front, top), (front_x, hood),
              (2.72, hood + 0.12), (2.84, 0.66), (2.84, 0.84), (0.04, 0.84)], body)  # fmt: skip
    low, inset = 0.44, 0.06
    pad.poly(
        [
            (back_x + 0.12, low),
            (roof_back + 0.04, top + inset),
            (roof_front - 0.02, top + inset),
            (front_x - 0.06, low),
        ],
        glass,
    )
    pillar = (roof_back + roof_front) / 2 + rng.uniform(-0.1, 0.1)
    pad.poly([(pillar - 0.03, top), (pillar + 0.03, top), (pillar + 0.03, 0.5), (pillar - 0.03, 0.5)], body)
    for x in (pillar, front_x - 0.04, back_x + 0.2):
        pad.limb([(x, 0.48), (x, 0.8)], 0.008, paint * 0.5)
    pad.limb([(pillar - 0.22, 0.56), (pillar - 0.1, 0.56)], 0.02, paint * 0.4)
    pad.limb([(0.1, 0.62), (2.75, 0.62)], 0.01, np.clip(paint * 1.35 + 0.05, 0, 1))
    pad.poly([(0.04, 0.78), (2.84, 0.78), (2.8, 0.88), (0.08, 0.88)], paint * 0.35)
    pad.ellipse((2.74, 0.62), 0.08, 0.05, (0.95, 0.93, 0.8))
    pad.poly([(0.05, 0.56), (0.15, 0.55), (0.15, 0.68), (0.05, 0.68)], (0.65, 0.08, 0.07))
    rim = np.full(3, rng.uniform(0.4, 0.8), np.float32)
    for x in (0.62, 2.26):
        pad.ellipse((x, 0.8), 0.225, 0.22, (0.03, 0.03, 0.03))
        _wheel(pad, x, 0.81, 0.185, rim)
    return pad.finish().lit(rng, 0.3)


def car_rear(rng: Rng, split: str, height: int) -> Sprite:
    """A car from behind or from the front."""
    pad = Sketch(height, rng.uniform(1.12, 1.3))
    w = pad.width / pad.height
    paint = paint_color(rng)
    gloss = np.linspace(1.2, 0.7, pad.alpha.shape[0], dtype=np.float32)[:, None, None]
    body = np.clip(paint * gloss * np.ones((1, pad.alpha.shape[1], 1), np.float32), 0, 1)
    for x in (0.06, w - 0.24):
        pad.poly([(x, 0.7), (x + 0.18, 0.7), (x + 0.18, 0.99), (x, 0.99)], _DARK)
    slope = rng.uniform(0.12, 0.2)
    pad.poly(
        [
            (slope, 0.04),
            (w - slope, 0.04),
            (w - 0.06, 0.42),
            (w - 0.02, 0.5),
            (w - 0.03, 0.86),
            (0.03, 0.86),
            (0.02, 0.5),
            (0.06, 0.42),
        ],
        body,
    )
    tone = rng.uniform(0.1, 0.4)
    pad.poly(
        [(slope + 0.05, 0.1), (w - slope - 0.05, 0.1), (w - 0.13, 0.41), (0.13, 0.41)], (tone, tone * 1.1, tone * 1.25)
    )
    pad.limb([(0.12, 0.53), (w - 0.12, 0.53)], 0.012, paint * 0.5)
    light = (0.7, 0.08, 0.06) if rng.random() < 0.6 else (0.97, 0.95, 0.82)
    for x in (0.05, w - 0.25):
        pad.poly([(x, 0.51), (x + 0.2, 0.52), (x + 0.2, 0.61), (x, 0.62)], light)
    pad.poly([(w / 2 - 0.14, 0.62), (w / 2 + 0.14, 0.62), (w / 2 + 0.14, 0.7), (w / 2 - 0.14, 0.7)], (0.9, 0.9, 0.85))
    pad.poly([(0.03, 0.76), (w - 0.03, 0.76), (w - 0.05, 0.9), (0.05, 0.9)], paint * 0.4)
    return pad.finish().lit(rng, 0.3)


def boat(rng: Rng, split: str, height: int) -> Sprite:
    """A sailing boat, a motor boat or a rowing boat; the waterline is the lower border."""
    kind = int(rng.integers(3))
    pad = Sketch(height, (0.95, 2.2, 3.2)[kind])
    w = pad.width / pad.height
    hull = paint_color(rng)
    planks = hull * (1 + 0.12 * noise(rng, *pad.alpha.shape, pad.unit * 0.1)[..., None])
    top = (0.78, 0.55, 0.35)[kind]
    if kind == 0:
        sail = random_color(rng, (0.55, 0.3, 0.2), (0.98, 0.97, 0.95))
        pad.limb([(w * 0.46, 0.02), (w * 0.46, 0.85)], 0.012, (0.3, 0.25, 0.2))
        pad.poly([(w * 0.44, 0.04), (w * 0.44, 0.72), (w * 0.05, 0.72)], sail)
        pad.poly([(w * 0.49, 0.1), (w * 0.49, 0.72), (w * 0.86, 0.72)], sail * 0.86)
    if kind == 1:
        pad.poly([(w * 0.22, 0.1), (w * 0.58, 0.1), (w * 0.66, 0.58), (w * 0.2, 0.58)], (0.92, 0.92, 0.9))
        for x in (0.26, 0.39, 0.51):
            pad.poly([(w * x, 0.2), (w * (x + 0.08), 0.2), (w * (x + 0.09), 0.38), (w * x, 0.38)], (0.15, 0.2, 0.26))
    pad.poly([(w * 0.02, top), (w * 0.99, top - 0.04), (w * 0.86, 1), (w * 0.1, 1)], planks)
    pad.limb([(w * 0.04, top + 0.01), (w * 0.96, top - 0.02)], 0.022, np.clip(hull * 1.4 + 0.1, 0, 1))
    if kind == 2:
        pad.poly(
            [(w * 0.12, top + 0.04), (w * 0.88, top + 0.02), (w * 0.78, top + 0.2), (w * 0.2, top + 0.2)], hull * 0.45
        )
        for x in (0.35, 0.6):
            pad.poly(
                [(w * x, top), (w * (x + 0.06), top), (w * (x + 0.06), top + 0.2), (w * x, top + 0.2)],
                (0.5, 0.36, 0.22),
            )
    return pad.finish().lit(rng, 0.3)


def ball(rng: Rng, split: str, height: int) -> Sprite:
    """A striped, patched or plain ball with a highlight."""
    pad = Sketch(height, 1.0)
    size = pad.alpha.shape[0]
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size * 2 - 1
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    u, v, s = np.einsum("ij,jhw->ihw", turn, np.stack([x, y, z]))
    first, second = paint_color(rng), paint_color(rng)
    kind = rng.integers(3)
    if kind == 0:
        pattern = np.floor((np.arctan2(u, v) / np.pi + 1) * 3) % 2 > 0
    elif kind == 1:
        spots = rng.normal(size=(9, 3)).astype(np.float32)
        spots /= np.linalg.norm(spots, axis=1, keepdims=True)
        pattern = np.einsum("kc,chw->khw", spots, np.stack([u, v, s])).max(0) > 0.88
    else:
        pattern = np.abs(s) < 0.16
    color = np.where(pattern[..., None], second, first)
    toward = rng.uniform(-0.6, 0.6)
    light = 0.55 + 0.5 * np.clip(toward * x - 0.65 * y + 0.6 * z, -0.4, 1)
    shine = np.clip(toward * x - 0.6 * y + 0.65 * z, 0, 1) ** 24 * 0.4
    pad.ellipse((0.5, 0.5), 0.5, 0.5, np.clip(color * light[..., None] + shine[..., None], 0, 1))
    return pad.finish()


def _facade(rng: Rng, split: str, pad: Sketch) -> np.ndarray:
    shape = pad.alpha.shape
    color = random_color(rng, (0.3, 0.22, 0.2), (0.92, 0.86, 0.78))
    kind = str(rng.choice(["brick", "concrete", "wood", "plaster"]))
    if kind == "plaster":
        return color * (1 + 0.06 * noise(rng, *shape, pad.unit * 0.2, 4)[..., None])
    surface = photo_surface(kind, split, rng, height=shape[0], width=shape[1], zoom=max(pad.unit / 1400, 0.12))
    return np.clip(tinted(surface, color, 0.14), 0, 1)


def building(rng: Rng, split: str, height: int, aspect: float) -> Sprite:
    """A facade with rows of windows, a door, and a flat or pitched roof."""
    pad = Sketch(height, aspect)
    w, wall = pad.width / pad.height, _facade(rng, split, pad)
    trim = random_color(rng, (0.2, 0.18, 0.16), (0.95, 0.93, 0.9))
    roof = 0.0
    if rng.random() < 0.55:
        roof = rng.uniform(0.12, 0.3)
        tiles = random_color(rng, (0.2, 0.12, 0.1), (0.65, 0.35, 0.25))
        ribs = 1 + 0.15 * np.sign(np.sin(np.arange(pad.alpha.shape[1]) * 0.9))[None, :, None]
        ridge = rng.uniform(0, 0.35) * w
        cover = np.broadcast_to(tiles * ribs, (*pad.alpha.shape, 3)).astype(np.float32)
        pad.poly([(0, roof), (ridge, 0.0), (w - ridge, 0.0), (w, roof)], cover)
    pad.poly([(0.02, roof), (w - 0.02, roof), (w - 0.02, 1), (0.02, 1)], wall)
    if roof == 0:
        pad.poly([(0, 0), (w, 0), (w, 0.035), (0, 0.035)], trim)
    floors = int(rng.integers(2, 6))
    columns = max(2, round(w * floors * rng.uniform(0.8, 1.2)))
    step_x, step_y = w / columns, (1 - roof) / (floors + 0.35)
    wide, tall = step_x * rng.uniform(0.4, 0.65), step_y * rng.uniform(0.45, 0.7)
    door = int(rng.integers(columns))
    for row in range(floors):
        for col in range(columns):
            x, y = (col + 0.5) * step_x, roof + (row + 0.62) * step_y
            ground = row == floors - 1
            low = 1.0 if ground and col == door else y + tall / 2
            tone = rng.uniform(0.08, 0.45) * (1 if rng.random() < 0.92 else 2)
            pad.poly([(x - wide / 2 - 0.008, y - tall / 2 - 0.01), (x + wide / 2 + 0.008, y - tall / 2 - 0.01),
                      (x + wide / 2 + 0.008, low + 0.01), (x - wide / 2 - 0.008, low + 0.01)], trim)  # fmt: skip
            pane = (tone * 0.9, tone, tone * 1.15) if low < 1 else trim * 0.45
            pad.poly(
                [(x - wide / 2, y - tall / 2), (x + wide / 2, y - tall / 2), (x + wide / 2, low), (x - wide / 2, low)],
                np.clip(pane, 0, 1),
            )
            if low < 1:
                pad.limb([(x, y - tall / 2), (x, low)], 0.006, trim)
    return pad.finish().lit(rng, 0.2)


def clutter(rng: Rng, split: str, height: int) -> Sprite:
    """A lamp post or a wooden crate: things without a class, void in the labels."""
    if rng.random() < 0.6:
        pad = Sketch(height, 0.24)
        metal = random_color(rng, (0.12, 0.12, 0.13), (0.6, 0.6, 0.6))
        pad.poly([(0.085, 0.05), (0.115, 0.05), (0.13, 1), (0.07, 1)], metal)
        pad.limb([(0.1, 0.04), (0.2, 0.03)], 0.022, metal)
        pad.ellipse((0.2, 0.045), 0.035, 0.02, (0.95, 0.93, 0.85))
        return pad.finish().lit(rng)
    height = max(height // 3, 6)
    pad = Sketch(height, rng.uniform(0.9, 1.4))
    w = pad.width / pad.height
    wood = photo_surface(
        "wood", split, rng, height=pad.alpha.shape[0], width=pad.alpha.shape[1], zoom=max(pad.unit / 300, 0.3)
    )
    pad.poly([(0.02, 0.02), (w - 0.02, 0.02), (w - 0.02, 1), (0.02, 1)], wood)
    for y in (0.06, 0.5, 0.94):
        pad.limb([(0.05, y), (w - 0.05, y)], 0.07, wood * 0.7)
    return pad.finish().lit(rng)
