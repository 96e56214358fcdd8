"""Label maps as pictures: one colour a class, the image beside its labels and predictions, and the key of colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.overlay import RGB, VOID, blended, label_picture, labels_at, outlined, photograph_at
from rsc_seg.viz.parts import Figure, FigureGroup

__all__ = ["SECTION", "VOID", "Look", "Segmented", "label_picture", "right_share", "segmentation_groups"]
SECTION = "Predictions"
ABOUT = (
    "One colour a class, the same in labels and predictions; grey is not scored. Below a prediction stands the share "
    "of this picture's labelled pixels that it names right."
)
_OVER_PHOTOGRAPH = "The colours lie over the photograph, so they are paler than in the key."
_SWATCH = (8, 64)  # pixels, height and width
_KEY_COLUMNS = 6
_MOST_NAMED = 5  # classes that an alt text names
_SIDE = 560  # pixels of the longer side of a map over its photograph


@dataclass
class Segmented:
    """A picture with its labels and predictions (class of each pixel, all of one size), in the order to show them.

    `predictions` are classes, not clusters; a value without a colour is void.
    """

    name: str
    image: Image.Image
    labels: Integer[np.ndarray, "H W"]
    predictions: Mapping[str, Integer[np.ndarray, "H W"]]


@dataclass(frozen=True)
class Look:
    """How maps are shown: flat colours, or with `alpha` above 0 over the photograph, with outlines.

    `section` of the page; the key has at most `most` colours, those of the most pixels.
    """

    section: str = SECTION
    alpha: float = 0.0
    most: int | None = None

    @property
    def about(self) -> str:
        """How to read the pictures."""
        return f"{ABOUT} {_OVER_PHOTOGRAPH}" if self.alpha else ABOUT


def right_share(
    labels: Integer[np.ndarray, "H W"], predicted: Integer[np.ndarray, "H W"], classes: int
) -> float | None:
    """Share of the labelled pixels whose class is predicted; None when no pixel is labelled."""
    scored = labels < classes
    return float((labels[scored] == predicted[scored]).mean()) if scored.any() else None


def _named(values: Integer[np.ndarray, "H W"], classes: Sequence[str]) -> str:
    """The classes of a map, the largest first."""
    found = np.bincount(values[values < len(classes)].ravel(), minlength=len(classes))
    order = [int(k) for k in np.argsort(-found, kind="stable") if found[k]]
    more = f" and {len(order) - _MOST_NAMED} more" if len(order) > _MOST_NAMED else ""
    return ", ".join(classes[k] for k in order[:_MOST_NAMED]) + more if order else "no class"


def _map_figure(
    shot: Segmented, values: Integer[np.ndarray, "H W"], palette: Sequence[RGB], look: Look, texts: tuple[str, str, str]
) -> Figure:
    """A map in colours; `texts`: alt text, label, remark."""
    if not look.alpha:
        return Figure(label_picture(values, palette), *texts)
    share = min(1.0, _SIDE / max(values.shape))
    size = (max(1, round(values.shape[1] * share)), max(1, round(values.shape[0] * share)))
    small = labels_at(values, size)
    over = outlined(blended(photograph_at(shot.image, size), small, palette, look.alpha), small)
    return Figure(over, *texts, tokens=False)


def _strip(shot: Segmented, classes: Sequence[str], palette: Sequence[RGB], look: Look) -> list[Figure]:
    about = f"Labels of {shot.name}: {_named(shot.labels, classes)}"
    figures = [
        Figure(shot.image, f"Photograph {shot.name}", "image", tokens=False),
        _map_figure(shot, shot.labels, palette, look, (about, "labels", "")),
    ]
    for name, predicted in shot.predictions.items():
        if predicted.shape != shot.labels.shape:
            raise UserError(f"{shot.name}: prediction {name} is {predicted.shape}, the labels are {shot.labels.shape}.")
        share = right_share(shot.labels, predicted, len(classes))
        note = "no labelled pixel" if share is None else f"{100 * share:.1f} % right"
        alt = f"Prediction of {name} for {shot.name}: {_named(predicted, classes)}; {note}"
        figures.append(_map_figure(shot, predicted, palette, look, (alt, name, note)))
    return figures


def _key(shots: Sequence[Segmented], classes: Sequence[str], palette: Sequence[RGB], look: Look) -> FigureGroup:
    """A bar of colour for each class that occurs; names stand beside as text, so they fit every screen and theme."""
    total = len(classes)
    counts = np.zeros(total + 1, np.int64)  # all values beyond the classes together: not scored
    for shot in shots:
        for values in (shot.labels, *shot.predictions.values()):
            counts += np.bincount(np.minimum(values, total).ravel(), minlength=total + 1)
    seen = [int(k) for k in np.flatnonzero(counts[:total])]
    kept = sorted(sorted(seen, key=lambda k: -counts[k])[: look.most])
    keys = [(classes[k], palette[k]) for k in kept] + ([("not scored", VOID)] if counts[total] else [])
    bars = [Figure(Image.fromarray(np.full((*_SWATCH, 3), c, np.uint8)), f"Colour of {name}", name) for name, c in keys]
    rows = [bars[start : start + _KEY_COLUMNS] for start in range(0, len(bars), _KEY_COLUMNS)]
    left_out = len(seen) - len(kept)
    caption = f"The {len(kept)} classes with the most pixels; {left_out} more occur." if left_out else ""
    return FigureGroup("Colours", rows, caption, section=look.section)


def segmentation_groups(
    shots: Sequence[Segmented], classes: Sequence[str], palette: Sequence[RGB], look: Look | None = None
) -> list[FigureGroup]:
    """The key of colours, then a strip for each picture: image, labels, predictions.

    Raises UserError when there are not as many colours as classes, or a prediction has another size than its labels.
    """
    look = look or Look()
    if len(classes) != len(palette):
        raise UserError(f"{len(classes)} classes and {len(palette)} colours: both must be as many.")
    groups = [
        FigureGroup(shot.name, [_strip(shot, classes, palette, look)], about=look.about, section=look.section)
        for shot in shots
    ]
    return [_key(shots, classes, palette, look), *groups] if groups else []
