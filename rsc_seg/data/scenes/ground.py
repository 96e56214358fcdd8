"""Backgrounds: sky, ground, roads, water, rows of buildings and trees."""

import numpy as np

from rsc_seg.data.scenes import cutouts, drawn_made, drawn_nature
from rsc_seg.data.scenes.canvas import Canvas
from rsc_seg.data.scenes.textures import noise, on_ground, photo_surface, random_color, resize, surface_crops, tinted


def paint_sky(canvas: Canvas) -> np.ndarray:
    """Sky over the whole canvas: a photographed gradient or a drawn one, often with clouds. Returns the haze colour."""
    rng, shape = canvas.rng, (canvas.height, canvas.width)
    if rng.random() < 0.4:
        crops = surface_crops("sky", canvas.split)
        crop = crops[int(rng.integers(len(crops)))][:, :: 1 if rng.random() < 0.5 else -1]
        sky = resize(crop, *shape) * rng.uniform(0.8, 1.02)
    else:
        zenith = random_color(rng, (0.2, 0.3, 0.5), (0.55, 0.7, 0.95))
        edge = random_color(rng, (0.7, 0.6, 0.55), (0.95, 0.95, 0.97), free=0.3)
        ramp = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None] * shape[0] / max(canvas.horizon, 1)
        sky = zenith + (edge - zenith) * np.clip(ramp, 0, 1) ** rng.uniform(0.6, 1.6)
        sky = np.broadcast_to(sky, (*shape, 3))
    if rng.random() < 0.6:
        clouds = noise(rng, *shape, rng.uniform(60, 200), 5)
        cover = np.clip((clouds - rng.uniform(-0.5, 0.4)) * rng.uniform(0.6, 1.6), 0, 1)[..., None]
        sky = sky + (rng.uniform(0.6, 0.98) - sky) * cover * rng.uniform(0.3, 0.9)
    canvas.fill(np.ones(shape, bool), np.clip(sky, 0, 1).astype(np.float32), "sky")
    return canvas.rgb[int(np.clip(canvas.horizon, 0, canvas.height - 1))].mean(0)


def ground_surface(canvas: Canvas, name: str) -> np.ndarray:
    """A full-size picture of grass or road on the receding ground; rows above the horizon repeat its first."""
    rng = canvas.rng
    top = int(np.clip(canvas.horizon, 0, canvas.height - 2))
    rows, cols = canvas.height - top, canvas.width
    if name == "grass":
        kind, contrast = "grass", rng.uniform(0.18, 0.38)
        color = random_color(rng, (0.16, 0.24, 0.08), (0.58, 0.58, 0.3))
    else:
        kind, contrast = str(rng.choice(["gravel", "concrete", "gravel"])), rng.uniform(0.07, 0.22)
        color = random_color(rng, (0.2, 0.2, 0.21), (0.72, 0.66, 0.6))
    source = photo_surface(kind, canvas.split, rng, height=512, width=512, zoom=1.0)
    source = tinted(source, color, contrast)
    scale = (0.8 if name == "grass" else 0.45) * rng.uniform(0.7, 1.3) * canvas.height / 360
    plane = on_ground(source, rows, cols, depth=0.06, scale=scale)
    blotches = noise(rng, rows, cols, cols / 4, 4) * np.linspace(0.3, 1, rows, dtype=np.float32)[:, None]
    plane = np.clip(plane * (1 + rng.uniform(0.05, 0.2) * blotches[..., None]), 0, 1)
    return np.concatenate([np.broadcast_to(plane[:1], (top, cols, 3)), plane]).astype(np.float32)


def water_surface(canvas: Canvas, haze: np.ndarray) -> np.ndarray:
    """A full-size picture of water below the horizon: reflected sky, ripples that grow nearer."""
    rng, shape = canvas.rng, (canvas.height, canvas.width)
    if rng.random() < 0.4:
        crops = surface_crops("water", canvas.split)
        base = resize(crops[int(rng.integers(len(crops)))], *shape)
    else:
        deep = random_color(rng, (0.06, 0.14, 0.2), (0.3, 0.5, 0.55), free=0.3)
        base = np.broadcast_to(deep * 0.55 + haze * rng.uniform(0.2, 0.45), (*shape, 3))
    t = np.clip((np.arange(shape[0]) - canvas.horizon) / max(shape[0] - canvas.horizon, 1), 0.02, 1).astype(np.float32)
    waves = noise(rng, 512, 512, 36, 3)
    rows = (260 * np.log(t + 0.03)).astype(int) % 512
    cols = (np.arange(shape[1])[None] / (0.8 + 2.2 * t[:, None])).astype(int) % 512
    ripple = waves[rows[:, None], cols] * (0.25 + 0.75 * t[:, None])
    return np.clip(base * (1 + rng.uniform(0.08, 0.22) * ripple[..., None]), 0, 1).astype(np.float32)


