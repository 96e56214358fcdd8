"""The command as a user types it: what it writes, what it refuses, how it goes on."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from rsc_seg.cli.rscv_finetune import main
from rsc_seg.config import RscvConfig, load_config
from tests.training.helpers import furthest, write_pictures

SMALL = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu", "data.kind=folder", "data.workers=0"]
SMALL += ["data.image_size=[56,84]", "crops.size=[28,28]", "crops.per_image=2", "crops.bank=4", "distill.boxes=2"]
SMALL += ["refiner.hidden=16", "refine.optim.batch_size=2", "refine.optim.max_steps=4", "run.save_every=2"]
SMALL += ["distill.optim.batch_size=2", "distill.optim.max_steps=4", "distill.optim.lr=1e-3", "run.log_every=1"]
WEIGHTS = ("refiner", "student", "student_alpha1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures."""
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 5)


def tune(folder: Path, root: Path | None, *more: str) -> int:
    data = [] if root is None else [f"data.root={root}"]
    return main([*SMALL, "--output-dir", str(folder), *data, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A finished run of both stages; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "both"
    assert tune(folder, pictures) == 0
    return folder


def rows(folder: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in lines]


def assert_equal_runs(a: Path, b: Path) -> None:
    for name in WEIGHTS:
        assert furthest(load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")) <= 1e-6, name


def refused(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    """Exit code 2 and one line that says all `parts`."""
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("rscv_finetune.py: error: ")]
    assert code == 2 and len(errors) == 1, err
    assert err.rstrip().splitlines()[-1] == errors[0] and "Traceback" not in err
    for part in parts:
        assert part in errors[0], errors[0]


def test_run_folder_of_both_stages(finished: Path, pictures: Path) -> None:
    assert rows(finished) == [(stage, i) for stage in ("refine", "distill") for i in range(4)]
    run = json.loads((finished / "run.json").read_text())
    assert run["images"] == 5 and run["steps_refine"] == run["steps_distill"] == 4 and run["seed"] == 0
    config = load_config(RscvConfig, finished / "config.yaml")
    assert config.data.root == str(pictures) and config.distill.boxes == 2
    sidecar = json.loads((finished / "student.json").read_text())
    assert sidecar["backbone"] == "dinov2_tiny14" and sidecar["training"]["alpha"] == 0.5
    assert not [p for p in finished.rglob(".*") if p.is_file()]  # no temporary is left


def test_student_is_a_plain_timm_checkpoint_blended_with_the_start(finished: Path) -> None:
    half, full = (load_file(finished / f"{name}.safetensors") for name in ("student", "student_alpha1"))
    model = timm.create_model(
        "vit_small_patch14_dinov2", embed_dim=64, depth=4, num_heads=4, num_classes=0, img_size=518
    )
    model.load_state_dict(half, strict=True)
    start = {k: 2 * half[k] - full[k] for k in half}
    moved = {k for k in half if not torch.allclose(half[k], start[k], atol=1e-7)}
    assert moved and all(name.startswith("blocks.") for name in moved)


def test_stages_one_by_one_equal_both_at_once(tmp_path: Path, finished: Path, pictures: Path) -> None:
    assert tune(tmp_path / "run", pictures, "--stage", "refiner") == 0
    assert not (tmp_path / "run" / "student.safetensors").exists()
    assert tune(tmp_path / "run", pictures, "--stage", "distill") == 0
    assert_equal_runs(tmp_path / "run", finished)
    assert rows(tmp_path / "run") == rows(finished)


def test_caches_change_nothing(tmp_path: Path, finished: Path, pictures: Path) -> None:
    assert tune(tmp_path / "run", pictures, "cache.mode=off") == 0
    assert not (tmp_path / "run" / "cache").exists()
    for name in WEIGHTS:
        a, b = (load_file(f / f"{name}.safetensors") for f in (tmp_path / "run", finished))
        assert furthest(a, b) < 1e-4


def test_control_and_end_to_end_leave_their_files(tmp_path: Path, pictures: Path) -> None:
    assert tune(tmp_path / "e2e", pictures, "distill.end_to_end=true", "distill.control=true") == 0
    names = {p.name for p in (tmp_path / "e2e").glob("*.safetensors")}
    assert names == {f"{n}.safetensors" for n in (*WEIGHTS, "control", "control_alpha1")}
    assert {stage for stage, _ in rows(tmp_path / "e2e")} == {"end_to_end", "control"}


def test_seed_changes_the_run(tmp_path: Path, finished: Path, pictures: Path) -> None:
    assert tune(tmp_path / "run", pictures, "--seed", "1", "--stage", "refiner") == 0
    a, b = (load_file(f / "refiner.safetensors") for f in (tmp_path / "run", finished))
    assert furthest(a, b) > 1e-4


def test_finished_run_is_not_overwritten(finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    refused(capsys, tune(finished, pictures), "holds a run already", "--resume")
    refused(capsys, tune(finished, pictures, "--stage", "distill"), "holds a run already", "--resume")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_finished_run_resumes_to_itself(tmp_path: Path, pictures: Path, finished: Path) -> None:
    assert tune(tmp_path / "run", pictures) == 0
    assert tune(tmp_path / "run", pictures, "--resume") == 0
    assert_equal_runs(tmp_path / "run", finished)
    assert rows(tmp_path / "run") == rows(finished)


def test_resume_with_another_configuration(finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = tune(finished, pictures, "--resume", "refine.optim.lr=3e-3")
    refused(capsys, code, "--resume with another configuration", "refine.optim.lr (0.0001 -> 0.003)")
    refused(capsys, tune(finished, pictures, "--resume", "--seed", "7"), "seed (0 -> 7)")
    assert tune(finished, pictures, "--resume", "run.log_every=5", "cache.max_gb=1") == 0


def test_print_config_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "run", None, "--print-config", "--seed", "5") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(RscvConfig, tmp_path / "printed.yaml")
    assert config.run.seed == 5 and config.crops.bank == 4 and config.backbone.name == "dinov2_tiny14"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["distil.alpha=0.3"], ["'distil", "--print-config"]),
        (["distill.alhpa=0.3"], ["distill.alhpa", "Did you mean 'distill.alpha'?"]),
        (["refine.optim.lr=fast"], ["refine.optim.lr"]),
        (["crops.bank"], ["expected key=value"]),
        (["--backbone", "dinov2_vitb41"], ["unknown backbone 'dinov2_vitb41'", "Did you mean 'dinov2_vitb14'?"]),
        (["--weights", "absent.pth"], ["absent.pth"]),
        (["backbone.attention=xformers"], ["xformers"]),
        (["--device", "tpu"], ["run.device=tpu"]),
        (["data.image_size=[7,7]"], ["7", "multiples of 14"]),
        (["data.image_size=[60,84]"], ["60x84", "56x84"]),
        (["crops.size=[7,28]"], ["multiple"]),
        (["crops.ratio=[0.7,0.3]"], ["crops.ratio"]),
        (["crops.bank=1", "distill.boxes=1"], ["crops.bank=1", "crops.per_image=2"]),
        (["distill.boxes=5"], ["distill.boxes=5", "crops.bank=4"]),
        (["run.strategy=fsdp"], ["run.strategy=fsdp", "--stage refiner", "--stage distill"]),
        (["run.strategy=fsdp", "--stage", "refiner"], ["run.strategy=fsdp"]),
        (["data.fit=stretch"], ["data.fit=stretch"]),
        (["refiner.depth=9"], ["refiner.depth=9", "1 to 3"]),
        (["refiner.taps=[1,9]"], ["refiner.taps=[1, 9]"]),
        (["refine.align.loss=infonec"], ["refine.align.loss=infonec", "infonce"]),
        (["distill.trainable=half"], ["distill.trainable=half"]),
        (["distill.regions=all"], ["distill.regions=all"]),
        (["distill.alpha=2"], ["distill.alpha=2"]),
        (["distill.target=student"], ["distill.target=student"]),
        (["crops.positions=here"], ["crops.positions=here"]),
        (["refine.optim.max_steps=0"], ["max_steps=0"]),
        (["distill.optim.batch_size=0"], ["distill.optim.batch_size=0"]),
        (["refine.optim.betas=[0.9]"], ["refine.optim.betas=[0.9]"]),
        (["distill.trainable=none"], ["distill.trainable=none"]),
        (["run.log_every=0"], ["run.log_every=0"]),
        (["run.save_every=0"], ["run.save_every=0"]),
        (["cache.mode=on", "data.hflip=true"], ["cache.mode=on", "data.hflip"]),
        (["run.strategy=fsdp", "--stage", "distill", "distill.control=true"], ["run.strategy=fsdp", "distill.control"]),
        (["run.precision=8"], ["run.precision=8"]),
        (["cache.mode=often"], ["cache.mode=often"]),
        (["--stage", "distill"], ["refiner.safetensors", "--stage refiner"]),
        (["--stage", "distil"], ["--stage", "distil"]),
        (["--config", "absent.yaml"], ["absent.yaml: no such config file"]),
        (["--seed", "one"], ["--seed"]),
    ],
    ids=lambda value: value[-1] if value and not value[0].startswith("'") else "",
)
def test_bad_options_leave_nothing(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], given: list[str], parts: list[str]
) -> None:
    try:
        code: Any = tune(tmp_path / "run", pictures, *given)
    except SystemExit as e:  # argparse's own way out
        code = e.code
    refused(capsys, code, *parts)
    assert not (tmp_path / "run").exists()


