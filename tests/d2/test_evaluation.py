"""Scores of a set: against detectron2's own evaluator, over processes, with unseen classes and one background."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator, inference_on_dataset
from detectron2.utils import comm
from PIL import Image
from torch import Tensor, nn

from rsc_seg.d2 import evaluation
from rsc_seg.d2 import loader as loaders
from rsc_seg.d2.catalog import register
from rsc_seg.d2.evaluation import SetEvaluator, SetResult, evaluate_set
from rsc_seg.d2.wrapper import CatSegD2
from rsc_seg.data.seg_task import TaskSet, open_task_set
from rsc_seg.seg.inference import SlidingOptions
from tests.d2.sets import NAMES, open_both, options, write_set
from tests.seg.tiny import tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def guesses(sample: dict[str, Any], classes: int) -> Tensor:
    """The truth with a third of the pixels wrong, the same at each call."""
    draw = np.random.default_rng(len(sample["file_name"]) + sample["height"])
    truth = sample["sem_seg"].numpy()
    wrong = draw.random(truth.shape) < 1 / 3
    noise = draw.integers(0, classes, truth.shape)
    return torch.from_numpy(np.where(wrong | (truth >= classes), noise, truth))


class Guesser(nn.Module):
    """Answers as label maps, or as scores, which detectron2's evaluator takes."""

    def __init__(self, classes: int, scores: bool) -> None:
        super().__init__()
        self.classes, self.scores = classes, scores

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        found = [guesses(sample, self.classes) for sample in batch]
        if self.scores:
            found = [nn.functional.one_hot(f.long(), self.classes).permute(2, 0, 1) for f in found]
        return [{"sem_seg": f} for f in found]


def scored(task: TaskSet, data: Any, pictures: int = 0) -> SetResult:
    loader = loaders.test_loader(task, data, batch_size=2)
    model = Guesser(len(task.names), scores=False)
    result = inference_on_dataset(model, loader, SetEvaluator(task, 5, pictures))
    assert isinstance(result, SetResult)
    return result


@pytest.mark.parametrize("classes", [NAMES, []], ids=["six classes", "all 150"])
def test_the_scores_are_those_of_detectron2s_evaluator(classes: list[str], root: Path) -> None:
    data = options(root, classes=classes)
    task = open_both(data)[1]
    ours = scored(task, data)

    def read(path: str, dtype: type) -> np.ndarray:
        return task.labels(Path(path)).astype(dtype)

    judge = SemSegEvaluator(register(task), distributed=False, sem_seg_loading_fn=read)
    loader = loaders.test_loader(task, data)
    theirs = inference_on_dataset(Guesser(len(task.names), scores=True), loader, judge)["sem_seg"]
    got = [ours.scores.miou_present, ours.scores.fwiou, ours.scores.macc, ours.scores.pacc]
    assert [100 * v for v in got] == pytest.approx([theirs[k] for k in ("mIoU", "fwIoU", "mACC", "pACC")], abs=1e-9)
    for row in ours.rows:
        assert 100 * row.recall == pytest.approx(theirs[f"ACC-{row.name}"], nan_ok=True)
        if row.pixels:
            assert 100 * row.iou == pytest.approx(theirs[f"IoU-{row.name}"])
    assert 0.3 < ours.scores.miou_present < 0.9
    # 144 classes occur in predictions only: the older rule counts each as 0
    assert (ours.scores.miou_union < 0.1 * ours.scores.miou_present) is (not classes)


def test_a_model_is_evaluated_by_its_protocol_and_put_back_into_its_mode(root: Path) -> None:
    data = options(root)
    task = open_both(data)[1]
    model = CatSegD2(tiny_model(), ["other", "names"], SlidingOptions((48, 48), 32), view_batch=10).train()
    result = evaluate_set(model, task, data, pictures=3)
    assert model.training and model.names == task.names and model.train_names == ("other", "names")
    assert (result.key, result.title, result.images) == ("scenes_val", "Embedded scenes val", 5)
    assert [row.name for row in result.rows] == NAMES and sum(row.pixels for row in result.rows) > 0
    again = evaluate_set(model, task, options(root, workers=1))
    assert again.scores == result.scores and again.pictures == ()
    assert [name for name, *_ in result.pictures] == ["val0.jpg", "val1.jpg", "val2.jpg"]
    name, image, labels, predicted = result.pictures[1]
    assert image.size == (40, 60) and labels.shape == predicted.shape == (60, 40)
    assert labels.dtype == predicted.dtype == np.uint8
    assert np.array_equal(labels, task.labels(task.pairs()[1][1])) and set(np.unique(predicted)) <= set(range(6))


