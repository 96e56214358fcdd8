"""The command on a tiny set: whole runs, resumed runs, evaluations, and one line for what cannot be done."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rsc_seg.cli.export_weights import main as export
from rsc_seg.cli.train_catseg import main
from rsc_seg.config import load_config
from rsc_seg.config_catseg import TrainCatSegConfig
from rsc_seg.d2 import trainer
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.weights import random_state, save_encoder
from rsc_seg.models.weights_info import info_of_row
from rsc_seg.pipelines import catseg
from tests.d2.sets import NAMES, write_set
from tests.d2.training import equal

TINY = ["clip.name=clip_tiny16", "clip.weights=none", "model.finetune=full", "model.grid=[3,3]", "model.hidden=16"]
TINY += ["model.heads=2", "model.layers=1", "model.window=2", "model.decoder=[16,16]", "model.taps=[8,8]"]
TINY += ["model.decoder_guidance=[4,4]", "model.class_length=8", "run.device=cpu"]
SET = ["data.train=scenes_train", "data.test=[scenes_val]", f"data.classes=[{','.join(NAMES)}]", "data.crop=[32,32]"]
SET += ["data.min_size=[40]", "data.min_size_test=40", "data.workers=0", "data.held_out=[road]"]
RUN = ["solver.max_iter=4", "solver.batch_size=2", "solver.lr=1e-3", "test.protocol=whole", "test.check=warn"]
RUN += ["test.every=2", "test.pictures=2", "run.log_every=1", "run.save_every=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def call(root: Path, folder: Path, *more: str) -> int:
    return main([*TINY, *SET, *RUN, f"data.root={root}", "--output-dir", str(folder), *more])


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an average of the weights."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert call(root, folder, "solver.ema=0.5") == 0
    return folder


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "catseg.json").read_text(encoding="utf-8")))


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_catseg.py: error:")]
    assert len(lines) == 1
    return lines[0]


def test_what_a_run_leaves(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "evaluation"} <= names
    assert {"catseg.safetensors", "catseg_weights.json", "catseg.json", "classes.csv", "report.html"} <= names
    found = result(trained)
    assert [(row["name"], row["step"]) for row in found["rows"]] == [("untrained", 0), ("step 2", 2), ("trained", 4)]
    last = found["rows"][-1]["sets"]["scenes_val"]
    assert last["images"] == 5 and [row["name"] for row in last["rows"] if row["unseen"]] == ["road"]
    assert last["unseen"] is not None and found["training"]["held_out"] == ["road"]
    assert found["training"]["zero_shot"]["images"] == 7 and found["training"]["seconds"] > 0
    with open(trained / "classes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(NAMES) and {row["name"] for row in rows if row["unseen"] == "1"} == {"road"}
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("untrained", "trained", "mIoU in training", "Loss", "val0.jpg"))
    facts = json.loads((trained / "catseg_weights.json").read_text(encoding="utf-8"))
    assert (facts["form"], facts["ema"], facts["training"]["steps"]) == ("official", 0.5, 4)


def test_exported_weights_score_as_the_run_says(trained: Path, root: Path, tmp_path: Path) -> None:
    assert call(root, tmp_path / "again", "--eval-only", "--weights", str(trained / "catseg.safetensors")) == 0
    found = result(tmp_path / "again")
    assert found["kind"] == "eval" and found["training"] is None and len(found["rows"]) == 1
    one, two = (each["rows"][-1]["sets"]["scenes_val"] for each in (result(trained), found))
    assert one["scores"] == two["scores"] and one["rows"] == two["rows"]
    assert found["weights"]["source"].startswith("catseg.safetensors sha256") and not found["weights"]["note"]


def test_export_for_the_official_code(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, target = trained / "catseg.safetensors", tmp_path / "model_final.pth"
    assert export([str(weights), "--to", "catseg", "--output", str(target)]) == 0
    held = torch.load(target, weights_only=True)
    assert list(held) == ["model"] and equal(held["model"], load_file(weights))
    assert call(root, tmp_path / "eval", "--eval-only", "--weights", str(target)) == 0
    assert result(tmp_path / "eval")["rows"][0]["name"] == "model_final.pth"
    capsys.readouterr()
    other = student(tmp_path / "student.safetensors")
    for source, goal, said in ((other, target, "no Cat-Seg"), (weights, tmp_path / "x.pt", "loads .pth")):
        assert export([str(source), "--to", "catseg", "--output", str(goal)]) == 2
        assert said in capsys.readouterr().err


def test_towers_that_the_official_code_does_not_know(root: Path, tmp_path: Path) -> None:
    eva = ["clip.name=evaclip_tiny16", "solver.max_iter=1", "test.every=0"]
    eva += ["model.guide={name: dinov2_tiny14, weights: none}"]
    assert call(root, tmp_path / "run", *eva) == 0
    assert json.loads((tmp_path / "run" / "catseg_weights.json").read_text())["form"] == "own"
    weights = tmp_path / "run" / "catseg.safetensors"
    assert call(root, tmp_path / "eval", *eva, "--eval-only", "--weights", str(weights)) == 0
    one, two = (result(tmp_path / name)["rows"][-1]["sets"]["scenes_val"] for name in ("run", "eval"))
    assert one["scores"] == two["scores"]
    assert export([str(weights), "--to", "catseg", "--output", str(tmp_path / "x.pth")]) == 2


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The run ends as by Ctrl-C once the checkpoint of `step` is written."""
    save = trainer.save_checkpoint

    def saved(folder: Path, done: int, state: Any) -> None:
        save(folder, done, state)
        if done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", saved)


