"""Five kinds of scene: street, park, shore, yard and close view."""

from collections.abc import Mapping, Sequence

import numpy as np

from rsc_seg.data.scenes import cutouts, drawn_made, drawn_nature, ground
from rsc_seg.data.scenes.canvas import Canvas, Maker
from rsc_seg.data.scenes.sprite import Sprite
from rsc_seg.data.scenes.textures import Rng, photo_surface


def _cat(rng: Rng, split: str, height: int) -> Sprite:
    make = cutouts.sitting_cat if rng.random() < 0.5 else drawn_nature.walking_cat
    return make(rng, split, height)


def _motorcycle(rng: Rng, split: str, height: int) -> Sprite:
    sprite = cutouts.motorcycle(split).scaled(height)
    return sprite.recolored(int(rng.integers(3)), rng.uniform(0.7, 1.15))


def _car(rng: Rng, split: str, height: int) -> Sprite:
    make = drawn_made.car_side if rng.random() < 0.6 else drawn_made.car_rear
    return make(rng, split, height)


def _bloom(rng: Rng, split: str, height: int) -> Sprite:
    sprite = cutouts.dahlia(split).scaled(height).recolored(int(rng.choice([0, 0, 2])), rng.uniform(0.7, 1.1))
    return sprite.rotated(float(rng.uniform(-40, 40)))


_MAKERS: dict[str, tuple[Maker, float, float]] = {  # name: drawing, height in metres (least and most)
    "person": (drawn_nature.person, 1.5, 1.9),
    "car": (_car, 1.3, 1.8),
    "motorcycle": (_motorcycle, 1.0, 1.3),
    "cat": (_cat, 0.6, 0.95),
    "ball": (drawn_made.ball, 0.35, 0.7),
    "flower": (drawn_nature.flowers, 0.5, 0.9),
    "tree": (drawn_nature.tree, 3.0, 6.0),
    "clutter": (drawn_made.clutter, 1.8, 3.0),
}


def _place(
    canvas: Canvas, names: Sequence[str], near: float, far: float, on: Mapping[str, np.ndarray] | None = None
) -> None:
    """Things on the ground between two rows, far ones first; `on` says where the feet of some may stand."""
    rng = canvas.rng
    spots = sorted((float(far + (near - far) * rng.random() ** 0.8), str(name)) for name in names)
    for foot, name in spots:
        make, least, most = _MAKERS[name]
        height = min(canvas.size_at(foot, rng.uniform(least, most)), int(canvas.height * 0.95))
        if height < 10:
            continue
        x = rng.uniform(0.02, 0.98) * canvas.width
        if on is not None and name in on:
            free = np.flatnonzero(on[name][min(int(foot), canvas.height - 1)])
            if len(free) == 0:
                continue
            x = float(free[int(rng.integers(len(free)))])
        sprite = make(rng, canvas.split, height)
        sprite = sprite.flipped() if rng.random() < 0.5 else sprite
        if name in ("ball", "person", "cat") or rng.random() < 0.3:
            sprite = sprite.rotated(float(rng.uniform(-5, 5)))
        canvas.paste(sprite, x, foot, None if name == "clutter" else name, shadow=rng.uniform(0.2, 0.6))


def _bag(rng: Rng, least: int, most: int, **weights: float) -> list[str]:
    share = np.asarray(list(weights.values()))
    return [str(n) for n in rng.choice(list(weights), int(rng.integers(least, most + 1)), p=share / share.sum())]


def _bust(canvas: Canvas, size: float) -> None:
    """A photographed person cut by the lower border, and by a side border where the photograph cuts it too."""
    rng = canvas.rng
    choice = cutouts.people(canvas.split)
    photo, side = choice[int(rng.integers(len(choice)))]
    sprite = photo.scaled(min(round(canvas.height * size), 2 * photo.height)).recolored(0, rng.uniform(0.75, 1.2))
    if rng.random() < 0.5:
        sprite, side = sprite.flipped(), -side
    x = rng.uniform(0.1, 0.9) * canvas.width
    if side != 0:
        x = sprite.width / 2 - 1 if side < 0 else canvas.width - sprite.width / 2 + 1
    canvas.paste(sprite, x, canvas.height + rng.uniform(0, 0.03) * canvas.height, "person")


def _front(canvas: Canvas, chance: float) -> None:
    """With some chance, a photographed person in front of the scene."""
    if canvas.rng.random() < chance:
        _bust(canvas, canvas.rng.uniform(0.35, 0.75))


