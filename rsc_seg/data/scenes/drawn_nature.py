"""Drawn living things: people, cats, trees and flowers, dressed in photographic textures."""

import numpy as np
from scipy import ndimage

from rsc_seg.data.scenes.sprite import Sketch, Sprite
from rsc_seg.data.scenes.textures import Rng, noise, paint_color, photo_surface, random_color, tinted

_SKIN = ((0.32, 0.2, 0.14), (0.95, 0.78, 0.66))
_HAIR = ((0.05, 0.04, 0.03), (0.75, 0.6, 0.35))


def _cloth(rng: Rng, split: str, pad: Sketch) -> np.ndarray:
    shape = pad.alpha.shape
    color = paint_color(rng)
    kind = rng.integers(4)
    if kind == 0:
        return photo_surface("cloth", split, rng, height=shape[0], width=shape[1], zoom=max(pad.unit / 600, 0.2))
    if kind == 1:
        period = rng.uniform(0.02, 0.05) * pad.unit
        axis = np.arange(shape[0])[:, None] if rng.random() < 0.7 else np.arange(shape[1])[None]
        stripe = (np.floor(axis / period) % 2).astype(np.float32)[..., None]
        second = paint_color(rng)
        return np.broadcast_to(color * stripe + second * (1 - stripe), (*shape, 3)).astype(np.float32)
    folds = noise(rng, *shape, pad.unit * 0.08, 2)
    return np.clip(color * (1 + 0.16 * folds[..., None]), 0, 1)


def person(rng: Rng, split: str, height: int) -> Sprite:
    """A standing or walking person with clothes, hair and a random pose."""
    pad = Sketch(height, 0.62)
    skin, hair = random_color(rng, *_SKIN, free=0.03), random_color(rng, *_HAIR, free=0.05)
    top, trousers = _cloth(rng, split, pad), _cloth(rng, split, pad) * 0.8
    c, wide = 0.31, rng.uniform(0.85, 1.2)
    stride, swing = rng.uniform(0.01, 0.1), rng.uniform(-0.09, 0.09)
    shoes = random_color(rng, (0.02, 0.02, 0.02), (0.7, 0.6, 0.5))
    for side in (-1, 1):
        hip, knee, foot = c + 0.045 * side * wide, c + side * (0.04 + stride * 0.5), c + side * (0.045 + stride)
        pad.limb([(hip, 0.52), (knee, 0.74), (foot, 0.95)], 0.082 * wide, trousers * (0.9 + 0.1 * side))
        pad.ellipse((foot + 0.02 * np.sign(swing + 1e-6), 0.975), 0.05, 0.022, shoes)
    if rng.random() < 0.35:  # a skirt or a coat
        pad.poly([(c - 0.08, 0.42), (c + 0.08, 0.42), (c + 0.13 * wide, 0.72), (c - 0.13 * wide, 0.72)], top * 0.9)
    for side in (-1, 1):
        elbow = (c + side * (0.125 * wide + 0.02), 0.36)
        hand = (elbow[0] + swing * side + 0.02 * side, 0.5 + rng.uniform(-0.12, 0.03))
        pad.limb([(c + side * 0.095 * wide, 0.22), elbow], 0.062, top * 0.85)
        pad.limb([elbow, hand], 0.048, skin if rng.random() < 0.4 else top * 0.85)
        pad.ellipse(hand, 0.028, 0.028, skin)
    w = 0.105 * wide
    pad.poly(
        [(c - w, 0.2), (c - 0.04, 0.165), (c + 0.04, 0.165), (c + w, 0.2), (c + 0.085, 0.54), (c - 0.085, 0.54)], top
    )
    pad.limb([(c, 0.13), (c, 0.18)], 0.05, skin * 0.9)
    pad.ellipse((c, 0.078), 0.068, 0.074, hair)
    if rng.random() < 0.3:
        pad.poly([(c - 0.066, 0.07), (c + 0.066, 0.07), (c + 0.072, 0.2), (c - 0.072, 0.2)], hair)
        pad.limb([(c, 0.13), (c, 0.17)], 0.05, skin * 0.9)
    if rng.random() < 0.8:
        pad.ellipse((c + 0.012 * np.sign(swing), 0.093), 0.054, 0.058, skin)
        for side in (-1, 1):
            pad.ellipse((c + 0.022 * side + 0.012 * np.sign(swing), 0.087), 0.007, 0.006, (0.08, 0.06, 0.05))
        pad.limb([(c - 0.015, 0.123), (c + 0.02, 0.123)], 0.007, skin * np.array([0.8, 0.45, 0.45], np.float32))
    return pad.finish().lit(rng)