def test_a_stopped_run_goes_on_exactly(
    trained: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)  # an evaluation is due at this step, and has not begun
        assert call(root, folder, "solver.ema=0.5") == 130
    assert call(root, folder, "solver.ema=0.5", "--resume", "data.workers=1", "run.log_every=1") == 0
    assert equal(load_file(trained / "catseg.safetensors"), load_file(folder / "catseg.safetensors"))
    last = [torch.load(f / "checkpoints/catseg/step_00000004.pt", weights_only=True) for f in (trained, folder)]
    assert equal(last[0], last[1]) and equal(last[0]["average"], last[1]["average"])

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if not k.endswith("seconds")}
        return [plain(v) for v in value] if isinstance(value, list) else value

    logs = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (trained, folder)]
    assert plain(logs[0]) == plain(logs[1]) and plain(result(trained)["rows"]) == plain(result(folder)["rows"])


def test_used_folders(trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert call(root, trained, "solver.ema=0.5") == 2
    assert "holds a run already; add --resume" in error(capsys)
    assert call(root, trained, "solver.ema=0.5", "solver.lr=2e-3", "--resume") == 2
    assert "--resume with another configuration: solver.lr (0.001 -> 0.002)" in error(capsys)
    assert call(root, trained, "--eval-only") == 2
    assert "holds a training run; give the evaluation a folder of its own" in error(capsys)
    assert call(root, trained, "solver.ema=0.5", "--resume", "--weights", str(trained / "catseg.safetensors")) == 2
    assert "began with none; leave it out" in error(capsys)
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}


