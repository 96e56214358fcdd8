"""The HTML report of a run: its table, curves and pictures."""

import math
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from rsc_seg.config import EvaluateConfig, load_config
from rsc_seg.pipelines.candidates import layer_candidate, run_candidates, untuned
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import config_yaml, read_config
from rsc_seg.pipelines.objectives import objective_title
from rsc_seg.pipelines.pictures import NORM_DEFINITION, Picture, figure_groups
from rsc_seg.pipelines.probe import run_probe
from rsc_seg.pipelines.report_pictures import choose_pictures
from rsc_seg.pipelines.results import read_metrics, read_probe, read_run
from rsc_seg.probe.suite import ProbeRow, save_json
from rsc_seg.viz.charts import Sample, Series, histogram, line_chart
from rsc_seg.viz.parts import Cell, Chart, Column, Report, Row, Table
from rsc_seg.viz.report import write_report

Headline = dict[str, Optional[float]]
_TITLES = {
    "refine": "Stage 1: Refiner",
    "distill": "Stage 2: student",
    "control": "Control: SCD without the Refiner",
    "end_to_end_refine": "End to end: Refiner",
    "end_to_end_distill": "End to end: student",
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
        f"{height}x{width} pixels; {len(result['classes'])} classes; scores in percent; ± over probe seeds."
    )
    return Table("Before, controls, Refiner, after", columns, rows, caption)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _change(row: Headline, other: Headline, key: str) -> Optional[float]:
    a, b = row.get(key), other.get(key)
    return None if a is None or b is None else a - b


def summary_lines(result: dict[str, Any]) -> list[str]:
    """What the table says, in words made from its numbers alone; what the images did not define is left out."""
    rows: dict[str, Headline] = {row["name"]: row["headline"] for row in result["rows"]}
    names = list(rows)
    students = [n for n in names if n.startswith("student")]
    if not students:
        return []
    name, start, lines = students[-1], rows[names[0]], []
    student = rows[name]
    if student.get("linear_miou") is not None:
        others = [names[0], *(n for n in names if "(best)" in n or n.startswith("SCD control"))]
        changes = [(n, _change(student, rows[n], "linear_miou")) for n in others]
        parts = [f"{student['linear_miou']:.1f} mIoU"]
        parts += [f"{_signed(change)} against “{n}”" for n, change in changes if change is not None]
        lines.append(f"Linear probe of “{name}”: " + ", ".join(parts) + ".")
    near, far = (_change(student, start, key) for key in ("affinity_ap", "affinity_ap_beyond_6"))
    parts = [] if near is None else [f"{_signed(near)} against the untuned last layer"]
    parts += [] if far is None else [f"{_signed(far)} beyond a distance of 6 tokens"]
    if parts:
        worse = far is not None and far < -1
        lines.append(
            "Affinity AP of the same row: "
            + ", ".join(parts)
            + (": tokens of one class that lie far apart resemble each other less than before." if worse else ".")
        )
    ratios = [row.get("coupling_median") for row in (start, student)]
    if None not in ratios:
        lines.append(f"Coupling ratio (median): {ratios[0]:.3f} before, {ratios[1]:.3f} after.")
    return lines


