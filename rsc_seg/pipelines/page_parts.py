"""What the pages of several commands share: changes of a number, who made pictures."""

from pathlib import Path
from typing import Optional

from rsc_seg.data.photos import PHOTOS, TEXTURES
from rsc_seg.viz.parts import Cell

MOST_CLASSES = 60  # in a table of classes; more are in CSV files alone


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def change_cell(before: Cell, after: Cell) -> Cell:
    """The difference of two numbers; empty where one is not known."""
    known = before.value is not None and after.value is not None
    return Cell(after.value - before.value) if known else Cell(None)  # type: ignore[operator]


def provenance(note: str, source: str, licence: str) -> str:
    """Whose weights these are and under which licence, for the box at the top of a page."""
    return f"{note or 'Weights: ' + source + '.'} Licence of the weights: {licence}."


def picture_credits(dataset: str, root: Optional[Path] = None) -> str:
    """Who made the parts that the embedded scenes are composed of; nothing for other sets.

    In the layouts of public sets the scenes are known by their list, which lies in `root` or in the folder above it.
    """
    listed = root is not None and any((place / "scenes.json").is_file() for place in (root, root.parent))
    if not listed and dataset.partition("_")[0] != "scenes":
        return ""
    makers = [f"{name} by {photo.credit} ({photo.licence})" for name, photo in (PHOTOS | TEXTURES).items()]
    return (
        f"The scenes are drawn and composed of cut and recoloured parts of these photographs: {'; '.join(makers)}. "
        "CC BY 2.0: https://creativecommons.org/licenses/by/2.0/."
    )
