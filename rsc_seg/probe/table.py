"""The quick measure's result as a table for people: plain text for a console."""

from collections.abc import Sequence
from typing import Any, Optional


def _number(value: Optional[float], digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _spread(summary: dict[str, Any]) -> str:
    return _number(summary["mean"], 1) + (f"±{summary['std']:.1f}" if summary["std"] is not None else "")


def _change(value: Optional[float], digits: int) -> str:
    return "" if value is None else f" ({value:+.{digits}f})"


def table_cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result of `probe_suite`; every row after the first carries its change from the first.

    ± is the standard deviation over probe seeds, which is not the noise of training.
    """
    first = result["rows"][0]
    ks = [entry["k"] for entry in first["kmeans"]]
    header = ["row", "LP mIoU", "LP pAcc", *(f"k-means {k} mIoU" for k in ks), "affinity AP", "AP beyond 6"]
    header += ["CR median", "CR ratio of means", "cosine joint/alone"]
    rows = []
    for place, row in enumerate(result["rows"]):
        delta = row["delta"] if place else dict.fromkeys(row["delta"])
        cells = [row["name"] + (f" [{place + 1}]" if row["note"] else "")]
        cells.append(_spread(row["linear"]["miou"]) + _change(delta["linear_miou"], 1))
        cells.append(_spread(row["linear"]["pacc"]) + _change(delta["linear_pacc"], 1))
        for entry in row["kmeans"]:
            cells.append(_spread(entry["miou"]) + _change(delta[f"kmeans_{entry['k']}_miou"], 1))
        for key in ("affinity_ap", "affinity_ap_beyond_6"):
            cells.append(_number(row["headline"][key], 1) + _change(delta[key], 1))
        for key in ("coupling_median", "coupling_ratio_of_means"):
            cells.append(_number(row["headline"][key], 3))
        cells.append("/".join(_number(row["headline"][f"coupling_cos_{key}"], 2) for key in ("joint", "alone")))
        rows.append(cells)
    return header, rows


def _notes(result: dict[str, Any]) -> list[str]:
    notes = [f"[{place + 1}] {row['name']}: {row['note']}" for place, row in enumerate(result["rows"]) if row["note"]]
    height, width = result["settings"]["image_size"]
    sizes = f"{result['train_images']} training and {result['val_images']} validation images at {height}x{width}"
    legend = "in brackets: change from the first row; ±: over probe seeds only, training noise comes on top"
    return [*notes, f"{sizes}; scores in percent; {legend}."]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return "  ".join(padded).rstrip()


def text_table(result: dict[str, Any]) -> str:
    """Aligned columns for a console, the rows' notes below."""
    header, rows = table_cells(result)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    rule = ["-" * w for w in widths]
    return "\n".join([*(_line(cells, widths) for cells in [header, rule, *rows]), "", *_notes(result)])
