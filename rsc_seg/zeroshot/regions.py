"""Zero-shot classification of regions by CLIPSelf's protocol: boxes and masks against the names of all classes."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rsc_seg.config import require_choice
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.ops.regions import masks_to_grid, pool_boxes, pool_masks
from rsc_seg.training.cache import cache_key, encoder_digest
from rsc_seg.zeroshot.class_vectors import check_vectors
from rsc_seg.zeroshot.panoptic_regions import Box, PanopticRegions, Segment
from rsc_seg.zeroshot.region_counts import LEFT_OUT, TOP, CountsFile, RegionCounts, RegionScores
from rsc_seg.zeroshot.stream import Progress, prefetched

log = logging.getLogger(__name__)
_MASKS_AT_ONCE = 16  # a mask of a whole picture in float32 takes a megabyte
_NAMED = 5  # segments without a pixel, and boxes outside, that the log names; the rest is only counted
EMPTY_MASKS = ("wrong", "official")


@dataclass(frozen=True)
class RegionOptions:
    """What is measured. `antialias` has no default because published numbers depend on it (docs/regions_eval.md)."""

    image_size: tuple[int, int]  # height, width of the frame
    antialias: bool  # of the masks' way to the token grid
    per_image: int = 100
    min_area: float = 64.0
    max_area: float = 1048576.0
    skip_no_pixels: bool = True  # False: a segment without a pixel is an error
    empty_masks: str = "wrong"  # or official: features of zero length are ranked by the order of torch.topk
    batch_size: int = 1
    workers: int = 0  # threads that read pictures
    save_every: int = 200  # pictures

    def check(self) -> None:
        """Raises UserError for what cannot be used."""
        require_choice("regions.empty_masks", self.empty_masks, EMPTY_MASKS)
        for key, value in (
            ("per_image", self.per_image),
            ("batch_size", self.batch_size),
            ("save_every", self.save_every),
        ):
            if value < 1:
                raise UserError(f"regions.{key}={value}: must be 1 or more.")
        if not 0 <= self.min_area <= self.max_area:
            raise UserError(
                f"regions.min_area={self.min_area:g}, regions.max_area={self.max_area:g}: "
                "the first must be 0 or more and not above the second."
            )

    def what_counts(self) -> dict[str, Any]:
        """The options that numbers depend on."""
        return {key: value for key, value in asdict(self).items() if key not in ("workers", "save_every")}


@dataclass(frozen=True)
class PictureRegions:
    """One picture ready to be classified.

    `frame`: values 0..1, the picture at the top left, zeros right of it and below. `boxes`: xyxy in parts of the frame.
    `masks`: on the token grid. `left_out`: see RegionCounts. `no_pixels`: ids of segments without a pixel.
    `outside`: regions (0..R-1) whose annotated box has no part in the picture, and the ids of their segments.
    """

    name: str
    frame: Float[Tensor, "3 H W"]
    boxes: Float[Tensor, "R 4"]
    masks: Bool[Tensor, "R h w"]
    labels: Int[Tensor, " R"]
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEFT_OUT, 0))
    no_pixels: tuple[int, ...] = ()
    outside: dict[int, int] = field(default_factory=dict)


def _region_box(segment: Segment, mask: Bool[np.ndarray, "H W"]) -> Box:
    """x, y, width, height: a thing's as annotated; for stuff from the first to the last pixel, that one not included
    (as officially)."""
    if segment.thing:
        return segment.box
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1]) - x, float(rows[-1]) - y


def _is_outside(box: Box, image: Image.Image) -> bool:
    x, y, width, height = box
    return x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0


def _in_parts(boxes: Sequence[Box], size: tuple[int, int], image: Image.Image) -> Float[Tensor, "R 4"]:
    """Boxes x, y, width, height of the original in parts of the frame, step by step as officially: in float32 the last
    bit decides how often RoIAlign samples."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)
    corners *= scale
    corners[:, [0, 2]] /= width
    corners[:, [1, 3]] /= height
    return corners


def _on_grid(
    ids: Int64[np.ndarray, "H W"], wanted: Sequence[int], grid: tuple[int, int], antialias: bool
) -> Bool[Tensor, "R h w"]:
    parts = [torch.zeros(0, *grid, dtype=torch.bool)]
    for start in range(0, len(wanted), _MASKS_AT_ONCE):
        masks = np.stack([ids == number for number in wanted[start : start + _MASKS_AT_ONCE]])
        parts.append(masks_to_grid(torch.from_numpy(masks), grid, antialias=antialias))
    return torch.cat(parts)


