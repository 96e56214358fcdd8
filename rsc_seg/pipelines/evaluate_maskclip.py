"""MaskCLIP's zero-shot segmentation for several encoders side by side."""

import csv
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config_zeroshot import EvaluateMaskclipConfig
from rsc_seg.files import atomic_write
from rsc_seg.pipelines.candidates import open_candidates
from rsc_seg.pipelines.class_vectors import TextOptions, require_text, text_vectors
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.measure_folder import (
    IDLE,
    aligned,
    cell,
    check_folder,
    closing_lines,
    difference,
    encoder_facts,
    provenance,
    write_result,
)
from rsc_seg.zeroshot.class_sets import ClassSet, open_class_set
from rsc_seg.zeroshot.maskclip import MaskclipCounts, MaskclipOptions, maskclip_counts

_log = logging.getLogger(__name__)
RESULT = "maskclip.json"
SCORES = {"miou": "mIoU", "miou_union": "mIoU union", "macc": "mAcc", "pacc": "pAcc", "fwiou": "fwIoU"}
_IDLE = (
    *IDLE,
    *(f"data.{key}" for key in ("image_size", "fit", "hflip", "on_error", "proposals")),
    *(f"maskclip.{key}" for key in ("class_chunk", "window_batch", "save_every")),
)


def default_folder(config: EvaluateMaskclipConfig) -> Path:
    """runs/maskclip_<backbone>, with the prepared set's name behind it."""
    what = f"_{config.maskclip.set}" if config.maskclip.set else ""
    return Path("runs") / f"maskclip_{config.backbone.name}{what}"


def maskclip_options(config: EvaluateMaskclipConfig) -> MaskclipOptions:
    """The options of the measure itself."""
    options = config.maskclip
    return MaskclipOptions(
        short_side=options.short_side,
        window=options.window,
        stride=options.stride,
        average=options.average,
        scale=options.scale,
        precision=config.run.precision,
        class_chunk=options.class_chunk,
        window_batch=options.window_batch,
        workers=config.data.workers,
        save_every=options.save_every,
    )


def resolved(config: EvaluateMaskclipConfig) -> EvaluateMaskclipConfig:
    """The configuration as it is; raises UserError for what does not go together."""
    row = require_text(config.backbone.name, "tokens")
    maskclip_options(config).check(row.patch_size)
    return config


def summary(counts: MaskclipCounts) -> dict[str, Optional[float]]:
    """The scores in percent, None for what has no pixel."""
    found = counts.scores()
    values = (found.miou_present, found.miou_union, found.macc, found.pacc, found.fwiou)
    return {key: 100 * v if math.isfinite(v) else None for key, v in zip(SCORES, values, strict=True)}


def remarks(config: EvaluateMaskclipConfig, source: ClassSet, counts: MaskclipCounts) -> list[str]:
    """What a reader must know before comparing the numbers."""
    options = config.maskclip
    seen = "one view of the whole picture, sides rounded to whole patches"
    if options.window is not None:
        what = "cosines" if options.average == "logits" else f"probabilities (softmax of {options.scale:g} cosines)"
        seen = f"windows of {options.window} pixels, {options.stride} apart, {what} averaged"
    present = sum(pixels > 0 for pixels in counts.pixels)
    lines = [
        f"{counts.pictures} pictures of {source.title}, short side at {options.short_side} pixels, {seen}; scored at "
        f"the labels' own size; precision {config.run.precision}.",
        f"{source.classes} classes, {present} of them in the labels. mIoU: mean over those; union: over those that are "
        "labelled or predicted.",
    ]
    if options.embeddings is None and (options.text_weights or config.backbone.weights) == "none":
        lines.append("RANDOM TEXT WEIGHTS: every class embedding is meaningless, and so is every number.")
    return lines


def text_table(result: Mapping[str, Any]) -> list[str]:
    """Aligned columns: an encoder in each line, its change from the first in brackets."""
    lines = [["%", *SCORES.values()]]
    for place, row in enumerate(result["rows"]):
        changes = row["delta"] if place else {}
        lines.append([row["name"], *(cell(row["scores"][key], changes.get(key)) for key in SCORES)])
    return aligned(lines)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for a console."""
    return [*text_table(result), *closing_lines(result)]


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.4f}"


def write_class_csv(path: Path, source: ClassSet, names: Sequence[str], found: Sequence[MaskclipCounts]) -> None:
    """IoU and accuracy (recall) of each class in percent, two columns an encoder; empty where there is no pixel."""
    columns = [values for counts in found for values in (counts.scores().iou, counts.recall)]
    header = ["label", "class", "pixels", *(f"{name}: {what}" for name in names for what in ("IoU", "accuracy"))]

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(header)
            for t, name in enumerate(source.class_names):
                out.writerow([t, name, found[0].pixels[t], *(_percent(column[t]) for column in columns)])

    atomic_write(path, write)


def run_maskclip(config: EvaluateMaskclipConfig, folder: Path, *, checkpoints: Sequence[Path] = ()) -> dict[str, Any]:
    """Scores the untuned encoder and then every checkpoint on the same pictures with the same class embeddings.

    Counts so far lie in `folder`/counts, so that the same command goes on where it was stopped, and a further
    checkpoint costs only itself. Writes maskclip.json, classes.csv and config.yaml at the end; returns the result.
    Whatever a user can get wrong raises UserError, before the first picture where it can be known by then.
    """
    config = resolved(config)
    check_folder(folder / RESULT, config, ("backbone", "data", "maskclip"), _IDLE, run=("precision",))
    device, options = choose_device(config.run.device), config.maskclip
    source = open_class_set(config.data, options.set, options.vocabulary)
    candidates = open_candidates(config.backbone, checkpoints, device)
    text = TextOptions("maskclip", options.prompts, options.text_weights, options.embeddings)
    embeddings, origin = text_vectors(config.backbone, source.names, text, device)
    _log.info("%d pictures, %d classes: reading all bytes of the set once", len(source), source.classes)
    rows: list[dict[str, Any]] = []
    found: list[MaskclipCounts] = []
    for candidate in candidates:
        start = time.perf_counter()
        counts = maskclip_counts(
            candidate.encoder,
            embeddings,
            source,
            maskclip_options(config),
            state=folder / "counts",
            name=candidate.name,
        )
        scores = summary(counts)
        first = rows[0]["scores"] if rows else scores
        change = {key: difference(value, first[key]) for key, value in scores.items()}
        rows.append(encoder_facts(candidate, time.perf_counter() - start) | {"scores": scores, "delta": change})
        found.append(counts)
    result = {
        "set": source.title,
        "pictures": len(source),
        "classes": list(source.class_names),
        "names": list(source.names),
        "units": "percent",
        "rows": rows,
        "remarks": remarks(config, source, found[0]),
        "text": origin,
        **provenance(config),
    }
    write_class_csv(folder / "classes.csv", source, [row["name"] for row in rows], found)
    write_result(folder / RESULT, result, config)
    return result