def walking_cat(rng: Rng, split: str, height: int) -> Sprite:
    """A cat from the side, in tabby, black, white or ginger."""
    pad = Sketch(height, 1.55)
    fur = photo_surface(
        "fur", split, rng, height=pad.alpha.shape[0], width=pad.alpha.shape[1], zoom=max(pad.unit / 260, 0.25)
    )
    if rng.random() < 0.6:
        fur = np.clip(tinted(fur, random_color(rng, (0.08, 0.07, 0.07), (0.9, 0.78, 0.66), free=0.08), 0.2), 0, 1)
    step, dark = rng.uniform(-0.07, 0.07), fur * 0.75
    for x, shift in ((0.5, step), (1.02, -step)):
        pad.limb([(x, 0.6), (x + shift, 0.94)], 0.085, dark)
    tail = rng.uniform(-0.1, 0.25)
    pad.limb([(0.42, 0.46), (0.22, 0.4), (0.12, 0.2 + tail), (0.16, 0.08 + tail)], 0.065, fur * 0.85)
    pad.ellipse((0.75, 0.53), 0.39, 0.19, fur)
    for x, shift in ((0.46, -step), (1.06, step)):
        pad.limb([(x, 0.56), (x + shift, 0.94)], 0.095, fur)
        pad.ellipse((x + shift + 0.02, 0.955), 0.062, 0.036, fur * 1.1)
    for x in (1.16, 1.31):
        pad.poly([(x - 0.075, 0.24), (x + 0.01, 0.06), (x + 0.075, 0.24)], fur * 0.85)
        pad.poly([(x - 0.04, 0.22), (x + 0.008, 0.11), (x + 0.04, 0.22)], (0.7, 0.48, 0.44))
    pad.ellipse((1.23, 0.32), 0.17, 0.155, fur * 1.03)
    for x in (1.19, 1.31):
        pad.ellipse((x, 0.29), 0.028, 0.028, (0.75, 0.78, 0.3))
        pad.ellipse((x + 0.004, 0.29), 0.01, 0.024, (0.05, 0.05, 0.05))
    pad.ellipse((1.28, 0.385), 0.06, 0.042, np.clip(fur * 1.25, 0, 1))
    pad.ellipse((1.29, 0.36), 0.018, 0.012, (0.6, 0.3, 0.28))
    return pad.finish().lit(rng)


def foliage(rng: Rng, split: str, shape: tuple[int, int], zoom: float) -> np.ndarray:
    """A surface of leaves: photographed, tinted between spring green, dark green and autumn."""
    surface = photo_surface("foliage", split, rng, height=shape[0], width=shape[1], zoom=zoom)
    if rng.random() < 0.45:
        return surface * rng.uniform(0.8, 1.25)
    autumn = rng.random() < 0.25
    color = (
        random_color(rng, (0.4, 0.2, 0.05), (0.75, 0.5, 0.15))
        if autumn
        else random_color(rng, (0.08, 0.16, 0.06), (0.38, 0.5, 0.22))
    )
    return np.clip(tinted(surface, color, 0.42), 0, 1)