def test_large_pictures_are_kept_small(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_PICTURE_SIDE", 30)
    data = options(root)
    shots = scored(open_both(data)[1], data, pictures=2).pictures
    assert [s.image.size for s in shots] == [(30, 20), (20, 30)]
    assert all(s.labels.shape == s.predicted.shape == s.image.size[::-1] for s in shots)
    assert set(np.unique(shots[0].labels)) <= {*range(6), 255}


def test_seen_and_unseen_classes_are_scored_apart(root: Path) -> None:
    data = options(root, held_out=["sky", "grass"])
    result = scored(open_both(data)[1], data)
    iou = {row.name: row.iou for row in result.rows}
    assert [row.name for row in result.rows if row.unseen] == ["sky", "grass"]
    old, new = np.mean([iou[n] for n in NAMES if n not in ("sky", "grass")]), np.mean([iou["sky"], iou["grass"]])
    assert (result.seen, result.unseen) == (pytest.approx(old), pytest.approx(new))
    assert result.harmonic == pytest.approx(2 * old * new / (old + new))
    plain = scored(open_both(options(root))[1], data)
    assert (plain.seen, plain.unseen, plain.harmonic) == (None, None, None) and plain.scores == result.scores


def test_the_result_is_plain_json(root: Path) -> None:
    data = options(root, classes=[], held_out=["sky"])
    result = scored(open_both(data)[1], data)
    found = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    known = {"title", "images", "note", "seconds", "classes", "scores", "seen", "unseen", "harmonic", "rows"}
    assert set(found) == known and found["note"] == ""  # scenes are no part of anything
    assert set(found["scores"]) == {"miou_present", "miou_union", "macc", "pacc", "fwiou"}
    assert found["classes"] == 150 and found["rows"][2] == {
        "name": "sky",
        "iou": result.rows[2].iou,
        "recall": result.rows[2].recall,
        "pixels": result.rows[2].pixels,
        "unseen": True,
    }
    absent = next(row for row in result.rows if not row.pixels)
    assert math.isnan(absent.recall) and found["rows"][result.rows.index(absent)]["recall"] is None


def test_counts_of_all_processes_are_added(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = options(root)
    task = open_both(data)[1]
    whole = scored(task, data, pictures=9)
    judges = [SetEvaluator(task, 5, 9) for _ in range(3)]
    batches = list(loaders.test_loader(task, data))
    for i, batch in enumerate(batches):
        judges[i % 2].process(batch, Guesser(6, scores=False)(batch))
    shares: list[Any] = []
    monkeypatch.setattr(comm, "all_gather", lambda mine: shares.append(mine) or [mine])
    for judge in judges:  # the third process had no image
        judge.evaluate()
    monkeypatch.setattr(comm, "all_gather", lambda mine: shares[:3])
    results = [judge.evaluate() for judge in judges]
    assert all(r.scores == whole.scores and r.rows == whole.rows and r.images == 5 for r in results)
    assert len(whole.pictures) == 5 and [len(r.pictures) for r in results] == [3, 2, 0]


def test_only_the_first_process_keeps_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    data = options(root)
    assert scored(open_both(data)[1], data, pictures=4).pictures == ()


def test_progress_is_told_with_the_time_left(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(evaluation, "_REPORT_SECONDS", -1.0)
    data = options(root)
    with caplog.at_level(logging.INFO, "rsc_seg"):
        scored(open_both(data)[1], data)
    told = [r.getMessage() for r in caplog.records if r.name == "rsc_seg.d2.evaluation"]
    assert [t.partition(",")[0] for t in told] == ["scenes_val: 2 of 5 images", "scenes_val: 4 of 5 images"]
    assert all(t.endswith("0:00:00 to go") for t in told)


def test_every_name_behind_the_twentieth_is_background(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "annotations_detectron2_bg/val"):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(base / "JPEGImages" / "a.jpg")
    truth = np.array([[0, 0, 20, 20, 20, 19, 19, 255]] * 4, np.uint8)
    Image.fromarray(truth).save(base / "annotations_detectron2_bg" / "val" / "a.png")
    data = options(tmp_path, classes=[], test=["voc_20b_val"])
    task = open_task_set("voc_20b_val", data, training=False)
    assert (len(task.names), task.classes, task.background_from) == (59, 21, 20)
    predicted = torch.tensor([[0, 1, 20, 33, 58, 19, 40, 7]] * 4)
    judge = SetEvaluator(task, 1)
    judge.process(next(iter(loaders.test_loader(task, data))), [{"sem_seg": predicted}])
    result = judge.evaluate()
    rows = {row.name: row for row in result.rows}
    assert list(rows)[-1] == "background" and rows["background"].recall == 1.0
    assert rows["background"].iou == pytest.approx(12 / 16)  # 4 pixels of the last class were taken for it
    assert rows[task.names[0]].recall == 0.5 and rows[task.names[19]].recall == 0.5
