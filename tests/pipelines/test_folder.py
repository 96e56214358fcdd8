"""The run folder: made once, gone on with only as the same run."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rsc_seg.config import CacheConfig, OptimConfig, RscvConfig, RunConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines.folder import (
    awaits_second_stage,
    command_line,
    commands_of,
    default_folder,
    environment,
    open_run_folder,
    read_config,
    record_run,
    take_back,
    update_json,
)


def test_made_with_its_configuration(tmp_path: Path) -> None:
    config = RscvConfig(run=RunConfig(seed=3))
    open_run_folder(tmp_path / "a" / "run", config, resume=False)
    assert os.listdir(tmp_path / "a" / "run") == ["config.yaml"]
    assert read_config(tmp_path / "a" / "run") == config


def test_every_value_survives_the_file(tmp_path: Path) -> None:
    config = RscvConfig(cache=CacheConfig(mode="off"))
    config.refine.optim.lr, config.data.root, config.backbone.depth = 3e-7, "on", 10
    open_run_folder(tmp_path / "run", config, resume=False)
    assert read_config(tmp_path / "run") == config


def test_existing_run_is_refused_or_resumed(tmp_path: Path) -> None:
    config = RscvConfig()
    open_run_folder(tmp_path, config, resume=True)  # an empty folder: a new run
    with pytest.raises(UserError, match="holds a run already; add --resume"):
        open_run_folder(tmp_path, config, resume=False)
    open_run_folder(tmp_path, config, resume=True)


def test_only_how_a_run_is_run_may_change(tmp_path: Path) -> None:
    config = RscvConfig()
    open_run_folder(tmp_path, config, resume=False)
    open_run_folder(
        tmp_path, dataclasses.replace(config, run=RunConfig(log_every=1), cache=CacheConfig(mode="off")), resume=True
    )
    other = RscvConfig(run=RunConfig(seed=1))
    other.distill.optim = OptimConfig(lr=1.0)
    with pytest.raises(UserError, match=r"distill\.optim\.lr \(2e-05 -> 1\.0\)"):
        open_run_folder(tmp_path, other, resume=True)
    with pytest.raises(UserError, match=r"seed \(0 -> 1\)"):
        open_run_folder(tmp_path, RscvConfig(run=RunConfig(seed=1)), resume=True)


def test_folders_that_are_not_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        open_run_folder(tmp_path / "file", RscvConfig(), resume=False)
    with pytest.raises(UserError, match="holds other files"):
        open_run_folder(tmp_path, RscvConfig(), resume=True)
    with pytest.raises(UserError, match="not a run folder"):
        read_config(tmp_path)


def test_facts_of_a_run_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/else/tools/rscv_finetune.py", "--seed", "3"])
    record_run(tmp_path, RscvConfig(run=RunConfig(seed=3)), images=7)
    update_json(tmp_path / "run.json", {"images": 8, "new": "ü"})
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["images"] == 8 and run["new"] == "ü" and run["seed"] == 3
    assert run["command"] == command_line() == "tools/rscv_finetune.py --seed 3"
    assert (
        run["environment"] == environment()
        and {"python", "torch", "timm", "open_clip_torch", "detectron2"} <= environment().keys()
    )


def test_default_folder_names_the_backbone() -> None:
    assert default_folder(RscvConfig()) == Path("runs/rscv_dinov2_vitb14")


def changed(**sections: dict[str, Any]) -> RscvConfig:
    config = RscvConfig()
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


def test_what_changes_results_is_compared(tmp_path: Path) -> None:
    open_run_folder(tmp_path, RscvConfig(), resume=False)
    for key, value in (("precision", "bf16-mixed"), ("deterministic", True), ("seed", 3)):
        with pytest.raises(UserError, match=rf"--resume with another configuration: run\.{key}"):
            open_run_folder(tmp_path, changed(run={key: value}), resume=True)
    with pytest.raises(UserError, match=r"run\.devices\*nodes \(1 -> 4\)"):
        open_run_folder(tmp_path, changed(run={"devices": 2, "nodes": 2}), resume=True)


def test_what_changes_no_result_is_free(tmp_path: Path) -> None:
    open_run_folder(tmp_path, changed(run={"devices": 4}), resume=False)
    free = changed(
        data={"workers": 0},
        backbone={"gradient_checkpointing": True},
        cache={"mode": "off"},
        probe={"linear_seeds": 1},
        run={"devices": 2, "nodes": 2, "device": "cpu", "save_every": 5, "strategy": "ddp"},
    )
    assert open_run_folder(tmp_path, free, resume=True) is False


def test_second_stage_may_change_its_own_options(tmp_path: Path) -> None:
    assert open_run_folder(tmp_path, RscvConfig(), resume=False) is True
    assert not awaits_second_stage(tmp_path)
    (tmp_path / "refiner.safetensors").write_bytes(b"")
    assert awaits_second_stage(tmp_path)
    second = changed(distill={"alpha": 0.25})
    assert open_run_folder(tmp_path, second, resume=False, second_stage=True) is False
    assert read_config(tmp_path) == second
    with pytest.raises(UserError, match=r"crops\.bank \(0 -> 8\).*only distill\.\* may change") as caught:
        open_run_folder(tmp_path, changed(crops={"bank": 8}), resume=False, second_stage=True)
    assert "--resume" not in str(caught.value) and read_config(tmp_path) == second


@pytest.mark.parametrize("name", ["checkpoints/distill/step.pt", "checkpoints/end_to_end/x", "student.safetensors"])
def test_second_stage_that_has_begun_is_not_awaited(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for file in ("refiner.safetensors", name):
        (tmp_path / file).write_bytes(b"")
    assert not awaits_second_stage(tmp_path)


def test_first_command_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in ("1", "2", "3"):
        monkeypatch.setattr(sys, "argv", ["tools/rscv_finetune.py", "--seed", seed])
        record_run(tmp_path, RscvConfig(), images=int(seed))
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["command"] == "tools/rscv_finetune.py --seed 1" and run["images"] == 3
    assert [entry["command"][-1] for entry in run["resumed"]] == ["2", "3"]
    found = commands_of(tmp_path)
    assert found["command"] == run["command"] and found["commit"] == run["commit"]
    assert [set(entry) for entry in found["resumed"]] == [{"command", "commit"}] * 2


def test_take_back_removes_a_run_without_results(tmp_path: Path) -> None:
    new, empty, trained = tmp_path / "new", tmp_path / "empty", tmp_path / "trained"
    empty.mkdir()
    for folder in (new, empty, trained):
        open_run_folder(folder, RscvConfig(), resume=False)
        (folder / "cache" / ".early.partial").mkdir(parents=True)
        (folder / "tensorboard").mkdir()
    (trained / "checkpoints" / "refine").mkdir(parents=True)
    (trained / "checkpoints" / "refine" / "step_00000002.pt").write_bytes(b"")
    (new / "notes.txt").write_text("written meanwhile")
    for folder in (new, empty, trained):
        take_back(folder, whole=folder is not empty)
    assert [p.name for p in new.iterdir()] == ["notes.txt"] and list(empty.iterdir()) == []
    assert (trained / "config.yaml").is_file() and (trained / "cache").is_dir()
    (empty / "config.yaml").touch()
    (empty / "metrics.jsonl").write_text('{"step": 0}\n')  # a step was made
    take_back(empty, whole=True)
    assert (empty / "config.yaml").is_file() and (empty / "metrics.jsonl").is_file()
    (new / "notes.txt").unlink()
    (new / "metrics.jsonl").touch()
    take_back(new, whole=True)
    assert not new.exists()