def picture_regions(source: PanopticRegions, i: int, options: RegionOptions, grid: tuple[int, int]) -> PictureRegions:
    """Picture `i` with those of its segments that are classified, for an encoder with `grid` tokens (h, w).

    Things take their annotated box, stuff the box of its pixels; a box outside the allowed area leaves its segment out,
    mask included. Raises UserError for what PanopticRegions.load refuses, and for a segment without a pixel unless
    `skip_no_pixels`.
    """
    image, ids = source.load(i)
    segments = source.segments[i]
    left_out = dict.fromkeys(LEFT_OUT, 0) | {"beyond": max(len(segments) - options.per_image, 0)}
    kept: list[tuple[Segment, Box]] = []
    no_pixels: list[int] = []
    for segment in segments[: options.per_image]:
        mask = ids == segment.id
        if not mask.any():
            no_pixels.append(segment.id)
            continue
        box = _region_box(segment, mask)
        area = box[2] * box[3]
        if area < options.min_area or area > options.max_area:
            left_out["small" if area < options.min_area else "large"] += 1
            continue
        kept.append((segment, box))
    if no_pixels and not options.skip_no_pixels:
        raise UserError(
            f"{source.where(i)}: segment {no_pixels[0]} has no pixel here though {source.annotations} lists it; "
            "mend the set, or leave such segments out (regions.no_pixels=skip)."
        )
    left_out["no_pixels"] = len(no_pixels)
    return PictureRegions(
        name=source.name(i),
        frame=fit_image(image, options.image_size, "pad", name=source.name(i))[0],
        boxes=_in_parts([box for _, box in kept], options.image_size, image),
        masks=_on_grid(ids, [segment.id for segment, _ in kept], grid, options.antialias),
        labels=torch.tensor([segment.label for segment, _ in kept], dtype=torch.int64),
        left_out=left_out,
        no_pixels=tuple(no_pixels),
        outside={k: s.id for k, (s, box) in enumerate(kept) if s.thing and _is_outside(box, image)},
    )


@torch.inference_mode()
def region_features(
    encoder: DenseEncoder, pictures: Sequence[PictureRegions]
) -> tuple[Float[Tensor, "R E"], Float[Tensor, "R E"]]:
    """Box features and mask features, unit vectors, regions picture by picture; a mask without token gives zeros.

    One dense map serves both, on the encoder's device. Raises UserError, naming the pictures, for features that are not
    finite. Matches CLIPSelf's `encode_pseudo_boxes` (v2) and `encode_masks`.
    """
    device = next(encoder.parameters()).device
    frames = normalize(torch.stack([picture.frame for picture in pictures]), encoder.mean, encoder.std)
    maps = encoder.dense(frames.to(device))
    boxes = pool_boxes(maps, [picture.boxes.to(device) for picture in pictures], patch_size=None)
    masks = pool_masks(maps, [picture.masks.to(device) for picture in pictures])
    if not bool(torch.isfinite(boxes).all() and torch.isfinite(masks).all()):
        raise UserError(f"{encoder.name}: features are not finite on {', '.join(p.name for p in pictures)}.")
    return boxes, masks


def label_ranks(
    features: Float[Tensor, "R E"],
    embeddings: Float[Tensor, "T E"],
    labels: Int[Tensor, " R"],
    *,
    empty_masks: str = "wrong",
) -> Int[Tensor, " R"]:
    """How many classes come before the right one: by similarity, and by number where that is equal.

    Features of zero length have no nearest class: with `empty_masks` "wrong" their rank is T, which is wrong at any k.
    With "official" it is the place of the label among the five that torch.topk takes first of equal similarities on
    this device, T beyond them, as in CLIPSelf's evaluation.
    """
    similarity = features @ embeddings.T
    own = similarity.gather(1, labels[:, None])
    number = torch.arange(len(embeddings), device=labels.device)
    ahead = (similarity > own) | ((similarity == own) & (number < labels[:, None]))
    ranks = torch.where(features.any(dim=1), ahead.sum(dim=1), len(embeddings))
    blank = ~features.any(dim=1)
    if empty_masks == "official" and bool(blank.any()):
        first = similarity[blank].topk(min(max(TOP), len(embeddings)), dim=1).indices
        hit = first == labels[blank, None]
        ranks[blank] = torch.where(hit.any(dim=1), hit.int().argmax(dim=1), len(embeddings))
    return ranks


