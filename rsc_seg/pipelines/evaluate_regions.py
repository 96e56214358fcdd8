"""Zero-shot classification of regions for several encoders side by side."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.config_zeroshot import EvaluateRegionsConfig
from rsc_seg.data import vocab
from rsc_seg.errors import UserError
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.pipelines.candidates import Candidate, open_candidates
from rsc_seg.pipelines.class_vectors import TextOptions, require_text, text_vectors
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.measure_folder import IDLE, check_folder, encoder_facts, provenance, write_result
from rsc_seg.pipelines.regions_text import delta, result_lines, write_region_csv
from rsc_seg.zeroshot.panoptic_regions import COCO_CLASSES, Category, PanopticRegions, open_panoptic_regions
from rsc_seg.zeroshot.region_counts import RegionScores
from rsc_seg.zeroshot.regions import RegionOptions, region_accuracy

_log = logging.getLogger(__name__)
RESULT = "regions.json"
__all__ = ["RESULT", "default_folder", "region_options", "resolved", "result_lines", "run_regions"]
_RULES = ("plain", "antialias")


def default_folder(config: EvaluateRegionsConfig) -> Path:
    """runs/regions_<backbone>."""
    return Path("runs") / f"regions_{config.backbone.name}"


def resolved(config: EvaluateRegionsConfig) -> EvaluateRegionsConfig:
    """The configuration with its sizes filled in; raises UserError for what does not go together."""
    row = require_text(config.backbone.name, "regions")
    require_choice("regions.mask_resize", config.regions.mask_resize, _RULES)
    require_choice("regions.no_pixels", config.regions.no_pixels, ("skip", "fatal"))
    if config.data.fit != "pad":
        raise UserError(f"data.fit={config.data.fit}: regions are measured on padded pictures; leave data.fit=pad.")
    fill_sizes(row.name, config.data)
    region_options(config).check()
    return config


def region_options(config: EvaluateRegionsConfig) -> RegionOptions:
    """The options of the measure itself."""
    regions, (height, width) = config.regions, config.data.image_size
    return RegionOptions(
        image_size=(height, width),
        antialias=regions.mask_resize == "antialias",
        per_image=regions.per_image,
        min_area=regions.min_area,
        max_area=regions.max_area,
        skip_no_pixels=regions.no_pixels == "skip",
        empty_masks=regions.empty_masks,
        batch_size=regions.batch_size,
        workers=config.data.workers,
        save_every=regions.save_every,
    )


def class_vectors(
    config: EvaluateRegionsConfig, categories: Sequence[Category], device: torch.device
) -> tuple[Float[Tensor, "T E"], dict[str, str]]:
    """An embedding for each class, and where it comes from: regions.embeddings, or the CLIP's text tower."""
    regions = config.regions
    options = TextOptions("regions", regions.prompts, regions.text_weights, regions.embeddings)
    return text_vectors(config.backbone, [category.name for category in categories], options, device)


def remarks(config: EvaluateRegionsConfig, source: PanopticRegions, scores: Sequence[RegionScores]) -> list[str]:
    """What a reader must know before comparing the numbers."""
    counts = scores[0].counts
    height, width = config.data.image_size
    rule = config.regions.mask_resize
    how = "without antialiasing" if rule == "plain" else "with antialiasing"
    empty, things = int(counts.by_class["empty_masks"].sum()), sum(category.thing for category in source.categories)
    left, outside = counts.left_out, int(counts.by_class["outside_boxes"].sum())
    ranked = "counted wrong" if config.regions.empty_masks == "wrong" else "ranked by torch.topk as officially"
    lines = [
        f"{counts.pictures} pictures at {height}x{width}; masks to the token grid {how} (regions.mask_resize={rule}); "
        f"the nearest of all {len(source.categories)} classes ({things} things) for things and stuff alike.",
        f"Left out: {left['small']} segments with boxes below {config.regions.min_area:.15g} pixels, {left['large']} "
        f"above {config.regions.max_area:.15g}, {left['beyond']} beyond the first {config.regions.per_image} of a "
        f"picture, {left['no_pixels']} without a pixel. Masks without a token, {ranked}: {empty}.",
    ]
    if outside:
        lines.append(f"{outside} annotated boxes lie outside their pictures and stay in the count.")
    if config.regions.embeddings is None and (config.regions.text_weights or config.backbone.weights) == "none":
        lines.append("RANDOM TEXT WEIGHTS: every class embedding is meaningless, and so is every number.")
    if [category.id for category in source.categories] != vocab.load(COCO_CLASSES).ids:
        lines.append(f"The classes of {source.annotations.name} are not COCO's 133: compare with no published number.")
    return lines


def _row(candidate: Candidate, scores: RegionScores, seconds: float) -> dict[str, Any]:
    counted = {"scores": scores.summary(), "counts": scores.counts.to_json()}
    return encoder_facts(candidate, seconds) | counted


def run_regions(config: EvaluateRegionsConfig, folder: Path, *, checkpoints: Sequence[Path] = ()) -> dict[str, Any]:
    """Scores the untuned encoder and then every checkpoint on the same regions.

    Counts so far lie in `folder`/counts, so that the same command goes on where it was stopped, and a further
    checkpoint costs only itself. Writes regions.json, classes.csv and config.yaml at the end; returns the result.
    Whatever a user can get wrong raises UserError, before the first picture where it can be known by then.
    """
    config = resolved(config)
    check_folder(folder / RESULT, config, ("backbone", "data", "regions"), (*IDLE, "regions.save_every"))
    device = choose_device(config.run.device)
    data = config.data
    source = open_panoptic_regions(data.kind, data.root, data.split, data.limit, data.every)
    candidates = open_candidates(config.backbone, checkpoints, device)
    embeddings, text = class_vectors(config, source.categories, device)
    _log.info("%d pictures, %d classes: reading all bytes of the set once", len(source), len(source.categories))
    rows, scores = [], []
    for candidate in candidates:
        start = time.perf_counter()
        found = region_accuracy(
            candidate.encoder,
            embeddings,
            source,
            region_options(config),
            state=folder / "counts",
            name=candidate.name,
        )
        rows.append(_row(candidate, found, time.perf_counter() - start))
        scores.append(found)
    for row in rows:
        row["delta"] = delta(row["scores"], rows[0]["scores"])
    result = {
        "pictures": len(source),
        "empty_masks": int(scores[0].counts.by_class["empty_masks"].sum()),
        "outside_boxes": int(scores[0].counts.by_class["outside_boxes"].sum()),
        "classes": [dataclasses.asdict(category) for category in source.categories],
        "units": "mean accuracy over the classes that have a region, in percent",
        "rows": rows,
        "remarks": remarks(config, source, scores),
        "text": text,
        "data": str(source.annotations),
        **provenance(config),
    }
    write_region_csv(folder / "classes.csv", source.categories, [row["name"] for row in rows], scores)
    write_result(folder / RESULT, result, config)
    return result
