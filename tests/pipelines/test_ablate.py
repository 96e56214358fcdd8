"""A comparison from files to its table: what is kept, what is done again, what a failing run leaves."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rsc_seg.config import EvaluateConfig, RscvConfig, load_config
from rsc_seg.errors import UserError
from rsc_seg.pipelines.ablation_measure import MeasureOptions, Measurer, evaluation_of, wants_regions
from tests.pipelines.objective_runs import CLIP, ablate, comparison_files, rows, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in COCO's layout, two of them for validation."""
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Presets and comparisons."""
    return comparison_files(tmp_path_factory.mktemp("files"))


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ablation.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path, files: Path) -> Path:
    """Three objectives with two seeds each, measured; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "threeway"
    assert ablate(root, folder, files / "threeway.yaml", "--seeds", 2) == 0
    return folder


def test_one_table_with_probe_coupling_and_regions_side_by_side(finished: Path) -> None:
    result = read(finished)
    (table,) = result["tables"]
    assert table["reference"] == "clipself" and result["failed"] == []
    assert [(row["name"], row["seeds"]) for row in table["rows"]] == [
        *(("clipself", [0, 1]), ("sc-clipself", [0, 1]), ("r-sc-clipself", [0, 1]))
    ]
    for row in table["rows"]:
        for key in ("linear_miou", "coupling_median", "boxes_top1", "thing_masks_top1", "stuff_masks_top1"):
            seeds = [
                json.loads((finished / row["name"] / f"seed{seed}" / "probe.json").read_text())["rows"][1]["headline"]
                for seed in (0, 1)
            ]
            a, b = (one[key] for one in seeds)
            assert row["numbers"][key]["mean"] == pytest.approx((a + b) / 2)
            assert row["numbers"][key]["std"] == pytest.approx(abs(a - b) / 2**0.5)
    text, page = (finished / "ablation.md").read_text(), (finished / "report.html").read_text()
    assert "| r-sc-clipself | `objective=r-sc-clipself` | 2 |" in text and "boxes top-1" in text
    assert "RANDOM WEIGHTS" in text and "RANDOM WEIGHTS" in page and "classes of regions by prototypes" in text
    assert "stuff masks top-1" in page and "sc-clipself" in page


def times(folder: Path) -> dict[str, int]:
    names = ("student.safetensors", "probe.json", "metrics.jsonl")
    return {str(p): p.stat().st_mtime_ns for name in names for p in folder.rglob(name)}


