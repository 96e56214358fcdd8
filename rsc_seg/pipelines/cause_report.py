"""The HTML page of a CAUSE result: tables, classes, predictions beside labels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rsc_seg.cause.scores import SegmentationScores, name_clusters
from rsc_seg.config import to_yaml
from rsc_seg.pipelines.cause_encoder import Measured
from rsc_seg.pipelines.cause_plan import Plan
from rsc_seg.pipelines.cause_text import ROWS, SCORES, dead_lines, headline_row, ordered, signed
from rsc_seg.pipelines.page_parts import MOST_CLASSES, capital, change_cell, picture_credits, provenance
from rsc_seg.probe.scoring import percent_summary
from rsc_seg.viz.parts import Cell, Column, FigureGroup, Report, Row, Table
from rsc_seg.viz.report import write_report
from rsc_seg.viz.segmentation import SECTION, Segmented, segmentation_groups

_OVER_SEEDS = (
    "CAUSE is trained anew for every encoder and seed, and its cluster scores vary between seeds: a difference within "
    "the spread is no difference, and a single seed has no spread to hold it against."
)
_LIMITS = [
    "Clusters are named with the labels of the images that they are scored on: the scores say how well the best naming "
    "fits, not what an unlabelled use would give.",
    _OVER_SEEDS,
    "Papers on this protocol print pixel accuracy under names of mean accuracy. Here pAcc is the share of right pixels "
    "and mAcc the mean recall of the classes; only equal definitions compare.",
]
_LEAK = (
    "Released mode: labels trained the head that the clusters stand on. Compare with published rows made the same way, "
    "not with unsupervised results."
)


def _score_table(result: Mapping[str, Any], row: str, *, caption: bool) -> Table:
    """One kind of scores for every encoder; the first table carries the words that hold for all."""
    columns = [Column(key, title, better="higher") for key, title in SCORES.items()]
    rows = []
    for k, entry in enumerate(result["rows"]):
        found = entry["scores"][row]
        cells = {key: Cell(found[key]["mean"], found[key]["std"]) for key in SCORES}
        rows.append(
            Row(entry["name"], cells, entry["note"] if caption else "", reference=k == 0 and len(result["rows"]) > 1)
        )
    count = len(result["rows"][0]["seeds"])
    single = "One seed of CAUSE: its spread is not known." if result["recipe"] else "Given CAUSE weights."
    spread = f"± is over {count} seeds of CAUSE." if count > 1 else single
    about = f"{result['val_images']} images of {result['dataset']}, {len(result['classes'])} classes; percent. {spread}"
    return Table(capital(ROWS[row]), columns, rows, about if caption else "")


def _seed_table(result: Mapping[str, Any], row: str) -> Table:
    """Every seed of every encoder by itself."""
    columns = [Column(key, title, better="higher") for key, title in SCORES.items()]
    rows = [
        Row(f"{entry['name']}, seed {seed['seed']}", {key: seed["scores"][row][key] for key in SCORES})
        for entry in result["rows"]
        for seed in entry["seeds"]
    ]
    return Table(f"{capital(ROWS[row])}: every seed", columns, rows)


def _summary(values: Sequence[float]) -> Cell:
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return Cell(None)
    found = percent_summary(known)
    return Cell(found["mean"], found["std"])


def _class_table(result: Mapping[str, Any], measured: Sequence[Measured], row: str) -> Table:
    """IoU of every class for every encoder, and the change from the first one."""
    columns = [Column("share", "of the pixels", "percent")]
    of_seed = "" if measured[0].seeds[0] is None else f"of seed {measured[0].seeds[0]}"
    for k, m in enumerate(measured):
        columns.append(Column(f"iou{k}", m.candidate.name, "IoU", better="higher"))
        columns += [Column(f"change{k}", "change", "IoU")] if k else []
        columns.append(Column(f"cluster{k}", "cluster", of_seed, 0))
    pixels = measured[0].scores[0][row].pixels
    rows = []
    for t, name in enumerate(result["classes"]):
        cells: dict[str, Cell | float | None] = {"share": 100 * pixels[t] / max(1, sum(pixels))}
        for k, m in enumerate(measured):
            found = _summary([scores[row].iou[t] for scores in m.scores])
            cells[f"iou{k}"] = found
            matching = m.scores[0][row].matching
            cells[f"cluster{k}"] = None if matching is None else float(matching[t])
            cells |= {f"change{k}": change_cell(cells["iou0"], found)} if k else {}  # type: ignore[arg-type]
        rows.append(Row(name, cells))
    mean = ", mean over seeds" if len(measured[0].seeds) > 1 else ""
    caption = f"{ROWS[row]}; percent{mean}; – is a class in neither labels nor predictions."
    return Table("IoU by class", columns, rows, caption, section="Classes", first="class")


def _as_classes(m: Measured, row: str, image: int) -> Any:
    """The first seed's kept prediction, clusters named as in its score."""
    scores: SegmentationScores = m.scores[0][row]
    kept = torch.from_numpy(m.shown.kept[row][image])
    return kept.numpy() if scores.matching is None else name_clusters(kept, scores.matching).numpy()


