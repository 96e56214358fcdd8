"""Mask-pooled features of a panoptic set's objects in a plane, encoders side by side (Fig. 1 and 15 of the paper)."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.errors import UserError, suggestion
from rsc_seg.files import atomic_write
from rsc_seg.ops.regions import masks_to_grid, pool_masks
from rsc_seg.pipelines.candidates import Candidate
from rsc_seg.pipelines.visualize_inputs import Request, open_encoders, write_figures
from rsc_seg.viz.parts import Report
from rsc_seg.viz.tsne import MOST_CLASSES, SECTION, Panel, check_perplexity, embed, tsne_group
from rsc_seg.zeroshot.panoptic_regions import KINDS, PanopticRegions, Segment, open_panoptic_regions
from rsc_seg.zeroshot.stream import Progress, prefetched

log = logging.getLogger(__name__)
MIN_AREA = 64.0  # pixels of an object's box, as in the region classification
_FEWEST = 2  # objects of a class


@dataclass(frozen=True)
class TsneOptions:
    """Names of classes (None: the things with the most instances), instances of each at most, and the perplexity."""

    classes: Optional[Sequence[str]] = None
    per_class: int = 256
    perplexity: float = 30.0

    def check(self) -> None:
        """Raises UserError for numbers and names that cannot be used."""
        if self.per_class < _FEWEST:
            raise UserError(f"--per-class {self.per_class}: must be {_FEWEST} or more.")
        if self.perplexity < 1:
            raise UserError(f"--perplexity {self.perplexity:g}: must be 1 or more.")
        names = list(self.classes) if self.classes is not None else []
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"--classes: '{twice[0]}' stands there twice.")
        if self.classes is not None and not 2 <= len(names) <= MOST_CLASSES:
            raise UserError(f"--classes: {len(names)} given; 2 to {MOST_CLASSES} can be told apart in one figure.")


@dataclass(frozen=True)
class Instance:
    """An object: the number of its picture, its segment, and the number of its class in the figure."""

    picture: int
    segment: Segment
    label: int


@dataclass
class Objects:
    """Instances whose masks have a token, and their features under every encoder's name; `empty` masks had none."""

    instances: list[Instance]
    features: dict[str, Float[np.ndarray, "N D"]]
    empty: int


def open_source(config: EvaluateConfig) -> PanopticRegions:
    """The labelled pictures of the configuration; UserError for data without instance labels."""
    data = config.data
    if data.kind not in KINDS:
        raise UserError(
            f"data.kind={data.kind}: t-SNE needs masks of single objects, which {', '.join(KINDS[1:])} have "
            "(panoptic labels in COCO's layout)."
        )
    if data.root is None and data.kind == "auto":
        raise UserError("data.root: not set; t-SNE needs panoptic labels in COCO's layout there, or data.kind=scenes.")
    return open_panoptic_regions(data.kind, data.root, data.split, data.limit, data.every)


def _usable(segment: Segment) -> bool:
    return segment.box[2] * segment.box[3] >= MIN_AREA


def choose_classes(source: PanopticRegions, names: Optional[Sequence[str]]) -> list[int]:
    """Numbers of the classes to show: those named, or the things with the most objects (ties: the lower id first).

    Raises UserError for a name that the set does not have, and for fewer than two things with objects.
    """
    known = [category.name for category in source.categories]
    if names is not None:
        for name in names:
            if name not in known:
                raise UserError(f"--classes: {source.annotations.name} has no class '{name}'.{suggestion(name, known)}")
        return [known.index(name) for name in names]
    counts = Counter(s.label for segments in source.segments for s in segments if s.thing and _usable(s))
    enough = [label for label, count in counts.items() if count >= _FEWEST]
    if len(enough) < 2:
        raise UserError(
            f"{source.annotations}: {len(enough)} classes of things have {_FEWEST} objects or more; t-SNE needs two. "
            "Use more pictures, or name classes (--classes)."
        )
    return sorted(enough, key=lambda label: (-counts[label], label))[:MOST_CLASSES]


def choose_instances(
    source: PanopticRegions, classes: Sequence[int], options: TsneOptions, seed: int
) -> list[Instance]:
    """Up to `per_class` objects of each class, drawn by the seed from all pictures, in the order of the pictures.

    Raises UserError for a class with fewer than two, and for too few in all for the perplexity.
    """
    chosen: list[Instance] = []
    for number, label in enumerate(classes):
        own = [
            Instance(i, segment, number)
            for i, segments in enumerate(source.segments)
            for segment in segments
            if segment.label == label and _usable(segment)
        ]
        if len(own) < _FEWEST:
            raise UserError(
                f"{source.annotations}: {len(own)} objects of class '{source.categories[label].name}'; t-SNE needs "
                f"{_FEWEST} or more of each. Name other classes or use more pictures."
            )
        order = np.random.default_rng([seed, label]).permutation(len(own))[: options.per_class]
        chosen += [own[k] for k in order]
    check_perplexity(options.perplexity, len(chosen))
    return sorted(chosen, key=lambda instance: (instance.picture, instance.segment.id))