def street(canvas: Canvas) -> None:
    """Buildings or trees behind a road, with traffic and people."""
    rng = canvas.rng
    haze = ground.paint_sky(canvas)
    span = canvas.height - canvas.horizon
    far = canvas.horizon + 0.1 * span
    if rng.random() < 0.5:
        ground.paint_hedge(canvas, far, canvas.height * rng.uniform(0.05, 0.2))
    ground.paint_buildings(canvas, far, rng.uniform(0.6, 1.0))
    canvas.haze(rng.uniform(0, 0.25), haze)
    verge = "grass" if rng.random() < 0.65 else "road"
    canvas.fill(ground.below(canvas, far), ground.ground_surface(canvas, verge), verge)
    road = ground.road_mask(canvas) if rng.random() < 0.55 else ground.road_band(canvas)
    road &= ground.below(canvas, far)
    canvas.fill(road, ground.ground_surface(canvas, "road"), "road")
    if rng.random() < 0.35:
        low = ground.below(canvas, far - span * 0.06) & ~ground.below(canvas, far + span * 0.05)
        canvas.fill(low, ground.wall_surface(canvas), "wall")
    ground.paint_trees(canvas, far + 0.04 * span, int(rng.integers(0, 4)), (0.2, 0.5))
    traffic = _bag(rng, 1, 5, car=5, motorcycle=2.5)
    others = _bag(rng, 2, 6, person=5, clutter=1.5, cat=0.7, flower=0.8, tree=0.7, ball=0.5)
    _place(canvas, traffic + others, canvas.height * 1.02, far + 0.13 * span, {"car": road, "motorcycle": road})
    _front(canvas, 0.15)


def park(canvas: Canvas) -> None:
    """Grass with a path or a pond, trees, flowers, people, cats and balls."""
    rng = canvas.rng
    haze = ground.paint_sky(canvas)
    span = canvas.height - canvas.horizon
    far = canvas.horizon + rng.uniform(0.06, 0.14) * span
    if rng.random() < 0.5:
        ground.paint_buildings(canvas, far, 0.35)
    if rng.random() < 0.7:
        ground.paint_hedge(canvas, far, canvas.height * rng.uniform(0.08, 0.3))
    ground.paint_trees(canvas, far, int(rng.integers(1, 6)), (0.2, 0.5))
    canvas.haze(rng.uniform(0, 0.2), haze)
    lawn = ground.below(canvas, far, rng.uniform(0, 6), 120)
    canvas.fill(lawn, ground.ground_surface(canvas, "grass"), "grass")
    choice = rng.random()
    if choice < 0.4:
        path = (ground.road_mask(canvas) if rng.random() < 0.5 else ground.road_band(canvas)) & lawn
        canvas.fill(path, ground.ground_surface(canvas, "road"), "road")
    elif choice < 0.75:
        x, y = rng.uniform(0.1, 0.9) * canvas.width, far + span * rng.uniform(0.2, 0.5)
        rows, cols = np.mgrid[: canvas.height, : canvas.width]
        rim = 1 + 0.15 * np.sin(np.arctan2(rows - y, cols - x) * 3 + rng.uniform(0, 6))
        pond = ((cols - x) / (canvas.width * rng.uniform(0.2, 0.5))) ** 2 + (
            (rows - y) / (span * rng.uniform(0.1, 0.25))
        ) ** 2 < rim
        canvas.fill(pond & lawn, ground.water_surface(canvas, haze), "water")
    _place(
        canvas,
        _bag(rng, 3, 8, person=3, cat=2, ball=2, flower=3, tree=1.5, clutter=0.6),
        canvas.height * 1.03,
        far + 0.12 * span,
    )
    _front(canvas, 0.15)


def shore(canvas: Canvas) -> None:
    """Water with boats between a far and a near bank."""
    rng = canvas.rng
    haze = ground.paint_sky(canvas)
    span = canvas.height - canvas.horizon
    far = canvas.horizon + 0.03 * span
    if rng.random() < 0.7:
        ground.paint_hedge(canvas, far, canvas.height * rng.uniform(0.03, 0.16))
    if rng.random() < 0.5:
        ground.paint_buildings(canvas, far, rng.uniform(0.2, 0.7))
    canvas.haze(rng.uniform(0.05, 0.4), haze)
    canvas.fill(ground.below(canvas, far), ground.water_surface(canvas, haze), "water")
    bank = canvas.height - span * rng.uniform(-0.05, 0.5)
    rows = np.sort(rng.uniform(far + 0.05 * span, max(bank, far + 0.3 * span) - 0.02 * span, int(rng.integers(1, 5))))
    for foot in rows:
        height = max(canvas.size_at(foot, rng.uniform(1.0, 2.0)), 14)
        sprite = drawn_made.boat(rng, canvas.split, min(height, int(canvas.height * 0.5)))
        sprite = sprite.flipped() if rng.random() < 0.5 else sprite
        canvas.paste(
            sprite.rotated(float(rng.uniform(-3, 3))),
            rng.uniform(0, 1) * canvas.width,
            float(foot),
            "boat",
            shadow=0.35,
        )
    if bank < canvas.height - 8:
        name = str(rng.choice(["grass", "grass", "road"]))
        land = ground.below(canvas, bank, span * 0.05, canvas.width / 3)
        canvas.fill(land, ground.ground_surface(canvas, name), name)
        things = _bag(rng, 2, 6, person=4, ball=1, cat=1, flower=1.5, tree=1, motorcycle=0.7, clutter=0.5)
        _place(canvas, things, canvas.height * 1.02, bank + 0.08 * span)
    _front(canvas, 0.25)


