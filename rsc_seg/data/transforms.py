"""Pictures to tensors: the frame of a whole image, crops cut from its original pixels, and boxes between the two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.data.storage import ImageError

FITS = ("pad", "squash", "crop")


@dataclass(frozen=True)
class Geometry:
    """How the frame (the resized image) lies over the original.

    `original` and `frame` are (width, height) in pixels. `region` is the part of the original that the frame shows,
    `valid` the part of the frame that it fills, both xyxy; the rest of the frame is padding.
    """

    original: tuple[int, int]
    frame: tuple[int, int]
    region: tuple[float, float, float, float]
    valid: tuple[float, float, float, float]

    def _scale(self) -> tuple[float, float]:
        # The resize maps `region` to the whole of `valid`, whose sides were rounded: the two axes differ a little.
        x0, y0, x1, y1 = self.region
        return self.valid[2] / (x1 - x0), self.valid[3] / (y1 - y0)

    def to_original(self, boxes: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        """Boxes xyxy in frame pixels to original pixels, float64."""
        sx, sy = self._scale()
        scale = torch.tensor([sx, sy, sx, sy], dtype=torch.float64)
        offset = torch.tensor(self.region[:2] * 2, dtype=torch.float64)
        return boxes.double() / scale + offset

    def to_frame(self, boxes: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        """Boxes xyxy in original pixels to frame pixels, float32, not clipped."""
        sx, sy = self._scale()
        scale = torch.tensor([sx, sy, sx, sy], dtype=torch.float64)
        offset = torch.tensor(self.region[:2] * 2, dtype=torch.float64)
        return ((boxes.double() - offset) * scale).float()


def _tensor(image: Image.Image) -> Float[Tensor, "3 H W"]:
    # PIL's array is (H,W,3) and read-only: the division makes the copy, the permutation puts channels first.
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1).contiguous()


def _check_side(sides: tuple[int, int], patch: Optional[int], name: str, what: str) -> None:
    if patch is not None and min(sides) < patch:
        raise ImageError(f"{name}: {what} {sides[0]} x {sides[1]} pixels, smaller than a patch ({patch} x {patch}).")


def fit_image(
    image: Image.Image, size: Sequence[int], fit: str = "pad", *, patch: Optional[int] = None, name: str = "image"
) -> tuple[Float[Tensor, "3 H W"], Geometry]:
    """An RGB image as a frame of `size` (height, width), values 0..1, and where its pixels went.

    `pad`: the whole image at one scale, as large as it fits, black to the right and below (as CLIPSelf does before its
    normalisation). `squash`: each axis at its own scale. `crop`: the centre, one scale, nothing padded. All bicubic
    with antialiasing (PIL). With `patch`, an image of which less than a patch is there in either axis, before or after
    resizing, raises ImageError with `name`.
    """
    require_choice("data.fit", fit, FITS)
    height, width = size
    w, h = image.size
    _check_side((w, h), patch, name, "the image is")
    region = (0.0, 0.0, float(w), float(h))
    filled = (width, height)
    if fit == "pad":
        scale = min(width / w, height / h)
        filled = (max(1, round(w * scale)), max(1, round(h * scale)))
        _check_side(filled, patch, name, f"the image ({w} x {h}) fitted into {width} x {height} is")
    elif fit == "crop":
        scale = max(width / w, height / h)
        x0, y0 = (w - width / scale) / 2, (h - height / scale) / 2
        region = (max(0.0, x0), max(0.0, y0), min(float(w), w - x0), min(float(h), h - y0))
    resized = _tensor(image.resize(filled, Image.Resampling.BICUBIC, box=region))
    frame = torch.zeros(3, height, width)
    frame[:, : filled[1], : filled[0]] = resized
    valid = (0.0, 0.0, float(filled[0]), float(filled[1]))
    return frame, Geometry((w, h), (width, height), region, valid)


def cut_crop(image: Image.Image, box: Sequence[float], size: Sequence[int]) -> Float[Tensor, "3 h w"]:
    """The part of an RGB image at `box` (xyxy in its own pixels, fractions allowed) at `size` (height, width), 0..1.

    Each axis at its own scale, no letterbox, bicubic with antialiasing: the same anisotropic sampling as RoIAlign's, so
    tokens of the crop and of the region correspond. The box is clipped to the image. At its edge the filter reaches
    over it by up to two pixels of the coarser of both grids, as it does when the whole image is resized.
    """
    w, h = image.size
    x0, y0, x1, y1 = (float(v) for v in box)
    clipped = (max(0.0, x0), max(0.0, y0), min(float(w), x1), min(float(h), y1))
    return _tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=clipped))


def normalize(x: Float[Tensor, "*B 3 H W"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "*B 3 H W"]:
    """Values 0..1 to an encoder's input: (x - mean) / std for each channel."""
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def hflip(image: Image.Image) -> Image.Image:
    """The image mirrored left to right."""
    return ImageOps.mirror(image)
