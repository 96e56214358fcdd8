"""Rows of numbers: appended, forgotten when steps are repeated, refused in one line; the bar and the clock."""

import io
import json
import sys
from pathlib import Path

import pytest

from rsc_seg.errors import UserError
from rsc_seg.training.log import Progress, RunLog, clock


def steps(log: RunLog) -> list[tuple[str, int]]:
    return [(r["stage"], r["step"]) for r in map(json.loads, log.path.read_text().splitlines())]


def test_rewind_forgets_what_comes_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for stage in ("refine", "distill"):
        for step in range(4):
            log.write(stage, step, {"loss": step + 0.5})
    with log.path.open("a") as file:
        file.write('{"stage": "distill", "st')  # a killed run's last line
    log.rewind("distill", 2)
    assert steps(log) == [("refine", i) for i in range(4)] + [("distill", 0), ("distill", 1)]
    log.rewind("refine", 4)
    log.write("distill", 2, {"loss": 9.0})
    assert steps(log)[-1] == ("distill", 2) and len(steps(log)) == 7
    log.rewind("refine", 0)
    assert steps(log) == [("distill", i) for i in range(3)]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", enabled=False)
    log.write("refine", 0, {"loss": 1.0})
    log.rewind("refine", 0)
    assert not (tmp_path / "run").exists()


def test_refused_row_is_one_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.path.mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: not written \(Is a directory\).*--resume"):
        log.write("refine", 0, {"loss": 1.0})


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("refine", 10, 4, enabled=True, every=1)
    for step in range(5, 11):
        progress.update(step, {"loss": 0.25})
    progress.close()
    assert "refine" in terminal.getvalue() and "10/10" in terminal.getvalue()


def test_silent_where_it_is_not_enabled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("refine", 2, 0, enabled=False, every=1)
    progress.update(1, {"loss": 0.25})
    progress.close()
    assert terminal.getvalue() == "" and not caplog.records


def test_clock() -> None:
    assert [clock(s) for s in (0.9, 61, 3599.9, 36061)] == ["0:00:00", "0:01:01", "0:59:59", "10:01:01"]
