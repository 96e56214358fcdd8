"""evaluate.py as a user types it: measure, page, table, and what each refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rsc_seg.cli.evaluate import main
from tests.pipelines.tiny import PROBE, TINY, labelled_set, train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_set(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A run that has been measured, with options before and behind the flags; not to be changed."""
    run = train(tmp_path_factory.mktemp("runs") / "a", root, "distill.control=true")
    assert (
        main(["probe", PROBE[0], "data.limit=3", "--run", str(run), *PROBE[1:], "--device", "cpu", "data.limit=2"]) == 0
    )
    return run


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> None:
    """Exit code 2 and one last line with all `parts`."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    line = err.rstrip().splitlines()[-1]
    assert line.startswith("evaluate.py") and ": error: " in line
    for part in parts:
        assert part in line, line


def test_measure_writes_numbers_and_page(measured: Path) -> None:
    result = json.loads((measured / "probe.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names[0] == "untuned, last layer" and "(best)" in names[1]
    assert names[2:] == ["SCD control, alpha 0.5", "Refiner", "student, alpha 1", "student, alpha 0.5"]
    assert (result["train_images"], result["val_images"]) == (2, 2)  # the last data.limit, of both splits
    page = (measured / "report.html").read_text()
    assert "student, alpha 0.5" in page and "None of these pictures is one of the run" in page


def test_report_again_without_measuring(measured: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(measured, run)
    (run / "report.html").unlink()
    before = (run / "probe.json").read_bytes()
    assert main(["report", str(run), "--device", "cpu"]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    assert (run / "report.html").is_file() and (run / "probe.json").read_bytes() == before
    (run / "probe.json").write_text("{}")
    refused(capsys, ["report", str(run)], str(run / "probe.json"), "lacks rows", "measure again")
    (run / "run.json").unlink()
    refused(capsys, ["probe", "--run", str(run), *PROBE], str(run / "run.json"), "not there")


def test_checkpoints_of_one_stem_have_names_of_their_own(
    measured: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "b"
    other.mkdir()
    for name in ("student.safetensors", "student.json"):
        shutil.copy(measured / name, other / name)
    output = tmp_path / "out.json"
    files = [str(folder / "student.safetensors") for folder in (measured, other)]
    argv = ["probe", *TINY, "--checkpoint", files[0], "--checkpoint", files[1], "--output", str(output)]
    data = ["data.kind=plain", f"data.root={root}", "data.image_size=[56,84]", "probe.best_layer=false"]
    assert main([*argv, *data, *PROBE]) == 0
    names = [row["name"] for row in json.loads(output.read_text())["rows"]]
    assert names[1:] == ["a/student, alpha 0.5", "b/student, alpha 0.5"]
    refused(capsys, [*argv, "--checkpoint", files[0], *data], files[0], "named twice")


def test_bad_input_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["probe", "--backbone", "dinov2_tiny14", "--weights", "none", "data.kind=plain", f"data.root={root}"]
    refused(capsys, [*data, "--device", "qqq"], "run.device=qqq")
    if not torch.cuda.is_available():
        refused(capsys, [*data, "--device", "cuda"], "no usable CUDA device")
    refused(capsys, [*data, "data.image_size=[28,42]", "data.every=2"], "data.every=2", "probe.train_every")
    refused(capsys, [*data, "--device", "cpu", "nonsense"], "nonsense")
    refused(capsys, ["table", "a", "--unknown=1"], "--unknown=1")
    refused(capsys, ["report", "nowhere"], "nowhere/probe.json")
