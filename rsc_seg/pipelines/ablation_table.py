"""The table of a comparison: means and spreads over training seeds, as JSON, Markdown and a page."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.files import atomic_write
from rsc_seg.pipelines.ablation_measure import REGION_COLUMNS
from rsc_seg.pipelines.ablation_plan import Variant, typed_options
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.seeds import columns_of, mean_rows, number_cell
from rsc_seg.probe.suite import save_json
from rsc_seg.viz.parts import Cell, Column, Report, Row, Table
from rsc_seg.viz.report import write_report

JSON, MARKDOWN, PAGE = "ablation.json", "ablation.md", "report.html"
_REGION_TITLES = {"boxes": "boxes top-1", "thing_masks": "thing masks top-1", "stuff_masks": "stuff masks top-1"}
_BETTER = {"coupling_median": "one", "coupling_ratio_of_means": "one"}
Numbers = dict[str, tuple[float, Optional[float]]]


@dataclass
class Measured:
    """The measured runs of one row: training seeds, and what each one's probe.json and run.json hold."""

    variant: Variant
    seeds: list[int] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def numbers(self) -> Numbers:
        """Mean and deviation of every headline number; None for the deviation of one run."""
        return mean_rows(self.results)[-1][1]

    def untuned(self) -> Numbers:
        """The start's numbers, which were measured once."""
        return {key: (value[0], None) for key, value in mean_rows(self.results[:1])[0][1].items()}


@dataclass(frozen=True)
class Failure:
    """A run that did not end well."""

    name: str
    seed: int
    error: str


