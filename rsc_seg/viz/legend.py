"""The legend of a segmented picture: number, colour, name and share of every class, in columns."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from rsc_seg.viz.fonts import Font, fitted, font_for, wrapped

RGB = tuple[int, int, int]
INK: RGB = (29, 31, 33)
SOFT: RGB = (92, 95, 99)
PAPER: RGB = (255, 255, 255)
HEADING = "Share of the picture"
# in multiples of the letters' size
_MARGIN, _GAP, _LINE, _BETWEEN = 0.8, 0.6, 1.25, 0.45
_SWATCH = 2.2
_NARROW, _WIDE = 13.0, 20.0  # a column of the legend
_NAME_LINES, _REMARK_LINES = 2, 3


@dataclass(frozen=True)
class LegendEntry:
    """A class: its number, name, colour (None: the photograph shows as it is) and share in words."""

    number: int
    name: str
    colour: RGB | None
    share: str


def ink_on(colour: RGB) -> RGB:
    """Dark or white, whichever reads better on `colour`."""
    red, green, blue = ((v / 255) ** 2.2 for v in colour)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.25 else PAPER


@dataclass(frozen=True)
class _Look:
    """Letters, and lengths in pixels."""

    font: Font
    size: int
    column: float  # width of one

    def px(self, times: float) -> float:
        return times * self.size

    @property
    def line(self) -> float:
        return self.px(_LINE)

    @property
    def text_left(self) -> float:
        """From a column's left end to its names."""
        return self.px(_SWATCH + _GAP)


def _name_lines(entry: LegendEntry, look: _Look) -> list[str]:
    return wrapped(entry.name, look.column - look.text_left, look.font, _NAME_LINES)


def _height(entry: LegendEntry, look: _Look) -> float:
    return (len(_name_lines(entry, look)) + 1) * look.line + look.px(_BETWEEN)


def _draw_entry(draw: ImageDraw.ImageDraw, at: tuple[float, float], entry: LegendEntry, look: _Look) -> None:
    x, y = at
    colour = entry.colour or PAPER
    box = (x, y + look.px(0.1), x + look.px(_SWATCH), y + look.px(1.9))
    draw.rounded_rectangle(box, look.px(0.25), fill=colour, outline=SOFT, width=max(1, look.size // 14))
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.text(middle, fitted(str(entry.number), look.px(_SWATCH), look.font), ink_on(colour), look.font, anchor="mm")
    for line in _name_lines(entry, look):
        draw.text((x + look.text_left, y), line, INK, look.font)
        y += look.line
    draw.text((x + look.text_left, y), entry.share, SOFT, look.font)


def _filled(entries: Sequence[LegendEntry], look: _Look, columns: int) -> list[list[LegendEntry]]:
    """Entries in columns, downwards, as even in height as their order allows."""
    limit = sum(_height(e, look) for e in entries) / columns
    result: list[list[LegendEntry]] = [[]]
    used = 0.0
    for entry in entries:
        high = _height(entry, look)
        if result[-1] and used + high / 2 > limit and len(result) < columns:
            result.append([])
            used = 0.0
        result[-1].append(entry)
        used += high
    return result


def _columns(entries: Sequence[LegendEntry], look: _Look, width: int | None, height: int | None) -> int:
    """As many columns as the width allows, or as the height asks for."""
    if width is not None:
        inside = width - look.px(2 * _MARGIN - _GAP)
        return max(1, min(len(entries), int(inside / look.px(_NARROW + _GAP))))
    total = sum(_height(e, look) for e in entries)
    return max(1, min(len(entries), 3, -(-int(total) // max(1, int((height or 1) - look.px(4))))))


def draw_legend(
    entries: Sequence[LegendEntry], remarks: Sequence[str], *, size: int, width: int | None, height: int | None
) -> Image.Image:
    """The legend with letters of `size` pixels, at least `width` wide; without a width, its columns fill `height`.

    `remarks` follow in small lines below the classes, three lines each at most.
    """
    texts = [HEADING, *remarks, *(e.name for e in entries)]
    font = font_for(texts, size)
    look = _Look(font, size, size * _NARROW)
    count = _columns(entries, look, width, height)
    if width is not None:
        column = (width - look.px(2 * _MARGIN + (count - 1) * _GAP)) / count
        look = _Look(font, size, max(look.px(_NARROW), min(look.px(_WIDE), column)))
    inside = count * look.column + (count - 1) * look.px(_GAP)
    full = max(width or 0, round(inside + look.px(2 * _MARGIN)))
    small = font_for(texts, max(12, round(size * 0.85)))
    lines = [
        line for text in remarks for line in wrapped(text, full - look.px(2 * _MARGIN), small, _REMARK_LINES) if line
    ]
    columns = _filled(entries, look, count)
    deepest = max(sum(_height(e, look) for e in column) for column in columns)
    top = look.px(_MARGIN) + look.line + look.px(_BETWEEN)
    canvas = Image.new("RGB", (full, round(top + deepest + len(lines) * look.line + look.px(_MARGIN))), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((look.px(_MARGIN), look.px(_MARGIN)), HEADING, SOFT, small)
    for k, column_entries in enumerate(columns):
        x, y = look.px(_MARGIN) + k * (look.column + look.px(_GAP)), top
        for entry in column_entries:
            _draw_entry(draw, (x, y), entry, look)
            y += _height(entry, look)
    for k, line in enumerate(lines):
        draw.text((look.px(_MARGIN), top + deepest + k * look.line), line, SOFT, small)
    return canvas
