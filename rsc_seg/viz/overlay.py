"""A segmented picture to look at: class colours over the photograph, outlines, numbers, and a legend with shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from rsc_seg.errors import UserError
from rsc_seg.viz.fonts import built_in
from rsc_seg.viz.legend import PAPER, LegendEntry, draw_legend, ink_on

RGB = tuple[int, int, int]
VOID: RGB = (128, 128, 128)  # what is not scored, or has no class
MOST_SHOWN = 30  # classes in the legend; the others are counted
LONGEST, SHORTEST = 2048, 384  # pixels that the longer side of an overlay is brought between
_BESIDE = 1.25  # pictures taller than this times their width have the legend beside them
_FINDING_SIDE = 384  # pixels of the map on which places for numbers are sought
_MOST_LABELS = 2**16


def colour_table(palette: Sequence[RGB]) -> UInt8[np.ndarray, "N 3"]:
    """The colours of the classes, then void's for every other value."""
    table = np.full((len(palette) + 1, 3), VOID, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    return table


def label_picture(labels: Integer[np.ndarray, "H W"], palette: Sequence[RGB]) -> Image.Image:
    """The map in the colours of `palette`; values beyond it are grey."""
    return Image.fromarray(colour_table(palette)[np.minimum(labels, len(palette))])


def label_file_picture(labels: Integer[np.ndarray, "H W"], palette: Sequence[RGB]) -> Image.Image:
    """The map itself as a picture whose values are the labels.

    Up to 255 classes it is an indexed picture of 8 bit that opens in the colours of `palette`; beyond it has 16 bit and
    opens in grey. UserError for labels below 0 or above 65535.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < _MOST_LABELS:
        raise UserError(f"labels from {int(labels.min())} to {int(labels.max())}: a label file holds 0 to 65535.")
    if len(palette) > 255 or (labels.size and int(labels.max()) > 255):
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8))
    table = np.full((256, 3), VOID, np.uint8)
    table[: len(palette)] = colour_table(palette)[:-1]
    picture.putpalette(table.tobytes())  # makes it an indexed picture, whose indices are the labels as they are
    return picture


def blended(
    image: Image.Image,
    labels: Integer[np.ndarray, "H W"],
    palette: Sequence[RGB],
    alpha: float,
    clear: Sequence[int] = (),
) -> Image.Image:
    """The colours of `palette` over the photograph, `alpha` of them and the rest of it.

    `clear` are labels without colour: there the photograph shows as it is. UserError when the sizes differ.
    """
    if (image.height, image.width) != labels.shape:
        raise UserError(f"image of {image.height}x{image.width} pixels and labels of {labels.shape}: sizes differ.")
    index = np.minimum(labels, len(palette))
    share = np.full(len(palette) + 1, alpha, np.float32)
    share[list(clear)] = 0.0
    over = share[index][..., None]
    mixed = np.asarray(image.convert("RGB"), np.float32) * (1 - over) + colour_table(palette)[index] * over
    return Image.fromarray((mixed + 0.5).astype(np.uint8))


def borders(labels: Integer[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels whose right or lower neighbour has another label."""
    found = np.zeros(labels.shape, bool)
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    found[:-1] |= labels[:-1] != labels[1:]
    return found


def outlined(image: Image.Image, labels: Integer[np.ndarray, "H W"]) -> Image.Image:
    """The picture with a white line, dark at both sides, between regions; wider in larger pictures."""
    line = borders(labels)
    width = max(image.size) // 1400
    pixels = np.asarray(image.convert("RGB"), np.float32)
    if not line.any():
        return Image.fromarray(pixels.astype(np.uint8))
    core = ndimage.binary_dilation(line, iterations=width) if width else line
    halo = ndimage.binary_dilation(core, iterations=width + 1)
    pixels = np.where(halo[..., None], pixels * 0.6, pixels)
    pixels = np.where(core[..., None], 0.15 * pixels + 0.85 * 255, pixels)
    return Image.fromarray((pixels + 0.5).astype(np.uint8))


@dataclass(frozen=True)
class Place:
    """Where a class's number can stand: column and row in pixels, and how far the region's border is."""

    x: float
    y: float
    room: float


def innermost(labels: Integer[np.ndarray, "H W"], label: int) -> Place | None:
    """The pixel of a class that is farthest from other classes and from the picture's edge; None without the class.

    Sought on a coarse copy of large maps, so a region of a few pixels may be missed.
    """
    step = max(1, -(-max(labels.shape) // _FINDING_SIDE))
    mask = labels[step // 2 :: step, step // 2 :: step] == label
    if not mask.any():
        return None
    # a frame of one pixel makes the picture's edge a border of the region
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    half = (step + 1) / 2
    return Place(column * step + half, row * step + half, float(distance.max()) * step)


def write_numbers(
    image: Image.Image, labels: Integer[np.ndarray, "H W"], entries: Sequence[LegendEntry], size: int
) -> None:
    """The number of every entry where its region is widest, if it fits there."""
    draw, font = ImageDraw.Draw(image), built_in(size)
    for entry in entries:
        place, text = innermost(labels, entry.number), str(entry.number)
        wide = font.getlength(text)
        if place is None or place.room < max(wide, size) * 0.7:
            continue
        colour = entry.colour or PAPER
        half = (wide / 2 + size * 0.35, size * 0.72)
        box = (place.x - half[0], place.y - half[1], place.x + half[0], place.y + half[1])
        draw.rounded_rectangle(box, size * 0.3, fill=colour, outline=ink_on(colour), width=max(1, size // 14))
        draw.text((place.x, place.y), text, ink_on(colour), font, anchor="mm")


def brought_to(size: tuple[int, int]) -> tuple[int, int]:
    """The overlay's width and height for a picture of `size`: whole multiples of small ones, large ones reduced."""
    longer = max(size)
    if longer < SHORTEST:
        times = -(-SHORTEST // longer)
        return size[0] * times, size[1] * times
    share = min(1.0, LONGEST / longer)
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def photograph_at(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in RGB at `size` (width, height); enlarged ones keep their pixels."""
    method = Image.Resampling.NEAREST if size[0] > image.width else Image.Resampling.LANCZOS
    return image.convert("RGB") if size == image.size else image.convert("RGB").resize(size, method)


def labels_at(labels: Integer[np.ndarray, "H W"], size: tuple[int, int]) -> Integer[np.ndarray, "h w"]:
    """The map at `size` (width, height), by the nearest pixel."""
    height, width = labels.shape
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64)
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64)
    return labels[rows[:, None], columns[None]]


def class_shares(labels: Integer[np.ndarray, "H W"], classes: int) -> list[float]:
    """The share of the pixels that each class has; other values belong to none."""
    counts = np.bincount(labels[labels < classes].ravel(), minlength=classes)
    return [float(count) / max(1, labels.size) for count in counts]


def percent(share: float) -> str:
    """A share in percent with one decimal; what is there never reads as nothing."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _remarks(shares: Sequence[float], order: Sequence[int], names: Sequence[str]) -> list[str]:
    rest, absent = order[MOST_SHOWN:], [name for name, share in zip(names, shares, strict=True) if not share]
    lines = []
    if rest:
        lines.append(f"and {len(rest)} more classes, together {percent(sum(shares[k] for k in rest))}")
    if absent:
        lines.append(f"Without a pixel: {', '.join(absent)}")
    return lines


def overlay_picture(
    image: Image.Image,
    labels: Integer[np.ndarray, "H W"],
    names: Sequence[str],
    palette: Sequence[RGB],
    *,
    alpha: float = 0.5,
    clear: Sequence[int] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """A picture with its labels and their legend, readable at any size of the picture.

    The legend names up to 30 classes with the number that stands in the region and in label files, colour and share of
    the picture, the largest first; it lies below, or beside a tall picture. `clear` are labels without colour; `notes`
    are printed below the legend. Raises UserError when image and labels, or names and colours, do not fit.
    """
    if len(names) != len(palette):
        raise UserError(f"{len(names)} classes and {len(palette)} colours: both must be as many.")
    if (image.height, image.width) != labels.shape:
        raise UserError(f"image of {image.height}x{image.width} pixels and labels of {labels.shape}: sizes differ.")
    shares = class_shares(labels, len(names))
    order = sorted((k for k, share in enumerate(shares) if share), key=lambda k: -shares[k])
    shown = photograph_at(image, brought_to(image.size))
    small = labels_at(labels, shown.size)
    size = min(40, max(14, round(max(shown.size) / 48)))
    entries = [
        LegendEntry(k, names[k], None if k in clear else palette[k], percent(shares[k])) for k in order[:MOST_SHOWN]
    ]
    picture = outlined(blended(shown, small, palette, alpha, clear), small)
    write_numbers(picture, small, entries, size)
    beside = picture.height > _BESIDE * picture.width
    remarks = [*_remarks(shares, order, names), *notes]
    legend = draw_legend(
        entries, remarks, size=size, width=None if beside else picture.width, height=picture.height if beside else None
    )
    if beside:
        canvas = Image.new("RGB", (picture.width + legend.width, max(picture.height, legend.height)), PAPER)
        canvas.paste(legend, (picture.width, 0))
    else:
        canvas = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
        canvas.paste(legend, (0, picture.height))
    canvas.paste(picture, (0, 0))
    return canvas
