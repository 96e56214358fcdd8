"""Views: the square pictures of a labelled set that CAUSE trains on and is scored on, made the official way.

No view is augmented, so features of views can be kept.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional, overload

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image

from rsc_seg.cause.labels import OpenedSet
from rsc_seg.data.segmentation import IGNORE
from rsc_seg.errors import UserError

CORNERS = ("top left", "top right", "bottom left", "bottom right", "centre")


@dataclass(frozen=True)
class Crop:
    """A crop of `ratio` of both sides at one of `CORNERS`; `mirrored`: cut from the image mirrored left to right."""

    ratio: float
    corner: int
    mirrored: bool = False


@dataclass(frozen=True)
class View:
    """One square picture.

    `crop` is cut first (None: the whole image). Then the short side is brought to the resolution, and a square is taken
    at `window`, (left, top) in the resized image; None is the centre. `flipped` mirrors the finished square.
    """

    image: int
    crop: Optional[Crop] = None
    window: Optional[tuple[int, int]] = None
    flipped: bool = False


@dataclass(frozen=True)
class Canvas:
    """The part of an image that is scored as a whole: its size, and the views on it as (view, left, top)."""

    image: int
    height: int
    width: int
    parts: tuple[tuple[int, int, int], ...]


def set_crops(plan: Sequence[tuple[str, float]]) -> tuple[Crop, ...]:
    """The training crops of an image: five at the corners and the centre, for `ten` those of the mirrored image too."""
    crops: list[Crop] = []
    for kind, ratio in plan:
        crops += [Crop(ratio, corner, m) for m in ((False, True) if kind == "ten" else (False,)) for corner in range(5)]
    return tuple(crops)


def crop_box(crop: Crop, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop: sides rounded down, the centre's offset to the nearest even number at a
    half, as torchvision rounds."""
    w, h = math.floor(crop.ratio * width), math.floor(crop.ratio * height)
    left, top = (width - w, height - h)
    if crop.corner == 4:
        left, top = round(left / 2), round(top / 2)
    else:
        left, top = (left if crop.corner % 2 else 0), (top if crop.corner >= 2 else 0)
    return left, top, left + w, top + h


def resized_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """(width, height) with the short side at `resolution` and the long side rounded down."""
    if width <= height:
        return resolution, int(resolution * height / width)
    return int(resolution * width / height), resolution


def window_offsets(length: int, side: int) -> list[int]:
    """Where the fewest windows of `side` begin that cover `length` at even steps."""
    count = math.ceil(length / side)
    return [0] if count <= 1 else [round(k * (length - side) / (count - 1)) for k in range(count)]


