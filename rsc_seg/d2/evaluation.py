"""Scores of a model on a set, the same on all processes."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from PIL import Image
from torch import Tensor

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.d2.loader import test_loader
from rsc_seg.d2.wrapper import CatSegD2
from rsc_seg.data.seg_task import IGNORE, TaskSet
from rsc_seg.metrics.confusion import ConfusionMatrix, Scores
from rsc_seg.metrics.seen import seen_scores

log = logging.getLogger(__name__)
_REPORT_SECONDS = 10.0
_PICTURE_SIDE = 640  # longest side of a kept picture, pixels


@dataclass(frozen=True)
class ClassRow:
    """One scored class: IoU and recall as fractions (NaN where nothing defines one), labelled pixels."""

    name: str
    iou: float
    recall: float
    pixels: int
    unseen: bool


class Picture(NamedTuple):
    """A test image with its labels and predictions, all of one size; uint16 where there are more than 255 classes."""

    name: str
    image: Image.Image
    labels: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class SetResult:
    """What a model scores on a set.

    `seconds`: reading and predicting, of the slowest process. `seen`, `unseen`, `harmonic`: see `SeenScores`. `note`:
    that the images are a part of the official split, else empty.
    """

    key: str
    title: str
    images: int
    seconds: float
    scores: Scores
    seen: Optional[float]
    unseen: Optional[float]
    harmonic: Optional[float]
    rows: tuple[ClassRow, ...]
    note: str = ""
    pictures: tuple[Picture, ...] = field(default=(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fractions as they are, None for NaN; without pictures."""
        scores = {k: v for k, v in asdict(self.scores).items() if k != "iou"}
        found = {
            "title": self.title,
            "images": self.images,
            "note": self.note,
            "seconds": round(self.seconds, 3),
            "classes": len(self.rows),
            "scores": scores,
            "seen": self.seen,
            "unseen": self.unseen,
            "harmonic": self.harmonic,
            "rows": [asdict(row) for row in self.rows],
        }
        return _without_nan(found)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _shrunk(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another (width, height), by the nearest pixel."""
    wide = array.astype(np.int32)
    return np.asarray(Image.fromarray(wide).resize(size, Image.Resampling.NEAREST))


def _picture(sample: dict[str, Any], predicted: Tensor, classes: int) -> Picture:
    """A sample as a picture of at most `_PICTURE_SIDE` pixels a side."""
    height, width = sample["height"], sample["width"]
    scale = min(1.0, _PICTURE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(sample["image"].numpy().transpose(1, 2, 0)).resize(size, Image.Resampling.BILINEAR)
    kind = np.uint8 if classes <= IGNORE else np.uint16
    labels, found = (_shrunk(t.numpy(), size).astype(kind) for t in (sample["sem_seg"], predicted))
    return Picture(Path(sample["file_name"]).name, image, labels, found)


class SetEvaluator(DatasetEvaluator):
    """Counts (truth, prediction) over the pixels of this process's images; `evaluate` adds up those of all processes.

    Predictions from `task.background_from` on count as it. Keeps the first `pictures` images on the first process.
    """

    def __init__(self, task: TaskSet, total: int, pictures: int = 0) -> None:
        self.task, self.total = task, total
        self.wanted = pictures if comm.is_main_process() else 0
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.confusion = ConfusionMatrix(self.task.classes, self.task.ignore)
        self.pictures: list[Picture] = []
        self.images = 0
        self.started = self.said = time.monotonic()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Tensor]]) -> None:
        """Takes a batch and what the model says about it."""
        for sample, output in zip(inputs, outputs, strict=True):
            found = output["sem_seg"].cpu()
            if self.task.background_from is not None:
                found = found.clamp(max=self.task.background_from)
            self.confusion.update(sample["sem_seg"], found)
            if len(self.pictures) < self.wanted:
                self.pictures.append(_picture(sample, found, self.task.classes))
            self.images += 1
        self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if comm.is_main_process() and now - self.said > _REPORT_SECONDS and self.images < self.total:
            self.said = now
            each = (now - self.started) / self.images
            left = timedelta(seconds=round(each * (self.total - self.images)))
            log.info("%s: %d of %d images, %.2f s each, %s to go", self.task.key, self.images, self.total, each, left)

    def evaluate(self) -> SetResult:
        """The scores over all processes, on each of them."""
        mine = (self.confusion.matrix.numpy(), self.images, time.monotonic() - self.started)
        shares = comm.all_gather(mine)
        total = ConfusionMatrix(self.task.classes, self.task.ignore)
        for matrix, _, _ in shares:
            total.matrix += torch.from_numpy(matrix)
        scores = total.scores()
        pixels = total.matrix.sum(1)
        recall = (total.matrix.diagonal().double() / pixels.double()).tolist()
        counts: list[int] = pixels.tolist()
        rows = zip(self.task.class_names, scores.iou, recall, counts, self.task.unseen, strict=True)
        images = sum(images for _, images, _ in shares)
        return SetResult(
            key=self.task.key,
            title=self.task.title,
            images=images,
            note=self.task.segset.part(images),
            seconds=max(seconds for _, _, seconds in shares),
            scores=scores,
            **asdict(seen_scores(scores.iou, counts, self.task.unseen)),
            rows=tuple(ClassRow(*row) for row in rows),
            pictures=tuple(self.pictures),
        )


def evaluate_set(model: CatSegD2, task: TaskSet, data: CatSegDataConfig, *, pictures: int = 0) -> SetResult:
    """Evaluates on all processes, each its share of the set; the result is the same on all but for `pictures`.

    `miou_present` is the mean that detectron2 gives since July 2022, `miou_union` the one before. The model is in
    evaluation mode meanwhile and back in its own mode afterwards; precision is the caller's. `pictures`: so many of the
    first images are kept, on the first process. Raises UserError for a set or file that cannot be used.
    """
    model.set_names(task.names)
    loader = test_loader(task, data, batch_size=model.image_batch)
    share = len(loader.sampler)  # type: ignore[arg-type]
    result = inference_on_dataset(model, loader, SetEvaluator(task, share, pictures))
    assert isinstance(result, SetResult)
    percent = [100 * value for value in (result.scores.miou_present, result.scores.pacc)]
    log.info("%s: mIoU %.2f, pAcc %.2f, %d images in %.0f s", task.key, *percent, result.images, result.seconds)
    return result
