"""Cat-Seg on one's own pictures: an overlay with legend, a label file and the facts of each."""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rsc_seg.config import require_choice, to_yaml
from rsc_seg.config_catseg import SegmentConfig
from rsc_seg.data.segmentation import distinct_palette
from rsc_seg.data.source import load_image_file
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.catseg_folder import WEIGHTS, WEIGHTS_FACTS
from rsc_seg.pipelines.catseg_plan import catseg_plan, sliding_options
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.segment_inputs import KIND, find_pictures, output_names, result_files
from rsc_seg.seg.build import build_catseg
from rsc_seg.seg.inference import Segmentation, SlidingOptions, predict_labels
from rsc_seg.seg.model import CatSeg
from rsc_seg.viz.overlay import class_shares, label_file_picture, overlay_picture, percent
from rsc_seg.viz.png import text_entries

log = logging.getLogger(__name__)

MEANINGLESS = "RANDOM WEIGHTS: no trained Cat-Seg was loaded, the labels mean nothing."
PRECISIONS = ("32-true", "bf16-mixed")
_MAP_VALUES = 2**27  # probabilities at the picture's size that are held at once (512 MiB)
_MOST_IN_LINE = 5  # classes that a picture's line names


@dataclass(frozen=True)
class Request:
    """What to segment into which classes; `background` is one of them and has no colour in the overlay."""

    images: Sequence[Path]
    names: Sequence[str]
    folder: Path
    weights: Optional[Path] = None  # a whole Cat-Seg
    alpha: float = 0.5
    background: Optional[str] = None


@dataclass(frozen=True)
class Result:
    """One picture: what was found in words, or why it could not be read; its files."""

    image: Path
    line: str
    files: dict[str, Path]
    error: str = ""


@dataclass(frozen=True)
class _Model:
    """The model with what is the same for every picture."""

    model: CatSeg
    text: Tensor
    sliding: Optional[SlidingOptions]
    config: SegmentConfig
    facts: dict[str, Any]


def _check(config: SegmentConfig, request: Request) -> None:
    if not 0 <= request.alpha <= 1:
        raise UserError(f"--alpha {request.alpha}: must be from 0 (photograph) to 1 (colours alone).")
    if not 1 <= config.min_size_test <= config.max_size_test:
        raise UserError(
            f"min_size_test={config.min_size_test}: must be from 1 to max_size_test={config.max_size_test}."
        )
    require_choice("run.precision", config.run.precision, PRECISIONS)
    if request.folder.exists() and not request.folder.is_dir():
        raise UserError(f"{request.folder}: --output-dir is a file; name a folder.")
    if request.weights is None and config.clip.weights != "none":
        raise UserError(
            "--weights: no trained Cat-Seg given, without which every label is random; give a file such as the "
            "released model_base.pth or that of a run, or clip.weights=none for a trial on random weights."
        )
    if len(request.names) == 1:
        log.warning("one class alone: every pixel becomes '%s'; name what else there is", request.names[0])


def _weights_facts(config: SegmentConfig, info: WeightsInfo, weights: Optional[Path]) -> dict[str, Any]:
    """What is known of the weights, also from the file that a training run leaves beside them."""
    found = {"source": info.source, "backbone": config.clip.name, "licence": info.licence, "note": info.note}
    if weights is None:
        return {**found, "note": MEANINGLESS}
    beside = weights.expanduser().with_name(WEIGHTS_FACTS)
    if weights.name != WEIGHTS or not beside.is_file():
        return found
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        began = f"The training of this model began with: {told['note']}" if told["note"] else ""
        return {**found, "licence": str(told["licence"]), "note": began}
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: not readable; nothing is known about the weights beside it", beside)
        return found


