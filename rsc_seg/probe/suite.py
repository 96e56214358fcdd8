"""The quick measure: every row (encoder) through the same metrics on the same two labelled sets."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.probe.affinity import affinity_probe
from rsc_seg.probe.coupling import coupling_probe
from rsc_seg.probe.features import FeatureFn, LabelCache, LabelledTokens, TokenFeatures, extract_tokens
from rsc_seg.probe.kmeans import kmeans_probe
from rsc_seg.probe.linear import linear_probe
from rsc_seg.probe.norms import NormFn, norm_probe
from rsc_seg.probe.settings import ProbeSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeRow:
    """One encoder to measure.

    `pair_fn` encodes two images side by side for the coupling ratio; None: `feature_fn`. A Refiner, which looks at one
    region at a time, needs its own: both halves of the joined image refined as regions and put side by side.
    `norm_fn` gives token norms (B, h, w) before the final norm, which evens them out; None: no norm statistics.
    """

    name: str
    feature_fn: FeatureFn
    note: str = ""
    pair_fn: Optional[FeatureFn] = None
    norm_fn: Optional[NormFn] = None


def check_sets(train: LabelledSet, val: LabelledSet) -> None:
    """Raises UserError unless both sets hold images and share their classes."""
    if list(train.classes) != list(val.classes):
        raise UserError(
            f"training and validation sets differ in classes ({len(train.classes)} and {len(val.classes)}); "
            "use splits of one set."
        )
    for what, data in (("training", train), ("validation", val)):
        if len(data) == 0:
            raise UserError(f"the {what} set holds no image.")


def _finite(value: Any) -> Any:
    """The same structure with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(row: dict[str, Any]) -> dict[str, Optional[float]]:
    """The numbers of a measured row that the tables show, flat; percent, but for the coupling values."""
    coupling = row["coupling"]
    return {
        "linear_miou": row["linear"]["miou"]["mean"],
        "linear_pacc": row["linear"]["pacc"]["mean"],
        **{f"kmeans_{k['k']}_miou": k["miou"]["mean"] for k in row["kmeans"]},
        "affinity_ap": row["affinity"]["ap"]["all"],
        "affinity_ap_beyond_6": row["affinity"]["ap"][">6"],
        "coupling_median": coupling["median"],
        "coupling_ratio_of_means": coupling["ratio_of_means"],
        "coupling_cos_joint": coupling["mean_joint"],
        "coupling_cos_alone": coupling["mean_alone"],
    }


def _measure(
    row: ProbeRow,
    train: TokenFeatures,
    val: TokenFeatures,
    labels: tuple[LabelCache, LabelCache],
    settings: ProbeSettings,
) -> dict[str, Any]:
    sets = (LabelledTokens(train, labels[0].at(train.grid)), LabelledTokens(val, labels[1].at(val.grid)))
    norm_fn = row.norm_fn
    seconds: dict[str, float] = {}

    def timed(name: str, measure: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = measure()
        seconds[name] = round(time.perf_counter() - start, 2)
        log.info("%s: %s measured in %.1f s", row.name, name, seconds[name])
        return value

    clusters = settings.clusters(len(labels[1].data.classes))
    result = {
        "linear": timed("linear", lambda: linear_probe(*sets, settings)),
        "kmeans": timed("kmeans", lambda: [kmeans_probe(*sets, k, settings) for k in clusters]),
        "affinity": timed("affinity", lambda: affinity_probe(sets[1])),
        "coupling": timed(
            "coupling", lambda: coupling_probe(row.feature_fn, row.pair_fn or row.feature_fn, labels[1].data, settings)
        ),
        "norms": timed("norms", lambda: norm_probe(norm_fn, labels[1].data, settings)) if norm_fn is not None else None,
    }
    return {**_finite(result), "seconds": seconds}


def probe_suite(
    rows: Sequence[ProbeRow], train: LabelledSet, val: LabelledSet, settings: ProbeSettings
) -> dict[str, Any]:
    """Measures every row on the same images with the same seeds; the first row is the one that deltas refer to.

    Linear probe and k-means are fitted on `train`; every number is of `val`. Features of one row are in memory at a
    time (N * L * D float32 for each set). Returns what JSON can hold: settings, classes, counts, and for each row all
    metrics, `headline` (the table's numbers) and `delta` (headline less the first row's). Scores in percent; null for
    what the images do not define. Raises UserError for no row, two rows of one name, empty sets or sets of different
    classes.
    """
    names = [row.name for row in rows]
    if not names or len(set(names)) != len(names):
        raise UserError(f"the quick measure needs at least one row and distinct names, got {names}.")
    check_sets(train, val)
    labels = (LabelCache(train, settings.score_scale), LabelCache(val, settings.score_scale))
    measured: list[dict[str, Any]] = []
    for row in rows:
        start = time.perf_counter()
        train_tokens = extract_tokens(row.feature_fn, train, settings, name=f"{row.name}, train")
        val_tokens = extract_tokens(row.feature_fn, val, settings, name=f"{row.name}, val")
        extracted = round(time.perf_counter() - start, 2)
        result = _measure(row, train_tokens, val_tokens, labels, settings)
        result["seconds"] = {"features": extracted, **result["seconds"]}
        shape = {"grid": list(val_tokens.grid), "dim": val_tokens.tokens.shape[2]}
        measured.append({"name": row.name, "note": row.note, **shape, **result, "headline": headline(result)})
    for entry in measured:
        first = measured[0]["headline"]
        entry["delta"] = {
            key: None if value is None or first[key] is None else value - first[key]
            for key, value in entry["headline"].items()
        }
    return {
        "settings": dataclasses.asdict(settings),
        "classes": list(train.classes),
        "train_images": len(train),
        "val_images": len(val),
        "units": "scores in percent; coupling ratios, cosines, norms and outlier shares as they are",
        "rows": measured,
    }


def save_json(result: dict[str, Any], path: Path) -> None:
    """Writes a result as a whole or not at all (UTF-8, indented). Raises UserError naming `path` when that fails."""
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(Path(path), write)