def _stages(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Log rows by stage; those of an end-to-end run once for each of its two losses, without the prefix."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        parts = [p for p in ("refine", "distill") if f"{p}_loss" in row]
        for part in parts:
            own = {key.removeprefix(f"{part}_"): v for key, v in row.items() if key.startswith(f"{part}_")}
            stages.setdefault(f"{row['stage']}_{part}", []).append({**own, "step": row["step"]})
        if not parts:
            stages.setdefault(row["stage"], []).append(row)
    return stages


def _line(rows: list[dict[str, Any]], key: str, name: str) -> Series:
    values = [math.nan if r.get(key) is None else r[key] for r in rows]
    return Series(name, [r["step"] + 1 for r in rows], values)


def _drawable(series: Series) -> bool:
    return any(math.isfinite(v) for v in series.y)


def curves(rows: list[dict[str, Any]]) -> list[Chart]:
    """A chart of the loss for every stage of a training log, and one of the token norms of all stages."""
    charts, norms = [], []
    for stage, log in _stages(rows).items():
        name = _TITLES.get(stage, stage)
        if all(r.get("excess") is not None for r in log):
            key, title, about = "excess", "loss above the target's entropy", "zero means equal correlations"
        else:
            key, title, about = "loss", "loss", "alignment loss" if stage.endswith("refine") else "loss"
        series = _line(log, key, title)
        if _drawable(series):
            charts.append(Chart(name, line_chart(f"{name}: {title}", [series], y_label=title), about))
        aligned = _line(log, "rla", "region-language alignment")
        if _drawable(aligned):
            chart = line_chart(f"{name}: region-language alignment", [aligned], y_label="loss")
            charts.append(Chart(f"{name}: alignment", chart, "region-language alignment, un-weighted"))
        norms.append(_line(log, "token_norm", name))
    norms = [series for series in norms if _drawable(series)]
    if norms:
        about = f"Student and control: tokens {NORM_DEFINITION}. Refiner: its output."
        charts.append(Chart("Mean token norm", line_chart("Mean token norm", norms, y_label="mean token norm"), about))
    return charts


def _histogram(pictures: list[Picture], candidates: list[ProbeRow]) -> list[Chart]:
    samples = []
    with torch.no_grad():
        for c in candidates:
            if c.norm_fn is not None:
                samples.append(
                    Sample(c.name, np.concatenate([c.norm_fn(p.x[None]).cpu().numpy().ravel() for p in pictures]))
                )
    if not samples:
        return []
    svg = histogram("Token norms", samples, x_label=f"length of tokens {NORM_DEFINITION}", log_y=True)
    return [Chart("Token-norm histogram", svg, f"All tokens of the {len(pictures)} pictures below.", "Token norms")]


def shown_candidates(tuned: list[ProbeRow]) -> list[ProbeRow]:
    """The rows that have maps: all but the unblended student, unless it is the only one."""
    students = [c for c in tuned if c.name.startswith("student")]
    dropped = [c for c in students if c.name.endswith("alpha 1")] if len(students) > 1 else []
    return [c for c in tuned if c not in dropped]


def build_report(folder: Path, config: EvaluateConfig, result: dict[str, Any], page: Optional[Path] = None) -> Path:
    """Writes the page of a run (default: its report.html) from its files and the quick measure's result.

    Returns the page's path. Raises UserError for a run folder without run.json or with a damaged log.
    """
    run, log = read_run(folder), read_metrics(folder)
    device = choose_device(config.run.device)
    encoder, info, first = untuned(config.backbone, device)
    tuned = run_candidates(folder, config.backbone, encoder, device)
    shown = [first, *shown_candidates(tuned)]
    if result["layers"] and result["layers"]["best"] != encoder.depth:
        shown.insert(1, layer_candidate(encoder, result["layers"]["best"], device, ""))
    chosen = choose_pictures(folder, config, encoder)
    figures = figure_groups(chosen.pictures, shown)
    height, width = config.data.image_size
    facts = {
        "commit": run["commit"],
        "seed": str(run["seed"]),
        "training images": f"{run['images']} ({run['data']})",
        "measured by": result["command"],
        "measured at commit": result["commit"],
    }
    report = Report(
        title=f"{objective_title(read_config(folder).objective)} on {config.backbone.name}",
        subtitle=f"{encoder.depth} blocks, {height}x{width} pixels, {run['images']} training images",
        provenance=f"{info.note or 'Weights: ' + info.source + '.'} Licence of the weights: {info.licence}.",
        summary=summary_lines(result) + result["remarks"],
        limits=_LIMITS,
        tables=[_table(result)],
        charts=curves(log) + _histogram(chosen.pictures, [first, *[c for c in tuned if c.norm_fn]]),
        figures=figures,
        outros=chosen.outros([group.section for group in figures]),
        config_yaml=config_yaml(folder),
        command=run["command"],
        environment=facts | run["environment"],
    )
    return write_report(page or folder / "report.html", report)


def measure_run(config: EvaluateConfig, folder: Path, output: Optional[Path] = None) -> tuple[dict[str, Any], Path]:
    """The quick measure of a run, its JSON (default: probe.json in the run folder) and its page beside the JSON.

    Returns the result and the page's path.
    """
    read_run(folder)  # before minutes are spent on a folder that cannot have a report
    result = run_probe(config, run=folder)
    save_json(result, output or folder / "probe.json")
    return result, build_report(folder, config, result, output.with_suffix(".html") if output else None)


def rebuild_report(folder: Path, device: str = "auto") -> Path:
    """report.html from the probe.json that is there, without measuring; `device` draws the maps."""
    result = read_probe(folder)
    config = load_config(EvaluateConfig, base=result["config"])
    config.run.device = device
    return build_report(folder, config, result)