def fit_short_side(image: Image.Image, short: int, longest: int) -> Image.Image:
    """The picture with its short side at `short` pixels, or less where its long side would exceed `longest`.

    Sizes and smoothing are those of detectron2's ResizeShortestEdge, with which the published numbers were made.
    """
    scale = short / min(image.size)
    if scale * max(image.size) > longest:
        scale = longest / max(image.size)
    size = (max(1, int(image.width * scale + 0.5)), max(1, int(image.height * scale + 0.5)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def protocol_lines(config: SegmentConfig, model: CatSeg, sliding: Optional[SlidingOptions]) -> list[str]:
    """How a picture reaches the model and its answer the picture's size."""
    height, width = model.image_size
    seen = f"at {height}x{width} pixels"
    short = f"The picture's short side at {config.min_size_test} pixels (the long one at most {config.max_size_test})"
    if sliding is None:
        how = f"{short}, one view of the whole, seen {seen}."
    else:
        tiles = f"{len(sliding.corners)} tiles of {sliding.window} pixels"
        view = " and one view of the whole" if sliding.global_view else ""
        how = (
            f"{short}, then at {sliding.size[0]}x{sliding.size[1]}: {tiles}{view}, each seen {seen}; "
            "probabilities averaged."
        )
    return [how, "The class with the highest probability at every pixel of the picture's own size."]


def _prepared(config: SegmentConfig, request: Request) -> _Model:
    device, sliding = choose_device(config.run.device), sliding_options(config.test)
    plan = catseg_plan(config.clip, config.model, seed=config.run.seed, checkpoint=request.weights)
    model, info = build_catseg(plan, device)
    model.eval().requires_grad_(False)
    if request.weights is None:
        log.warning("%s", MEANINGLESS)
    facts = {
        "weights": _weights_facts(config, info, request.weights),
        "protocol": protocol_lines(config, model, sliding),
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
        "config": to_yaml(config),
    }
    with torch.no_grad():
        text = model.embed_classes(request.names)
    return _Model(model, text, sliding, config, facts)


def _bounded(model: CatSeg, pixels: int) -> None:
    """Fewer classes at a time for large pictures: what is held at the picture's size is bounded, no result changes."""
    options = model.options
    most = max(1, _MAP_VALUES // max(1, pixels))
    model.options = dataclasses.replace(options, class_chunk=min(options.class_chunk, most))


def _predict(prepared: _Model, image: Image.Image, names: Sequence[str]) -> Segmentation:
    model, config = prepared.model, prepared.config
    fitted = fit_short_side(image, config.min_size_test, config.max_size_test)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    before = model.options
    _bounded(model, image.width * image.height)
    mixed = config.run.precision == "bf16-mixed"
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
            return predict_labels(
                model,
                [pixels],
                names,
                sizes=[(image.height, image.width)],
                sliding=prepared.sliding,
                view_batch=config.test.view_batch,
                text=prepared.text,
            )[0]
    finally:
        model.options = before


def _class_rows(names: Sequence[str], labels: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    """Of every class its label, share and mean winning probability, in the order of the labels."""
    flat = labels.ravel()
    pixels = np.bincount(flat, minlength=len(names))
    sums = np.bincount(flat, weights=scores.ravel().astype(np.float64), minlength=len(names))
    shares = class_shares(labels, len(names))
    return [
        {
            "label": k,
            "name": name,
            "pixels": int(pixels[k]),
            "share": round(shares[k], 6),
            "mean_score": round(float(sums[k] / pixels[k]), 6) if pixels[k] else None,
        }
        for k, name in enumerate(names)
    ]


def _line(image: Path, rows: Sequence[dict[str, Any]], overlay: Path) -> str:
    found = sorted((row for row in rows if row["pixels"]), key=lambda row: -row["share"])
    parts = [f"{row['name']} {percent(row['share'])}" for row in found[:_MOST_IN_LINE]]
    rest = found[_MOST_IN_LINE:]
    parts += [f"{len(rest)} more {percent(math.fsum(row['share'] for row in rest))}"] if rest else []
    return f"{image}: {', '.join(parts)} -> {overlay}"


def _write(files: dict[str, Path], *, overlay: Image.Image, labels: Image.Image, facts: dict[str, Any]) -> None:
    """All files of a picture or none; names, command and weights stand in the pictures too."""
    entries = {
        "Title": Path(facts["image"]).name,
        "Classes": json.dumps(facts["names"], ensure_ascii=False),
        "Command": facts["command"],
        "Commit": facts["commit"],
        "Weights": facts["weights"]["source"],
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    # the JSON file comes first: it tells later runs whose names these are
    atomic_write_group(
        {
            files["facts"]: lambda path: path.write_text(text, encoding="utf-8"),
            files["labels"]: partial(labels.save, format="PNG", pnginfo=text_entries(entries)),
            files["overlay"]: partial(overlay.save, format="PNG", pnginfo=text_entries(entries)),
        }
    )


def _segment_one(prepared: _Model, request: Request, path: Path, name: str) -> Result:
    files = result_files(request.folder, name)
    try:
        image = load_image_file(path)
    except ImageError as e:
        return Result(path, "", {}, str(e))
    found = _predict(prepared, image, request.names)
    labels, scores = found.labels.cpu().numpy(), found.scores.float().cpu().numpy()
    rows, palette = _class_rows(request.names, labels, scores), distinct_palette(len(request.names))
    clear = [k for k, n in enumerate(request.names) if n == request.background]
    overlay = overlay_picture(
        image,
        labels,
        request.names,
        palette,
        alpha=request.alpha,
        clear=clear,
        notes=[note for note in [prepared.facts["weights"]["note"]] if note],
    )
    facts = {
        "kind": KIND,
        "image": str(path.resolve()),
        "size": {"height": image.height, "width": image.width},
        "labels": files["labels"].name,
        "overlay": files["overlay"].name,
        "names": list(request.names),
        "background": request.background,
        "classes": rows,
        "mean_score": round(float(scores.mean(dtype=np.float64)), 6),
        **prepared.facts,
    }
    _write(files, overlay=overlay, labels=label_file_picture(labels, palette), facts=facts)
    return Result(path, _line(path, rows, files["overlay"]), files)


def segment_pictures(config: SegmentConfig, request: Request) -> Iterator[Result]:
    """Segments picture after picture and writes NAME_overlay.png, NAME_labels.png and NAME.json for each.

    A picture that cannot be read gives a result with `error`, and the others go on. Raises UserError at once for
    whatever else cannot be used: classes, options, weights, device, paths.
    """
    _check(config, request)
    images = find_pictures(request.images, request.folder)
    names = output_names(images, request.folder)
    prepared = _prepared(config, request)
    for image, name in zip(images, names, strict=True):
        yield _segment_one(prepared, request, image, name)