def test_an_evaluation_keeps_finished_sets(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, folder = write_set(tmp_path / "set", train=2, val=2), tmp_path / "eval"
    bad = own / "ADEChallengeData2016" / "annotations_detectron2" / "training" / "train1.png"
    good = bad.read_bytes()
    given = ["--eval-only", "data.test=[scenes_val,scenes_train]", "--weights", str(trained / "catseg.safetensors")]
    Image.new("L", (60, 40), 200).save(bad)
    assert call(own, folder, *given) == 2
    assert "train1.png: label 200" in error(capsys)
    done = folder / "evaluation" / "weights" / "scenes_val.json"
    when = done.stat().st_mtime_ns
    bad.write_bytes(good)
    assert call(own, folder, *given) == 0
    assert list(result(folder)["rows"][0]["sets"]) == ["scenes_val", "scenes_train"] and done.stat().st_mtime_ns == when
    assert call(own, folder, *given, "test.size=[320,320]") == 2
    assert "holds another evaluation: test.size" in error(capsys)
    assert call(own, folder, *given[:2]) == 2
    assert "holds the evaluation of" in error(capsys)


def test_weights_of_another_size(trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--eval-only", "--weights", str(trained / "catseg.safetensors")]
    assert call(root, tmp_path / "a", *weights, "model.hidden=32") == 2
    said = error(capsys)
    assert "not a checkpoint of Cat-Seg with clip_tiny16" in said and "norm1.weight is (16,), must be (32,)" in said
    assert call(root, tmp_path / "a", *weights, "model.layers=2") == 2
    assert "lacks sem_seg_head.predictor.transformer.layers.1." in error(capsys)
    assert call(root, tmp_path / "a", "--eval-only", "--weights", str(tmp_path / "none.pth")) == 2
    assert "none.pth: no such file of weights" in error(capsys)
    assert not (tmp_path / "a").exists()


def student(path: Path, spoil: str = "") -> Path:
    """An image tower as R-SC-V leaves it, or one that is broken."""
    row = find_backbone("clip_tiny16")
    state = random_state(row, seed=5)
    if spoil == "nan":
        state["blocks.1.mlp.fc1.weight"][0] = torch.nan
    elif spoil == "dead":
        state = {key: torch.zeros_like(value) for key, value in state.items()}
        state["norm.bias"] += 1  # a feature that is the same for every image
    elif spoil == "names":
        state["blocks.1.mlp.fc9.weight"] = state.pop("blocks.1.mlp.fc1.weight")
    info = info_of_row(row, depth=row.depth, source="test", licence="none")
    save_encoder(path, state, replace(info, training={"alpha": 1.0}))
    return path


def test_a_student_takes_the_place_of_the_image_tower(root: Path, tmp_path: Path) -> None:
    path = student(tmp_path / "student.safetensors")
    frozen = ["solver.lr=0", "solver.max_iter=1", "test.every=0", f"clip.checkpoint={path}"]
    assert call(root, tmp_path / "run", *frozen) == 0
    held, tower = load_file(tmp_path / "run" / "catseg.safetensors"), load_file(path)
    theirs = "sem_seg_head.predictor.clip_model.visual.transformer.resblocks.2.mlp.c_fc.weight"
    assert torch.equal(held[theirs], tower["blocks.2.mlp.fc1.weight"])
    assert result(tmp_path / "run")["weights"]["source"].startswith("student.safetensors sha256")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("nan", "values are not finite in blocks.1.mlp.fc1.weight"),
        ("dead", "its features are the same"),
        ("names", "blocks.1.mlp.fc"),
        ("", "zero-shot mIoU .* give test.check=warn where they are"),
    ],
)
def test_a_broken_tower_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str, said: str
) -> None:
    path = student(tmp_path / "student.safetensors", spoil)
    assert call(root, tmp_path / "run", f"clip.checkpoint={path}", "test.check=refuse") == 2
    assert re.search(said, error(capsys)) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["run.device=cuda"], "no usable CUDA device"),
        (["--num-gpus", "0"], "--num-gpus 0: must be 1 or more"),
        (["--num-gpus", "3"], "solver.batch_size=2: must be a multiple of the 3 processes"),
        (["run.precision=16-mixed"], "needs CUDA"),
        (["run.nodes=2"], "run.nodes=2"),
        (["run.strategy=fsdp"], "run.strategy=fsdp: must be one of auto, ddp"),
        (["test.check=maybe"], "test.check=maybe: must be one of"),
        (["data.test=[]"], "name at least one set"),
        (["data.test=[scenes_val,scenes_val]"], "none twice"),
        (["data.test=[scenes_val,scenes_val_sem_seg]"], "none twice"),
        (["data.limit=0"], "data.limit=0: must be 1 or more"),
        (["data.test_limit=0"], "data.test_limit=0: must be 1 or more"),
        (["data.workers=-1"], "data.workers=-1: must be 0 or more"),
        (["data.crop=[0,10]"], "data.crop=[0, 10]: give height and width"),
        (["data.min_size=[]"], "data.min_size=[]: give at least one size"),
        (["model.pool=9"], "error: model.pool=9, eval_pool=1: must not exceed the grid"),
        (["test.protocol=sliding", "test.window=999"], "error: test.window=999: must be from 1 to the sides"),
        (["--resume"], "run: no run there to go on with"),
        (["data.test=[scenes_vol]"], "scenes_val"),
        (["solver.clip_nrm=1"], "solver.clip_norm"),
        (["model.finetune=everything"], "error: model.finetune=everything: must be one of"),
        (["--weights", "student.pth", "clip.checkpoint=x"], "student.pth: no such file"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: Sequence[str],
    said: str,
) -> None:
    monkeypatch.delattr(catseg, "build_catseg")  # no model is built before it is known
    assert call(root, tmp_path / "run", *given) == 2
    assert said in error(capsys) and not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_end_the_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, tmp_path / "run", "solver.lr=1e30", "test.every=0") == 2
    said = error(capsys)
    assert "step 2: loss nan" in said and "No weight was changed by this step" in said
    assert (tmp_path / "run" / "metrics.jsonl").is_file() and not (tmp_path / "run" / "catseg.json").exists()


