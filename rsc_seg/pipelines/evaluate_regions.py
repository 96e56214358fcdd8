"""Zero-shot classification of regions for several encoders side by side."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import require_choice, to_yaml
from rsc_seg.config_zeroshot import EvaluateRegionsConfig
from rsc_seg.data import vocab
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write, sha256_of
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.models.text_embeddings import class_embeddings
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.pipelines.candidates import Candidate, open_candidates
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.regions_text import delta, write_region_csv
from rsc_seg.probe.suite import save_json
from rsc_seg.zeroshot.panoptic_regions import COCO_CLASSES, Category, PanopticRegions, open_panoptic_regions
from rsc_seg.zeroshot.region_counts import RegionScores
from rsc_seg.zeroshot.regions import RegionOptions, region_accuracy

_log = logging.getLogger(__name__)
RESULT = "regions.json"
_RULES = ("plain", "antialias")


def default_folder(config: EvaluateRegionsConfig) -> Path:
    """runs/regions_<backbone>."""
    return Path("runs") / f"regions_{config.backbone.name}"


def resolved(config: EvaluateRegionsConfig) -> EvaluateRegionsConfig:
    """The configuration with its sizes filled in; raises UserError for what does not go together."""
    row = find_backbone(config.backbone.name)
    if row.joint_dim is None:
        raise UserError(
            f"backbone '{row.name}' has no text beside it, and regions are classified by the names of classes; choose "
            "a CLIP such as clip_vitb16."
        )
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
        batch_size=regions.batch_size,
        workers=config.data.workers,
        save_every=regions.save_every,
    )


def _read_embeddings(path: Path, classes: int, width: int) -> Float[Tensor, "T E"]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{path}: not readable as an .npy file of class embeddings ({e}).") from e
    if not isinstance(values, np.ndarray) or values.shape != (classes, width) or values.dtype.kind != "f":
        have = (
            f"{values.dtype} of shape {values.shape}"
            if isinstance(values, np.ndarray)
            else "an archive of several arrays"
        )
        raise UserError(
            f"{path}: holds {have}; this set has {classes} classes and the encoder a joint space of {width}, so "
            f"numbers of shape ({classes}, {width}) are needed (regions.embeddings)."
        )
    found = torch.from_numpy(values.astype(np.float32))
    if not bool(torch.isfinite(found).all() and found.any(dim=1).all()):
        raise UserError(f"{path}: holds a row of zeros or numbers that are not finite; use another file.")
    return found


def class_vectors(
    config: EvaluateRegionsConfig, categories: Sequence[Category], device: torch.device
) -> tuple[Float[Tensor, "T E"], dict[str, str]]:
    """An embedding for each class, and where it comes from: regions.embeddings, or the CLIP's text tower."""
    row, regions = find_backbone(config.backbone.name), config.regions
    if regions.embeddings is not None:
        path = Path(regions.embeddings).expanduser()
        found = _read_embeddings(path, len(categories), row.joint_dim or 0)
        return found, {"embeddings": str(path), "sha256": sha256_of(path)}
    prompts = open_prompts(regions.prompts)
    weights = regions.text_weights or config.backbone.weights
    try:
        tower = build_text_tower(row.name, weights, device=device)
    except UserError as e:
        hint = (
            "" if regions.text_weights else " Text weights can be named apart from the image's: regions.text_weights."
        )
        raise UserError(f"{e}{hint}") from e
    sentences = class_sentences([category.name for category in categories], prompts)
    found = class_embeddings(tower, sentences, cached=weights != "none")
    return found, {"weights": weights, "prompts": f"{prompts.name}, {len(prompts.templates)} templates"}


def _what_counts(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that makes two results comparable."""
    found = {key: dict(config[key]) for key in ("backbone", "data", "regions")}
    for section, key in (("data", "workers"), ("regions", "save_every"), ("backbone", "gradient_checkpointing")):
        found[section].pop(key, None)
    return found


def check_folder(folder: Path, config: EvaluateRegionsConfig) -> None:
    """Raises UserError when `folder` cannot take the result or holds one of other options; checkpoints may differ."""
    path = folder / RESULT
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --output-dir is a file; name a folder.")
    if not path.is_file():
        return
    try:
        old = _what_counts(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a result of this command ({e!r}); remove it or choose another folder.") from e
    new = _what_counts(dataclasses.asdict(config))
    changed = [
        f"{section}.{key} ({old[section].get(key)} -> {value})"
        for section, values in new.items()
        for key, value in values.items()
        if old[section].get(key) != value
    ]
    if changed:
        raise UserError(
            f"{folder}: holds the result of other options: {', '.join(changed[:3])}; choose another --output-dir."
        )


def remarks(config: EvaluateRegionsConfig, source: PanopticRegions, scores: Sequence[RegionScores]) -> list[str]:
    """What a reader must know before comparing the numbers."""
    counts = scores[0].counts
    height, width = config.data.image_size
    rule = config.regions.mask_resize
    how = "without antialiasing" if rule == "plain" else "with antialiasing"
    empty, things = int(counts.by_class["empty_masks"].sum()), sum(category.thing for category in source.categories)
    left = counts.left_out
    lines = [
        f"{counts.pictures} pictures at {height}x{width}; masks to the token grid {how} (regions.mask_resize={rule}); "
        f"the nearest of all {len(source.categories)} classes ({things} things) for things and stuff alike.",
        f"Left out: {left['small']} segments with boxes below {config.regions.min_area:.15g} pixels, {left['large']} "
        f"above {config.regions.max_area:.15g}, {left['beyond']} beyond the first {config.regions.per_image} of a "
        f"picture, {left['no_pixels']} without a pixel. Masks without a token, counted wrong: {empty}.",
    ]
    if config.regions.embeddings is None and (config.regions.text_weights or config.backbone.weights) == "none":
        lines.append("RANDOM TEXT WEIGHTS: every class embedding is meaningless, and so is every number.")
    if [category.id for category in source.categories] != vocab.load(COCO_CLASSES).ids:
        lines.append(f"The classes of {source.annotations.name} are not COCO's 133: compare with no published number.")
    return lines


def _row(candidate: Candidate, scores: RegionScores, seconds: float) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "note": candidate.note,
        "weights": dataclasses.asdict(candidate.info),
        "scores": scores.summary(),
        "counts": scores.counts.to_json(),
        "seconds": round(seconds, 1),
    }


def run_regions(config: EvaluateRegionsConfig, folder: Path, *, checkpoints: Sequence[Path] = ()) -> dict[str, Any]:
    """Scores the untuned encoder and then every checkpoint on the same regions.

    Counts so far lie in `folder`/counts, so that the same command goes on where it was stopped, and a further
    checkpoint costs only itself. Writes regions.json, classes.csv and config.yaml at the end; returns the result.
    Whatever a user can get wrong raises UserError, before the first picture where it can be known by then.
    """
    config = resolved(config)
    check_folder(folder, config)
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
        "classes": [dataclasses.asdict(category) for category in source.categories],
        "units": "mean accuracy over the classes that have a region, in percent",
        "rows": rows,
        "remarks": remarks(config, source, scores),
        "text": text,
        "data": str(source.annotations),
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }
    yaml = to_yaml(config)
    atomic_write(folder / "config.yaml", lambda path: path.write_text(yaml, encoding="utf-8"))
    write_region_csv(folder / "classes.csv", source.categories, [row["name"] for row in rows], scores)
    save_json(result, folder / RESULT)
    return result
