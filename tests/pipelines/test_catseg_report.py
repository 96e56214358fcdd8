"""The page of Cat-Seg's training or evaluation, from numbers and pictures alone."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.segmentation import distinct_palette
from rsc_seg.errors import UserError
from rsc_seg.pipelines.catseg_report import build_catseg_report, summary_lines
from rsc_seg.viz.charts import Series, line_chart
from rsc_seg.viz.parts import Chart
from rsc_seg.viz.segmentation import Segmented


def class_row(name: str, iou: float | None, *, unseen: bool = False, pixels: int = 100) -> dict[str, Any]:
    recall = None if iou is None or not pixels else min(1.0, 1.1 * iou)
    return {"name": name, "iou": iou, "recall": recall, "pixels": pixels, "unseen": unseen}


def set_result(miou: float, title: str = "Embedded scenes val", classes: int = 3, **more: Any) -> dict[str, Any]:
    scores = {"miou_present": miou, "miou_union": miou / 2, "macc": 0.4, "pacc": 0.6, "fwiou": None}
    rows = [class_row(f"class {k}", miou + 0.01 * k) for k in range(classes)]
    rows[-1] = class_row(f"class {classes - 1}", None, pixels=0)
    found = {"title": title, "images": 12, "seconds": 3.4, "classes": classes, "scores": scores, "rows": rows}
    return {**found, "seen": None, "unseen": None, "harmonic": None, **more}


def row(name: str, step: int | None, **sets: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "step": step, "note": f"after {step} steps" if step else "", "sets": sets}


def result(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {
        "kind": "train",
        "rows": list(rows),
        "protocol": ["Four tiles and a global view."],
        "weights": {"note": "", "source": "model_base.pth sha256 0123", "licence": "MIT"},
        "training": {"data": "scenes_train", "steps": 300, "loss": {"first": 1}},
        "command": "tools/train_catseg.py --config configs/catseg/demo.yaml",
        "commit": "0123456",
        "environment": {"torch": "2.x"},
        "config": {"clip": {"name": "clip_tiny16"}, "data": {"root": None}},
    }
    return {**found, **more}


def shot(name: str, classes: int, dtype: type = np.uint8) -> Segmented:
    draw = np.random.default_rng(1)
    coarse = draw.integers(0, classes, (6, 8))
    labels = np.kron(coarse, np.ones((20, 20), int)).astype(dtype)
    labels[:10] = np.iinfo(dtype).max
    image = Image.fromarray(draw.integers(0, 255, (120, 160, 3), np.uint8))
    return Segmented(
        name, image, labels, {"untrained": np.zeros_like(labels), "trained": np.where(labels > 1, 1, labels)}
    )


def page_text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert 'alt=""' not in text and "http-equiv" in text
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>|base64,[^\"]+", "", text)))


def test_training_with_pictures_and_curves(tmp_path: Path) -> None:
    held = result(row("untrained", 0, scenes_val=set_result(0.032)), row("trained", 300, scenes_val=set_result(0.148)))
    pictures = {"scenes_val": ([shot("one.jpg", 3)], [f"class {k}" for k in range(3)], distinct_palette(3))}
    curves = [Chart("Loss", line_chart("Loss", [Series("loss", [1, 2], [0.5, 0.4])]))]
    path = build_catseg_report(tmp_path / "report.html", held, pictures, curves)
    text = page_text(path)
    for part in ("Cat-Seg on clip_tiny16: training", "Embedded scenes val", "3.2", "14.8 +11.6", "Training curves"):
        assert part in text, part
    assert "12 images, 3 classes of which 2 occur in the labels" in text
    assert "IoU by class" in text and "+11.6" in text and "Licence of the weights: MIT" in text
    assert "chelsea by" in text  # who made the parts of the scenes
    assert "steps 300" in text and "one training run" in text and "seen" not in text.replace("each seen", "")
    page = path.read_text()
    assert page.count("<img") == 4 + 4  # the photograph, labels, two predictions; three classes and void
    assert page.count("data:image/jpeg") == 4  # maps lie over the photograph


def test_held_out_classes_have_their_own_columns(tmp_path: Path) -> None:
    found = set_result(0.2, seen=0.3, unseen=0.05, harmonic=0.0857)
    found["rows"][0]["unseen"] = True
    text = page_text(build_catseg_report(tmp_path / "r.html", result(row("trained", 9, s=found)), {}, []))
    assert "class 0 (unseen)" in text and "harmonic mean" in text and "8.6" in text
    assert summary_lines(result(row("trained", 9, s=found))) == [
        "Embedded scenes val, trained: mIoU (present) 20.0, mIoU (union) 10.0, mAcc 40.0, pAcc 60.0, seen 30.0, unseen "
        "5.0."
    ]


def test_evaluation_of_several_sets_with_many_classes(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(300)]
    sets = {"a": set_result(0.1, "A val"), "ade20k_847_val": set_result(0.12, "ADE20K-847 val", 300)}
    held = result(
        row("model_base.pth", None, **sets), kind="eval", training=None, config="clip:\n  name: clip_vitb16\n"
    )
    shots = {
        "a": ([shot("a.jpg", 3)], names[:3], distinct_palette(3)),
        "ade20k_847_val": ([shot("b.jpg", 300, np.uint16)], names, distinct_palette(300)),
    }
    text = page_text(build_catseg_report(tmp_path / "r.html", held, shots, []))
    for part in ("Cat-Seg on clip_vitb16: evaluation", "Predictions: A val", "Predictions: ADE20K-847 val"):
        assert part in text, part
    assert "Classes of ADE20K-847 val: more than 60, they are in classes.csv alone" in text
    assert "IoU by class: A val" in text and "IoU by class: ADE20K" not in text
    assert "one training run" not in text and "chelsea by" not in text


def test_a_stopped_evaluation_and_random_weights(tmp_path: Path) -> None:
    first = row("untrained", 0, a=set_result(0.0, "A val"), b=set_result(0.1, "B val"))
    held = result(first, row("trained", 5, a=set_result(0.2, "A val")), weights={"note": "RANDOM WEIGHTS: nothing."})
    text = page_text(build_catseg_report(tmp_path / "r.html", held, {"a": ([], [], [])}, []))
    assert "RANDOM WEIGHTS: nothing." in text and "never learnt what words mean" in text and "Predictions" not in text
    lines = summary_lines(held)
    assert lines[0].endswith("; untrained: mIoU (present) 0.0.") and lines[1].startswith("B val, untrained: mIoU")
    with pytest.raises(UserError, match="no set was evaluated"):
        build_catseg_report(tmp_path / "r.html", result(row("x", 1)), {}, [])
