"""In which options runs differ, a column a run."""

from collections.abc import Sequence
from typing import Any

from rsc_seg.pipelines.compare_parts import Run
from rsc_seg.viz.parts import Cell, Column, Row, Table

SECTION = "Options"
_MISSING = object()
_LONGEST = 60  # letters of a value


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "–"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = text or '""'
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def differing_options(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Option and its value in each run, of the options that two runs have with different values."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key, _MISSING) for run in runs]
        held = [value for value in values if value is not _MISSING]
        if any(value != held[0] for value in held):
            found.append((key, [_shown(value) for value in values]))
    return found


def config_table(runs: Sequence[Run]) -> list[Table]:
    """The options that differ; nothing for a single run, or where no two runs share an option with two values."""
    told = [run for run in runs if run.config]
    differing = differing_options(told)
    if len(told) < 2 or not differing:
        return []
    columns = [Column(f"run{k}", run.name) for k, run in enumerate(told)]
    rows = [Row(key, {f"run{k}": Cell(None, text=v) for k, v in enumerate(values)}) for key, values in differing]
    same = len({key for run in told for key in run.config}) - len(rows)
    caption = (
        f"Options that two of these runs have with different values; {same} others are equal, or belong to one kind of "
        "run alone. – : the run has no such option."
    )
    return [Table("Options that differ", columns, rows, caption, SECTION, "option")]
