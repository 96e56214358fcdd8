"""Groups of figures as PNG files that carry the command that made them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from rsc_seg.files import atomic_write
from rsc_seg.viz.colors import color_table
from rsc_seg.viz.fonts import built_in, fitted, wrapped
from rsc_seg.viz.parts import Figure, FigureGroup
from rsc_seg.viz.report import slug

CELL = 336  # pixels of a column
GAP, MARGIN, LINE = 10, 16, 20
INK, SOFT, PAPER = (29, 31, 33), (92, 95, 99), (255, 255, 255)


def _cell_size(figure: Figure) -> tuple[int, int]:
    width = figure.span * CELL + (figure.span - 1) * GAP
    return width, round(figure.image.height * width / figure.image.width)


def compose(group: FigureGroup, footer: str = "") -> Image.Image:
    """The group as one picture: labelled strips, then the colour scale, the texts and `footer` in small print."""
    columns = max(sum(figure.span for figure in row) for row in group.rows)
    width = max(2 * MARGIN + columns * CELL + (columns - 1) * GAP, 2 * MARGIN + 2 * CELL)
    heights = [2 * LINE + max(_cell_size(figure)[1] for figure in row) + GAP for row in group.rows]
    small = [
        line
        for text in (group.caption, group.about, footer)
        if text
        for line in wrapped(text, width - 2 * MARGIN, built_in(14))
    ]
    below = (2 * LINE if group.scale else 0) + LINE * len(small)
    canvas = Image.new("RGB", (width, MARGIN * 2 + 30 + sum(heights) + below), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 4), fitted(group.title, width - 2 * MARGIN, built_in(20)), INK, built_in(20))
    y = MARGIN + 30
    for row, height in zip(group.rows, heights, strict=True):
        x = MARGIN
        for figure in row:
            wide, high = _cell_size(figure)
            draw.text((x, y), fitted(figure.label, wide, built_in(15)), INK, built_in(15))
            method = Image.Resampling.NEAREST if figure.tokens else Image.Resampling.LANCZOS
            canvas.paste(figure.image.convert("RGB").resize((wide, high), method), (x, y + LINE))
            draw.text((x, y + LINE + high + 2), fitted(figure.note, wide, built_in(14)), SOFT, built_in(14))
            x += wide + GAP
        y += height
    if group.scale:
        ramp = Image.fromarray(color_table(group.scale.colormap)[None]).resize((220, 12), Image.Resampling.NEAREST)
        low = f"{group.scale.low:.3g}"
        draw.text((MARGIN, y), low, SOFT, built_in(14))
        at = MARGIN + int(built_in(14).getlength(low)) + 8
        canvas.paste(ramp, (at, y + 3))
        draw.text((at + 228, y), f"{group.scale.high:.3g}   {group.scale.quantity}", SOFT, built_in(14))
        y += 2 * LINE
    for line in small:
        draw.text((MARGIN, y), line, SOFT, built_in(14))
        y += LINE
    return canvas


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


def save_groups(groups: Sequence[FigureGroup], folder: Path, command: str) -> list[Path]:
    """Writes every group as `<section>-<title>.png` into `folder` and returns the paths.

    The file's text entries hold Title, Description (the pictures' alt texts), Command and Software; the command also
    stands in the small print. Names that would collide are numbered. UserError when the system refuses to write.
    """
    paths: list[Path] = []
    for group in groups:
        stem = "-".join(dict.fromkeys([slug(group.section), slug(group.title)]))
        path, again = folder / f"{stem}.png", 2
        while path in paths:
            path, again = folder / f"{stem}-{again}.png", again + 1
        description = "\n".join(figure.alt for row in group.rows for figure in row)
        text = text_entries({"Title": group.title, "Description": description, "Command": command})
        picture = compose(group, f"Made by: {command}")
        atomic_write(path, partial(picture.save, format="PNG", pnginfo=text, optimize=True))
        paths.append(path)
    return paths
