"""Groups of figures as PNG and SVG files that carry the command that made them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, PngImagePlugin

from rsc_seg.files import atomic_write_group
from rsc_seg.viz.drawing import SOFT, Bar, Drawing, Item, Nested, Photo, Words, painted, written
from rsc_seg.viz.fonts import built_in, fitted, wrapped
from rsc_seg.viz.parts import Figure, FigureGroup
from rsc_seg.viz.report import slug

CELL = 336  # pixels of a column
GAP, MARGIN, LINE = 10, 16, 20
FORMATS = ("png", "svg")


def _cell_size(figure: Figure) -> tuple[int, int]:
    width = figure.span * CELL + (figure.span - 1) * GAP
    return width, round(figure.image.height * width / figure.image.width)


def _cell(figure: Figure, x: int, y: int) -> list[Item]:
    """Label, picture and remark of a figure."""
    wide, high = _cell_size(figure)
    items: list[Item] = [Words(x, y, fitted(figure.label, wide, built_in(15)), 15)]
    if figure.drawing is not None:
        items.append(Nested(x, y + LINE, wide, high, figure.drawing, figure.alt))
    else:
        items.append(Photo(x, y + LINE, wide, high, figure.image, figure.tokens, figure.alt))
    items.append(Words(x, y + LINE + high + 2, fitted(figure.note, wide, built_in(14)), 14, SOFT))
    return items


def layout(group: FigureGroup, footer: str = "") -> Drawing:
    """The group as one drawing: labelled strips, then the colour scale, the texts and `footer` in small print."""
    columns = max(sum(figure.span for figure in row) for row in group.rows)
    width = max(2 * MARGIN + columns * CELL + (columns - 1) * GAP, 2 * MARGIN + 2 * CELL)
    items: list[Item] = [Words(MARGIN, MARGIN - 4, fitted(group.title, width - 2 * MARGIN, built_in(20)), 20)]
    y = MARGIN + 30
    for row in group.rows:
        x = MARGIN
        for figure in row:
            items += _cell(figure, x, y)
            x += _cell_size(figure)[0] + GAP
        y += 2 * LINE + max(_cell_size(figure)[1] for figure in row) + GAP
    if group.scale:
        low = f"{group.scale.low:.3g}"
        at = MARGIN + int(built_in(14).getlength(low)) + 8
        high = f"{group.scale.high:.3g}   {group.scale.quantity}"
        items += [Words(MARGIN, y, low, 14, SOFT), Bar(at, y + 3, 220, 12, group.scale.colormap)]
        items.append(Words(at + 228, y, high, 14, SOFT))
        y += 2 * LINE
    for text in filter(None, (group.caption, group.about, footer)):
        for line in wrapped(text, width - 2 * MARGIN, built_in(14)):
            items.append(Words(MARGIN, y, line, 14, SOFT))
            y += LINE
    return Drawing(width, y + MARGIN, items)


def compose(group: FigureGroup, footer: str = "") -> Image.Image:
    """`layout` as a picture."""
    return painted(layout(group, footer))


def text_entries(values: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """The text entries of a PNG file, and that this project wrote it."""
    entries = PngImagePlugin.PngInfo()
    for key, value in {**values, "Software": "rsc-seg"}.items():
        # tEXt is Latin-1 by the standard; other letters go into an international text entry of the same key
        if value.isascii():
            entries.add_text(key, value)
        else:
            entries.add_itxt(key, value)
    return entries


def save_groups(
    groups: Sequence[FigureGroup], folder: Path, command: str, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Writes every group as `<section>-<title>.png` (and .svg) into `folder` and returns the paths.

    `formats` are some of `FORMATS`. A PNG's text entries hold Title, Description (the pictures' alt texts), Command and
    Software, an SVG has the same as title, description and metadata; the command also stands in the small print. Names
    that would collide are numbered. UserError when the system refuses to write.
    """
    paths: list[Path] = []
    taken: set[str] = set()
    for group in groups:
        first = stem = "-".join(dict.fromkeys([slug(group.section), slug(group.title)]))
        again = 2
        while stem in taken:
            stem, again = f"{first}-{again}", again + 1
        taken.add(stem)
        description = "\n".join(figure.alt for row in group.rows for figure in row)
        drawing = layout(group, f"Made by: {command}")
        text = text_entries({"Title": group.title, "Description": description, "Command": command})
        files = [folder / f"{stem}.{kind}" for kind in formats]
        writers = {
            "png": partial(_save_png, drawing, text),
            "svg": partial(_save_svg, written(drawing, group.title, description, command) if "svg" in formats else ""),
        }
        atomic_write_group({file: writers[kind] for file, kind in zip(files, formats, strict=True)})
        paths += files
    return paths


def _save_png(drawing: Drawing, text: PngImagePlugin.PngInfo, path: Path) -> None:
    painted(drawing).save(path, format="PNG", pnginfo=text, optimize=True)


def _save_svg(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
