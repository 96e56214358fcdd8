"""Batches for the stages of R-SC-V: from pictures, from cached frozen features, or from both."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rsc_seg.config import OptimConfig, RscvConfig, require_choice
from rsc_seg.data.crops import CropDataset, pick_from_bank
from rsc_seg.data.nouns import PseudoLabels
from rsc_seg.data.proposals import open_proposals
from rsc_seg.data.rla import RlaRegions, rla_kind
from rsc_seg.data.sampler import StepLoader, step_indices
from rsc_seg.data.source import ImageSource, SelectedImages
from rsc_seg.errors import UserError
from rsc_seg.models.digest import module_digest
from rsc_seg.models.encoder import DenseEncoder, EarlyFeatures
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.registry import find_backbone
from rsc_seg.pipelines.objectives import OBJECTIVES
from rsc_seg.pipelines.pseudo_labels import open_labels
from rsc_seg.training.batch import Batch, Regions
from rsc_seg.training.cache import DTYPES, FeatureCache, cache_key, estimate_gb, open_cache
from rsc_seg.training.region_losses import TOKEN_LOSSES
from rsc_seg.training.tasks import DistillTask, crop_features

_log = logging.getLogger(__name__)
_CHUNK = 4  # images of one forward pass while a cache is filled
_EXACT = ("boxes", "index")  # never stored in half precision
Produce = Callable[[], Iterator[tuple[list[int], dict[str, Tensor]]]]


class RscvData:
    """The images of a run and what can be precomputed on them.

    Caches (see `rsc_seg.training.cache`): `early` (f_A of every image), `crops` (boxes of the bank and the encoder's
    tokens of their crops), `regions` (the distillation target in every box of the bank). The latter two need
    `crops.bank`; none is used with augmentation, nor across several machines.

    With an objective of region-language alignment, stage 2's batches hold its regions as well (`Batch.regions`), and
    with RegionText only images that have labelled boxes (of `rla.pseudo_labels`, else made here) are used, as
    officially.
    """

    def __init__(
        self, config: RscvConfig, source: ImageSource, encoder: DenseEncoder, fabric: Fabric, folder: Path
    ) -> None:
        require_choice("cache.mode", config.cache.mode, ("auto", "on", "off"))
        require_choice("cache.dtype", config.cache.dtype, tuple(DTYPES))
        if config.cache.mode == "on" and (config.data.hflip or config.run.nodes > 1):
            reason = "data.hflip=true" if config.data.hflip else f"run.nodes={config.run.nodes}"
            raise UserError(f"cache.mode=on: features cannot be cached with {reason}; use cache.mode=auto or off.")
        self.config, self.encoder, self.fabric = config, encoder, fabric
        self.kind = rla_kind(config.objective)
        self.labels = open_labels(config, source, encoder, fabric) if self.kind == "regiontext" else None
        self.source = source if self.labels is None else _labelled_only(source, self.labels)
        if config.data.proposals is not None:
            open_proposals(config.data.proposals).warn_of_others(source.name(i) for i in range(len(source)))
        self._announced = False
        self._skipped: dict[str, str] = {}  # unreadable images, so that each is named once in all stages
        self.root = Path(config.cache.dir) if config.cache.dir else folder / "cache"
        self.encoder_digest = module_digest(encoder) + encoder.position_rule + encoder.last_block
        self.image_grid = encoder.grid(*config.data.image_size)
        self.crop_grid = encoder.grid(*config.crops.size)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self.source.fingerprint()

    @functools.cached_property
    def _rla(self) -> Optional[RlaRegions]:
        """The regions of the objective; None when it has none."""
        if self.kind is None:
            return None
        config, side = self.config, find_backbone(self.config.backbone.name).native_size
        return RlaRegions(
            dataclasses.replace(config.rla, crop_size=config.rla.crop_size or [side, side]),
            config.data,
            config.crops,
            source=self.source,
            kind=self.kind,
            seed=config.run.seed,
            mean=self.encoder.mean,
            std=self.encoder.std,
            labels=self.labels,
        )

    def dataset(self, stage: str, *, whole_bank: bool = False, regions: bool = False) -> CropDataset:
        """Samples of `stage` (see CropDataset); `whole_bank` gives all boxes of an image at once.

        `regions`: with those of the objective, when it has any, and with distill.boxes_from.
        """
        crops, boxes_from = self.config.crops, self.config.distill.boxes_from if regions else "own"
        if whole_bank:
            crops = dataclasses.replace(crops, per_image=crops.bank)
        elif stage == "distill":
            crops = dataclasses.replace(crops, per_image=self.config.distill.boxes)
        used = stage != "distill" or OBJECTIVES[self.config.objective].target is not None
        if boxes_from == "rla" or not used:
            crops = dataclasses.replace(crops, bank=0)
        row, announce = self.encoder, used and boxes_from == "own" and not self._announced
        self._announced = self._announced or announce
        dataset = CropDataset(
            self.source,
            self.config.data,
            crops,
            seed=self.config.run.seed,
            mean=row.mean,
            std=row.std,
            patch_size=row.patch_size,
            stage=stage,
            rla=self._rla if regions else None,
            boxes_from=boxes_from,
            announce=announce,
        )
        dataset.skipped = self._skipped
        return dataset

    def _usable(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        cache = self.config.cache
        if cache.mode == "off" or self.config.data.hflip or self.config.run.nodes > 1:
            return False
        size = estimate_gb(shapes, len(self.source), cache.dtype)
        if cache.mode == "auto" and size > cache.max_gb:
            _log.info("features are not cached: %.0f GB is more than cache.max_gb=%g", size, cache.max_gb)
            return False
        return True

    def _open(self, kind: str, shapes: Mapping[str, tuple[int, ...]], produce: Produce, **depends: Any) -> FeatureCache:
        config = self.config
        key = cache_key(
            kind=kind,
            encoder=self.encoder_digest,
            images=self._fingerprint,
            data=dataclasses.replace(config.data, workers=0),
            dtype=config.cache.dtype,
            precision=config.run.precision,
            shapes={k: list(v) for k, v in shapes.items()},
            **depends,
        )
        opened = functools.partial(
            open_cache,
            self.root,
            f"{kind}-{key}",
            shapes,
            rows=len(self.source),
            dtype=config.cache.dtype,
            produce=produce,
            exact=_EXACT,
        )
        if self.fabric.local_rank == 0:
            opened()
        self.fabric.barrier()
        return opened()

    def _samples(self, dataset: CropDataset) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """All images once, in chunks."""
        for start in range(0, len(self.source), _CHUNK):
            indices = list(range(start, min(start + _CHUNK, len(self.source))))
            yield indices, [dataset.sample(0, i) for i in indices]

    def early_cache(self, refiner: Refiner) -> Optional[FeatureCache]:
        """f_A and the taps of every image, or None when they are not to be cached."""
        width, p = self.encoder.embed_dim, self.encoder.num_prefix_tokens
        shapes = {
            "prefix": (p, width),
            "patches": (width, *self.image_grid),
            "taps": (len(refiner.taps), width, *self.image_grid),
        }
        if not self._usable(shapes):
            return None

        def produce() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            for indices, samples in self._samples(self.dataset("distill")):
                images = torch.stack([s["image"] for s in samples]).to(self.fabric.device)
                with self.fabric.autocast():
                    yield indices, refiner.early(self.encoder, images)._asdict()

        return self._open("early", shapes, produce, front=refiner.front_depth, taps=list(refiner.taps))

    def crop_cache(self) -> Optional[FeatureCache]:
        """Boxes of the bank and f_I of their crops, or None without a bank or when they are not to be cached."""
        bank, tokens = self.config.crops.bank, self.crop_grid[0] * self.crop_grid[1]
        shapes = {"boxes": (bank, 4), "crop_tokens": (bank, tokens, self.encoder.out_dim), "index": (1,)}
        if bank == 0 or not self._usable(shapes):
            return None

        def produce() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            for indices, samples in self._samples(self.dataset("refine", whole_bank=True)):
                order = [torch.argsort(s["bank_ids"]) for s in samples]
                boxes = torch.stack([s["boxes"][o] for s, o in zip(samples, order, strict=True)])
                crops = torch.stack([s["crops"][o] for s, o in zip(samples, order, strict=True)]).to(self.fabric.device)
                size = (self.config.data.image_size[0], self.config.data.image_size[1])
                with self.fabric.autocast():
                    z = crop_features(self.encoder, size, boxes.to(crops.device), crops, self.config.crops.positions)
                used = torch.tensor([[float(s["index"])] for s in samples])
                yield indices, {"boxes": boxes, "crop_tokens": z.unflatten(0, (len(samples), bank)), "index": used}

        return self._open("crops", shapes, produce, crops=self.config.crops, seed=self.config.run.seed)

    def region_cache(self, task: DistillTask) -> Optional[FeatureCache]:
        """The distillation targets (bank's boxes, whole image), or None when they change or are not to be cached.

        They change without a bank, end to end, with the boxes of RLA, and with losses whose target trains along.
        """
        bank, width, kinds = self.config.crops.bank, self.encoder.out_dim, task.config.regions
        shapes: dict[str, tuple[int, ...]] = {}
        if kinds != "global":
            shapes["region_tokens"] = (bank, self.crop_grid[0] * self.crop_grid[1], width)
        if kinds != "local":
            shapes["whole_tokens"] = (self.image_grid[0] * self.image_grid[1], width)
        moving = task.config.end_to_end or task.config.loss not in TOKEN_LOSSES
        unknown = kinds != "global" and (bank == 0 or task.config.boxes_from == "rla")
        if moving or unknown or not self._usable(shapes):
            return None
        target = "teacher" if task.refiner is None else module_digest(task.refiner) + str(self.config.refiner)
        whole = {} if kinds == "local" else {"whole": "valid"}

        def produce() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            for indices, samples in self._samples(self.dataset("distill", whole_bank=bank > 0)):
                order = [torch.argsort(s["bank_ids"]) for s in samples]
                boxes = torch.stack([s["boxes"][o] for s, o in zip(samples, order, strict=True)]).to(self.fabric.device)
                images, valid = (
                    torch.stack([s[key] for s in samples]).to(self.fabric.device) for key in ("image", "valid")
                )
                with self.fabric.autocast():
                    yield indices, task.targets(Batch(boxes=boxes, names=[], images=images, valid=valid))

        return self._open(
            "regions", shapes, produce, crops=self.config.crops, seed=self.config.run.seed, target=target, **whole
        )

    def _loaded(
        self, stage: str, optim: OptimConfig, start: int, total: int, *, regions: bool = False
    ) -> Iterator[dict[str, Any]]:
        loader = StepLoader(
            self.dataset(stage, regions=regions),
            range(start, total * optim.accumulate),
            batch_size=optim.batch_size,
            seed=self.config.run.seed,
            world=self.fabric.world_size,
            rank=self.fabric.global_rank,
            workers=self.config.data.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )
        return iter(loader)

    def refine_batches(self, refiner: Refiner, optim: OptimConfig, total: int) -> Callable[[int], Iterator[Batch]]:
        """Stage 1's batches: `batches(start)` from micro-step `start` on."""
        swapped = self.config.refine.align.direction == "l2g"
        early = None if swapped else self.early_cache(refiner)
        crops = None if swapped else self.crop_cache()

        if early is not None and crops is not None:
            return functools.partial(self._cached_batches, optim, total, early, crops)

        def from_images(start: int) -> Iterator[Batch]:
            for raw in self._loaded("refine", optim, start, total):
                yield Batch(
                    boxes=raw["boxes"],
                    names=raw["name"],
                    images=raw["image"] if early is None else None,
                    crops=raw["crops"],
                    early=None if early is None else _early_rows(early, raw["index"].tolist()),
                    skipped=raw["skipped"],
                )

        return from_images

    def _cached_batches(
        self, optim: OptimConfig, total: int, early: FeatureCache, crops: FeatureCache, start: int
    ) -> Iterator[Batch]:
        for step in range(start, total * optim.accumulate):
            yield self._cached_batch(step, optim, early, crops)

    def _cached_batch(self, step: int, optim: OptimConfig, early: FeatureCache, crops: FeatureCache) -> Batch:
        seed, config = self.config.run.seed, self.config.crops
        world, rank = self.fabric.world_size, self.fabric.global_rank
        pairs = step_indices(step, n=len(self.source), batch_size=optim.batch_size, world=world, rank=rank, seed=seed)
        rows = [i for _, i in pairs]
        used = (
            crops.rows("index", rows)[:, 0].long().tolist()
        )  # differs from rows where an unreadable image was replaced
        picked = [
            pick_from_bank(seed, epoch, i, config.bank, config.per_image)
            for (epoch, _), i in zip(pairs, used, strict=True)
        ]
        boxes = torch.stack([b[p] for b, p in zip(crops.rows("boxes", rows), picked, strict=True)])
        tokens = torch.cat([z[p] for z, p in zip(crops.rows("crop_tokens", rows), picked, strict=True)])
        return Batch(
            boxes=boxes, names=[self.source.name(i) for i in used], early=_early_rows(early, rows), crop_tokens=tokens
        )

    def distill_batches(
        self,
        task: Optional[DistillTask],
        optim: OptimConfig,
        total: int,
        *,
        with_crops: bool = False,
        with_regions: bool = True,
    ) -> Callable[[int], Iterator[Batch]]:
        """Stage 2's batches (`with_crops`: end to end, both stages' needs); `task` None: no distillation beside RLA.

        `with_regions`: with the regions of RLA where the objective has it; a control run does without.
        """
        targets = None if task is None else self.region_cache(task)
        refiner = None if task is None or targets is not None else task.refiner
        early = None if refiner is None else self.early_cache(refiner)
        stage = "all" if with_crops else "distill"

        def batches(start: int) -> Iterator[Batch]:
            for raw in self._loaded(stage, optim, start, total, regions=with_regions):
                rows = raw["index"].tolist()
                known = {} if targets is None else _known_targets(targets, rows, raw["bank_ids"])
                yield Batch(
                    boxes=raw["boxes"],
                    names=raw["name"],
                    images=raw["image"],
                    crops=raw.get("crops"),
                    early=None if early is None else _early_rows(early, rows),
                    region_tokens=known.get("region_tokens"),
                    whole_tokens=known.get("whole_tokens"),
                    valid=raw["valid"],
                    regions=_regions(raw),
                    skipped=raw["skipped"],
                )

        return batches


def _labelled_only(source: ImageSource, labels: PseudoLabels) -> ImageSource:
    """The images that have a labelled box; one of none would train nothing."""
    names = [source.name(i) for i in range(len(source))]
    if not names:
        return source
    labels.file.warn_of_others(names)
    kept = [i for i, name in enumerate(names) if len(labels.file.annotated(name).boxes)]
    if len(kept) == len(names):
        return source
    _log.warning("%s: no box for %d of %d images: left out.", labels.file.path, len(names) - len(kept), len(names))
    return SelectedImages([(source, i) for i in kept])


def _regions(raw: dict[str, Any]) -> Optional[Regions]:
    """The regions of a collated batch; None where its samples have none."""
    if "rla_boxes" not in raw:
        return None
    return Regions(raw["rla_boxes"], raw["rla_valid"], raw.get("rla_crops"), raw.get("rla_nouns"))


def _early_rows(cache: FeatureCache, rows: list[int]) -> EarlyFeatures:
    return EarlyFeatures(cache.rows("prefix", rows), cache.rows("patches", rows), cache.rows("taps", rows))


def _known_targets(cache: FeatureCache, rows: list[int], bank_ids: Tensor) -> dict[str, Tensor]:
    """The batch's targets from a cache: of the boxes that were picked from the bank, of the whole images, or both."""
    known = {}
    if "region_tokens" in cache.arrays:
        picked = zip(cache.rows("region_tokens", rows), bank_ids, strict=True)
        known["region_tokens"] = torch.cat([z[p] for z, p in picked])
    if "whole_tokens" in cache.arrays:
        known["whole_tokens"] = cache.rows("whole_tokens", rows)
    return known


def frozen_copy(encoder: DenseEncoder) -> DenseEncoder:
    """An independent copy with every parameter frozen: the teacher, or a student before its policy is set."""
    return copy.deepcopy(encoder).requires_grad_(False).eval()
