"""Several runs that differ in their training seed: one table of means and spreads."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from rsc_seg.errors import UserError

COLUMNS = (
    ("linear_miou", "LP mIoU", 1),
    ("linear_pacc", "LP pAcc", 1),
    ("affinity_ap", "affinity AP", 1),
    ("affinity_ap_beyond_6", "AP beyond 6", 1),
    ("coupling_median", "CR median", 3),
    ("coupling_ratio_of_means", "CR ratio of means", 3),
)


def read_probe(run: Path) -> dict[str, Any]:
    """probe.json of a run folder; UserError when it is not there."""
    path = run / "probe.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; run evaluate.py probe --run {run} first.")
    return json.loads(path.read_text(encoding="utf-8"))


def mean_rows(results: list[dict[str, Any]]) -> list[tuple[str, dict[str, tuple[float, float]]]]:
    """For each row name in the first run's order: mean and standard deviation over runs of every headline number.

    Rows of a best layer are one row, whichever layer it is. UserError when the runs do not share their rows.
    """

    def key(name: str) -> str:
        return re.sub(r"layer \d+ \(best\)", "best layer", name)

    tables = [{key(row["name"]): row["headline"] for row in result["rows"]} for result in results]
    if any(t.keys() != tables[0].keys() for t in tables):
        raise UserError("the runs were not measured with the same rows; measure them again with one command.")
    out = []
    for name in tables[0]:
        values = {k: [t[name][k] for t in tables] for k in tables[0][name]}
        whole = {k: v for k, v in values.items() if all(x is not None for x in v)}
        out.append(
            (name, {k: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for k, v in whole.items()})
        )
    return out


def seeds_markdown(runs: list[Path]) -> str:
    """A Markdown table: mean ± standard deviation over the runs' training seeds (untuned rows: probe noise only)."""
    results = [read_probe(run) for run in runs]
    rows = mean_rows(results)
    kmeans = [(k, f"k-means {k.split('_')[1]} mIoU", 1) for k in rows[0][1] if k.startswith("kmeans_")]
    columns = [*COLUMNS[:2], *kmeans, *COLUMNS[2:]]
    lines = ["| row | " + " | ".join(title for _, title, _ in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, values in rows:
        cells = [f"{values[k][0]:.{d}f} ± {values[k][1]:.{d}f}" if k in values else "–" for k, _, d in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Mean ± standard deviation over {len(runs)} training runs."]
    return "\n".join(lines)