def test_bad_data_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tune(tmp_path / "run", tmp_path / "absent"), "absent")
    (tmp_path / "empty").mkdir()
    refused(capsys, tune(tmp_path / "run", tmp_path / "empty"), "empty")
    refused(capsys, tune(tmp_path / "run", None), "data.root")
    assert not (tmp_path / "run").exists()


def test_output_dir_with_other_files(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused(capsys, tune(tmp_path / "mine", pictures), "holds other files")
    refused(capsys, tune(tmp_path / "mine" / "notes.txt", pictures), "is a file")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_truncated_picture_is_skipped_and_named_or_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "pictures", 4)
    whole = (root / "01.png").read_bytes()
    (root / "01.png").write_bytes(whole[: len(whole) // 2])
    assert tune(tmp_path / "run", root, "--stage", "refiner") == 0
    err = capsys.readouterr().err
    assert "01.png" in err and "(1 so far)" in err
    for mode in ("auto", "off"):
        code = tune(
            tmp_path / "fatal",
            root,
            "--stage",
            "refiner",
            "data.on_error=fatal",
            "run.save_every=9",
            f"cache.mode={mode}",
        )
        refused(capsys, code, "01.png", "not readable as an image")
        assert not (tmp_path / "fatal").exists()
    assert tune(tmp_path / "fatal", root, "--stage", "refiner") == 0  # the corrected command is not in its own way


def test_folder_of_broken_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "pictures", 2)
    for path in root.iterdir():
        path.write_bytes(b"broken")
    refused(capsys, tune(tmp_path / "run", root), "none of the 2 images is readable")
    assert not (tmp_path / "run").exists()


def test_folder_of_tiny_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "pictures", 2, size=(1, 200))
    refused(capsys, tune(tmp_path / "run", root), "none of the 2 images is readable", "00.png")
    assert not (tmp_path / "run").exists()