def _columns(numbers: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    regions = [(key, _REGION_TITLES[kind], 1) for kind, key in REGION_COLUMNS.items() if key in numbers]
    return [*columns_of(numbers), *regions]


def _groups(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Rows with results, by the row that they are compared with; that one first."""
    groups: dict[str, list[Measured]] = {}
    for row in rows:
        if row.results:
            groups.setdefault(row.variant.reference, []).append(row)
    return [sorted(group, key=lambda row: not row.variant.is_reference) for group in groups.values()]


def _seconds(record: Mapping[str, Any]) -> float:
    return round(sum(value for key, value in record.items() if key.startswith("seconds_")), 1)


def _row_facts(row: Measured) -> dict[str, Any]:
    return {
        "name": row.variant.name,
        "changed": row.variant.changed,
        "sources": list(row.variant.sources),
        "seeds": row.seeds,
        "numbers": {key: {"mean": mean, "std": std} for key, (mean, std) in row.numbers().items()},
        "runs": [
            {"command": record["command"], "commit": record["commit"], "training_seconds": _seconds(record)}
            for record in row.records
        ],
    }


def _shared(group: list[Measured]) -> dict[str, Any]:
    first, record = group[0].results[0], group[0].records[0]
    return {
        "weights": first["weights"],
        "training_data": record["data"],
        "training_images": record["images"],
        "measured_data": first["data"],
        "splits": first["splits"],
        "train_images": first["train_images"],
        "val_images": first["val_images"],
        "image_size": first["settings"]["image_size"],
        "remarks": first["remarks"],
    }


def comparison(rows: Sequence[Measured], failures: Sequence[Failure], seeds: int) -> dict[str, Any]:
    """What ablation.json holds: a table for each reference, the runs that failed, and what made it all."""
    tables = []
    for group in _groups(rows):
        untuned = {key: value for key, (value, _) in group[0].untuned().items()}
        own = [_row_facts(row) for row in group]
        config = dataclasses.asdict(group[0].variant.config)
        tables.append(
            {
                "reference": group[0].variant.reference,
                **_shared(group),
                "untuned": untuned,
                "rows": own,
                "config": config,
            }
        )
    return {
        "units": "scores in percent; coupling ratios as they are; std over training seeds",
        "training_seeds": seeds,
        "tables": tables,
        "failed": [dataclasses.asdict(failure) for failure in failures],
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
    }


def _caption(table: Mapping[str, Any]) -> str:
    height, width = table["image_size"]
    remarks = "".join(f"; {remark}" for remark in table["remarks"])
    spread = " ± over training seeds." if any(len(row["seeds"]) > 1 for row in table["rows"]) else ""
    return (
        f"Trained on {table['training_images']} images ({table['training_data']}); probe and k-means fitted on "
        f"{table['train_images']} and everything scored on {table['val_images']} images of {table['measured_data']} "
        f"({' -> '.join(table['splits'])}) at {height}x{width} pixels{remarks}. Scores in percent.{spread}"
    )


def _rows_of(table: Mapping[str, Any]) -> list[tuple[str, str, Numbers]]:
    """Name, what differs, and numbers of every row, the untuned one first."""
    found: list[tuple[str, str, Numbers]] = [("untuned", "", {k: (v, None) for k, v in table["untuned"].items()})]
    for row in table["rows"]:
        numbers = {key: (value["mean"], value["std"]) for key, value in row["numbers"].items()}
        found.append((row["name"], typed_options(row["changed"]), numbers))
    return found


def comparison_markdown(result: Mapping[str, Any]) -> str:
    """A Markdown table for each reference, and below it data, weights, seeds, commits and failures."""
    lines = []
    for table in result["tables"]:
        columns = _columns(table["rows"][0]["numbers"])
        lines += [f"## Compared with {table['reference']}", ""]
        lines += ["| run | differs in | seeds | " + " | ".join(title for _, title, _ in columns) + " |"]
        lines += ["| --- | --- | ---: |" + " ---: |" * len(columns)]
        seeds = ["", *(str(len(row["seeds"])) for row in table["rows"])]
        for (name, changed, numbers), count in zip(_rows_of(table), seeds, strict=True):
            cells = [number_cell(numbers.get(key), digits) for key, _, digits in columns]
            what = f"`{changed}`" if changed else ""
            lines.append(f"| {name} | {what} | {count} | " + " | ".join(cells) + " |")
        weights, commits = table["weights"], {run["commit"] for row in table["rows"] for run in row["runs"]}
        lines += ["", _caption(table), ""]
        lines += [
            f"Weights: {weights['backbone']}, {weights['source']} ({weights['licence']}). {weights['note']}".rstrip()
        ]
        lines += [f"Trained at commit {', '.join(sorted(commits))}.", ""]
    lines += [f"Made by `{result['command']}` at commit {result['commit']}."]
    lines += [f"Failed: {f['name']}, seed {f['seed']}: {f['error']}" for f in result["failed"]]
    return "\n".join(lines) + "\n"


def _page_table(table: Mapping[str, Any]) -> Table:
    columns = [
        Column(key, title, "", digits, _BETTER.get(key, "higher"))  # type: ignore[arg-type]
        for key, title, digits in _columns(table["rows"][0]["numbers"])
    ]
    rows = [
        Row(name, {key: Cell(*pair) for key, pair in numbers.items()}, changed, reference=name == table["reference"])
        for name, changed, numbers in _rows_of(table)
    ]
    return Table(f"Compared with {table['reference']}", columns, rows, _caption(table), first="run")


def _summary(result: Mapping[str, Any]) -> list[str]:
    runs = sum(len(row["seeds"]) for table in result["tables"] for row in table["rows"])
    lines = [f"{runs} runs, each measured by the quick measure as it was exported."]
    return lines + [f"Failed: {f['name']}, seed {f['seed']}: {f['error']}" for f in result["failed"]]


def _limits(result: Mapping[str, Any]) -> list[str]:
    limits = [
        "Rows differ by training noise, too: a difference that is not clearly larger than the spreads shows nothing.",
        "The coupling ratio also falls when features collapse, and ranks nothing alone.",
    ]
    if result["training_seeds"] == 1:
        limits.insert(0, "There is one run in each row, so nothing is known of the noise of training.")
    return limits


def write_comparison(folder: Path, result: Mapping[str, Any]) -> None:
    """ablation.json, ablation.md and report.html in `folder`, each as a whole."""
    save_json(dict(result), folder / JSON)
    text = comparison_markdown(result)
    atomic_write(folder / MARKDOWN, lambda path: path.write_text(text, encoding="utf-8"))
    weights = [table["weights"] for table in result["tables"]]
    notes = dict.fromkeys(f"{w['backbone']}: {w['note'] or 'weights ' + w['source'] + '.'}" for w in weights)
    report = Report(
        title="Comparison of runs",
        subtitle=f"{result['training_seeds']} training seeds a row"
        if result["training_seeds"] > 1
        else "one run a row",
        provenance=" ".join(notes),
        summary=_summary(result),
        limits=_limits(result),
        tables=[_page_table(table) for table in result["tables"]],
        command=result["command"],
        environment={"commit": result["commit"], **result["environment"]},
    )
    write_report(folder / PAGE, report)
