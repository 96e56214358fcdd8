"""One description of a figure (texts, pictures, colour bars, marks), drawn as pixels or written as SVG."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rsc_seg.config import require_choice
from rsc_seg.viz.colors import color_table
from rsc_seg.viz.fonts import built_in

RGB = tuple[int, int, int]
INK: RGB = (29, 31, 33)
SOFT: RGB = (92, 95, 99)
PAPER: RGB = (255, 255, 255)
_FONTS = "system-ui,Helvetica,Arial,sans-serif"
_STOPS = 17  # of a colour bar in SVG
_FINE = 4  # a mark's edge is drawn this many times larger and reduced


def _star(tips: int, inner: float, turn: float) -> tuple[tuple[float, float], ...]:
    angles = np.pi * (np.arange(2 * tips) / tips + turn)
    reach = np.where(np.arange(2 * tips) % 2, inner, 1.0)
    return tuple((float(r * np.sin(a)), float(-r * np.cos(a))) for a, r in zip(angles, reach, strict=True))


# corners of marks in units of their radius; areas are about that of the circle, which has none
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": (),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0.0, -1.25), (1.15, 0.8), (-1.15, 0.8)),
    "diamond": ((0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)),
    "point-down": ((0.0, 1.25), (1.15, -0.8), (-1.15, -0.8)),
    "star": tuple((1.45 * x, 1.45 * y) for x, y in _star(5, 0.45, 0.0)),
    "cross": tuple((1.35 * x, 1.35 * y) for x, y in _star(4, 0.48, 0.25)),
}


@dataclass(frozen=True)
class Words:
    """A line of text with its top left corner at x, y."""

    x: float
    y: float
    text: str
    size: int
    color: RGB = INK


@dataclass(frozen=True)
class Photo:
    """A picture in a rectangle; `tokens`: enlarged without smoothing and kept exact, otherwise a photograph."""

    x: float
    y: float
    width: int
    height: int
    image: Image.Image
    tokens: bool = False
    alt: str = ""


@dataclass(frozen=True)
class Bar:
    """The colours of a table from left to right."""

    x: float
    y: float
    width: int
    height: int
    colormap: str


@dataclass(frozen=True)
class Mark:
    """A point of a scatter plot: its middle, radius, colour, and a shape of `SHAPES`."""

    x: float
    y: float
    radius: float
    color: RGB
    shape: str = "circle"


@dataclass(frozen=True)
class Frame:
    """A thin rectangle without filling."""

    x: float
    y: float
    width: float
    height: float
    color: RGB = SOFT


@dataclass(frozen=True)
class Nested:
    """Another drawing, fitted into a rectangle of the same proportions."""

    x: float
    y: float
    width: int
    height: int
    drawing: "Drawing"
    alt: str = ""


Item = Words | Photo | Bar | Mark | Frame | Nested


@dataclass(frozen=True)
class Drawing:
    """Items on white paper, later ones over earlier ones; lengths are pixels of the figure at its own size."""

    width: int
    height: int
    items: Sequence[Item]


def baseline(size: int) -> float:
    """From the top of a line in the built-in font to the foot of its letters."""
    font = built_in(size)
    return float(font.getmetrics()[0]) if isinstance(font, ImageFont.FreeTypeFont) else 0.8 * size


def _corners(mark: Mark, times: float) -> list[tuple[float, float]]:
    reach = mark.radius * times
    return [(mark.x * times + reach * x, mark.y * times + reach * y) for x, y in SHAPES[mark.shape]]


def _paint_marks(canvas: Image.Image, marks: Sequence[Mark], times: float) -> None:
    """Marks on an enlarged copy that is reduced again, which makes their edges smooth."""
    large = canvas.resize((canvas.width * _FINE, canvas.height * _FINE), Image.Resampling.NEAREST)
    draw, scale = ImageDraw.Draw(large), times * _FINE
    edge = max(1, round(0.5 * scale))
    for mark in marks:
        require_choice("mark", mark.shape, tuple(SHAPES))
        if mark.shape == "circle":
            x, y, r = mark.x * scale, mark.y * scale, mark.radius * scale
            draw.ellipse((x - r, y - r, x + r, y + r), fill=mark.color, outline=PAPER, width=edge)
        else:
            draw.polygon(_corners(mark, scale), fill=mark.color, outline=PAPER, width=edge)
    canvas.paste(large.resize(canvas.size, Image.Resampling.BOX))


def _paint(canvas: Image.Image, item: Item, times: float) -> None:
    draw = ImageDraw.Draw(canvas)
    if isinstance(item, Words):
        draw.text((item.x * times, item.y * times), item.text, item.color, built_in(round(item.size * times)))
        return
    x, y = round(item.x * times), round(item.y * times)
    if isinstance(item, Mark):
        _paint_marks(canvas, [item], times)
        return
    size = (max(1, round(item.width * times)), max(1, round(item.height * times)))
    if isinstance(item, Photo):
        method = Image.Resampling.NEAREST if item.tokens else Image.Resampling.LANCZOS
        canvas.paste(item.image.convert("RGB").resize(size, method), (x, y))
    elif isinstance(item, Nested):
        canvas.paste(painted(item.drawing, size[0] / item.drawing.width).resize(size), (x, y))
    elif isinstance(item, Bar):
        ramp = Image.fromarray(color_table(item.colormap)[None]).resize(size, Image.Resampling.NEAREST)
        canvas.paste(ramp, (x, y))
    else:
        draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), outline=item.color, width=max(1, round(times)))


def _runs(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Neighbouring marks together, everything else alone."""
    run: list[Item] = []
    for item in items:
        if run and not (isinstance(item, Mark) and isinstance(run[-1], Mark)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def painted(drawing: Drawing, times: float = 1.0) -> Image.Image:
    """The drawing as a picture, `times` its own size."""
    size = (max(1, round(drawing.width * times)), max(1, round(drawing.height * times)))
    canvas = Image.new("RGB", size, PAPER)
    for run in _runs(drawing.items):
        marks = [item for item in run if isinstance(item, Mark)]
        if marks:
            _paint_marks(canvas, marks, times)
        else:
            _paint(canvas, run[0], times)
    return canvas


def _hex(color: RGB) -> str:
    return "#" + bytes(color).hex()


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def image_uri(image: Image.Image, tokens: bool) -> str:
    """A picture as a data URI: PNG (with a palette where 256 colours suffice) for `tokens`, else JPEG."""
    image, buffer = image.convert("RGB"), io.BytesIO()
    if tokens:
        colors = image.getcolors(256)
        if colors is not None:
            image = image.quantize(len(colors), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/{'png' if tokens else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _written(item: Item) -> str:
    at = f'x="{_number(item.x)}" y="{_number(item.y)}"'
    if isinstance(item, Words):
        # the width that the layout was made with, whatever font the reader's system has
        wide = built_in(item.size).getlength(item.text)
        fit = f' textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs"' if wide else ""
        foot = _number(item.y + baseline(item.size))
        return (
            f'<text x="{_number(item.x)}" y="{foot}" font-size="{item.size}" fill="{_hex(item.color)}"{fit}>'
            f"{_escape(item.text)}</text>"
        )
    if isinstance(item, Mark):
        fill = f'fill="{_hex(item.color)}"'
        if item.shape == "circle":
            return f'<circle cx="{_number(item.x)}" cy="{_number(item.y)}" r="{_number(item.radius)}" {fill}/>'
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in _corners(item, 1.0))
        return f'<polygon points="{points}" {fill}/>'
    box = f'{at} width="{_number(item.width)}" height="{_number(item.height)}"'
    if isinstance(item, Photo):
        sharp = ' style="image-rendering:pixelated"' if item.tokens else ""
        return (
            f'<image {box} preserveAspectRatio="none"{sharp} href="{image_uri(item.image, item.tokens)}">'
            f"<title>{_escape(item.alt)}</title></image>"
        )
    if isinstance(item, Nested):
        view = f'viewBox="0 0 {item.drawing.width} {item.drawing.height}"'
        body = "".join(map(_written, item.drawing.items))
        return f'<svg {box} {view} role="img"><title>{_escape(item.alt)}</title>{body}</svg>'
    if isinstance(item, Bar):
        table = color_table(item.colormap)[np.linspace(0, 255, _STOPS).round().astype(int)]
        stops = "".join(
            f'<stop offset="{k / (_STOPS - 1):.4g}" stop-color="#{bytes(color).hex()}"/>'
            for k, color in enumerate(table)
        )
        key = f"bar-{item.colormap}"
        return f'<linearGradient id="{key}">{stops}</linearGradient><rect {box} fill="url(#{key})"/>'
    return f'<rect {box} fill="none" stroke="{_hex(item.color)}"/>'


def written(drawing: Drawing, title: str, description: str, command: str = "") -> str:
    """The drawing as the text of one SVG file that loads nothing.

    Letters stay letters and marks stay shapes; `command` is kept as metadata beside `title` and `description`.
    """
    made = f"<metadata>{_escape(command)}</metadata>" if command else ""
    body = "\n".join(map(_written, drawing.items))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{drawing.width}" height="{drawing.height}" '
        f'viewBox="0 0 {drawing.width} {drawing.height}" role="img" font-family="{_FONTS}">'
        f"<title>{_escape(title)}</title><desc>{_escape(description)}</desc>{made}\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