def test_what_is_finished_is_kept_and_what_is_missing_is_done(
    tmp_path: Path, finished: Path, root: Path, files: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before, numbers = times(folder), read(folder)["tables"][0]["rows"]
    assert ablate(root, folder, files / "threeway.yaml", "--seeds", 2) == 0
    assert times(folder) == before
    gone = folder / "sc-clipself" / "seed1"
    shutil.rmtree(gone)
    (folder / "clipself" / "seed0" / "probe.json").unlink()
    assert ablate(root, folder, files / "threeway.yaml", "--seeds", 2) == 0
    touched = {key for key, value in times(folder).items() if value != before[key]}
    assert touched == {str(gone / n) for n in ("student.safetensors", "probe.json", "metrics.jsonl")} | {
        str(folder / "clipself" / "seed0" / "probe.json")
    }
    assert [row["numbers"] for row in read(folder)["tables"][0]["rows"]] == [row["numbers"] for row in numbers]


def test_a_stopped_run_goes_on(tmp_path: Path, finished: Path, root: Path, files: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    run = folder / "r-sc-clipself" / "seed0"
    wanted = (run / "student.safetensors").read_bytes()
    for path in (run / "student.safetensors", run / "student_alpha1.safetensors", run / "probe.json"):
        path.unlink()
    (run / "checkpoints" / "distill" / "step_00000002.pt").unlink()
    assert ablate(root, folder, files / "threeway.yaml", "--seeds", 2) == 0
    assert (run / "student.safetensors").read_bytes() == wanted
    assert [row["stage"] for row in rows(run)] == ["refine", "refine", "distill", "distill"]


def test_another_measure_trains_nothing(tmp_path: Path, finished: Path, root: Path, files: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before = times(folder)
    more = ["--seeds", 2, "--measure", "probe.coupling_pairs=2", "--measure", "probe.train_every=2", "--regions", "off"]
    assert ablate(root, folder, files / "threeway.yaml", *more) == 0
    assert {Path(k).name for k, v in times(folder).items() if v != before[k]} == {"probe.json"}
    (table,) = read(folder)["tables"]
    assert table["train_images"] == 2 and "boxes_top1" not in table["rows"][0]["numbers"]


def test_other_options_in_the_same_folder_are_refused(
    finished: Path, root: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    code = ablate(root, folder, files / "threeway.yaml", "distill.alpha=0.1")
    assert code == 2 and "distill.alpha (0.5 -> 0.1)" in capsys.readouterr().err


def test_a_failing_run_does_not_end_the_others(
    tmp_path: Path, root: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [files / "broken.yaml", files / "lambda.yaml"]
    assert ablate(root, tmp_path / "run", *given) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("ablate.py: error: 1 of 3 runs failed: deep, seed 0: refiner.depth=9")
    result = read(tmp_path / "run")
    assert [f["name"] for f in result["failed"]] == ["deep"]
    assert [row["name"] for row in result["tables"][0]["rows"]] == ["preset", "lambda-1"]
    assert "Failed: deep, seed 0" in (tmp_path / "run" / "ablation.md").read_text()
    # the two share a stage 1: it was trained once
    assert [row["stage"] for row in rows(tmp_path / "run" / "preset" / "seed0")] == ["refine"] * 2 + ["distill"] * 2
    assert [row["stage"] for row in rows(tmp_path / "run" / "lambda-1" / "seed0")] == ["distill"] * 2


def test_what_cannot_be_measured_is_not_trained(
    tmp_path: Path, root: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [files / "lambda.yaml", "--measure", "probe.val_every=2"]
    assert ablate(root, tmp_path / "run", *given) == 2
    assert "2 of 2 runs failed: preset, seed 0: the coupling ratio needs at least two" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_several_processes_run_apart(
    tmp_path: Path, root: Path, files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    run = subprocess.run

    def refuse(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        if "rsc_seg.cli.rscv_finetune" not in command:
            return run(command, **more)
        asked.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", refuse)
    assert ablate(root, tmp_path / "run", files / "preset.yaml", "run.devices=2") == 2
    (command,) = asked
    given = load_config(RscvConfig, command[command.index("--config") + 1])
    assert given.run.devices == 2 and given.objective == "r-sc-clipself" and "--resume" in command
    assert command[command.index("--output-dir") + 1] == str(tmp_path / "run" / "preset" / "seed0")
    assert "preset, seed 0: its processes ended with exit code 3" in capsys.readouterr().err


def evaluation(root: Path, *more: str) -> EvaluateConfig:
    flags = ["backbone.name=clip_tiny16", "backbone.weights=none", f"data.root={root}", "data.kind=coco"]
    return load_config(EvaluateConfig, None, [*flags, "data.image_size=[64,64]", *more])


def test_regions_need_a_clip_and_panoptic_segments(tmp_path: Path, root: Path) -> None:
    on, auto = MeasureOptions(regions="on"), MeasureOptions()
    assert wants_regions(evaluation(root), auto) and wants_regions(evaluation(root), on)
    dinov2 = evaluation(root, "backbone.name=dinov2_tiny14")
    assert not wants_regions(dinov2, auto)
    with pytest.raises(UserError, match="--regions on: dinov2_tiny14 has no text"):
        wants_regions(dinov2, on)
    plain = evaluation(root, "data.kind=plain")
    assert not wants_regions(plain, auto)
    with pytest.raises(UserError, match="--regions on: .*panoptic segments"):
        wants_regions(plain, on)
    shutil.copytree(root, tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "panoptic_val2017.json").unlink()
    without = evaluation(tmp_path / "coco")
    assert not wants_regions(without, auto)
    with pytest.raises(UserError, match="--regions on: .*panoptic"):
        wants_regions(without, on)


def test_classes_by_text_or_by_prototypes(root: Path) -> None:
    config = evaluation(root)
    assert Measurer(config, MeasureOptions()).classes == "prototypes"  # text of random weights means nothing
    assert Measurer(config, MeasureOptions(classes="text")).classes == "text"


def test_a_measure_takes_all_pictures_of_its_splits(root: Path) -> None:
    config = load_config(RscvConfig, None, [*CLIP, f"data.root={root}", "data.every=2", "data.limit=1"])
    found = evaluation_of(config, MeasureOptions(["probe.val_every=2"]))
    assert (found.data.every, found.data.limit, found.probe.val_every, found.probe.best_layer) == (1, None, 2, False)
