"""The region classification a second time, with loops and in float64: nothing of rsc_seg but the encoder is used."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rsc_seg.models.encoder import DenseEncoder

SIDE, PATCH = 128, 16
GRID = SIDE // PATCH


def cubic(x: float, a: float) -> float:
    """The bicubic kernel."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resize_weights(before: int, after: int, antialias: bool) -> np.ndarray:
    """(after, before): how much each old pixel of a line counts in each new one.

    torch's two bicubic resizes: without antialiasing a = -0.75 and four neighbours whose places are clamped to the
    line; with it a = -0.5, a kernel as wide as the reduction, and weights that sum to one.
    """
    found, scale = np.zeros((after, before)), before / after
    for i in range(after):
        centre = (i + 0.5) * scale
        if not antialias:
            first = math.floor(centre - 0.5)
            for j in range(first - 1, first + 3):
                found[i, min(max(j, 0), before - 1)] += cubic(centre - 0.5 - j, -0.75)
            continue
        wide = max(scale, 1.0)
        low, high = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), before)
        for j in range(low, high):
            found[i, j] = cubic((j + 0.5 - centre) / wide, -0.5)
        found[i] /= found[i].sum()
    return found


def token_mask(mask: np.ndarray, antialias: bool) -> np.ndarray:
    """A mask of the picture on the token grid of its padded frame."""
    height, width = mask.shape
    scale = GRID / max(height, width)
    h, w = round(height * scale), round(width * scale)
    small = resize_weights(height, h, antialias) @ mask.astype(float) @ resize_weights(width, w, antialias).T
    found = np.zeros((GRID, GRID), bool)
    found[:h, :w] = small > 1e-12  # a rest of rounding is nothing, the smallest real share is 1e-9
    return found


def bilinear(tokens: np.ndarray, y: float, x: float) -> np.ndarray:
    """A point between tokens (h, w, E) as RoIAlign reads it."""
    if not (-1 <= y <= GRID and -1 <= x <= GRID):
        return np.zeros(tokens.shape[2])
    y, x = min(max(y, 0), GRID - 1), min(max(x, 0), GRID - 1)
    top, left = min(int(y), GRID - 1), min(int(x), GRID - 1)
    below, right = min(top + 1, GRID - 1), min(left + 1, GRID - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * tokens[top, left] + dx * tokens[top, right]
    lower = (1 - dx) * tokens[below, left] + dx * tokens[below, right]
    return (1 - dy) * upper + dy * lower


def box_feature(tokens: np.ndarray, box: list[float]) -> np.ndarray:
    """Mean over a box, xyxy in tokens: as many sampling points on an axis as the side has tokens, rounded up."""
    x0, y0, x1, y1 = box
    across, down = math.ceil(x1 - x0), math.ceil(y1 - y0)
    total = np.zeros(tokens.shape[2])
    for i in range(down):
        for j in range(across):
            y = y0 - 0.5 + (i + 0.5) * (y1 - y0) / down
            x = x0 - 0.5 + (j + 0.5) * (x1 - x0) / across
            total += bilinear(tokens, y, x)
    return total / max(across * down, 1)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length one, zeros as they are."""
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def slow_tokens(encoder: DenseEncoder, image: Image.Image) -> np.ndarray:
    """Dense features (h, w, E) of the padded picture, each token at length one."""
    scale = SIDE / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    frame = np.zeros((SIDE, SIDE, 3), np.float32)
    frame[:height, :width] = small
    frame = (frame - np.float32(encoder.mean)) / np.float32(encoder.std)
    with torch.no_grad():
        dense = encoder.dense(torch.from_numpy(frame).permute(2, 0, 1)[None])[0].double().numpy()
    return np.apply_along_axis(unit, 2, dense.transpose(1, 2, 0))


def slow_boxes(info: dict[str, Any], thing: bool, mask: np.ndarray) -> list[float]:
    """x, y, width, height."""
    if thing:
        return list(info["bbox"])
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() - columns.min(), rows.max() - rows.min()]


def place(feature: np.ndarray, embeddings: np.ndarray, label: int) -> int:
    """Place of the right class among all, 0 for the nearest; behind the last for a feature of zeros."""
    if not feature.any():
        return len(embeddings)
    order = sorted(range(len(embeddings)), key=lambda t: -float(unit(feature) @ unit(embeddings[t])))
    return order.index(label)


def slow_places(root: Path, encoder: DenseEncoder, embeddings: np.ndarray, antialias: bool) -> list[dict[str, Any]]:
    """For every classified segment its category and the places of the right class by box and by mask."""
    document = json.loads((root / "annotations/panoptic_val2017.json").read_text())
    thing = {c["id"]: bool(c["isthing"]) for c in document["categories"]}
    label = {number: t for t, number in enumerate(sorted(thing))}
    files, found = {row["id"]: row["file_name"] for row in document["images"]}, []
    for annotation in document["annotations"]:
        image = Image.open(root / "val2017" / files[annotation["image_id"]]).convert("RGB")
        png = Image.open(root / "annotations/panoptic_val2017" / annotation["file_name"])
        colour = np.asarray(png).astype(int)
        ids = colour[..., 0] + 256 * colour[..., 1] + 65536 * colour[..., 2]
        tokens, scale = slow_tokens(encoder, image), GRID / max(image.size)
        for info in annotation["segments_info"][:100]:
            mask, category = ids == info["id"], info["category_id"]
            x, y, w, h = slow_boxes(info, thing[category], mask)
            if not 64 <= w * h <= 1024**2:
                continue
            small = token_mask(mask, antialias)
            pooled = tokens[small].mean(0) if small.any() else np.zeros(tokens.shape[2])
            box = box_feature(tokens, [x * scale, y * scale, (x + w) * scale, (y + h) * scale])
            places = {what: place(f, embeddings, label[category]) for what, f in (("boxes", box), ("masks", pooled))}
            found.append({"category": category, "thing": thing[category], "empty": not small.any(), **places})
    return found


def slow_scores(places: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean accuracies in percent, and counts, from the places."""
    found: dict[str, dict[str, Any]] = {}
    kinds = {"boxes": ("boxes", True), "thing_masks": ("masks", True)}
    kinds |= {"stuff_masks": ("masks", False), "stuff_boxes": ("boxes", False)}
    for kind, (what, thing) in kinds.items():
        by_class = defaultdict(list)
        for row in places:
            if row["thing"] == thing:
                by_class[row["category"]].append(row[what])
        found[kind] = {
            f"top{k}": 100 * sum(sum(p < k for p in own) / len(own) for own in by_class.values()) / len(by_class)
            for k in (1, 5)
        }
        found[kind] |= {"regions": sum(map(len, by_class.values())), "classes": len(by_class)}
        if what == "masks":
            found[kind]["empty"] = sum(row["empty"] for row in places if row["thing"] == thing)
    return found