def test_missing_logger_leaves_nothing(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(capsys, tune(tmp_path / "run", pictures, "run.wandb=true"), "run.wandb=true", "not installed")
    assert not (tmp_path / "run").exists()


def test_second_stage_with_other_options_of_its_own(
    tmp_path: Path, finished: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "run.json", "metrics.jsonl", "refiner.json", "refiner.safetensors"):
        shutil.copy(finished / name, folder / name)
    first = json.loads((folder / "run.json").read_text())
    refused(capsys, tune(folder, pictures, "--stage", "distill", "crops.ratio=[0.4,0.6]"), "crops.ratio")
    assert tune(folder, pictures, "--stage", "distill", "distill.alpha=0.25") == 0
    assert load_config(RscvConfig, folder / "config.yaml").distill.alpha == 0.25
    run, sidecar = (json.loads((folder / name).read_text()) for name in ("run.json", "student.json"))
    later = len(first.get("resumed", [])) + 1
    assert run["command"] == first["command"] and len(run["resumed"]) == later
    assert sidecar["training"]["command"] == first["command"] and len(sidecar["training"]["resumed"]) == later
    again = tune(folder, pictures, "--stage", "distill", "distill.alpha=0.75")  # begun: no longer free
    refused(capsys, again, "holds a run already")


def test_damaged_checkpoint_is_one_line(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "run", pictures, "--stage", "refiner") == 0
    path = tmp_path / "run" / "checkpoints" / "refine" / "step_00000004.pt"
    path.write_bytes(path.read_bytes()[:100])
    refused(capsys, tune(tmp_path / "run", pictures, "--resume"), "step_00000004.pt: cannot be resumed from")


def test_bfloat16_stays_near_float32(tmp_path: Path, finished: Path, pictures: Path) -> None:
    assert tune(tmp_path / "run", pictures, "run.precision=bf16-mixed") == 0
    found = load_file(tmp_path / "run" / "student.safetensors")
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in found.values())
    assert 0 < furthest(found, load_file(finished / "student.safetensors")) < 0.02