def tree(rng: Rng, split: str, height: int) -> Sprite:
    """A broad-leaved or a conical tree with a ragged outline."""
    pad = Sketch(height, rng.uniform(0.6, 0.95))
    middle, shape = pad.width / pad.height / 2, pad.alpha.shape
    leaves = foliage(rng, split, shape, max(pad.unit / 350, 0.35))
    bark = random_color(rng, (0.15, 0.1, 0.07), (0.45, 0.36, 0.28))
    grain = bark * (1 + 0.25 * noise(rng, *shape, pad.unit * 0.05)[..., None])
    lean = rng.uniform(-0.04, 0.04)
    pad.poly(
        [(middle - 0.045, 1), (middle + 0.045, 1), (middle + lean + 0.02, 0.4), (middle + lean - 0.02, 0.4)], grain
    )
    trunk = pad.alpha > 0
    if rng.random() < 0.35:
        for tier in range(4):
            top, low = 0.02 + 0.2 * tier, 0.3 + 0.19 * tier
            half = middle * (0.35 + 0.2 * tier)
            pad.poly([(middle + lean, top), (middle + half, low), (middle - half, low)], leaves * (0.8 + 0.08 * tier))
    else:
        for _ in range(int(rng.integers(9, 15))):
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1) ** 0.5
            x = middle + lean + far * np.cos(angle) * (middle - 0.16)
            y = 0.36 + far * np.sin(angle) * 0.2
            pad.ellipse((x, y), rng.uniform(0.1, 0.17), rng.uniform(0.1, 0.15), leaves * rng.uniform(0.75, 1.15))
    edge = ndimage.uniform_filter(pad.alpha, max(round(pad.unit * 0.05), 3))
    ragged = edge + 0.3 * noise(rng, *shape, pad.unit * 0.04, 2) < 0.42
    pad.erase(ragged & ~trunk)
    return pad.finish().lit(rng, 0.45)


def flowers(rng: Rng, split: str, height: int) -> Sprite:
    """A clump of blooms on leafy stems; all of it is the class flower."""
    pad = Sketch(height, rng.uniform(0.8, 1.5))
    width = pad.width / pad.height
    green = random_color(rng, (0.1, 0.22, 0.06), (0.35, 0.5, 0.2))
    petals = np.clip(paint_color(rng) + 0.15, 0, 1)
    heart = random_color(rng, (0.5, 0.3, 0.05), (0.95, 0.8, 0.25))
    count = int(rng.integers(4, 10))
    spots = [(rng.uniform(0.14, width - 0.14), rng.uniform(0.14, 0.6)) for _ in range(count)]
    for x, y in spots:
        foot = width / 2 + (x - width / 2) * 0.5
        pad.limb([(x, y), (foot, 1)], 0.025, green * rng.uniform(0.7, 1.1))
        for _ in range(3):
            lx, ly = x + (foot - x) * rng.uniform(0.3, 1), rng.uniform(y + 0.25, 1)
            pad.ellipse(
                (lx + rng.uniform(-0.09, 0.09), min(ly, 0.95)),
                rng.uniform(0.04, 0.1),
                0.03,
                green * rng.uniform(0.7, 1.3),
            )
    for x, y in sorted(spots, key=lambda s: s[1]):
        size, shade, tilt = rng.uniform(0.08, 0.13), rng.uniform(0.75, 1.12), rng.uniform(0, 1)
        leaves = int(rng.integers(5, 9))
        for k in range(leaves):
            angle = 2 * np.pi * (k + tilt) / leaves
            at = x + size * 0.62 * np.cos(angle), y + size * 0.56 * np.sin(angle)
            pad.ellipse(at, size * 0.48, size * 0.44, np.clip(petals * shade * (0.9 + 0.15 * np.sin(angle + 1)), 0, 1))
        pad.ellipse((x, y), size * 0.36, size * 0.33, heart * shade)
    return pad.finish().lit(rng, 0.35)
