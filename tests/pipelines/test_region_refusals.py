"""What region-language alignment refuses, when it does so, and what a run's sidecars say of it."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.pipelines.objective_runs import PICTURES, rows, scenes, sidecar, tune


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in COCO's layout, 240 x 180 pixels."""
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


def pictures(root: Path) -> list[Path]:
    return sorted((root / "train2017").iterdir())


def proposals(path: Path, root: Path, boxes: list[list[float]], *, sizes: bool = False, count: int = PICTURES) -> str:
    """The option data.proposals with one box for each of the first `count` pictures, in their order."""
    size = {"width": 240, "height": 180} if sizes else {}
    images = [{"id": i, "file_name": p.name} | size for i, p in enumerate(pictures(root))]
    found = [{"image_id": i, "bbox": box, "category_id": "thing"} for i, box in enumerate(boxes[:count])]
    path.write_text(json.dumps({"images": images, "annotations": found}))
    return f"data.proposals={path}"


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "error: " in line]


@pytest.mark.parametrize("value", ["0", "-0.1", "inf", "nan"])
@pytest.mark.parametrize(
    "key",
    [
        *("distill.temperature_student", "distill.temperature_teacher"),
        *("refine.align.temperature", "refine.align.target_temperature"),
    ],
)
def test_temperatures_are_checked_before_anything_is_written(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    assert tune(tmp_path / "run", root, "r-sc-clipself", f"{key}={value}") == 2
    (line,) = errors(capsys)
    assert key in line and "must be a finite number above 0" in line and not (tmp_path / "run").exists()


def test_options_that_an_objective_has_no_use_for_are_not_refused(tmp_path: Path, root: Path) -> None:
    unused = ["distill.temperature_student=0", "crops.bank=2", "distill.boxes=3", "run.log_every=1"]
    assert tune(tmp_path / "run", root, "clipself", *unused) == 0
    assert tune(tmp_path / "plain", root, "clipself") == 0
    assert [r["loss"] for r in rows(tmp_path / "run")] == [r["loss"] for r in rows(tmp_path / "plain")]
    assert tune(tmp_path / "no", root, "sc-clipself", "crops.bank=2", "distill.boxes=3") == 2


@pytest.mark.parametrize("sizes", [True, False])
def test_a_box_outside_its_picture_is_refused_before_the_run(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], sizes: bool
) -> None:
    boxes = [[10.0, 10, 50, 50]] * 3 + [[200.0, 10, 90, 50]]
    given = proposals(tmp_path / "p.json", root, boxes, sizes=sizes)
    assert tune(tmp_path / "run", root, "clipself", given) == 2
    (line,) = errors(capsys)
    assert "p.json, image" in line and "(data.proposals): box [200.0, 10.0, 90.0, 50.0]" in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_made_steps_keeps_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sizes that the file states are not the pictures': found when the last picture's turn comes."""
    own = scenes(tmp_path / "own")
    for path in pictures(own)[1:]:
        Image.open(path).resize((120, 90)).save(path)
    given = proposals(tmp_path / "p.json", own, [[100.0, 100, 100, 70]] * PICTURES, sizes=True)
    options = [given, "distill.optim.batch_size=1", "distill.optim.max_steps=8", "run.seed=0"]
    seeds = range(8)  # one of these begins with the picture that fits
    for seed in seeds:
        folder = tmp_path / f"run{seed}"
        assert tune(folder, own, "clipself", *options, f"run.seed={seed}") == 2
        (line,) = errors(capsys)
        assert "p.json, image 'train2017/" in line and "(data.proposals)" in line and "of 120 x 90 pixels" in line
        if folder.exists():
            break
    assert folder.exists() and rows(folder) and (folder / "config.yaml").is_file()


def test_how_the_file_and_the_pictures_fit_is_logged_once_each(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = proposals(tmp_path / "p.json", root, [[10.0, 10, 50, 50]] * 2)
    document = json.loads((tmp_path / "p.json").read_text())
    document["images"].append({"id": 99, "file_name": "other.jpg"})
    document["annotations"].append({"image_id": 99, "bbox": [1, 1, 20, 20]})
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert tune(tmp_path / "run", root, "r-sc-clipself", given, "distill.control=true") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "p.json" in line]
    assert len(said) == 3
    assert any("1 of its 3 images with boxes are none of the 4 images of this run (data.proposals)" in m for m in said)
    assert any("no box for 2 of 4 images: crops and distillation (data.proposals)" in m for m in said)
    assert any("no box for 2 of 4 images: alignment (rla.boxes=proposals)" in m for m in said)


def test_the_sidecars_say_what_was_done(tmp_path: Path, root: Path) -> None:
    given = proposals(tmp_path / "p.json", root, [[10.0, 10, 50, 50]] * PICTURES)
    more = [given, "distill.control=true", "distill.temperature_teacher=0.3", "distill.optim.accumulate=2"]
    more += ["refine.align.loss=infonce", "refiner.depth=1", "distill.regions=both", "distill.weight=0.7"]
    assert tune(tmp_path / "run", root, "r-sc-clipself", *more) == 0
    student, control = sidecar(tmp_path / "run"), sidecar(tmp_path / "run", "control")
    refiner = sidecar(tmp_path / "run", "refiner")
    digest = hashlib.sha256((tmp_path / "p.json").read_bytes()).hexdigest()
    for facts in (student, control, refiner):
        assert facts["files"] == {"data.proposals": {"file": str(tmp_path / "p.json"), "sha256": digest}}
        assert facts["objective"] == "r-sc-clipself" and facts["precision"] == "32-true"
        assert facts["end_to_end"] is False and facts["crops"]["per_image"] == 2 and facts["image_size"] == [64, 64]
    wanted = {"temperature_student": 0.2, "temperature_teacher": 0.3, "regions": "both", "boxes": 2, "weight": 0.7}
    wanted |= {"boxes_from": "own", "normalize": True, "loss": "scd", "target": "refiner", "end_to_end": False}
    assert student["distill"] == wanted and control["distill"] == wanted | {"target": "teacher"}
    assert student["optim"].items() >= {"steps": 2, "batch_size": 2, "accumulate": 2, "lr": 2e-5}.items()
    assert student["trainable"] == "blocks" and student["alpha"] == 0.5 and student["rla"]["crop_size"] == [64, 64]
    assert refiner["align"]["loss"] == "infonce" and refiner["refine_optim"]["steps"] == 2
    for facts in (student, refiner):
        assert facts["refiner"]["depth"] == 1 and len(facts["refiner"]["taps"]) == 2
        assert facts["align"] == refiner["align"]
    assert "refiner" not in control and "align" not in control


def test_the_decay_of_an_average_stands_where_there_is_one(tmp_path: Path, root: Path) -> None:
    assert tune(tmp_path / "run", root, "sc-clipself", "distill.loss=densecl", "distill.ema=0.5") == 0
    assert sidecar(tmp_path / "run")["distill"]["ema"] == 0.5


def test_unreadable_pictures_are_named_and_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = scenes(tmp_path / "own")
    pictures(own)[0].write_bytes(b"")
    assert tune(tmp_path / "run", own, "r-sc-clipself", "distill.optim.max_steps=3") == 0
    said = capsys.readouterr().err.splitlines()
    assert sum("skipped and replaced" in m for m in said) == 1
    assert sum("1 unreadable images were replaced by others" in m for m in said) == 1
    assert "unreadable" in said[-1]
