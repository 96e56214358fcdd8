"""From the evaluations in a run folder to catseg.json, classes.csv and the page."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config_catseg import TrainCatSegConfig
from rsc_seg.data.seg_task import TaskSet
from rsc_seg.data.segmentation import RGB
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.catseg_folder import CLASSES, REPORT, RESULT, EvaluationStore, row_key, write_classes
from rsc_seg.pipelines.catseg_plan import sliding_options
from rsc_seg.pipelines.catseg_report import build_catseg_report
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.results import read_metrics
from rsc_seg.probe.suite import save_json
from rsc_seg.seg.model import CatSeg
from rsc_seg.viz.charts import Series, line_chart
from rsc_seg.viz.parts import Chart
from rsc_seg.viz.segmentation import Segmented

UNTRAINED, TRAINED = "untrained", "trained"


def protocol_lines(config: TrainCatSegConfig, model: CatSeg) -> list[str]:
    """How a test picture reaches the model, and its answer the picture's size."""
    data, test, sliding = config.data, config.test, sliding_options(config.test)
    seen = f"seen at {model.image_size[0]}x{model.image_size[1]} pixels"
    short = f"Pictures with their short side at {data.min_size_test} pixels (longest at most {data.max_size_test})"
    if sliding is None:
        lines = [f"{short}, one view of the whole, {seen}."]
    else:
        tiles = len(sliding.corners)
        whole = " and one view of the whole" if sliding.global_view else ""
        lines = [
            f"{short}, then at {sliding.size[0]}x{sliding.size[1]}: {tiles} tiles of {sliding.window} pixels that "
            f"overlap by {sliding.overlap:g}{whole}, each {seen}; probabilities averaged."
        ]
    lines.append(
        f"Pooling {model.options.eval_pool} before attention among classes; the most probable class at every pixel of "
        f"the picture's own size; precision {config.run.precision}."
    )
    if config.solver.ema is not None:
        lines.append(f"Evaluated and exported: a running average of the weights, decay {config.solver.ema:g}.")
    if data.held_out:
        lines.append(f"Held out of training, names and pixels: {', '.join(data.held_out)}.")
    if test.check == "off":
        lines.append("The image tower was not checked before training.")
    return lines


def part_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every set that was scored on a part of its official split."""
    last = {key: entry for row in rows for key, entry in row["sets"].items()}
    return [f"{entry['title']}: {entry['note']}." for entry in last.values() if entry.get("note")]


def rows_of(
    store: EvaluationStore, tests: Sequence[TaskSet], *, names: Mapping[Optional[int], str], note: str
) -> list[dict[str, Any]]:
    """The evaluated states of the model in order; `names` by step, of those that have one of their own.

    `note` belongs to the last one.
    """
    steps: list[Optional[int]] = [None] if None in names else [*store.steps()]
    rows = []
    for step in steps:
        found = {task.key: store.find(row_key(step), task.key) for task in tests}
        sets = {key: value for key, value in found.items() if value is not None}
        if sets:
            name = names.get(step, f"step {step}")
            rows.append({"name": name, "step": step, "note": note if step == steps[-1] else "", "sets": sets})
    return rows


def curves(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The loss of the log, and the mIoU of the evaluations where there are more than two."""
    charts = []
    log = [row for row in read_metrics(folder) if row["stage"] == "train" and math.isfinite(row["loss"])]
    if len(log) > 1:
        series = Series("loss", [row["step"] + 1 for row in log], [row["loss"] for row in log])
        about = "Binary cross-entropy, mean over pixels and classes, of single steps."
        charts.append(Chart("Loss", line_chart("Loss", [series], y_label="loss"), about))
    lines = []
    for key in dict.fromkeys(key for row in rows for key in row["sets"]):
        points = [(row["step"], row["sets"][key]["scores"]["miou_present"]) for row in rows if key in row["sets"]]
        whole = [(step, 100 * value) for step, value in points if step is not None and value is not None]
        if len(whole) > 2:
            lines.append(Series(key, [step for step, _ in whole], [value for _, value in whole]))
    if lines:
        svg = line_chart("mIoU in training", lines, y_label="mIoU (present), percent")
        charts.append(Chart("mIoU in training", svg, "The same protocol at every step."))
    return charts


def _shown(
    store: EvaluationStore, tests: Sequence[TaskSet], rows: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Sequence[Segmented], Sequence[str], Sequence[RGB]]]:
    """Pictures of every set, with what the first and the last row predict."""
    found: dict[str, tuple[Sequence[Segmented], Sequence[str], Sequence[RGB]]] = {}
    ends = [rows[0], rows[-1]] if len(rows) > 1 else list(rows)
    for task in tests:
        shots: dict[str, Segmented] = {}
        for row in ends:
            for one in store.shown(row_key(row["step"]), task.key):
                shot = shots.setdefault(one.name, Segmented(one.name, one.image, one.labels, {}))
                shot.predictions = {**shot.predictions, row["name"]: one.predicted}
        found[task.key] = (list(shots.values()), task.class_names, task.palette)
    return found


def write_result(
    folder: Path,
    config: TrainCatSegConfig,
    *,
    model: CatSeg,
    store: EvaluationStore,
    tests: Sequence[TaskSet],
    rows: list[dict[str, Any]],
    info: WeightsInfo,
    training: Optional[dict[str, Any]],
) -> dict[str, Any]:
    """Writes catseg.json, classes.csv and report.html, the first last, and returns what catseg.json holds."""
    result = {
        "kind": "eval" if training is None else "train",
        "rows": rows,
        "protocol": [*protocol_lines(config, model), *part_lines(rows)],
        "weights": dataclasses.asdict(info),
        "training": training,
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }
    build_catseg_report(folder / REPORT, result, _shown(store, tests, rows), curves(folder, rows))
    write_classes(folder / CLASSES, rows)
    save_json(result, folder / RESULT)
    return result