class _CropLayout(Sequence[View]):
    """The same crops of every image, without a list of them all."""

    def __init__(self, images: int, crops: tuple[Optional[Crop], ...], flipped: bool) -> None:
        self.images, self.crops, self.flipped = images, crops, flipped

    def __len__(self) -> int:
        return self.images * len(self.crops)

    @overload
    def __getitem__(self, i: int) -> View: ...

    @overload
    def __getitem__(self, i: slice) -> list[View]: ...

    def __getitem__(self, i: int | slice) -> View | list[View]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return View(i // len(self.crops), self.crops[i % len(self.crops)], flipped=self.flipped)


class Views:
    """Views of a set in a fixed order, all of `resolution` x `resolution` pixels.

    Images are resized to the nearest pixel, as their labels are. `layout` lists the views; `protocol` names it for
    keys; `canvases` are what is scored (empty for training crops, which are not scored).
    """

    def __init__(
        self,
        opened: OpenedSet,
        layout: Sequence[View],
        *,
        resolution: int,
        protocol: dict[str, Any],
        canvases: Sequence[Canvas] = (),
    ) -> None:
        if len(layout) == 0:
            raise UserError("the set holds no image: nothing to take views of; check data root, split and limit.")
        self.opened, self.data, self.layout, self.resolution = opened, opened.data, layout, resolution
        self.protocol, self.canvases = protocol, canvases
        # views of one image follow each other: it is decoded once for all of them
        self._image: tuple[int, Optional[Image.Image]] = (-1, None)
        self._labels: tuple[int, Optional[Image.Image]] = (-1, None)

    def __len__(self) -> int:
        return len(self.layout)

    def name(self, i: int) -> str:
        """The image of view `i`, for messages."""
        return self.data.name(self.layout[i].image)

    def digest(self) -> str:
        """A hash of images, views and resolution: what cached features of these views depend on beside the encoder."""
        what = {**self.protocol, "resolution": self.resolution, "squash": self.opened.rule.squash, "views": len(self)}
        text = json.dumps(what, sort_keys=True) + self.opened.image_digest
        return hashlib.sha256(text.encode()).hexdigest()

    def label_digest(self) -> str:
        """The same for the labels of these views."""
        return hashlib.sha256((self.digest() + self.opened.label_digest).encode()).hexdigest()

    def _whole_image(self, image: int) -> Image.Image:
        held, picture = self._image
        if picture is None or held != image:
            picture = self.data.load(image)
            self._image = (image, picture)
        return picture

    def _whole_labels(self, image: int) -> Image.Image:
        held, picture = self._labels
        if picture is None or held != image:
            picture = Image.fromarray(self.data.labels(image))
            self._labels = (image, picture)
        return picture

    def _square(self, picture: Image.Image, view: View) -> Image.Image:
        """The view's square of an image or of its labels."""
        side = self.resolution
        if view.crop is not None:
            if view.crop.mirrored:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            picture = picture.crop(crop_box(view.crop, *picture.size))
        if min(picture.size) < 1:
            raise UserError(f"{self.data.where(view.image)}: too small to be cropped; leave it out.")
        if self.opened.rule.squash and view.window is None:
            square = picture.resize((side, side), Image.Resampling.NEAREST)
        else:
            picture = picture.resize(resized_size(*picture.size, side), Image.Resampling.NEAREST)
            centre = (round((picture.width - side) / 2), round((picture.height - side) / 2))
            left, top = centre if view.window is None else view.window
            square = picture.crop((left, top, left + side, top + side))
        return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flipped else square

    def pixels(self, i: int) -> UInt8[np.ndarray, "R R 3"]:
        """RGB values of view `i`."""
        view = self.layout[i]
        return np.asarray(self._square(self._whole_image(view.image), view))

    def labels(self, i: int) -> UInt8[np.ndarray, "R R"]:
        """Classes of view `i`, 255 where nothing is scored."""
        view = self.layout[i]
        return np.asarray(self._square(self._whole_labels(view.image), view))

    def _canvas_part(self, canvas: Canvas, whole: Image.Image) -> np.ndarray:
        if len(canvas.parts) == 1:
            view = self.layout[canvas.parts[0][0]]
            return np.asarray(self._square(whole, View(view.image, view.crop, view.window)))
        return np.asarray(whole.resize((canvas.width, canvas.height), Image.Resampling.NEAREST))

    def canvas_pixels(self, canvas: Canvas) -> UInt8[np.ndarray, "H W 3"]:
        """RGB values under a canvas, not mirrored."""
        return self._canvas_part(canvas, self._whole_image(canvas.image))

    def canvas_labels(self, canvas: Canvas) -> UInt8[np.ndarray, "H W"]:
        """Classes under a canvas, 255 where nothing is scored, not mirrored."""
        return self._canvas_part(canvas, self._whole_labels(canvas.image))


def signed(labels: UInt8[np.ndarray, "*S"]) -> Int16[np.ndarray, "*S"]:
    """Classes with -1 in place of 255."""
    wide = labels.astype(np.int16)
    wide[labels == IGNORE] = -1
    return wide


def train_views(opened: OpenedSet, resolution: int) -> Views:
    """Training crops of every image in order; stored crops are taken as they are."""
    crops: tuple[Optional[Crop], ...] = (None,) if opened.stored_crops else set_crops(opened.rule.crops)
    protocol = {"kind": "train", "crops": [None if c is None else asdict(c) for c in crops]}
    layout = _CropLayout(len(opened.data), crops, False)
    return Views(opened, layout, resolution=resolution, protocol=protocol)


def val_views(opened: OpenedSet, resolution: int, *, flipped: bool = False) -> Views:
    """The official protocol: one square of every image, the centre (PASCAL VOC: the image stretched to a square)."""
    count = len(opened.data)
    return Views(
        opened,
        _CropLayout(count, (None,), flipped),
        resolution=resolution,
        protocol={"kind": "centre", "flipped": flipped},
        canvases=[Canvas(i, resolution, resolution, ((i, 0, 0),)) for i in range(count)],
    )


def full_views(opened: OpenedSet, resolution: int, *, flipped: bool = False) -> Views:
    """Our own protocol: the whole image with its short side at `resolution`, covered by the fewest square windows.

    Where windows overlap, scores are averaged. Its numbers do not compare with the official centre crop's.
    """
    layout: list[View] = []
    canvases = []
    for image in range(len(opened.data)):
        width, height = resized_size(*opened.data.size(image), resolution)
        parts = []
        for top in window_offsets(height, resolution):
            for left in window_offsets(width, resolution):
                parts.append((len(layout), left, top))
                layout.append(View(image, window=(left, top), flipped=flipped))
        canvases.append(Canvas(image, height, width, tuple(parts)))
    protocol = {"kind": "full", "flipped": flipped}
    return Views(opened, layout, resolution=resolution, protocol=protocol, canvases=canvases)
