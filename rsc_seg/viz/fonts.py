"""Text in pictures: a font that has the letters of a text, and lines that fit a width."""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Where the built-in font lacks letters: fonts of the system by file name, those with few alphabets first.
_OTHERS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf")
_REPLACED = {"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2019": "'"}
_ENOUGH = 50  # words behind the last line, which is cut anyway
_NOWHERE = "\uffff"  # no font has it


@lru_cache
def built_in(size: int) -> Font:
    """The font that comes with the picture library: the Latin letters of English."""
    return ImageFont.load_default(size)


@lru_cache
def _installed(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(font: Font, letter: str) -> bool:
    if letter.isspace():
        return True
    drawn, lack = font.getmask(letter), font.getmask(_NOWHERE)
    return (drawn.size, bytes(drawn)) != (lack.size, bytes(lack))


def font_for(texts: Iterable[str], size: int) -> Font:
    """The built-in font, or the first of the system's usual ones that has letters which that one lacks."""
    letters = set("".join(texts))
    best = built_in(size)
    lacking = {letter for letter in letters if not _has(best, letter) and letter not in _REPLACED}
    for name in _OTHERS if lacking else ():
        font = _installed(name, size)
        left = lacking if font is None else {letter for letter in letters if not _has(font, letter)}
        if font is not None and len(left) < len(lacking):
            best, lacking = font, left
    return best


def printable(text: str, font: Font) -> str:
    """`text` in letters that `font` has: others lose their accents, or become a question mark."""
    shown = []
    for letter in text:
        if not _has(font, letter):
            plain = _REPLACED.get(letter) or unicodedata.normalize("NFKD", letter)[0]
            letter = plain if _has(font, plain) else "?"
        shown.append(letter)
    return "".join(shown)


def fitted(text: str, width: float, font: Font) -> str:
    """`text`, cut short with an ellipsis where it is wider than `width` pixels."""
    text = printable(text, font)
    if font.getlength(text) <= width:
        return text

    def cut(count: int) -> str:
        return text[:count].rstrip("… ") + "…"

    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if font.getlength(cut(middle)) <= width else (fits, middle)
    return cut(fits) if fits else ""


def wrapped(text: str, width: float, font: Font, most: int | None = None) -> list[str]:
    """`text` in lines of at most `width` pixels where its words allow it; of more than `most` lines the rest is cut."""
    lines = [""]
    words = printable(text, font).split()
    for place, word in enumerate(words):
        if most is not None and len(lines) > most:
            lines[-1] = " ".join([lines[-1], *words[place : place + _ENOUGH]])
            break
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if most is None:
        return lines
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [fitted(line, width, font) for line in lines]