def yard(canvas: Canvas) -> None:
    """A wall close behind the ground, with vehicles, cats, flowers and people before it."""
    rng = canvas.rng
    ground.paint_sky(canvas)
    span = canvas.height - canvas.horizon
    far = canvas.horizon + rng.uniform(0.15, 0.35) * span
    top = rng.uniform(-0.3, 0.6) * canvas.horizon
    if top > 0:
        ground.paint_trees(canvas, far, int(rng.integers(0, 4)), (0.5, 0.9))
        if rng.random() < 0.4:
            ground.paint_buildings(canvas, far, 0.4)
    canvas.fill(ground.below(canvas, top), ground.wall_surface(canvas), "wall")
    name = "road" if rng.random() < 0.6 else "grass"
    canvas.fill(ground.below(canvas, far), ground.ground_surface(canvas, name), name)
    things = _bag(rng, 2, 7, person=2.5, motorcycle=2, cat=2, flower=2, ball=1.5, car=1, clutter=1, tree=0.4)
    _place(canvas, things, canvas.height * 1.03, far + 0.04 * span)
    _front(canvas, 0.25)


def close_view(canvas: Canvas) -> None:
    """One to three large things before an unsharp background."""
    rng = canvas.rng
    background = rng.random()
    if background < 0.35:
        leaves = photo_surface("leaves", canvas.split, rng, height=canvas.height, width=canvas.width, zoom=1.6)
        canvas.fill(np.ones_like(canvas.semantic, bool), leaves * rng.uniform(0.8, 1.5), "tree")
    elif background < 0.65:
        canvas.fill(np.ones_like(canvas.semantic, bool), ground.wall_surface(canvas), "wall")
    else:
        haze = ground.paint_sky(canvas)
        ground.paint_hedge(canvas, canvas.horizon + 4, canvas.height * rng.uniform(0.1, 0.4))
        ground.paint_buildings(canvas, canvas.horizon, 0.4)
        canvas.haze(0.1, haze)
    if background >= 0.65 or rng.random() < 0.7:
        name = str(rng.choice(["grass", "road", "water"]))
        surface = (
            ground.water_surface(canvas, canvas.rgb.mean((0, 1)))
            if name == "water"
            else ground.ground_surface(canvas, name)
        )
        canvas.fill(ground.below(canvas, canvas.horizon + 2, 2.0), surface, name)
    canvas.soften(rng.uniform(0.8, 2.5) * canvas.height / 360)
    _close_things(canvas)


def _close_things(canvas: Canvas) -> None:
    rng = canvas.rng
    makers: dict[str, tuple[str, Maker, float]] = {  # name: class, drawing, size beside the others
        "cat": ("cat", cutouts.sitting_cat, 1.0),
        "bloom": ("flower", _bloom, 0.6),
        "flowers": ("flower", drawn_nature.flowers, 1.0),
        "motorcycle": ("motorcycle", _motorcycle, 0.9),
        "ball": ("ball", drawn_made.ball, 0.5),
    }
    picks = _bag(rng, 1, 4, bust=4, cat=2.5, bloom=2, flowers=1, motorcycle=1, ball=0.7)
    for size, pick in sorted(zip(rng.uniform(0.35, 0.85, len(picks)), picks, strict=True)):
        if pick == "bust":
            _bust(canvas, size)
            continue
        name, make, share = makers[pick]
        sprite = make(rng, canvas.split, int(canvas.height * size * share))
        sprite = sprite.flipped() if rng.random() < 0.5 else sprite
        foot = canvas.height * (1 + rng.uniform(-0.25, 0.08))
        canvas.paste(sprite, rng.uniform(0.1, 0.9) * canvas.width, foot, name, shadow=0.3)


LAYOUTS = (street, park, shore, yard, close_view)
LAYOUT_SHARES = (0.28, 0.24, 0.18, 0.16, 0.14)
