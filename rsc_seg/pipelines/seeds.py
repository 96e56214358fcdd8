"""Several runs that differ in their training seed: one table of means and spreads, and what made it."""

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError
from rsc_seg.pipelines.results import read_probe, read_run

COLUMNS = (
    ("linear_miou", "LP mIoU", 1),
    ("linear_pacc", "LP pAcc", 1),
    ("affinity_ap", "affinity AP", 1),
    ("affinity_ap_beyond_6", "AP beyond 6", 1),
    ("coupling_median", "CR median", 3),
    ("coupling_ratio_of_means", "CR ratio of means", 3),
)
_OWN = ("seed", "image_size")  # of the measure's settings: may differ, is compared by itself
Results = list[dict[str, Any]]
Means = list[tuple[str, dict[str, tuple[float, Optional[float]]]]]


def _facts(result: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """What runs of one table must share."""
    weights = result["weights"]
    return {
        "measured data": (result["data"], *result["splits"], result.get("train_images"), result.get("val_images")),
        "training data": (run["data"], run["images"]),
        "image size": result["settings"].get("image_size"),
        "backbone": (weights.get("backbone"), weights.get("depth")),
        "weights": weights.get("source"),
        **{f"measure's {key}": value for key, value in result["settings"].items() if key not in _OWN},
    }


def check_comparable(runs: list[Path], results: Results, records: Results) -> None:
    """Raises UserError unless the runs share data, image size, backbone, weights and settings of the measure
    and differ in training seed."""
    first = _facts(results[0], records[0])
    seeds: dict[int, Path] = {}
    for run, result, record in zip(runs, results, records, strict=True):
        for what, value in _facts(result, record).items():
            if value != first.get(what):
                raise UserError(
                    f"{run}: its {what} is {value}, that of {runs[0]} is {first.get(what)}; give runs that share it."
                )
        other = seeds.setdefault(record["seed"], run)
        if other is not run:
            raise UserError(
                f"{run}: has the training seed {record['seed']} of {other}; a spread needs runs of different seeds."
            )


def mean_rows(results: Results) -> Means:
    """For each row name in the first run's order: mean and standard deviation over runs of every headline number.

    Rows of a best layer are one row, whichever layer it is. A single run has no standard deviation. UserError when the
    runs do not share their rows.
    """

    def key(name: str) -> str:
        return re.sub(r"layer \d+ \(best\)", "best layer", name)

    tables = [{key(row["name"]): row["headline"] for row in result["rows"]} for result in results]
    if any(t.keys() != tables[0].keys() for t in tables):
        raise UserError("the runs were not measured with the same rows; measure them again with one command.")
    out: Means = []
    for name in tables[0]:
        values = {k: [t[name].get(k) for t in tables] for k in tables[0][name]}
        whole = {k: v for k, v in values.items() if all(x is not None for x in v)}
        out.append(
            (name, {k: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else None) for k, v in whole.items()})
        )
    return out


def columns_of(numbers: Iterable[str]) -> list[tuple[str, str, int]]:
    """Key, title and digits of a table's columns: those of every table, and the k-means that `numbers` name."""
    kmeans = [(k, f"k-means {k.split('_')[1]} mIoU", 1) for k in numbers if k.startswith("kmeans_")]
    return [*COLUMNS[:2], *kmeans, *COLUMNS[2:]]


def number_cell(value: Optional[tuple[float, Optional[float]]], digits: int) -> str:
    """`mean ± deviation`; a dash for None."""
    if value is None:
        return "–"
    mean, spread = value
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _provenance(runs: list[Path], results: Results, records: Results) -> list[str]:
    first, record = results[0], records[0]
    height, width = first["settings"]["image_size"]
    weights = first["weights"]
    lines = [
        f"- Training data: {record['data']}, {record['images']} images. Measured on {first['data']}, "
        f"{' -> '.join(first['splits'])}, {first['train_images']} and {first['val_images']} images at "
        f"{height}x{width} pixels; metrics as in docs/metrics.md.",
        f"- Weights: {weights['backbone']}, {weights['depth']} blocks, {weights['source']} ({weights['licence']}). "
        f"{weights['note']}".rstrip(),
    ]
    for run, result, made in zip(runs, results, records, strict=True):
        lines.append(f"- {run.name}, training seed {made['seed']}: `{made['command']}` at commit {made['commit']}")
        lines.append(f"  - measured by `{result['command']}` at commit {result['commit']}")
    return lines


def seeds_markdown(runs: list[Path]) -> str:
    """A Markdown table: mean ± standard deviation over the runs' training seeds (untuned rows: probe noise only).

    Below it stand data, weights, seeds, commands and commits. Raises UserError for damaged files and runs that do not
    belong into one table.
    """
    results, records = [read_probe(run) for run in runs], [read_run(run) for run in runs]
    check_comparable(runs, results, records)
    rows = mean_rows(results)
    columns = columns_of(rows[0][1])
    lines = ["| row | " + " | ".join(title for _, title, _ in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, values in rows:
        lines.append(f"| {name} | " + " | ".join(number_cell(values.get(k), digits) for k, _, digits in columns) + " |")
    over = f"Mean ± standard deviation over {len(runs)} training runs." if len(runs) > 1 else "One training run."
    return "\n".join([*lines, "", over, "", *_provenance(runs, results, records)])
