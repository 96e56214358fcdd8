"""From a record of a catalogue to what the model takes: training views and test images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform
from jaxtyping import Int32, UInt8
from torch import Tensor

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.d2.color import ColorDraw, change_color, draw_color
from rsc_seg.data.sampler import keyed_rng
from rsc_seg.data.seg_task import TaskSet
from rsc_seg.errors import UserError

PAD_VALUE = 128  # of the image, before normalisation
Sample = dict[str, Any]


@dataclass(frozen=True)
class ViewDraw:
    """What was drawn for one training view: the short side to resize to, where the crop begins, colours, mirror."""

    short_side: int
    top: int
    left: int
    color: ColorDraw
    flip: bool


def _resize(height: int, width: int, short_side: int, max_size: int) -> T.ResizeTransform:
    high, wide = T.ResizeShortestEdge.get_output_shape(height, width, short_side, max_size)
    return T.ResizeTransform(height, width, high, wide)


def _planes(image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1)))


def check_sizes(data: CatSegDataConfig) -> None:
    """UserError, by the options' full names, for sizes of views and images that cannot be used."""
    if len(data.crop) != 2 or min(data.crop) < 1:
        raise UserError(f"data.crop={data.crop}: give height and width, both 1 or more.")
    if not data.min_size or min(data.min_size) < 1:
        raise UserError(f"data.min_size={data.min_size}: give at least one size, each 1 or more.")
    for key in ("max_size", "min_size_test", "max_size_test"):
        if getattr(data, key) < 1:
            raise UserError(f"data.{key}={getattr(data, key)}: must be 1 or more.")


class TrainMapper:
    """Resize the short side, crop, change colours, mirror, pad: CAT-Seg's order and numbers.

    The image is resized by PIL, bilinear; labels by the nearest pixel rounded down, so that they may lie half a pixel
    off, as officially. A view is drawn from `seed` and the record's `place` in the stream alone.
    """

    def __init__(self, task: TaskSet, data: CatSegDataConfig, seed: int = 0) -> None:
        check_sizes(data)
        self.task, self.data, self.seed = task, data, seed

    def draw(self, rng: np.random.Generator, height: int, width: int) -> ViewDraw:
        """Draws a view of an image of this size."""
        data = self.data
        short_side = int(rng.choice(data.min_size))
        high, wide = T.ResizeShortestEdge.get_output_shape(height, width, short_side, data.max_size)
        top = int(rng.integers(max(high - data.crop[0], 0) + 1))
        left = int(rng.integers(max(wide - data.crop[1], 0) + 1))
        color = draw_color(rng)
        flip = bool(rng.random() < 0.5)
        return ViewDraw(short_side, top, left, color if data.color else ColorDraw(), flip and data.hflip)

    def view(
        self, image: UInt8[np.ndarray, "H W 3"], labels: Int32[np.ndarray, "H W"], draw: ViewDraw
    ) -> tuple[Tensor, Tensor]:
        """The drawn view: (3, h, w) uint8 and (h, w) int64 of the crop's size."""
        resize = _resize(labels.shape[0], labels.shape[1], draw.short_side, self.data.max_size)
        high, wide = (min(c, s) for c, s in zip(self.data.crop, (resize.new_h, resize.new_w), strict=True))
        crop = CropTransform(draw.left, draw.top, wide, high)
        image = crop.apply_image(resize.apply_image(image))
        # as double, which detectron2 resizes by torch's nearest; PIL's would round otherwise
        labels = crop.apply_segmentation(resize.apply_segmentation(labels.astype(np.float64)))
        image = change_color(image, draw.color)
        if draw.flip:
            flip = HFlipTransform(wide)
            image, labels = flip.apply_image(image), flip.apply_segmentation(labels)
        padding = (0, self.data.crop[1] - wide, 0, self.data.crop[0] - high)
        found = torch.from_numpy(labels.astype(np.int64))
        return F.pad(_planes(image), padding, value=PAD_VALUE), F.pad(found, padding, value=self.task.ignore)

    def __call__(self, record: Sample) -> Sample:
        """`image`, `sem_seg`, and the original `height` and `width` beside `file_name`. Raises UserError by file."""
        image, labels = self.task.load(Path(record["file_name"]), Path(record["sem_seg_file_name"]))
        height, width = labels.shape
        draw = self.draw(keyed_rng("view", self.seed, record["place"]), height, width)
        view, found = self.view(image, labels, draw)
        return {"file_name": record["file_name"], "image": view, "sem_seg": found, "height": height, "width": width}


class TestMapper:
    """The image with its short side at `min_size_test`; `sem_seg` is at the image's own size, on which it is scored."""

    def __init__(self, task: TaskSet, data: CatSegDataConfig) -> None:
        check_sizes(data)
        self.task, self.data = task, data

    def __call__(self, record: Sample) -> Sample:
        """`image` resized, `sem_seg`, `height` and `width` as they are on disk. Raises UserError naming the file."""
        image, labels = self.task.load(Path(record["file_name"]), Path(record["sem_seg_file_name"]))
        height, width = labels.shape
        resized = _resize(height, width, self.data.min_size_test, self.data.max_size_test).apply_image(image)
        return {
            "file_name": record["file_name"],
            "image": _planes(resized),
            "sem_seg": torch.from_numpy(labels),
            "height": height,
            "width": width,
        }
