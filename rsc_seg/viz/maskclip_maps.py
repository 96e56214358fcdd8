"""Classes by name over photographs, one overlay an encoder, in one set of colours, with a legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.drawing import Drawing, Photo
from rsc_seg.viz.legend import LegendEntry, draw_legend
from rsc_seg.viz.overlay import MOST_SHOWN, RGB, blended, class_shares, outlined, percent, photograph_at, write_numbers
from rsc_seg.viz.parts import Figure, FigureGroup

SECTION = "Classes by name (MaskCLIP)"
SIDE = 672  # pixels of an overlay's longer side
ABOUT = (
    "Each token gets the class whose name lies nearest to it (cosine of its feature and the name's embedding), cosines "
    "enlarged bilinearly to the picture before the class is chosen. A class has the same colour and number in all "
    "pictures and for all encoders. No class can be 'none of these': every pixel gets one of the names."
)
_LETTERS = 22  # pixels, at the size of SIDE


@dataclass
class Named:
    """A picture and the class of every pixel by every compared encoder, in the order to show them."""

    name: str
    image: Image.Image
    labels: Mapping[str, Integer[np.ndarray, "H W"]]


@dataclass(frozen=True)
class Classes:
    """Names in the order of the labels, their colours, which of them stay clear, and the share of colour."""

    names: Sequence[str]
    palette: Sequence[RGB]
    clear: Sequence[int] = ()
    alpha: float = 0.55


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture's overlay: the longer side is SIDE."""
    share = SIDE / max(image.size)
    return max(1, round(image.width * share)), max(1, round(image.height * share))


def _entries(shot: Named, classes: Classes) -> tuple[list[LegendEntry], int]:
    """The classes that any encoder finds, the largest first, and how many more there are than the legend holds."""
    shares = [class_shares(labels, len(classes.names)) for labels in shot.labels.values()]
    total = np.array(shares).sum(0)
    order = [int(k) for k in np.argsort(-total, kind="stable") if total[k]]
    entries = [
        LegendEntry(
            k,
            classes.names[k],
            None if k in classes.clear else classes.palette[k],
            " | ".join(percent(share[k]) if share[k] else "–" for share in shares),
        )
        for k in order[:MOST_SHOWN]
    ]
    return entries, len(order) - len(entries)


def _overlay(
    shot: Named, labels: Integer[np.ndarray, "H W"], classes: Classes, entries: Sequence[LegendEntry]
) -> Image.Image:
    small = photograph_at(shot.image, (labels.shape[1], labels.shape[0]))
    picture = outlined(blended(small, labels, classes.palette, classes.alpha, classes.clear), labels)
    write_numbers(picture, labels, entries, _LETTERS)
    return picture


def _legend(shot: Named, entries: Sequence[LegendEntry], more: int) -> Figure:
    remarks = [f"In the order of the pictures: {' | '.join(shot.labels)}."] if len(shot.labels) > 1 else []
    remarks += [f"{more} smaller classes are not listed."] if more else []
    picture = draw_legend(entries, remarks, size=_LETTERS, width=SIDE, height=None)
    drawing = Drawing(picture.width, picture.height, [Photo(0, 0, picture.width, picture.height, picture, tokens=True)])
    named = "; ".join(f"{e.number} {e.name} {e.share}" for e in entries)
    alt = f"Legend of {shot.name}: {named}"
    return Figure(picture, alt, "", "", tokens=False, span=2, drawing=drawing)


def maskclip_groups(shots: Sequence[Named], classes: Classes, prompts: str) -> list[FigureGroup]:
    """A group a picture: the photograph, an overlay an encoder, and the legend with each encoder's shares.

    `prompts` says in words which sentences stand for the classes. Raises UserError when names and colours differ in
    number or labels differ in size.
    """
    if len(classes.names) != len(classes.palette):
        raise UserError(f"{len(classes.names)} classes and {len(classes.palette)} colours: both must be as many.")
    groups = []
    for shot in shots:
        if len({labels.shape for labels in shot.labels.values()}) != 1:
            raise UserError(f"{shot.name}: labels of all encoders must have one size.")
        entries, more = _entries(shot, classes)
        base = next(iter(shot.labels.values()))
        row = [
            Figure(
                photograph_at(shot.image, shown_size(shot.image)), f"Photograph {shot.name}", "picture", tokens=False
            )
        ]
        for place, (name, labels) in enumerate(shot.labels.items()):
            note = f"{100 * float((labels == base).mean()):.1f} % of the pixels as the first" if place else ""
            found = ", ".join(e.name for e in entries[:5])
            alt = f"Classes by {name} over {shot.name}, the largest of them: {found}. {note}".strip()
            row.append(Figure(_overlay(shot, labels, classes, entries), alt, name, note, tokens=False))
        groups.append(
            FigureGroup(shot.name, [row, [_legend(shot, entries, more)]], about=f"{ABOUT} {prompts}", section=SECTION)
        )
    return groups
