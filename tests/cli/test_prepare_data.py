"""prepare_data.py as a user types it."""

from pathlib import Path

import pytest

from rsc_seg.cli.prepare_data import main
from rsc_seg.data.scenes import SceneSet, layout_root, write_scenes
from rsc_seg.data.segsets import segset
from tests.data import prepare_trees as trees


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> None:
    """Exit code 2 and one last line with all `parts`."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    line = err.rstrip().splitlines()[-1]
    assert line.startswith("prepare_data.py: error: ")
    for part in parts:
        assert part in line, line


def test_check_prepare_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.ade20k_150(tmp_path)
    argv = ["ADE20K-150", "--root", str(tmp_path), "--subset", "--workers", "1"]
    refused(capsys, [*argv, "--check"], "3 of 3 images lack prepared labels", "run prepare_data.py")
    assert main(argv) == 0
    done = capsys.readouterr()
    assert "ade20k_150_val: 3 images with labels in" in done.out and "(3 converted, 0 kept)" in done.out
    assert "ADE20K-150 (train) needs it: get ADEChallengeData2016.zip" in done.err  # the other split is not there
    assert main([*argv, "--check"]) == 0
    assert "ade20k_150_val: ready, 3 images" in capsys.readouterr().out


def test_embedded_scenes_in_public_layouts_become_detectron2s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts = {
        "ade20k": "ade20k_150",
        "cocostuff": "coco_stuff_171",
        "coco": "coco_panoptic",
        "cityscapes": "cityscapes",
    }
    wanted = SceneSet(seed=1, train=2, val=1, size=(96, 72), layouts=tuple(layouts))
    root = write_scenes(tmp_path / "scenes", wanted)
    for layout, name in layouts.items():
        place = layout_root(root, layout)
        above = place if (place / "ADEChallengeData2016").is_dir() else place.parent
        assert main([name, "--root", str(above), "--subset", "--workers", "1"]) == 0
        out = capsys.readouterr().out
        assert f"{name}_train: 2 images" in out and f"{name}_val: 1 images" in out
        assert [len(segset(f"{name}_{split}").pairs(above)) for split in ("train", "val")] == [2, 1]
        assert main([name, "--root", str(above), "--subset", "--workers", "1", "--check"]) == 0
        capsys.readouterr()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    refused(capsys, ["ade20k", *root], "must be one of ade20k_150, ade20k_847", "Did you mean")
    refused(capsys, ["ade20k_150"], "--root")
    refused(capsys, ["voc_20", *root, "--split", "train"], "--split train: voc_20 has val")
    refused(capsys, ["voc_20", *root, "--workers", "0"], "--workers 0: must be 1 or more")
    refused(capsys, ["coco_panoptic", *root], "panoptic_annotations_trainval2017.zip (cocodataset.org, Download)")
    refused(capsys, ["cityscapes", "--root", str(tmp_path / "x")], "no such folder (--root)")
    trees.ade20k_150(tmp_path)
    refused(capsys, ["ade20k_150", *root], "3 images, but the official split has 2000")
    refused(
        capsys, ["ade20k_150", *root, "--split", "train", "--subset"], "images/training", "sceneparsing.csail.mit.edu"
    )
    label = tmp_path / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000000.png"
    label.write_bytes(b"")
    refused(capsys, ["ade20k_150", *root, "--subset", "--workers", "1"], f"{label}: not readable", "the file is empty")
    refused(capsys, ["ade20k_150", *root, "--subset", "--workers", "1", "--check"], f"{label}: not readable")
