"""make_proposals.py as it is called."""

import json
from pathlib import Path

import pytest

from rsc_seg.cli.make_proposals import main
from tests.training.helpers import write_pictures

TINY = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu", "data.image_size=[56,84]"]


def test_boxes_are_made_checked_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_pictures(tmp_path / "p", 2), tmp_path / "b.json"
    made = ["--output", str(out), "--per-image", "5", "--draw", str(tmp_path / "look"), "--pictures", "1"]
    assert main([*TINY, *made, f"data.root={root}"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: {len(json.loads(out.read_text())['annotations'])} boxes of 2 images, 0 unreadable" in said
    assert "for 2 of 2 images" in said and f"drawn: 1 pictures in {tmp_path / 'look'}" in said
    assert main([*TINY, "--check", str(out), f"data.root={root}"]) == 0
    assert "for 2 of 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --output FILE to write boxes, or --check FILE"),
        (["--output", "a.json", "--check", "b.json"], "give --output or --check, not both"),
        (["--check", "gone.json"], "gone.json: no such file (--check)"),
        (["--output", "a.json", "--method", "boxes"], "--method=boxes"),
        (["--output", "a.json", "data.rot=x"], "data.rot"),
    ],
)
def test_bad_calls_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_pictures(tmp_path / "p", 1)
    assert main([*TINY, *more, f"data.root={root}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and errors[0].startswith("make_proposals.py: error: ") and message in errors[0]
    assert not (tmp_path / "a.json").exists()


def test_an_unknown_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--outptu", "x"])
    assert stop.value.code == 2 and "unrecognized arguments: --outptu" in capsys.readouterr().err
