"""The folder of a measure of several encoders: what may go into it, and what every result holds."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config import to_yaml
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.pipelines.candidates import Candidate
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.probe.suite import save_json

IDLE = ("data.workers", "backbone.gradient_checkpointing")  # options that no number depends on


def _what_counts(
    config: Mapping[str, Any], sections: Sequence[str], idle: Collection[str], also: Sequence[str]
) -> dict[str, Any]:
    """The options that make two results comparable, flat, by their keys."""
    found = {f"{section}.{key}": value for section in sections for key, value in config[section].items()}
    kept = {key: value for key, value in found.items() if key not in idle}
    return kept | {f"run.{key}": config["run"][key] for key in also}


def check_folder(
    path: Path, config: Any, sections: Sequence[str], idle: Collection[str] = IDLE, *, run: Sequence[str] = ()
) -> None:
    """Raises UserError when the folder of the result file `path` cannot take one of `config`.

    That is when it is a file, or holds a result of other options; checkpoints may differ. `sections` of the
    configuration count, but for the keys in `idle`, and of the section `run` those named by `run`.
    """
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --output-dir is a file; name a folder.")
    if not path.is_file():
        return
    try:
        old = _what_counts(json.loads(path.read_text(encoding="utf-8"))["config"], sections, idle, run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not a result of this command ({e!r}); remove it or choose another folder.") from e
    new = _what_counts(dataclasses.asdict(config), sections, idle, run)
    changed = [f"{key} ({old.get(key)} -> {value})" for key, value in new.items() if old.get(key) != value]
    if changed:
        raise UserError(
            f"{folder}: holds the result of other options: {', '.join(changed[:3])}; choose another --output-dir."
        )


def provenance(config: Any) -> dict[str, Any]:
    """Command, commit, versions and options of a result."""
    return {
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }


def encoder_facts(candidate: Candidate, seconds: float) -> dict[str, Any]:
    """The row of an encoder, without its scores. `seconds`: of the last call, which may have gone on from counts."""
    return {
        "name": candidate.name,
        "note": candidate.note,
        "weights": dataclasses.asdict(candidate.info),
        "seconds": round(seconds, 1),
        "seconds_of": "the last call",
    }


def write_result(path: Path, result: Mapping[str, Any], config: Any) -> None:
    """config.yaml beside `path`, then the result itself."""
    yaml = to_yaml(config)
    atomic_write(path.with_name("config.yaml"), lambda file: file.write_text(yaml, encoding="utf-8"))
    save_json(dict(result), path)


def difference(value: Optional[float], first: Optional[float]) -> Optional[float]:
    """`value` less `first`, None where either is not known."""
    return None if value is None or first is None else value - first


def cell(value: Optional[float], change: Optional[float], digits: int = 1) -> str:
    """A number and, in brackets, its change; a dash for None."""
    if value is None:
        return "-"
    shown = f"{value:.{digits}f}"
    return shown if change is None else f"{shown} ({round(change, digits) + 0.0:+.{digits}f})"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns for a console: the first to the left, the others to the right, a rule below the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in ruled
    ]


def closing_lines(result: Mapping[str, Any]) -> list[str]:
    """Below a table: remarks, notes on encoders, and what has to be said about the weights."""
    notes = [f"{row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
    weights = [note for note in [result["rows"][0]["weights"]["note"]] if note]
    return ["", *result["remarks"], *notes, *weights]
