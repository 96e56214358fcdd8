"""What a run folder's JSON files say, read with errors that name the file and the missing entry."""

import json
from pathlib import Path
from typing import Any

from rsc_seg.errors import UserError

_PROBE = ("rows", "settings", "weights", "data", "splits", "command", "commit", "remarks", "config")
_ROW = ("name", "note", "headline", "linear", "kmeans")
_RUN = ("command", "commit", "seed", "data", "images", "environment")


def _read_object(path: Path, needed: tuple[str, ...], absent: str, damaged: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: not there; {absent}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not readable as JSON ({e}); {damaged}") from e
    missing = [key for key in needed if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; {damaged}")
    return value


def read_probe(run: Path) -> dict[str, Any]:
    """probe.json of a run folder; UserError when it is not there, damaged, or lacks what every measure writes."""
    path, again = run / "probe.json", f"run evaluate.py probe --run {run}"
    result = _read_object(path, _PROBE, f"{again} first.", f"measure again: {again}.")
    rows = result["rows"]
    for i, row in enumerate(rows if isinstance(rows, list) else []):
        if not isinstance(row, dict) or any(key not in row for key in _ROW):
            raise UserError(f"{path}: rows[{i}] is not a measured row; measure again: {again}.")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: holds no rows; measure again: {again}.")
    return result


def read_run(run: Path) -> dict[str, Any]:
    """run.json of a run folder; UserError when it is not there, damaged, or lacks the facts of a run."""
    advice = "name the folder of a run that rscv_finetune.py has made."
    return _read_object(run / "run.json", _RUN, advice, advice)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, none when there is no such file; UserError with the number of a line that is not one.

    A last line without its end is left out: the run may be writing it.
    """
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and "stage" in row and "step" in row
        except ValueError:
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number}: not a row of a training log; remove the line.")
        rows.append(row)
    return rows
