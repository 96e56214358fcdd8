"""Results of Cat-Seg, CAUSE, ablations and averages over contexts as parts of a comparison."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.pipelines.catseg_folder import EvaluationStore
from rsc_seg.pipelines.compare_pictures import predictions, stored_figures
from rsc_seg.pipelines.compare_read import read_run, read_runs
from rsc_seg.pipelines.compare_runs import CompareOptions, compare, run_comparison
from rsc_seg.viz.parts import Figure, FigureGroup
from rsc_seg.viz.png import save_groups

WEIGHTS = {"backbone": "clip_tiny16", "source": "none", "note": "RANDOM WEIGHTS.", "training": {}}
MADE = {"command": "tools/x.py --y", "commit": "abc", "environment": {}}
SCORES = ("miou_present", "miou_union", "macc", "pacc", "fwiou")


UNSEEN = {"unseen": 0.25, "harmonic": 0.3}


def write(folder: Path, name: str, result: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(result | MADE))
    return folder


def catseg_row(step: int, score: float) -> dict[str, Any]:
    classes = [
        {"name": name, "iou": iou, "recall": 0.5, "pixels": 10, "unseen": name == "water"}
        for name, iou in (("sky", score), ("water", None))
    ]
    scores = dict.fromkeys(SCORES, score)
    found = {"title": "Scenes val", "images": 2, "seconds": 1.0, "classes": 2, "scores": scores, "rows": classes}
    return {"name": f"step {step}", "step": step, "note": "", "sets": {"scenes_val": found | {"seen": score} | UNSEEN}}


def catseg(folder: Path, score: float) -> Path:
    rows = [catseg_row(step, score * k) for k, step in enumerate((0, 10, 20))]
    config = {"test": {"protocol": "sliding", "every": 10}, "run": {"seed": 0}}
    return write(
        folder, "catseg.json", {"kind": "train", "rows": rows, "protocol": ["p."], "weights": WEIGHTS, "config": config}
    )


def keep_prediction(folder: Path, predicted: int) -> None:
    labels = np.zeros((4, 6), np.int32)
    arrays = {"names": np.array(["1.jpg"]), "image0": np.zeros((4, 6, 3), np.uint8), "labels0": labels}
    path = EvaluationStore(folder, "").folder / "step_00000020"
    path.mkdir(parents=True)
    np.savez(path / "scenes_val.npz", **arrays, predicted0=np.full((4, 6), predicted, np.int32))


def test_catseg_shows_its_first_and_last_state_in_percent(tmp_path: Path) -> None:
    (measured,) = read_run("r", catseg(tmp_path / "r", 0.3)).measures
    assert [entry.name for entry in measured.entries] == ["step 0", "step 20"]
    assert measured.entries[-1].numbers["miou_present"].value == pytest.approx(60.0)
    assert measured.entries[-1].numbers["unseen"].value == 25.0
    assert measured.entries[-1].classes == [pytest.approx(60.0), None] and measured.protocol["held out"] == ["water"]
    assert not measured.is_result(0) and measured.is_result(1)


def test_predictions_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [catseg(tmp_path / name, score) for name, score in (("a", 0.3), ("b", 0.4))]
    for k, folder in enumerate(folders):
        keep_prediction(folder, k)
    _, strip = predictions(compare(folders).groups)
    assert [figure.label for figure in strip.rows[0]] == ["image", "labels", "a", "b"]
    assert [figure.note for figure in strip.rows[0][2:]] == ["100.0 % right", "0.0 % right"]
    run_comparison(folders, tmp_path / "page.html", CompareOptions(maps=0))
    assert "Prediction of b for 1.jpg" in (tmp_path / "page.html").read_text()


def cause(folder: Path, probe_grad: str) -> Path:
    scores = {"cluster": {key: {"mean": 10.0, "std": None} for key in ("miou", "pacc", "macc")}}
    row = {"name": "untuned", "note": "", "weights": WEIGHTS, "scores": scores, "delta": None}
    folder.mkdir(parents=True)
    lines = ["row,class,name,iou,recall,precision,pixels,cluster"]
    lines += [f"untuned / seed {s} / cluster,{k},{n},{v},1,1,1,0" for s in (0, 1) for k, n, v in rows_of_seed(s)]
    (folder / "classes.csv").write_text("\n".join(lines) + "\n")
    result = {
        "rows": [row],
        "protocol": ["Protocol."],
        "recipe": {"codes": 32, "seed": 0},
        "dataset": "Scenes",
        "classes": ["sky", "sea"],
        "val_images": 2,
        "train_images": 3,
        "image_lists": {"train": "all", "val": "all"},
        "config": {
            "cause": {"head": "tr", "preset": "p", "probe_grad": probe_grad},
            "score": {"full_image": False},
        },
    }
    return write(folder, "cause.json", result)


def rows_of_seed(seed: int) -> list[tuple[int, str, str]]:
    return [(0, "sky", str(20.0 + 10 * seed)), (1, "sea", "" if seed == 0 else "8.0")]


def test_classes_of_cause_are_means_over_seeds_and_released_labels_stand_apart(tmp_path: Path) -> None:
    folders = [cause(tmp_path / kind, kind) for kind in ("detached", "released")]
    found = compare(folders)
    assert found.groups[0].members[0][1].entries[0].classes == [25.0, 8.0]
    assert "probe_grad: released here, detached there" in found.groups[1].apart


def test_an_ablation_is_a_table_with_spreads_over_training_seeds(tmp_path: Path) -> None:
    table = {
        "reference": "base",
        "weights": WEIGHTS,
        "training_data": "scenes",
        "training_images": 9,
        "measured_data": "/data/scenes",
        "splits": ["train", "val"],
        "train_images": 4,
        "val_images": 2,
        "image_size": [28, 28],
        "untuned": {"linear_miou": 10.0},
        "rows": [{"name": "base", "numbers": {"linear_miou": {"mean": 12.0, "std": 0.5}}, "seeds": [0, 1]}],
    }
    folder = write(tmp_path / "ablation", "ablation.json", {"tables": [table], "failed": []})
    (measured,) = read_run("r", folder).measures
    cell = measured.entries[1].numbers["linear_miou"]
    assert (cell.value, cell.spread, measured.entries[1].note) == (12.0, 0.5, "2 training seeds")


def test_averages_over_contexts_are_ends_and_a_curve(tmp_path: Path) -> None:
    numbers = [
        {"contexts": n, "scores": {"linear_miou": 10.0 + n, "affinity_ap_beyond_6": None}, "distance": 0.1 / (n + 1)}
        for n in (0, 1, 4)
    ]
    result = {
        "data": "scenes",
        "splits": ["train", "val"],
        "rows": [{"name": "untuned", "note": "", "weights": WEIGHTS, "numbers": numbers}],
        "remarks": ["Remark."],
        "settings": {"linear_seeds": 1},
        "config": {"data": {"image_size": [28, 28]}, "aggregate": {}, "run": {"seed": 0, "precision": "32-true"}},
    }
    folder = write(tmp_path / "aggregate", "aggregate.json", result)
    (measured,) = read_run("r", folder).measures
    assert [entry.name for entry in measured.entries] == ["untuned, 0 contexts", "untuned, 4 contexts"]
    assert [(title, list(lines[0].y)) for (title, _), lines in measured.lines.items()] == [("LP mIoU", [10, 11, 14])]


def test_figures_of_this_project_are_shown_and_other_pictures_are_not(tmp_path: Path) -> None:
    folder = catseg(tmp_path / "r", 0.3)
    picture = Image.new("RGB", (40, 30), (200, 30, 60))
    group = FigureGroup("Noise", [[Figure(picture, "Noise of a picture", "label")]], section="Maps")
    save_groups([group], folder / "noise", "tools/evaluate.py aggregate")
    picture.save(folder / "foreign.png")
    (shown,) = stored_figures([read_run("r", folder)])
    (figure,) = shown.rows[0]
    assert figure.label == "Noise" and figure.alt == "Noise of a picture" and "aggregate" in figure.note


def test_a_benchmark_stands_for_its_measures(tmp_path: Path) -> None:
    catseg(tmp_path / "bench" / "one", 0.3)
    jobs = [{"key": "one", "folder": "one"}, {"key": "failed", "folder": "failed"}]
    write(tmp_path / "bench", "benchmark.json", {"jobs": jobs})
    assert [run.name for run in read_runs([tmp_path / "bench"])] == ["one"]
    write(tmp_path / "bench", "benchmark.json", {"jobs": jobs[1:]})
    with pytest.raises(UserError, match="names no finished measure"):
        read_runs([tmp_path / "bench"])
