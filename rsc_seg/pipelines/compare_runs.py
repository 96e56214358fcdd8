"""Any number of runs on one page: tables with differences, classes, curves, maps, options, commands."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError, suggestion
from rsc_seg.pipelines.compare_configs import SECTION as OPTIONS
from rsc_seg.pipelines.compare_configs import config_table
from rsc_seg.pipelines.compare_groups import (
    Group,
    Line,
    class_charts,
    class_table,
    group_table,
    grouped,
    lines_of,
    reference_line,
)
from rsc_seg.pipelines.compare_parts import Run
from rsc_seg.pipelines.compare_pictures import predictions, stored_figures, student_maps
from rsc_seg.pipelines.compare_read import read_runs
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.measure_folder import aligned
from rsc_seg.pipelines.page_parts import picture_credits
from rsc_seg.pipelines.results import read_metrics
from rsc_seg.viz.charts import Series, line_chart
from rsc_seg.viz.parts import Cell, Chart, Column, Report
from rsc_seg.viz.report import write_report

_log = logging.getLogger(__name__)
CLASSES, CURVES, CONTEXTS = "Classes", "Training curves", "Over the number of contexts"
_MOST_LINES = 6  # of one chart: as many as the colours tell apart
_MOST_CHANGES = 6  # numbers of one sentence: top-1 and top-5 of boxes, things and stuff
_NOISE = (
    "A row is one run unless its note says otherwise: how much another training seed would change it is not known, and "
    "a small difference between two runs shows nothing."
)
_SAME = (
    "Runs stand in one table when the set, the pictures, the classes and every option of the measure are equal. Sets "
    "are known by the name of their folder or file and by their counts, not by their bytes."
)
_COUPLED = "The coupling ratio also falls when features collapse: read it beside the mean cosines."


@dataclass(frozen=True)
class CompareOptions:
    """What the page shows beside the tables.

    `reference`: the run that others are compared with, by name or folder; null: the first. `maps`: pictures whose maps
    are drawn anew for all students, 0 for none; on `device`.
    """

    reference: Optional[str] = None
    maps: int = 2
    device: str = "auto"


@dataclass
class Comparison:
    """What was read and how it was put together; the page and the console show the same."""

    runs: list[Run]
    reference: Run
    groups: list[Group]
    lines: list[list[Line]]
    headings: list[str] = field(default_factory=list)


def _reference(runs: Sequence[Run], wanted: Optional[str]) -> Run:
    if wanted is None:
        return runs[0]
    found = [run for run in runs if run.name == wanted]
    found = found or [run for run in runs if run.folder.absolute() == Path(wanted).expanduser().absolute()]
    if not found:
        names = [run.name for run in runs]
        raise UserError(f"--reference {wanted}: none of the runs {', '.join(names)}.{suggestion(wanted, names)}")
    return found[0]


def compare(folders: Sequence[Path], reference: Optional[str] = None) -> Comparison:
    """Reads the runs and puts comparable measures together.

    Raises UserError for a folder without results, a damaged file, a run named twice, and an unknown reference.
    """
    if not folders:
        raise UserError("no RUN is given; name one or more run folders.")
    runs = read_runs(folders)
    first = _reference(runs, reference)
    groups = grouped(runs, first)
    titles = [group.title for group in groups]
    headings = [
        title if titles.count(title) == 1 else f"{title} ({titles[:k].count(title) + 1} of {titles.count(title)})"
        for k, title in enumerate(titles)
    ]
    return Comparison(runs, first, groups, [lines_of(group) for group in groups], headings)


def _change(line: Line, start: Line, column: Column) -> Optional[float]:
    here, there = line.entry.numbers.get(column.key, Cell(None)), start.entry.numbers.get(column.key, Cell(None))
    return None if here.value is None or there.value is None else here.value - there.value


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def summary_lines(found: Comparison) -> list[str]:
    """What each run comes to against the reference row, from the tables' numbers alone."""
    sentences = [f"{len(found.runs)} runs; differences are to {found.reference.name} where it has the measure."]
    for heading, group, lines in zip(found.headings, found.groups, found.lines, strict=True):
        if group.apart:
            sentences.append(f"{heading} ({', '.join(run.name for run, _ in group.members)}): {_lower(group.apart)}")
        start = lines[reference_line(lines)]
        for line in lines:
            if line is start or not line.result:
                continue
            changes = [(column, _change(line, start, column)) for column in group.columns()]
            told = [
                f"{column.title}{f' ({column.unit})' if column.unit else ''} {_signed(change, column.digits)}"
                for column, change in changes
                if change is not None
            ]
            if told:
                more = f", and {len(told) - _MOST_CHANGES} more in the table" if len(told) > _MOST_CHANGES else ""
                shown = ", ".join(told[:_MOST_CHANGES])
                sentences.append(f"{heading}: {line.name} against {start.name}: {shown}{more}.")
    return sentences


