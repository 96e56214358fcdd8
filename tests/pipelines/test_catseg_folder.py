"""Folders, stored evaluations and tables of Cat-Seg's runs."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsc_seg.config_catseg import ClipConfig, TrainCatSegConfig
from rsc_seg.d2.evaluation import ClassRow, Picture, SetResult
from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import Scores
from rsc_seg.pipelines.catseg_folder import (
    EvaluationStore,
    default_folder,
    open_folder,
    result_lines,
    row_key,
    what_counts,
    what_counts_in_evaluation,
    write_classes,
)

CLASSES = (ClassRow("sky", 0.5, 0.75, 12, False), ClassRow("moon", float("nan"), float("nan"), 0, True))


def found(**changes: Any) -> SetResult:
    """A result on two classes with one wide picture."""
    labels = np.array([[0, 300], [1, 65535]], np.uint16)
    picture = Picture("a.jpg", Image.new("RGB", (2, 2), (9, 8, 7)), labels, labels.T.copy())
    given: dict[str, Any] = {"key": "set", "title": "Set val", "images": 3, "seconds": 1.5, "seen": 0.5, "unseen": 0.25}
    given |= {"harmonic": 1 / 3, "rows": CLASSES, "pictures": (picture,)}
    return SetResult(scores=Scores(0.5, 0.25, 0.75, 0.8, 0.6, [0.5, float("nan")]), **given | changes)


def test_a_result_is_found_again_under_its_key_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EvaluationStore(tmp_path, "key")
    assert not store.any() and store.find("weights", "set") is None and store.steps() == []
    store.keep(row_key(40), found())
    assert store.any() and store.steps() == [40] and row_key(None) == "weights"
    held = store.find("step_00000040", "set")
    assert held == json.loads(json.dumps(found().as_dict())) and held["rows"][1]["iou"] is None
    assert EvaluationStore(tmp_path, "other").find("step_00000040", "set") is None
    (tmp_path / "evaluation" / "step_00000040" / "set.json").write_text('{"key"')
    assert store.find("step_00000040", "set") is None and "evaluated again" in caplog.text


def test_pictures_come_back_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EvaluationStore(tmp_path, "key")
    store.keep("weights", found())
    (shown,) = store.shown("weights", "set")
    (picture,) = found().pictures
    assert shown.name == "a.jpg" and shown.labels.dtype == np.uint16
    assert np.array_equal(shown.labels, picture.labels) and np.array_equal(shown.predicted, picture.predicted)
    assert shown.image.tobytes() == picture.image.tobytes()
    (tmp_path / "evaluation" / "weights" / "set.npz").write_bytes(b"PK")
    assert store.shown("weights", "set") == [] and "no pictures from there" in caplog.text


def test_what_makes_two_runs_the_same(tmp_path: Path) -> None:
    config = TrainCatSegConfig()
    open_folder(tmp_path / "run", config, eval_only=False, resume=False)
    free = dataclasses.replace(config, run=dataclasses.replace(config.run, device="cpu", devices=4, log_every=1))
    assert what_counts(free) == what_counts(config)
    assert open_folder(tmp_path / "run", free, eval_only=False, resume=True) is False
    other = TrainCatSegConfig(clip=ClipConfig(name="clip_vitl14"))
    with pytest.raises(UserError, match=r"--resume with another configuration: clip\.name"):
        open_folder(tmp_path / "run", other, eval_only=False, resume=True)
    trained_else = TrainCatSegConfig()
    trained_else.solver.lr, trained_else.data.crop = 1.0, [1, 1]
    assert what_counts_in_evaluation(trained_else) == what_counts_in_evaluation(config)
    assert what_counts(trained_else) != what_counts(config)


def test_kinds_of_runs_keep_apart(tmp_path: Path) -> None:
    config = TrainCatSegConfig()
    for kind, eval_only, said in (("train", True, "holds a training run"), ("eval", False, "holds an evaluation")):
        folder = tmp_path / kind
        open_folder(folder, config, eval_only=not eval_only, resume=False)
        (folder / "run.json").write_text(json.dumps({"kind": kind}))
        with pytest.raises(UserError, match=said):
            open_folder(folder, config, eval_only=eval_only, resume=True)


def test_names_of_folders() -> None:
    config = TrainCatSegConfig()
    assert default_folder(config) == Path("runs/catseg_clip_vitb16_coco_stuff_171_train")
    assert default_folder(config, eval_only=True) == Path("runs/catseg_clip_vitb16_eval_untrained")
    named = default_folder(config, weights=Path("x/model_base.pth"), eval_only=True)
    assert named == Path("runs/catseg_clip_vitb16_eval_model_base")
    named = default_folder(config, weights=Path("runs/mine/catseg.safetensors"), eval_only=True)
    assert named == Path("runs/catseg_clip_vitb16_eval_mine")


def test_tables_and_lines(tmp_path: Path) -> None:
    sets = {"set": found().as_dict()}
    rows = [{"name": "untrained", "step": 0, "note": "", "sets": sets}, {"name": "w.pth", "step": None, "sets": sets}]
    write_classes(tmp_path / "classes.csv", rows)
    with open(tmp_path / "classes.csv", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["row", "step", "set", "label", "name", "unseen", "iou", "recall", "pixels"]
    assert lines[1] == ["untrained", "0", "set", "0", "sky", "0", "50.000", "75.000", "12"]
    assert lines[4] == ["w.pth", "", "set", "1", "moon", "1", "", "", "0"]
    expected = "set: mIoU 50.00, pAcc 80.00, seen 50.00, unseen 25.00"
    assert result_lines({"rows": rows}) == [f"{expected} (untrained: mIoU 50.00)"]
    assert result_lines({"rows": rows[:1]}) == [expected]
