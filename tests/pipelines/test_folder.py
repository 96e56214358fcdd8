"""The run folder: made once, gone on with only as the same run."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from rsc_seg.config import CacheConfig, OptimConfig, RscvConfig, RunConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines.folder import (
    command_line,
    default_folder,
    environment,
    open_run_folder,
    read_config,
    record_run,
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
    assert run["environment"] == environment() and {"python", "torch", "timm"} <= environment().keys()


def test_default_folder_names_the_backbone() -> None:
    assert default_folder(RscvConfig()) == Path("runs/rscv_dinov2_vitb14")
