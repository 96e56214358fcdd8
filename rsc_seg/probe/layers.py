"""The control that an earlier layer of the untuned encoder gives."""

import logging
from collections.abc import Sequence
from typing import Any, Optional

import torch

from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.errors import UserError
from rsc_seg.probe.features import LabelCache, LabelledTokens, LayersFn, extract_layers
from rsc_seg.probe.linear import linear_scores
from rsc_seg.probe.scoring import percent_summary
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.probe.suite import check_sets

log = logging.getLogger(__name__)
MAX_TRAIN_IMAGES = 150


def best_layer(
    layers_fn: LayersFn,
    train: LabelledSet,
    val: LabelledSet,
    settings: ProbeSettings,
    *,
    layers: Optional[Sequence[int]] = None,
    max_train_images: int = MAX_TRAIN_IMAGES,
    seeds: int = 1,
) -> dict[str, Any]:
    """Linear probe of every layer of one encoder, and the layer with the highest mIoU.

    `layers_fn` returns one map a layer from one pass (each after the final norm); `layers` names them, by default 1,
    2, ... Tokens are kept as float16; at most `max_train_images` training images, evenly spaced, are used. The choice
    is made on the `val` scores themselves, which favours this control against whatever is compared with it. Returns
    {"layers": [{"layer", "miou", "pacc"}], "best", "train_images", "note"}, scores in percent.
    """
    check_sets(train, val)
    indices = range(0, len(train), -(-len(train) // max_train_images))
    fitted = extract_layers(layers_fn, train, settings, indices=indices, dtype=torch.float16, name="all layers, train")
    scored = extract_layers(layers_fn, val, settings, dtype=torch.float16, name="all layers, val")
    names = list(layers) if layers is not None else list(range(1, len(scored) + 1))
    if len(names) != len(scored):
        raise UserError(f"{len(scored)} layers came back, but {len(names)} were named ({names}).")
    labels = (LabelCache(train, settings.score_scale, indices), LabelCache(val, settings.score_scale))
    table: list[dict[str, Any]] = []
    for name, a, b in zip(names, fitted, scored, strict=True):
        sets = (LabelledTokens(a, labels[0].at(a.grid)), LabelledTokens(b, labels[1].at(b.grid)))
        runs = [linear_scores(*sets, seed=settings.seed + s, settings=settings) for s in range(seeds)]
        miou, pacc = percent_summary([r.miou_present for r in runs]), percent_summary([r.pacc for r in runs])
        log.info("layer %d: linear probe %.1f mIoU", name, miou["mean"])
        table.append({"layer": name, "miou": miou, "pacc": pacc})
    best = max(table, key=lambda entry: entry["miou"]["mean"])
    note = "chosen by the linear probe on the validation images that all rows are scored on: this favours the control"
    return {"layers": table, "best": best["layer"], "train_images": len(indices), "note": note}
