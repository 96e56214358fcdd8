"""The regions of region-language alignment on one image: boxes, what a teacher sees of them, or their nouns."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rsc_seg.config import CropConfig, DataConfig, RlaConfig, require_choice
from rsc_seg.data.ground_truth import KEY as GT
from rsc_seg.data.ground_truth import BoxesOf, ground_truth, instances_file
from rsc_seg.data.nouns import NO_NOUN, PseudoLabels
from rsc_seg.data.proposals import Annotated, open_proposals
from rsc_seg.data.region_boxes import (
    check_inside,
    enlarged,
    fallback_box,
    first_valid,
    flip_annotated,
    frame_boxes,
    grid_cells,
    grid_layouts,
    letterboxed,
    pick_annotated,
    sample_boxes,
)
from rsc_seg.data.sampler import keyed_rng
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import Geometry, normalize
from rsc_seg.errors import UserError

log = logging.getLogger(__name__)

KINDS = ("clipself", "regiontext")
BOXES = ("auto", "proposals", "gt", "grid", "random")
Sample = dict[str, Tensor]
_Found = tuple[Float[Tensor, "K 4"], list[Sequence[float]]]  # boxes and cuts, xyxy in original pixels


def rla_kind(objective: str) -> str | None:
    """Which of `KINDS` an objective such as r-sc-clipself trains; None when it has no region-language alignment."""
    return next((kind for kind in KINDS if objective.endswith(kind)), None)


def box_source(config: RlaConfig, data: DataConfig) -> str:
    """Where the boxes come from, `auto` resolved; raises UserError for an unknown name, or proposals without a file."""
    require_choice("rla.boxes", config.boxes, BOXES)
    if config.boxes == "auto":
        return "grid" if data.proposals is None else "proposals"
    if config.boxes == "proposals" and data.proposals is None:
        raise UserError("rla.boxes=proposals: data.proposals is not set; give the file, or take rla.boxes=grid.")
    return config.boxes


class RlaRegions:
    """Regions of `source`, each image's a function of (seed, epoch, image) alone.

    `clipself`: boxes from `rla.boxes`, with the teacher's crops; `regiontext`: the first `rla.per_image` boxes of
    `labels` in the file's order, with their nouns. `mean` and `std` are the teacher's, `rla.crop_size` must be set.
    The rules are CLIPSelf's (docs/regions.md). Raises UserError for options or files that do not fit.
    """

    def __init__(
        self,
        config: RlaConfig,
        data: DataConfig,
        crops: CropConfig,
        *,
        source: ImageSource,
        kind: str,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        labels: PseudoLabels | None = None,
    ) -> None:
        require_choice("objective", kind, KINDS)
        check_rla(config)
        self.config, self.data, self.crops, self.kind, self.seed = config, data, crops, kind, seed
        self.source, self.mean, self.std, self.labels = source, tuple(mean), tuple(std), labels
        self._given: BoxesOf | None = None
        self._where = ("", "")  # file and option of the boxes, for messages
        if kind == "regiontext":
            self._open_labels()
        else:
            self.boxes = box_source(config, data)
            self._open_boxes()

    def _open_labels(self) -> None:
        labels = self.labels
        if labels is None:
            raise UserError("rla.pseudo_labels is not set: RegionText needs boxes with nouns; see docs/regions.md.")
        labels.file.coverage([self.source.name(i) for i in range(len(self.source))])
        labels.file.check_pictures(self.source)
        self._where = (str(labels.file.path), labels.file.key)
        self._given = lambda i: labels.labelled(self.source.name(i))

    def _open_boxes(self) -> None:
        if self.boxes == "gt":
            self._given = ground_truth(self.source, self.data)
            self._where = (str(instances_file(self.data.root, self.data.split) or self.data.root or self.data.kind), GT)
        elif self.boxes == "proposals":
            assert self.data.proposals is not None  # box_source said so
            file = open_proposals(self.data.proposals)
            found = file.coverage([self.source.name(i) for i in range(len(self.source))])
            file.check_pictures(self.source)
            self._where = (str(file.path), file.key)
            if found.without:
                log.warning(
                    "%s: no box for %d of %d images: alignment (rla.boxes=proposals) has their upper left quarters.",
                    *(file.path, found.without, len(self.source)),
                )
            self._given = lambda i: file.annotated(self.source.name(i))

    def sample(
        self, image: Image.Image, geometry: Geometry, *, epoch: int, index: int, flipped: bool = False
    ) -> Sample:
        """The regions of an image (as it is trained on, mirrored or not), N = `rla.per_image` places.

        rla_boxes (N,4) float32 xyxy in frame pixels, rla_valid (N,) bool, the valid ones first, zeros behind; for
        `clipself` rla_crops (N,3,h,w) normalised, for `regiontext` rla_nouns (N,) int64, -1 behind. An image of which
        no box is left has CLIPSelf's fallback, its upper left sixteenth; with nouns it has none valid.
        """
        count, size = self.config.per_image, self.config.crop_size
        if self.kind == "regiontext":
            given = self._annotated(index, image.size, flipped)
            boxes, nouns = _corners(given.boxes[:count]), given.categories[:count]
            filled = self._fill(boxes, geometry)
            filled["rla_nouns"] = torch.full((count,), NO_NOUN)
            filled["rla_nouns"][: len(nouns)] = torch.from_numpy(nouns)
            return filled
        boxes, cuts = self._find(image.size, geometry, epoch=epoch, index=index, flipped=flipped)
        filled = self._fill(boxes, geometry)
        filled["rla_crops"] = torch.zeros(count, 3, size[0], size[1])
        for place, cut in enumerate(cuts):
            filled["rla_crops"][place] = normalize(letterboxed(image, cut, size), self.mean, self.std)
        return filled

    def _annotated(self, index: int, size: tuple[int, int], flipped: bool) -> Annotated:
        assert self._given is not None  # only sources of annotated boxes come here
        given = self._given(index)
        file, key = self._where
        check_inside(given.boxes, size, f"{file}, image '{self.source.name(index)}' ({key})")
        return Annotated(flip_annotated(given.boxes, size[0]), given.categories) if flipped else given

    def _find(self, size: tuple[int, int], geometry: Geometry, *, epoch: int, index: int, flipped: bool) -> _Found:
        count, rng = self.config.per_image, keyed_rng("rla", self.seed, epoch, index)
        x0, y0, x1, y1 = geometry.region
        shift = torch.tensor([x0, y0, x0, y0])
        if self.boxes == "grid":
            layouts = grid_layouts()
            # the grid lies over what the frame shows of the image
            cells = grid_cells(layouts[int(rng.integers(len(layouts)))], (x1 - x0, y1 - y0)) + shift
            cells = cells[torch.from_numpy(rng.permutation(len(cells))[:count])]
            return cells, cells.tolist()
        if self.boxes == "random":
            ratio, mode = self.crops.ratio, self.crops.ratio_mode
            drawn = sample_boxes(rng, count, ratio=ratio, mode=mode, valid=(x1 - x0, y1 - y0)) + shift
            given = torch.cat([drawn[:, :2], drawn[:, 2:] - drawn[:, :2]], dim=1).double().numpy()
        else:
            given = self._annotated(index, size, flipped).boxes
            area = (self.config.min_area, self.config.max_area)
            given = pick_annotated(given, rng.permutation(len(given)), count, area=area)
            given = given[_shown(given, geometry)]
        if not len(given):
            box, cut = fallback_box((int(x1 - x0), int(y1 - y0)))
            return torch.tensor([box]) + shift, [[a + b for a, b in zip(cut, shift.tolist(), strict=True)]]
        return _corners(given), [enlarged(row, self.config.enlarge, size) for row in given]

    def all_boxes(self, index: int) -> Float[Tensor, "N 4"]:
        """Boxes x, y, width, height of an image for nouns to be found: see `label_boxes`."""
        width, height = size = self.source.size(index)
        if self._given is not None:
            given = self._annotated(index, size, False).boxes
            area = (self.config.min_area, self.config.max_area)
            return torch.from_numpy(pick_annotated(given, range(len(given)), len(given), area=area))
        whole = (0.0, 0.0, float(width), float(height))
        boxes, _ = self._find(size, Geometry(size, size, whole, whole), epoch=0, index=index, flipped=False)
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)

    def _fill(self, boxes: Float[Tensor, "K 4"], geometry: Geometry) -> Sample:
        count = self.config.per_image
        placed, valid = torch.zeros(count, 4), torch.zeros(count, dtype=torch.bool)
        placed[: len(boxes)], valid[: len(boxes)] = frame_boxes(boxes, geometry, self.data.fit), True
        return {"rla_boxes": placed, "rla_valid": valid}


def _corners(given: Float[np.ndarray, "N 4"]) -> Float[Tensor, "N 4"]:
    """x, y, width, height in double precision to xyxy in single."""
    return torch.from_numpy(np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)).float()


def _shown(given: Float[np.ndarray, "N 4"], geometry: Geometry) -> np.ndarray:
    """Which boxes x, y, width, height have their centre in the part of the image that the frame shows."""
    centre = given[:, :2] + given[:, 2:] / 2
    inside: np.ndarray = (centre >= geometry.region[:2]) & (centre <= geometry.region[2:])
    return inside[:, 0] & inside[:, 1]


def check_rla(config: RlaConfig) -> None:
    """Raises UserError for numbers of `rla` that cannot be."""
    if config.per_image < 1:
        raise UserError(f"rla.per_image={config.per_image}: must be 1 or more.")
    if config.enlarge < 1:
        raise UserError(f"rla.enlarge={config.enlarge}: must be 1 (the box itself) or more.")
    if not 0 <= config.min_area <= config.max_area:
        raise UserError(
            f"rla.min_area={config.min_area}, rla.max_area={config.max_area}: must be 0 or more, the second the larger."
        )
    if len(config.crop_size) != 2 or min(config.crop_size) < 1:
        raise UserError(f"rla.crop_size={list(config.crop_size)}: must be [height, width] in pixels.")


def label_boxes(
    config: RlaConfig, data: DataConfig, crops: CropConfig, source: ImageSource, seed: int
) -> Callable[[int], Float[Tensor, "N 4"]]:
    """A function from an image's number to boxes x, y, width, height for nouns to be found, from `rla.boxes`.

    Of proposals and ground truth all within the bounds of area; of grids and random boxes `rla.per_image` at most,
    drawn once for an image. Raises UserError as RlaRegions does.
    """
    side = config.crop_size or [1, 1]  # nothing is cut here
    found = RlaRegions(
        dataclasses.replace(config, crop_size=side),
        data,
        crops,
        source=source,
        kind="clipself",
        seed=seed,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return found.all_boxes


def distillation_boxes(sample: Sample, count: int) -> Float[Tensor, "C 4"]:
    """Boxes for the distillation of a sample with regions (distill.boxes_from=rla): always `count`.

    The first valid ones that have an area, gone through again from the first where there are fewer, clipped to the
    un-padded part of the frame; of an image without one (RegionText) that part itself.
    """
    inside, given = sample["valid"], sample["rla_boxes"]
    usable = sample["rla_valid"] & (given[:, 2:] > given[:, :2]).all(dim=1)
    if not bool(usable.any()):
        return inside[None].expand(count, 4).clone()
    boxes = first_valid(given, usable, count)
    return boxes.clamp(min=0).minimum(inside[2:].repeat(2))
