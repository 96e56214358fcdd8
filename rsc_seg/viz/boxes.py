"""Boxes drawn on a picture."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]


def _colour(place: int) -> tuple[int, int, int]:
    """Hues a golden angle apart, so that neighbours in rank differ."""
    r, g, b = colorsys.hsv_to_rgb((place * 0.618034) % 1.0, 0.85, 1.0)
    return round(r * 255), round(g * 255), round(b * 255)


def boxes_picture(
    image: Image.Image, boxes: Sequence[Box], captions: Sequence[str], *, least: int = 640
) -> Image.Image:
    """The picture with boxes (xyxy, its pixels) as outlines, the first on top, each with its caption at its corner.

    The picture is enlarged to `least` pixels on its longer side when it is smaller, so that captions can be read.
    """
    scale = max(1.0, least / max(image.size))
    drawn = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(12)
    for place, (box, caption) in reversed(list(enumerate(zip(boxes, captions, strict=True)))):
        x0, y0, x1, y1 = (v * scale for v in box)
        colour = _colour(place)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
        if caption:
            left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
            at = (min(x0, max(0.0, drawn.width - right - 4)), min(y0, max(0.0, drawn.height - bottom - 4)))
            pen.rectangle((at[0], at[1], at[0] + right + 4, at[1] + bottom + 2), fill=colour)
            pen.text((at[0] + 2, at[1]), caption, fill=(0, 0, 0), font=font)
    return drawn
