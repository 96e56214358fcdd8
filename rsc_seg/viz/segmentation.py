"""Label maps as pictures: one colour a class, the image beside its labels and predictions, and the key of colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.parts import Figure, FigureGroup

RGB = tuple[int, int, int]
VOID: RGB = (128, 128, 128)  # what is not scored
SECTION = "Predictions"
ABOUT = (
    "One colour a class, the same in labels and predictions; grey is not scored. Below a prediction stands the share "
    "of this picture's labelled pixels that it names right."
)
_SWATCH = (8, 64)  # pixels, height and width
_KEY_COLUMNS = 6
_MOST_NAMED = 5  # classes that an alt text names


@dataclass
class Segmented:
    """A picture with its labels and predictions (class of each pixel, all of one size), in the order to show them.

    `predictions` are classes, not clusters; a value without a colour is void.
    """

    name: str
    image: Image.Image
    labels: UInt8[np.ndarray, "H W"]
    predictions: Mapping[str, UInt8[np.ndarray, "H W"]]


def label_picture(labels: UInt8[np.ndarray, "H W"], palette: Sequence[RGB]) -> Image.Image:
    """The map in the colours of `palette`; values beyond it are grey."""
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)
    return Image.fromarray(table[labels])


def right_share(labels: UInt8[np.ndarray, "H W"], predicted: UInt8[np.ndarray, "H W"], classes: int) -> float | None:
    """Share of the labelled pixels whose class is predicted; None when no pixel is labelled."""
    scored = labels < classes
    return float((labels[scored] == predicted[scored]).mean()) if scored.any() else None


def _named(values: UInt8[np.ndarray, "H W"], classes: Sequence[str]) -> str:
    """The classes of a map, the largest first."""
    found = np.bincount(values.ravel(), minlength=256)[: len(classes)]
    order = [int(k) for k in np.argsort(-found, kind="stable") if found[k]]
    more = f" and {len(order) - _MOST_NAMED} more" if len(order) > _MOST_NAMED else ""
    return ", ".join(classes[k] for k in order[:_MOST_NAMED]) + more if order else "no class"


def _strip(shot: Segmented, classes: Sequence[str], palette: Sequence[RGB]) -> list[Figure]:
    figures = [
        Figure(shot.image, f"Photograph {shot.name}", "image", tokens=False),
        Figure(label_picture(shot.labels, palette), f"Labels of {shot.name}: {_named(shot.labels, classes)}", "labels"),
    ]
    for name, predicted in shot.predictions.items():
        if predicted.shape != shot.labels.shape:
            raise UserError(f"{shot.name}: prediction {name} is {predicted.shape}, the labels are {shot.labels.shape}.")
        share = right_share(shot.labels, predicted, len(classes))
        note = "no labelled pixel" if share is None else f"{100 * share:.1f} % right"
        alt = f"Prediction of {name} for {shot.name}: {_named(predicted, classes)}; {note}"
        figures.append(Figure(label_picture(predicted, palette), alt, name, note))
    return figures


def _key(shots: Sequence[Segmented], classes: Sequence[str], palette: Sequence[RGB]) -> FigureGroup:
    """A bar of colour for each class that occurs; names stand beside as text, so they fit every screen and theme."""
    seen = {int(v) for shot in shots for map_ in (shot.labels, *shot.predictions.values()) for v in np.unique(map_)}
    bars: list[Figure] = []
    for k in sorted(seen):
        name, colour = (classes[k], palette[k]) if k < len(classes) else ("not scored", VOID)
        if bars and k >= len(classes) and bars[-1].label == name:
            continue
        bar = Image.fromarray(np.full((*_SWATCH, 3), colour, np.uint8))
        bars.append(Figure(bar, f"Colour of {name}", name))
    rows = [bars[start : start + _KEY_COLUMNS] for start in range(0, len(bars), _KEY_COLUMNS)]
    return FigureGroup("Colours", rows, section=SECTION)


def segmentation_groups(
    shots: Sequence[Segmented], classes: Sequence[str], palette: Sequence[RGB]
) -> list[FigureGroup]:
    """The key of colours, then a strip for each picture: image, labels, predictions.

    Raises UserError when there are not as many colours as classes, or a prediction has another size than its labels.
    """
    if len(classes) != len(palette):
        raise UserError(f"{len(classes)} classes and {len(palette)} colours: both must be as many.")
    groups = [FigureGroup(shot.name, [_strip(shot, classes, palette)], about=ABOUT, section=SECTION) for shot in shots]
    return [_key(shots, classes, palette), *groups] if groups else []