def wall_surface(canvas: Canvas) -> np.ndarray:
    """A full-size picture of a wall: brick, wood, concrete or plaster."""
    rng, shape = canvas.rng, (canvas.height, canvas.width)
    color = random_color(rng, (0.3, 0.2, 0.17), (0.88, 0.8, 0.7))
    kind = str(rng.choice(["brick", "brick", "wood", "concrete", "plaster"]))
    if kind == "plaster":
        wall = color * (1 + 0.07 * noise(rng, *shape, 60, 5)[..., None])
    else:
        zoom = rng.uniform(0.2, 0.5) * canvas.height / 360 * (2 if kind == "concrete" else 1)
        wall = photo_surface(kind, canvas.split, rng, height=shape[0], width=shape[1], zoom=zoom)
        wall = wall if kind == "wood" and rng.random() < 0.5 else tinted(wall, color, 0.2)
    light = 1 + 0.2 * noise(rng, *shape, canvas.width / 2, 1)[..., None]
    return np.clip(wall * light, 0, 1).astype(np.float32)


def below(canvas: Canvas, row: float, wobble: float = 0.0, cell: float = 80.0) -> np.ndarray:
    """The pixels below a row, along a line that wobbles by that many pixels."""
    line = row + wobble * noise(canvas.rng, 1, canvas.width, cell, 2)[0]
    return np.arange(canvas.height)[:, None] >= line[None]


def road_mask(canvas: Canvas) -> np.ndarray:
    """A straight road towards a vanishing point, narrow or as wide as the picture."""
    rng = canvas.rng
    t = (np.arange(canvas.height, dtype=np.float32) - canvas.horizon) / max(canvas.height - canvas.horizon, 1)
    vanish, foot = rng.uniform(0.25, 0.75) * canvas.width, rng.uniform(0.2, 0.8) * canvas.width
    half = rng.uniform(0.25, 0.8) * canvas.width
    middle = vanish + (foot - vanish) * t
    cols = np.arange(canvas.width, dtype=np.float32)
    return (t[:, None] > 0) & (np.abs(cols[None] - middle[:, None]) < half * t[:, None] + 2)


def road_band(canvas: Canvas) -> np.ndarray:
    """A road across the picture."""
    rng, span = canvas.rng, canvas.height - canvas.horizon
    top = canvas.horizon + span * rng.uniform(0.15, 0.45)
    low = top + span * rng.uniform(0.3, 0.6)
    tilt = rng.uniform(-0.06, 0.06) * (np.arange(canvas.width) - canvas.width / 2)
    rows = np.arange(canvas.height)[:, None]
    return (rows >= top + tilt[None]) & (rows < low + tilt[None])


def paint_buildings(canvas: Canvas, foot: float, density: float) -> None:
    """A row of buildings that stand at one row, some of them photographed."""
    rng = canvas.rng
    x = rng.uniform(-0.2, 0.1) * canvas.width
    while x < canvas.width:
        tall = int(canvas.height * rng.uniform(0.22, 0.62))
        if rng.random() < 0.18:
            sprite = cutouts.pagoda(canvas.split).scaled(tall)
        else:
            sprite = drawn_made.building(rng, canvas.split, tall, rng.uniform(0.55, 1.7))
        if rng.random() < density:
            canvas.paste(sprite, x + sprite.width / 2, foot + rng.uniform(0, 3), "building")
        x += sprite.width * rng.uniform(0.9, 1.15)


def paint_trees(canvas: Canvas, foot: float, count: int, size: tuple[float, float]) -> None:
    """Trees that stand at one row, of heights given as shares of the canvas."""
    rng = canvas.rng
    for x in rng.uniform(-0.05, 1.05, count) * canvas.width:
        tall = int(canvas.height * rng.uniform(*size))
        if rng.random() < 0.15:
            sprite = cutouts.conifer(canvas.split).scaled(tall)
        else:
            sprite = drawn_nature.tree(rng, canvas.split, tall)
        canvas.paste(sprite, float(x), foot + rng.uniform(0, 4), "tree", shadow=0.25)


def paint_hedge(canvas: Canvas, foot: float, tall: float) -> None:
    """A closed belt of foliage from a ragged upper line down to a row."""
    surface = drawn_nature.foliage(canvas.rng, canvas.split, (canvas.height, canvas.width), canvas.height / 700)
    mask = below(canvas, foot - tall, tall * 0.35, canvas.width / 12) & ~below(canvas, foot, 1.5)
    canvas.fill(mask, surface * np.float32(canvas.rng.uniform(0.7, 1.1)), "tree")
