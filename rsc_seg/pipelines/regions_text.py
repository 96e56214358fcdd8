"""A result of the region classification as a table for a console and as a CSV file of classes."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.files import atomic_write
from rsc_seg.zeroshot.panoptic_regions import Category
from rsc_seg.zeroshot.region_counts import TOP, RegionScores

COLUMNS = {"boxes": "Boxes", "thing_masks": "Thing Masks", "stuff_masks": "Stuff Masks"}  # as in the paper's tables
Scores = Mapping[str, Mapping[str, Any]]


def delta(scores: Scores, first: Scores) -> dict[str, dict[str, Optional[float]]]:
    """Differences of all mean accuracies from those of the first encoder, in points."""
    found: dict[str, dict[str, Optional[float]]] = {}
    for kind, entry in scores.items():
        pairs = {key: (entry[key], first[kind][key]) for key in (f"top{k}" for k in TOP)}
        found[kind] = {key: None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}
    return found


def _cell(value: Optional[float], change: Optional[float]) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if change is None else f"{value:.1f} ({round(change, 1) + 0.0:+.1f})"


def text_table(result: Mapping[str, Any]) -> list[str]:
    """Aligned columns: an encoder in each line, its change from the first in brackets."""
    lines = [["mean accuracy, %", *(f"{title} top-{k}" for title in COLUMNS.values() for k in TOP)]]
    for place, row in enumerate(result["rows"]):
        cells = []
        for kind in COLUMNS:
            for k in TOP:
                change = row["delta"][kind][f"top{k}"] if place else None
                cells.append(_cell(row["scores"][kind][f"top{k}"], change))
        lines.append([row["name"], *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    ]


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for a console: table, remarks, and what has to be said about the weights."""
    notes = [f"{row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
    weights = [note for note in [result["rows"][0]["weights"]["note"]] if note]
    return [*text_table(result), "", *result["remarks"], *notes, *weights]


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.4f}"


def write_region_csv(
    path: Path, categories: Sequence[Category], names: Sequence[str], scores: Sequence[RegionScores]
) -> None:
    """Accuracies by class in percent, a group of columns for each encoder; empty where a class has no region."""
    header = ["id", "class", "thing", "regions", "empty masks"]
    header += [f"{name}: {what} top-{k}" for name in names for what in ("boxes", "masks") for k in TOP]
    counts = scores[0].counts.by_class
    columns = [found.accuracy(what, k) for found in scores for what in ("boxes", "masks") for k in TOP]

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(header)
            for t, category in enumerate(categories):
                known = [category.id, category.name, int(category.thing)]
                known += [int(counts["regions"][t]), int(counts["empty_masks"][t])]
                out.writerow([*known, *(_percent(float(column[t])) for column in columns)])

    atomic_write(path, write)
