"""The benchmark as a console table, as Markdown, and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.files import atomic_write
from rsc_seg.pipelines.benchmark_rows import DONE, METRICS, NO_TABLE, NOTHING, BenchmarkRow
from rsc_seg.pipelines.paper_numbers import paper_source
from rsc_seg.probe.suite import save_json
from rsc_seg.viz.parts import Cell, Column, Report, Row, Table
from rsc_seg.viz.report import write_report

JSON, MARKDOWN, PAGE = "benchmark.json", "benchmark.md", "report.html"
_LIMITS = [
    "Numbers of the paper are printed as the paper prints them; none of them was measured here.",
    "Where the setting is not the same, the difference between two numbers says nothing about an implementation.",
    "Where it is the same as far as the paper says, what the paper leaves open can still move numbers by points.",
]
_MANY = 3  # reasons on a line of a console


def _number(value: Optional[float], digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _numbers(row: BenchmarkRow, values: Mapping[str, Optional[float]]) -> str:
    return " / ".join(_number(values.get(key), row.digits) for key in row.ours) if values else "–"


def _metrics(row: BenchmarkRow) -> str:
    if row.measure == "regions" and row.ours:
        return "boxes, things, stuff; each top-1 / top-5"
    return " / ".join(METRICS.get(key, key) for key in row.ours)


def _verdict(row: BenchmarkRow) -> str:
    if row.status != DONE:
        return row.status
    return row.same


def _columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text for a console, all to the left, a rule below the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in ruled]


def console_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """A row for each encoder and table: ours, the paper's, whether the setting is the same; reasons below."""
    lines = [["table", "measure", "encoder", "numbers", "ours", "paper", "same setting"]]
    notes: dict[str, int] = {}
    for row in rows:
        mark = ""
        if row.reasons:
            text = "; ".join(row.reasons[:_MANY]) + (
                f"; and {len(row.reasons) - _MANY} more" * (len(row.reasons) > _MANY)
            )
            mark = f" [{notes.setdefault(text, len(notes) + 1)}]"
        cells = [row.table, row.title, row.encoder, _metrics(row), _numbers(row, row.ours), _numbers(row, row.paper)]
        lines.append([cells[0], *(cell or "" for cell in cells[1:]), _verdict(row) + mark])
    return [*_columns(lines), "", *(f"[{number}] {text}" for text, number in notes.items())]