def _chunks(pictures: Iterator[PictureRegions], size: int) -> Iterator[list[PictureRegions]]:
    while chunk := list(itertools.islice(pictures, size)):
        yield chunk


def _count(
    counts: RegionCounts,
    chunk: list[PictureRegions],
    encoder: DenseEncoder,
    embeddings: Float[Tensor, "T E"],
    empty_masks: str,
) -> None:
    for picture in chunk:
        unnamed = max(_NAMED - counts.left_out["no_pixels"], 0)
        for number in picture.no_pixels[:unnamed]:
            log.warning("%s: segment %d has no pixel in its PNG and is left out", picture.name, number)
        known = int(counts.by_class["outside_boxes"].sum())
        for number in list(picture.outside.values())[: max(_NAMED - known, 0)]:
            log.warning("%s: the box of segment %d lies outside the picture", picture.name, number)
        if picture.outside:
            counts.add_outside(picture.labels[list(picture.outside)])
        for key, number in picture.left_out.items():
            counts.left_out[key] += number
    counts.pictures += len(chunk)
    filled = [picture for picture in chunk if len(picture.labels)]
    if not filled:
        return
    boxes, masks = region_features(encoder, filled)
    labels = torch.cat([picture.labels for picture in filled])
    own = labels.to(boxes.device)
    ranks = {
        what: label_ranks(features, embeddings, own, empty_masks=empty_masks).cpu()
        for what, features in (("boxes", boxes), ("masks", masks))
    }
    empty = torch.cat([~picture.masks.flatten(1).any(dim=1) for picture in filled])
    counts.add(labels, ranks, empty)


def region_accuracy(
    encoder: DenseEncoder,
    embeddings: Float[Tensor, "T E"],
    source: PanopticRegions,
    options: RegionOptions,
    *,
    state: Optional[Path] = None,
    name: str = "encoder",
) -> RegionScores:
    """Classifies the regions of all pictures among all T classes; the encoder is used as it is, on its device.

    `embeddings` are brought to unit length; their order is that of `source.categories`. Only counts by class are kept,
    whatever the number of pictures. With `state`, a folder, they are recorded there every `save_every` pictures under a
    hash of encoder, embeddings, options and all bytes of the set; a call that finds a record goes on from it, with
    equal numbers. `name` stands in the log. Raises UserError for an encoder without text, embeddings of another shape,
    and whatever `picture_regions` refuses. Protocol: CLIPSelf's zero-shot evaluation.
    """
    options.check()
    check_vectors(encoder, embeddings, len(source.categories), what="regions", title=source.annotations.name)
    grid = encoder.grid(*options.image_size)
    device = next(encoder.parameters()).device
    embeddings = functional.normalize(embeddings.detach().float(), dim=-1).to(device)
    counts, record = RegionCounts.zeros(len(embeddings)), None
    if state is not None:
        key = cache_key(
            encoder=encoder_digest(encoder),
            embeddings=embeddings.tolist(),
            source=source.fingerprint(),
            options=options.what_counts(),
            device=device.type,
        )
        record = CountsFile(state, key, most=len(source))
        counts = record.read() or counts
        if counts.pictures:
            what = "all counted before" if counts.pictures == len(source) else "goes on from there"
            log.info("%s: %d of %d pictures are in %s, %s", name, counts.pictures, len(source), record.path, what)
    progress = Progress(name, len(source), counts.pictures)
    load = partial(picture_regions, source, options=options, grid=grid)
    saved = counts.pictures
    for chunk in _chunks(prefetched(load, range(saved, len(source)), options.workers), options.batch_size):
        _count(counts, chunk, encoder, embeddings, options.empty_masks)
        progress.add(len(chunk))
        if record is not None and (counts.pictures - saved >= options.save_every or counts.pictures == len(source)):
            record.write(counts)
            saved = counts.pictures
    return RegionScores(source.categories, counts)
