"""The training data: an image as a frame, boxes on it, and the local crops cut at the boxes."""

import logging
from collections.abc import Sequence
from typing import Any, Optional

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from rsc_seg.config import CropConfig, DataConfig, require_choice
from rsc_seg.data.proposals import Proposals, open_proposals
from rsc_seg.data.region_boxes import RATIO_MODES, check_ratio, sample_boxes
from rsc_seg.data.rla import RlaRegions, distillation_boxes
from rsc_seg.data.sampler import Skipped, keyed_rng
from rsc_seg.data.source import ImageSource
from rsc_seg.data.storage import ImageError
from rsc_seg.data.transforms import FITS, Geometry, cut_crop, fit_image, hflip, normalize
from rsc_seg.errors import UserError

log = logging.getLogger(__name__)

ON_ERROR = ("skip", "fatal")
BOXES_FROM = ("own", "rla")
STAGES = ("refine", "distill", "all")


def pick_from_bank(seed: int, epoch: int, index: int, bank: int, count: int) -> Int[Tensor, " C"]:
    """Slots of the bank that epoch `epoch` shows of image `index`: `count` of `bank`, without replacement."""
    return torch.from_numpy(keyed_rng("pick", seed, epoch, index).permutation(bank)[:count])


class CropDataset:
    """Samples of frame, boxes and crops, each a function of (seed, epoch, image) alone.

    `stage`: `refine` and `all` cut crops at the boxes; `distill` needs boxes only. `data.image_size` and `crops.size`
    must be multiples of `patch_size`; `mean` and `std` are the encoder's. Raises UserError for options that do not fit.

    With `crops.bank=N`, N boxes are drawn once for an image and each epoch picks `crops.per_image` of them. Boxes of a
    proposals file stand first; random ones fill up what it lacks. `rla` adds the regions of region-language alignment
    to each sample; with boxes_from=rla the boxes are the first `crops.per_image` valid ones of these, repeated in turn
    where there are fewer, and `crops.bank` does not count. `skipped` holds name and reason of unreadable images
    that were replaced, `without_proposals` the number of images for which the file holds no box that the crops take,
    which `announce` logs.
    """

    def __init__(
        self,
        source: ImageSource,
        data: DataConfig,
        crops: CropConfig,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        patch_size: int,
        stage: str,
        rla: Optional[RlaRegions] = None,
        boxes_from: str = "own",
        announce: bool = True,
    ) -> None:
        _check_options(data, crops, patch_size, stage)
        require_choice("distill.boxes_from", boxes_from, BOXES_FROM)
        if boxes_from == "rla" and rla is None:
            raise UserError("distill.boxes_from=rla: this objective has no RLA regions; take distill.boxes_from=own.")
        if len(source) == 0:
            raise UserError("the data set is empty (data.root, data.split): there is nothing to train on.")
        self.source = source
        self.data = data
        self.crops = crops
        self.seed = seed
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.patch_size = patch_size
        self.stage = stage
        self.rla = rla
        self.boxes_from = boxes_from
        self.skipped: dict[str, str] = {}
        self.without_proposals = 0
        self.proposals: Optional[Proposals] = None
        if data.proposals is not None:
            self._open_proposals(data.proposals, announce)

    def _open_proposals(self, path: str, announce: bool) -> None:
        self.proposals = open_proposals(path)
        names = [self.source.name(i) for i in range(len(self.source))]
        self.proposals.coverage(names)
        self.proposals.check_pictures(self.source)
        self.without_proposals = sum(len(self.proposals.boxes(n)) == 0 for n in names)
        if self.without_proposals and announce:
            log.warning(
                "%s: no box for %d of %d images: crops and distillation (data.proposals) have random ones there.",
                *(path, self.without_proposals, len(names)),
            )

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, epoch: int, index: int) -> dict[str, Any]:
        """The sample of image `index` as epoch `epoch` shows it.

        image (3,H,W) normalised; boxes (C,4) float32 xyxy in frame pixels, inside `valid` (4,), the un-padded part;
        crops (C,3,h,w) normalised, absent in stage `distill`; bank_ids (C,) int64, -1 without a bank; epoch, index and
        name of the image that was used; skipped, the (name, reason) of unreadable ones before it; with `rla` what
        RlaRegions.sample gives. An unreadable image gives way to the next one, or raises ImageError with
        `data.on_error=fatal` or when none is readable. Raises UserError for an image that its boxes do not fit.
        """
        skipped: Skipped = []
        for tried in range(len(self.source)):
            i = (index + tried) % len(self.source)
            try:
                sample = self._sample(epoch, i)
            except ImageError as e:
                if self.data.on_error == "fatal":
                    raise
                skipped.append((self.source.name(i), str(e)))
                continue
            if get_worker_info() is None:  # in a worker the note would be lost: the loader takes it from the batch
                self.note_skipped(skipped)
            return {**sample, "skipped": skipped}
        raise ImageError(f"none of the {len(self.source)} images is readable; the first: {skipped[0][1]}")

    def note_skipped(self, skipped: Skipped) -> None:
        """Keeps and logs replaced images, each name once."""
        for name, reason in skipped:
            if name not in self.skipped:
                self.skipped[name] = reason
                log.warning("skipped and replaced by the next image (%d so far): %s", len(self.skipped), reason)

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        name = self.source.name(index)
        image = self.source.load(index)
        flipped = self.data.hflip and keyed_rng("flip", self.seed, epoch, index).random() < 0.5
        if flipped:
            image = hflip(image)
        frame, geometry = fit_image(
            image, self.data.image_size, self.data.fit, patch=self.patch_size, name=self.source.where(index)
        )
        sample: dict[str, Any] = {
            "image": normalize(frame, self.mean, self.std),
            "valid": torch.tensor(geometry.valid, dtype=torch.float32),
            "epoch": epoch,
            "index": index,
            "name": name,
        }
        if self.rla is not None:
            sample |= self.rla.sample(image, geometry, epoch=epoch, index=index, flipped=flipped)
        if self.boxes_from == "rla":
            boxes = distillation_boxes(sample, self.crops.per_image)
            bank_ids = torch.full((len(boxes),), -1)
        else:
            boxes, bank_ids = self._boxes(epoch, index, name, geometry, flipped)
        sample |= {"boxes": boxes, "bank_ids": bank_ids}
        if self.stage != "distill":
            sample["crops"] = self._crops(image, geometry.to_original(boxes))
        return sample

    def _crops(self, image: Image.Image, boxes: Float[Tensor, "C 4"]) -> Float[Tensor, "C 3 h w"]:
        crops = torch.stack([cut_crop(image, box, self.crops.size) for box in boxes.tolist()])
        return normalize(crops, self.mean, self.std)

    def _boxes(
        self, epoch: int, index: int, name: str, geometry: Geometry, flipped: bool
    ) -> tuple[Float[Tensor, "C 4"], Int[Tensor, " C"]]:
        count, bank = self.crops.per_image, self.crops.bank
        if bank == 0:
            boxes = self._draw(count, name, geometry, flipped, ("visit", self.seed, epoch, index))
            return boxes, torch.full((count,), -1)
        drawn = self._draw(bank, name, geometry, flipped, ("bank", self.seed, index))
        picked = pick_from_bank(self.seed, epoch, index, bank, count)
        return drawn[picked], picked

    def _draw(
        self, count: int, name: str, geometry: Geometry, flipped: bool, key: tuple[int | str, ...]
    ) -> Float[Tensor, "R 4"]:
        width, height = geometry.valid[2:]
        boxes = sample_boxes(
            keyed_rng(*key), count, ratio=self.crops.ratio, mode=self.crops.ratio_mode, valid=(width, height)
        )
        if self.proposals is None:
            return boxes
        self.proposals.check_size(name, geometry.original)
        given = torch.from_numpy(self.proposals.boxes(name))
        if flipped:
            x0, y0, x1, y1 = given.unbind(1)
            given = torch.stack([geometry.original[0] - x1, y0, geometry.original[0] - x0, y1], dim=1)
        inside = geometry.to_frame(given).clamp(min=0).minimum(torch.tensor([width, height] * 2))
        inside = inside[(inside[:, 2:] - inside[:, :2] >= 1).all(dim=1)]  # `crop` may leave nothing of a box
        chosen = keyed_rng("proposals", *key).permutation(len(inside))[:count]
        boxes[: len(chosen)] = inside[torch.from_numpy(chosen)]
        return boxes


def _check_sides(key: str, size: Sequence[int], patch_size: int) -> None:
    if len(size) != 2 or min(size) < patch_size or any(side % patch_size for side in size):
        raise UserError(
            f"{key}={list(size)}: must be [height, width], both multiples of the encoder's patch size {patch_size}."
        )


def _check_options(data: DataConfig, crops: CropConfig, patch_size: int, stage: str) -> None:
    require_choice("stage", stage, STAGES)
    require_choice("data.fit", data.fit, FITS)
    require_choice("data.on_error", data.on_error, ON_ERROR)
    require_choice("crops.ratio_mode", crops.ratio_mode, RATIO_MODES)
    _check_sides("data.image_size", data.image_size, patch_size)
    _check_sides("crops.size", crops.size, patch_size)
    check_ratio(crops.ratio)
    if crops.per_image < 1:
        raise UserError(f"crops.per_image={crops.per_image}: must be 1 or more.")
    if crops.bank and crops.bank < crops.per_image:
        raise UserError(f"crops.bank={crops.bank}: must be 0, or at least crops.per_image={crops.per_image}.")
