"""The HTML report of a run: its table, curves and pictures."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.images import open_images
from rsc_seg.pipelines.candidates import Candidate, layer_candidate, run_candidates, untuned
from rsc_seg.pipelines.folder import config_yaml
from rsc_seg.pipelines.pictures import NORM_DEFINITION, Picture, figure_groups, picture, spread_pictures
from rsc_seg.pipelines.probe import pick_device
from rsc_seg.viz.charts import Sample, Series, histogram, line_chart
from rsc_seg.viz.parts import Cell, Chart, Column, Report, Row, Table
from rsc_seg.viz.report import write_report

_log = logging.getLogger(__name__)
_PHOTOS = ("chelsea", "astronaut", "china", "coffee")  # shown when a run used the embedded set
_TITLES = {
    "refine": "Stage 1: Refiner",
    "distill": "Stage 2: student",
    "control": "Control: SCD without the Refiner",
    "end_to_end": "End to end",
}
_LIMITS = [
    "The rows come from one training run; ± is over probe seeds only. Training noise comes on top and is of the order "
    "of one to two points: read small differences together with the README's table over several training seeds.",
    "The linear probe alone does not show whether features of one surface still resemble each other: affinity AP, "
    "above all beyond a distance of 6 tokens, does.",
    "The coupling ratio also falls when features collapse, and the Refiner's is low by construction, because each "
    "region is cut out before its head: it stands beside the mean cosines and ranks nothing alone.",
]


def _table(result: dict[str, Any]) -> Table:
    first = result["rows"][0]
    columns = [
        Column("linear_miou", "linear probe", "mIoU", better="higher"),
        Column("linear_pacc", "linear probe", "pAcc", better="higher"),
    ]
    columns += [Column(f"kmeans_{k['k']}_miou", f"k-means, {k['k']}", "mIoU", better="higher") for k in first["kmeans"]]
    columns += [
        Column("affinity_ap", "affinity AP", better="higher"),
        Column("affinity_ap_beyond_6", "affinity AP, distance > 6", better="higher"),
        Column("coupling_median", "coupling ratio", "median", 3, "one"),
        Column("coupling_ratio_of_means", "coupling ratio", "ratio of means", 3, "one"),
        Column("coupling_cos_joint", "mean cosine", "side by side", 2),
        Column("coupling_cos_alone", "mean cosine", "alone", 2),
    ]
    rows = []
    for i, entry in enumerate(result["rows"]):
        cells: dict[str, Cell | float | None] = dict(entry["headline"])
        cells["linear_miou"] = Cell(entry["linear"]["miou"]["mean"], entry["linear"]["miou"]["std"])
        cells["linear_pacc"] = Cell(entry["linear"]["pacc"]["mean"], entry["linear"]["pacc"]["std"])
        for k in entry["kmeans"]:
            cells[f"kmeans_{k['k']}_miou"] = Cell(k["miou"]["mean"], k["miou"]["std"])
        rows.append(Row(entry["name"], cells, entry["note"], reference=i == 0))
    height, width = result["settings"]["image_size"]
    caption = (
        f"Linear probe and k-means fitted on {result['train_images']} training images, everything scored on "
        f"{result['val_images']} validation images ({result['data']}, {' -> '.join(result['splits'])}) at "
        f"{height}x{width} pixels; {len(result['classes'])} classes; scores in percent; ± over probe seeds. "
        "Small numbers: difference from the first row."
    )
    return Table("Before, controls, Refiner, after", columns, rows, caption)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def summary_lines(result: dict[str, Any]) -> list[str]:
    """What the table says, in words made from its numbers alone."""
    rows = {row["name"]: row["headline"] for row in result["rows"]}
    names = list(rows)
    students = [n for n in names if n.startswith("student")]
    if not students:
        return []
    student, lines = students[-1], []
    others = [names[0], *(n for n in names if "(best)" in n or n.startswith("SCD control"))]
    parts = [f"{_signed(rows[student]['linear_miou'] - rows[n]['linear_miou'])} against “{n}”" for n in others]
    lines.append(f"Linear probe of “{student}”: {rows[student]['linear_miou']:.1f} mIoU, " + ", ".join(parts) + ".")
    far = "affinity_ap_beyond_6"
    change = [rows[student][k] - rows[names[0]][k] for k in ("affinity_ap", far)]
    lines.append(
        f"Affinity AP of the same row: {_signed(change[0])} against the untuned last layer, {_signed(change[1])} "
        "beyond a distance of 6 tokens"
        + (": tokens of one class that lie far apart resemble each other less than before." if change[1] < -1 else ".")
    )
    ratio = "coupling_median"
    lines.append(f"Coupling ratio (median): {rows[names[0]][ratio]:.3f} before, {rows[student][ratio]:.3f} after.")
    return lines


def _read_metrics(folder: Path) -> dict[str, list[dict[str, float]]]:
    stages: dict[str, list[dict[str, float]]] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        row = json.loads(line)
        stages.setdefault(row["stage"], []).append(row)
    return stages


def _curves(folder: Path) -> list[Chart]:
    stages = _read_metrics(folder)
    charts = []
    for stage, rows in stages.items():
        steps = [r["step"] + 1 for r in rows]
        excess = [r.get("excess") for r in rows]
        if all(v is not None for v in excess):
            title, values, about = "loss above the target's entropy", excess, "zero means equal correlations"
        else:
            title, values, about = "loss", [r["loss"] for r in rows], "alignment loss"
        svg = line_chart(f"{_TITLES.get(stage, stage)}: {title}", [Series(title, steps, values)], y_label=title)  # type: ignore[arg-type]
        charts.append(Chart(_TITLES.get(stage, stage), svg, about))
    norms = [
        Series(_TITLES.get(s, s), [r["step"] + 1 for r in rows], [r["token_norm"] for r in rows])
        for s, rows in stages.items()
        if "token_norm" in rows[0]
    ]
    if norms:
        about = f"Student and control: tokens {NORM_DEFINITION}. Refiner: its output."
        charts.append(Chart("Mean token norm", line_chart("Mean token norm", norms, y_label="mean token norm"), about))
    return charts


def _histogram(pictures: list[Picture], candidates: list[Candidate]) -> list[Chart]:
    samples = []
    with torch.no_grad():
        for c in candidates:
            if c.norms is not None:
                samples.append(
                    Sample(c.name, np.concatenate([c.norms(p.x[None]).cpu().numpy().ravel() for p in pictures]))
                )
    if not samples:
        return []
    svg = histogram("Token norms", samples, x_label=f"length of tokens {NORM_DEFINITION}", log_y=True)
    return [Chart("Token-norm histogram", svg, f"All tokens of the {len(pictures)} pictures below.", "Token norms")]


def _pictures(config: EvaluateConfig, encoder: Any) -> list[Picture]:
    size = config.data.image_size
    if config.data.kind == "scenes":
        from rsc_seg.data.photos import load_photo

        return [picture(name, load_photo(name), size, encoder) for name in _PHOTOS]
    source = open_images(config.data.kind, config.data.root, config.probe.val_split)
    return spread_pictures(source, 4, size, encoder)


def build_report(folder: Path, config: EvaluateConfig, result: dict[str, Any]) -> Path:
    """Writes report.html of a run from its files and the quick measure's result; returns the page's path."""
    device = pick_device(config.run.device)
    encoder, info, first = untuned(config.backbone, device)
    tuned = run_candidates(folder, config.backbone, encoder, device)
    shown = [first, *(c for c in tuned if not c.name.endswith("alpha 1"))]
    if result["layers"] and result["layers"]["best"] != encoder.depth:
        shown.insert(1, layer_candidate(encoder, result["layers"]["best"], device, ""))
    pictures = _pictures(config, encoder)
    height, width = config.data.image_size
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    facts = {
        "commit": run["commit"],
        "seed": str(run["seed"]),
        "training images": f"{run['images']} ({run['data']})",
        "measured by": result["command"],
    }
    report = Report(
        title=f"R-SC-V on {config.backbone.name}",
        subtitle=f"{encoder.depth} blocks, {height}x{width} pixels, {run['images']} training images",
        provenance=f"{info.note or 'Weights: ' + info.source + '.'} Licence of the weights: {info.licence}.",
        summary=summary_lines(result) + result["remarks"],
        limits=_LIMITS,
        tables=[_table(result)],
        charts=_curves(folder) + _histogram(pictures, [first, *[c for c in tuned if c.norms]]),
        figures=figure_groups(pictures, shown),
        config_yaml=config_yaml(folder),
        command=run["command"],
        environment=facts | run["environment"],
    )
    return write_report(folder / "report.html", report)