def _pictures(plan: Plan, measured: Sequence[Measured], row: str) -> list[FigureGroup]:
    views = measured[0].views
    canvases = {canvas.image: canvas for canvas in views.canvases}
    shots = []
    for image in plan.shown():
        canvas = canvases[image]
        shots.append(
            Segmented(
                plan.sets.val.data.name(image),
                Image.fromarray(views.canvas_pixels(canvas)),
                views.canvas_labels(canvas),
                {m.candidate.name: _as_classes(m, row, image) for m in measured},
            )
        )
    return segmentation_groups(shots, plan.sets.val.data.classes, plan.sets.val.data.palette)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """What the table says, in words made from its numbers alone."""
    row = headline_row(result["rows"][0]["scores"])
    first, *others = result["rows"]
    lines = []
    for entry in [first, *others]:
        found = entry["scores"][row]
        parts = [f"{found[key]['mean']:.1f} {title}" for key, title in SCORES.items()]
        text = f"{ROWS[row]}, {entry['name']}: {', '.join(parts)}"
        if entry["delta"] is not None:
            changes = [signed(entry["delta"][row][key]) for key in SCORES]
            text += f" (change: {', '.join(changes)})".replace("-", "−")
        lines.append(f"{capital(text)}.")
    return [*lines, *dead_lines(result)]


def build_cause_report(path: Path, plan: Plan, result: Mapping[str, Any], measured: Sequence[Measured]) -> Path:
    """Writes the page of a result and returns its path."""
    info, encoder = measured[0].candidate.info, measured[0].candidate.encoder
    rows = ordered(result["rows"][0]["scores"])
    row = headline_row(rows)
    tables = [_score_table(result, r, caption=r == rows[0]) for r in rows]
    if len(measured[0].seeds) > 1:
        tables.append(_seed_table(result, row))
    many = len(result["classes"]) > MOST_CLASSES
    if not many:
        tables.append(_class_table(result, measured, row))
    released = result["recipe"] is not None and plan.config.cause.probe_grad == "released"
    seed = measured[0].seeds[0]
    about = f"{ROWS[row]}{'' if seed is None else f', seed {seed}'}; images at even distances through the split."
    facts = {
        "commit": result["commit"],
        "seeds": "given weights" if seed is None else ", ".join(map(str, plan.seeds)),
        "data": f"{result['data']} ({result['image_lists']['val']})",
    }
    report = Report(
        title=f"CAUSE on {plan.config.backbone.name}, {result['dataset']}",
        subtitle=f"{encoder.depth} blocks; {result['val_images']} images scored; "
        + ("given CAUSE weights" if seed is None else f"{result['train_images']} images for training"),
        provenance=provenance(info.note, info.source, info.licence),
        summary=[*summary_lines(result), *([_LEAK] if released else []), *result["protocol"]],
        limits=[text for text in _LIMITS if seed is not None or text != _OVER_SEEDS]
        + ([f"Scores of the {len(result['classes'])} classes are in classes.csv."] if many else []),
        tables=tables,
        figures=_pictures(plan, measured, row),
        intros={SECTION: capital(about)},
        outros={SECTION: picture_credits(plan.config.data.dataset, plan.sets.val.data.images.storage.root)},
        sections=["Results", SECTION, "Classes"],
        config_yaml=to_yaml(plan.config),
        command=result["command"],
        environment=facts | result["environment"],
    )
    return write_report(path, report)