def test_weights_that_are_not_finite_are_neither_kept_nor_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the only step: its loss and gradient are in order
    assert call(root, tmp_path / "run", "solver.lr=1e39", "solver.max_iter=1", "test.every=0") == 2
    said = error(capsys)
    assert "step 1: the weights became not finite, such as model." in said and "with a lower solver.lr" in said
    left = {path.name for path in (tmp_path / "run").rglob("*")}
    assert "config.yaml" in left and not left & {"catseg.safetensors", "catseg.json", "step_00000001.pt", "evaluation"}


def test_a_part_of_a_set_is_told_wherever_its_scores_stand(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--eval-only", "--weights", str(trained / "catseg.safetensors"), "data.test=[ade20k_150_val,scenes_val]"]
    given += ["data.test_limit=3"]
    assert call(root, tmp_path / "eval", *given) == 0
    note = "3 of 2000 images: a part of the set; scores compare with no published ones"
    written = capsys.readouterr()
    assert f"ade20k_150_val: {note}" in written.err and written.out.count(note) == 1
    found = result(tmp_path / "eval")
    assert [found["rows"][0]["sets"][name]["note"] for name in ("ade20k_150_val", "scenes_val")] == [note, ""]
    assert found["protocol"][-1] == f"ADE20K-150 val: {note}."
    assert (tmp_path / "eval" / "report.html").read_text(encoding="utf-8").count(note) == 2  # summary and table


def test_an_image_without_labels_is_told(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_set(tmp_path / "set", train=2, val=3)
    (own / "ADEChallengeData2016" / "annotations_detectron2" / "validation" / "val1.png").unlink()
    assert call(own, tmp_path / "run", "--eval-only") == 2
    assert "val1.png: no such labels; 1 of 3 images" in error(capsys)


def test_the_same_weights_at_another_path_are_the_same(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, again, other = trained / "catseg.safetensors", tmp_path / "again.safetensors", tmp_path / "o.safetensors"
    again.write_bytes(weights.read_bytes())
    held = load_file(weights)
    held["upsample1.bias"] += 1
    save_tensors(other, held)
    given = ["--eval-only", "--resume", "--weights"]  # of which --resume has no say
    assert call(root, tmp_path / "eval", *given, str(weights)) == 0
    done = tmp_path / "eval" / "evaluation" / "weights" / "scenes_val.json"
    when = done.stat().st_mtime_ns
    assert call(root, tmp_path / "eval", *given, str(again)) == 0 and done.stat().st_mtime_ns == when
    capsys.readouterr()
    assert call(root, tmp_path / "eval", *given, str(other)) == 2
    assert "holds the evaluation of other weights" in error(capsys)


def test_a_run_goes_on_from_weights_that_moved(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, moved = tmp_path / "start.safetensors", tmp_path / "moved.safetensors"
    start.write_bytes((trained / "catseg.safetensors").read_bytes())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert call(root, tmp_path / "run", "--weights", str(start)) == 130
    start.rename(moved)
    assert call(root, tmp_path / "run", "--resume") == 2
    assert "began with it; give the same file as --weights" in error(capsys)
    assert call(root, tmp_path / "run", "--resume", "--weights", str(moved)) == 0


def test_a_whole_cat_seg_is_no_image_tower(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, tmp_path / "run", f"clip.checkpoint={trained / 'catseg.safetensors'}") == 2
    said = error(capsys)
    assert "catseg.safetensors: a whole Cat-Seg" in said and "--weights" in said and "catseg.json" not in said


def test_a_guide_is_added_to_a_finished_model(trained: Path, root: Path, tmp_path: Path) -> None:
    guided = ["--eval-only", "--weights", str(trained / "catseg.safetensors")]
    guided += ["model.guide={name: dinov2_tiny14, weights: none}"]
    assert call(root, tmp_path / "guided", *guided) == 0
    one, two = (result(folder)["rows"][-1]["sets"]["scenes_val"] for folder in (trained, tmp_path / "guided"))
    assert one["scores"]["miou_present"] == pytest.approx(two["scores"]["miou_present"], abs=1e-6)


def test_a_run_that_fails_at_once_leaves_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_set(tmp_path / "set", train=2, val=2)
    (own / "ADEChallengeData2016" / "images" / "training" / "train0.jpg").write_bytes(b"no picture")
    assert call(own, tmp_path / "run", "test.every=0", "test.check=off") == 2
    assert "train0.jpg" in error(capsys) and not (tmp_path / "run").exists()


def test_configuration_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--print-config", "--num-gpus", "3", "--seed", "7", "solver.ema=0.9"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    found = load_config(TrainCatSegConfig, tmp_path / "c.yaml")
    assert (found.run.devices, found.run.seed, found.solver.ema) == (3, 7, 0.9)