def benchmark_markdown(result: Mapping[str, Any], rows: Sequence[BenchmarkRow]) -> str:
    """The same as a Markdown document with every reason, and what made it."""
    lines = [
        "# Measures of the paper",
        "",
        f"Numbers under “paper” are those that the paper prints ({paper_source()}); those under “ours” were "
        "measured here.",
        "",
        "| table | measure | encoder | paper's row | numbers | ours | paper | same setting | why not |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        cells = [row.table, row.title, row.encoder, row.paper_encoder, _metrics(row)]
        cells += [_numbers(row, row.ours), _numbers(row, row.paper), _verdict(row), "; ".join(row.reasons)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    open_points = {row.table: row.unstated for row in rows if row.unstated}
    lines += ["", "What the paper does not say:", ""] if open_points else []
    lines += [f"- {table}: {'; '.join(points)}" for table, points in open_points.items()]
    notes = list(dict.fromkeys(f"- {row.table}: {row.note}" for row in rows if row.note))
    notes += list(dict.fromkeys(f"- {row.table}: {row.table_note}" for row in rows if row.table_note))
    lines += ["", "Notes:", "", *notes] if notes else []
    lines += ["", *(f"- {sentence}" for sentence in result["weights"])]
    lines += ["", f"Made by `{result['command']}` at commit {result['commit']}.", ""]
    lines += [f"- {job['key']}: `{job['folder']}`, {job['state']}." for job in result["jobs"]]
    return "\n".join(lines) + "\n"


def _beside(row: BenchmarkRow, key: str) -> Cell:
    """Our number with the paper's as a remark; the difference only where the setting is the same."""
    ours, paper = row.ours[key], row.paper.get(key)
    if paper is None:
        return Cell(ours)
    text = f"paper {paper:.{row.digits}f}"
    if ours is not None and row.same.startswith("yes"):
        text += f", {round(ours - paper, row.digits) + 0.0:+.{row.digits}f}".replace("-", "−")
    return Cell(ours, text=text) if ours is not None else Cell(None, text=f"– {text}")


def _page_table(name: str, rows: Sequence[BenchmarkRow]) -> Table:
    first = rows[0]
    columns = [Column("same", "same setting")]
    columns += [Column(key, METRICS.get(key, key), "ours", first.digits) for key in first.ours]
    found = []
    for row in rows:
        cells: dict[str, Cell | float | None] = {"same": Cell(None, text=_short(row.same))}
        cells |= {key: _beside(row, key) for key in row.ours}
        beside = f"the paper's row is {row.paper_encoder}" if row.paper_encoder else ""
        told = "; ".join(row.reasons)
        why = f"Not the same setting: {told}" if told and row.paper else told
        note = ". ".join(text for text in (beside, why, row.note) if text)
        found.append(Row(f"{row.encoder} ({row.method})" if row.method != "untuned" else row.encoder, cells, note))
    caption = [f"The paper does not say: {'; '.join(first.unstated)}." if first.unstated else "", first.table_note]
    heading = first.title if name == NO_TABLE else f"{name}: {first.title}"
    return Table(heading, columns, found, " ".join(filter(None, caption)), "Beside the paper's numbers")


def _short(same: str) -> str:
    return {NOTHING: "no number"}.get(same, "yes*" if same.startswith("yes") else same)


def _not_run_table(rows: Sequence[BenchmarkRow]) -> list[Table]:
    if not rows:
        return []
    found = [
        Row(f"{row.table}: {row.title}", {"status": Cell(None, text=row.status)}, "; ".join(row.reasons))
        for row in rows
    ]
    caption = "Tables of the paper, and measures that it has no table for."
    return [Table("Not run", [Column("status", "status")], found, caption, "Not run", "table")]


def summary_lines(rows: Sequence[BenchmarkRow]) -> list[str]:
    """How many rows were measured, and in which of them the setting is the same."""
    done = [row for row in rows if row.status == DONE]
    same = [row for row in done if row.same.startswith("yes")]
    beside = [row for row in done if row.paper]
    lines = [
        f"{len(done)} rows measured, {len(beside)} of them beside a number of the paper ({paper_source()}).",
        f"In {len(same)} of these the setting is the same as far as the paper says (yes* in the tables).",
    ]
    failed = [row for row in rows if row.status == "failed"]
    return lines + [f"Failed: {row.title}: {'; '.join(row.reasons)}" for row in failed]


def write_benchmark(folder: Path, result: Mapping[str, Any], rows: Sequence[BenchmarkRow]) -> Path:
    """Writes benchmark.json, benchmark.md and the page, each as a whole; returns the page's path."""
    save_json({**result, "rows": [row.as_dict() for row in rows]}, folder / JSON)
    text = benchmark_markdown(result, rows)
    atomic_write(folder / MARKDOWN, lambda path: path.write_text(text, encoding="utf-8"))
    done: dict[tuple[str, str], list[BenchmarkRow]] = {}
    for row in rows:
        if row.status == DONE:
            done.setdefault((row.table, row.title), []).append(row)
    report = Report(
        title="Measures of the paper",
        subtitle=f"{result['backbone']}, {result['data']}",
        provenance=" ".join(result["weights"]),
        summary=summary_lines(rows),
        limits=_LIMITS,
        tables=[_page_table(table, own) for (table, _), own in done.items()]
        + _not_run_table([row for row in rows if row.status != DONE]),
        command=result["command"],
        environment={
            "commit": result["commit"],
            **{job["key"]: f"{job['folder']}, {job['state']}" for job in result["jobs"]},
            **result["environment"],
        },
    )
    return write_report(folder / PAGE, report)
