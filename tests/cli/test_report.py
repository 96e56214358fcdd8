"""report.py as a user types it."""

import json
from pathlib import Path

import pytest

from rsc_seg.cli.evaluate import main as evaluate
from rsc_seg.cli.report import main
from tests.training.helpers import write_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_pictures(folder / "images", 4)
    argv = ["coupling", "--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu", "data.workers=0"]
    argv += ["data.image_size=[28,28]", f"data.root={folder / 'images'}", "--output-dir", str(folder / "run")]
    assert evaluate(argv) == 0
    return folder / "run"


def test_one_page_and_a_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "one.html"
    assert main([str(run), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    median = json.loads((run / "coupling.json").read_text())["rows"][0]["scores"]["median"]
    assert f"{median:.3f}" in out and f"report: {page}" in out
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ([str(tmp_path / "nowhere")], "nowhere: no such run folder"),
        ([str(run), str(run)], "named twice"),
        ([str(run), "--reference", "other"], "--reference other: none of the runs run"),
        ([str(run), "--maps", "-1"], "--maps -1: must be 0 or more"),
        ([str(run), "--output", str(tmp_path)], "--output is a folder"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.rstrip().splitlines()[-1].startswith("report.py: error: ") and said in err and "Traceback" not in err