def _loss(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    whole = all(row.get("excess") is not None for row in rows)
    key = "excess" if whole else "loss"
    return ("loss above the target's entropy" if whole else "loss"), [
        math.nan if row.get(key) is None else float(row[key]) for row in rows
    ]


def training_curves(runs: Sequence[Run]) -> list[Chart]:
    """The loss of every stage of training, a line a run."""
    stages: dict[tuple[str, str], list[Series]] = {}
    for run in runs:
        rows = read_metrics(run.folder)
        for stage in dict.fromkeys(row["stage"] for row in rows):
            own = [row for row in rows if row["stage"] == stage]
            name, values = _loss(own)
            if sum(math.isfinite(v) for v in values) > 1:
                line = Series(run.name, [row["step"] + 1 for row in own], values)
                stages.setdefault((stage, name), []).append(line)
    charts = []
    for (stage, name), series in stages.items():
        title = f"Stage {stage}: {name}"
        note = f"The first {_MOST_LINES} of {len(series)} runs." if len(series) > _MOST_LINES else ""
        svg = line_chart(title, series[:_MOST_LINES], y_label=name)
        charts.append(Chart(title, svg, note, CURVES))
    return charts


def _measure_curves(group: Group, heading: str) -> list[Chart]:
    """Curves of a group's measures, such as scores over the number of contexts; a line an encoder."""
    lines: dict[tuple[str, str], list[Series]] = {}
    for run, measured in group.members:
        for key, series in measured.lines.items():
            named = [Series(f"{run.name}: {s.name}" if len(group.members) > 1 else s.name, s.x, s.y) for s in series]
            lines.setdefault(key, []).extend(named)
    return [
        Chart(title, line_chart(title, series[:_MOST_LINES], x_label=x_label, y_label=title), heading, CONTEXTS)
        for (title, x_label), series in lines.items()
    ]


def _facts(runs: Sequence[Run]) -> dict[str, str]:
    """Commands and commits of everything on the page."""
    found = {"commit of this page": git_commit()}
    for run in runs:
        for made in run.made:
            found[f"{run.name}: {made.what}"] = f"{made.command} (commit {made.commit})"
        if not run.made:
            found[run.name] = "does not say how it was made"
    return found | environment()


def _limits(found: Comparison) -> list[str]:
    limits = [_NOISE, _SAME]
    limits += [_COUPLED] if any("coupling" in c.key for g in found.groups for c in g.columns()) else []
    unmeasured = [run.name for run in found.runs if not run.measures]
    limits += [f"Not measured, so in no table: {', '.join(unmeasured)}."] if unmeasured else []
    return limits


def _credits(runs: Sequence[Run]) -> str:
    roots = [run.config.get("data.root") for run in runs]
    kinds = [str(run.config.get("data.kind") or run.config.get("data.train") or "") for run in runs]
    texts = (picture_credits(k, None if r is None else Path(str(r))) for k, r in zip(kinds, roots, strict=True))
    return next((text for text in texts if text), "")


def build_page(path: Path, found: Comparison, options: CompareOptions) -> Path:
    """Writes the page and returns its path."""
    tables, charts, classes = [], [], []
    for heading, group, lines in zip(found.headings, found.groups, found.lines, strict=True):
        tables.append(group_table(group, lines, heading))
        charts += class_charts(group, lines, CLASSES)
        classes += class_table(group, lines, CLASSES)
    for heading, group in zip(found.headings, found.groups, strict=True):
        charts += _measure_curves(group, heading)
    charts += training_curves(found.runs)
    maps, outros, notes = student_maps(found.runs, found.reference, options.maps, options.device)
    predicted, stored = predictions(found.groups), stored_figures(found.runs)
    figures = [*maps, *predicted, *stored]
    if predicted:
        makers = _credits(found.runs)
        outros |= {predicted[-1].section: makers} if makers else {}
    weights = list(dict.fromkeys(text for run in found.runs for text in run.weights))
    sections = ["Results", CLASSES, CONTEXTS, CURVES, *dict.fromkeys(f.section for f in figures), OPTIONS]
    report = Report(
        title="Comparison of runs",
        subtitle=", ".join(run.name for run in found.runs),
        provenance=" ".join(weights),
        summary=summary_lines(found),
        limits=[*_limits(found), *notes],
        tables=[*tables, *classes, *config_table(found.runs)],
        charts=charts,
        figures=figures,
        outros=outros,
        sections=sections,
        command=command_line(),
        environment=_facts(found.runs),
    )
    return write_report(path, report)


def _console_cell(line: Line, start: Line, column: Column) -> str:
    cell = line.entry.numbers.get(column.key, Cell(None))
    if cell.value is None or not math.isfinite(cell.value):
        return "-"
    shown = f"{cell.value:.{column.digits}f}" + ("" if cell.spread is None else f"±{cell.spread:.{column.digits}f}")
    change = None if line is start else _change(line, start, column)
    return shown if change is None else f"{shown} ({round(change, column.digits) + 0.0:+.{column.digits}f})"


def result_lines(found: Comparison) -> list[str]:
    """The tables for a console: a row an encoder, its change from the reference row in brackets."""
    shown: list[str] = []
    for heading, group, lines in zip(found.headings, found.groups, found.lines, strict=True):
        columns, start = group.columns(), lines[reference_line(lines)]
        header = ["", *(" ".join(filter(None, (c.title, c.unit))) for c in columns)]
        body = [[line.name, *(_console_cell(line, start, c) for c in columns)] for line in lines]
        shown += [heading, *([group.apart] if group.apart else []), *aligned([header, *body]), ""]
    return [*shown, *_limits(found)[2:]]


def run_comparison(folders: Sequence[Path], path: Path, options: CompareOptions | None = None) -> Comparison:
    """Compares the runs, writes the page to `path`, and returns what was found."""
    options = options or CompareOptions()
    if options.maps < 0:
        raise UserError(f"--maps {options.maps}: must be 0 or more.")
    if path.is_dir():
        raise UserError(f"{path}: --output is a folder; name the page's file, such as {path / 'compare.html'}.")
    found = compare(folders, options.reference)
    build_page(path, found, options)
    return found