def _loaded(
    source: PanopticRegions, i: int, own: Sequence[Instance], size: Sequence[int], grid: tuple[int, int]
) -> tuple[Tensor, Bool[Tensor, "R h w"]]:
    """Picture `i` in its frame and the masks of its objects on the token grid."""
    image, ids = source.load(i)
    frame = fit_image(image, size, "pad", name=source.name(i))[0]
    masks = np.stack([ids == instance.segment.id for instance in own])
    return frame, masks_to_grid(torch.from_numpy(masks), grid, antialias=False)


@torch.inference_mode()
def pooled_objects(
    source: PanopticRegions,
    instances: Sequence[Instance],
    encoders: Sequence[Candidate],
    size: Sequence[int],
    workers: int,
) -> Objects:
    """Mask-pooled unit features of all instances under every encoder, picture by picture; only they are kept."""
    grid = encoders[0].encoder.grid(size[0], size[1])
    by_picture: dict[int, list[Instance]] = {}
    for instance in instances:
        by_picture.setdefault(instance.picture, []).append(instance)
    kept: list[Instance] = []
    parts: dict[str, list[np.ndarray]] = {candidate.name: [] for candidate in encoders}
    empty, progress = 0, Progress("objects", len(by_picture))
    order = list(by_picture)

    def load(k: int) -> tuple[Tensor, Tensor]:
        return _loaded(source, order[k], by_picture[order[k]], size, grid)

    for k, (frame, masks) in enumerate(prefetched(load, range(len(order)), workers)):
        there = masks.flatten(1).any(dim=1)
        empty += int((~there).sum())
        kept += [instance for instance, full in zip(by_picture[order[k]], there.tolist(), strict=True) if full]
        for candidate in encoders:
            encoder = candidate.encoder
            device = next(encoder.parameters()).device
            maps = encoder.dense(normalize(frame, encoder.mean, encoder.std)[None].to(device))
            parts[candidate.name].append(pool_masks(maps, [masks[there].to(device)]).cpu().numpy())
        progress.add(1)
    return Objects(kept, {name: np.concatenate(found) for name, found in parts.items()}, empty)


def _write_csv(
    path: Path, source: PanopticRegions, objects: Objects, classes: Sequence[str], panels: Sequence[Panel]
) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["picture", "segment", "class", *(f"{p.name}: {axis}" for p in panels for axis in "xy")])
            for k, instance in enumerate(objects.instances):
                at = [f"{value:.4f}" for panel in panels for value in panel.places[k]]
                out.writerow([source.name(instance.picture), instance.segment.id, classes[instance.label], *at])

    atomic_write(path, write)


def draw_tsne(config: EvaluateConfig, request: Request, options: TsneOptions) -> list[Path]:
    """Writes the figure, tsne.csv with every object's places, and tsne.html; returns the files, the page last.

    All encoders see the same objects, drawn by run.seed, which is t-SNE's seed too. Raises UserError for data without
    instance labels, unknown classes, too few objects, and a perplexity that is too large for them.
    """
    options.check()
    request.check()
    source = open_source(config)
    labels = choose_classes(source, options.classes)
    names = [source.categories[label].name for label in labels]
    instances = choose_instances(source, labels, options, config.run.seed)
    encoders = open_encoders(config, request)
    objects = pooled_objects(source, instances, encoders, request.size, config.data.workers)
    check_perplexity(options.perplexity, len(objects.instances))
    numbers = np.array([instance.label for instance in objects.instances])
    panels = []
    for name, features in objects.features.items():
        log.info("%s: t-SNE of %d objects", name, len(features))
        panels.append(Panel(name, features, embed(features, options.perplexity, config.run.seed)))
    height, width = request.size
    empty = f"; {objects.empty} without a token left out" if objects.empty else ""
    caption = (
        f"{len(numbers)} objects of {source.annotations.name}, at most {options.per_class} of a class, drawn by seed "
        f"{config.run.seed}{empty}. Pictures padded to {height}x{width}, masks brought to the tokens by bicubic "
        f"resizing without antialiasing. Perplexity {options.perplexity:g}."
    )
    group = tsne_group(panels, numbers, names, caption, config.run.seed)
    table = request.folder / "tsne.csv"
    _write_csv(table, source, objects, names, panels)
    page = Report(
        f"Objects of {encoders[0].encoder.name} in a plane",
        f"{len(numbers)} objects of {len(names)} classes",
        sections=[SECTION],
    )
    files = write_figures(request, encoders, [group], page, "tsne")
    return [*files[:-1], table, files[-1]]
