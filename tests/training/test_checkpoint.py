"""Checkpoints are whole or absent, and resume only what they belong to."""

import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from rsc_seg.errors import UserError
from rsc_seg.training.checkpoint import (
    final_parameters,
    forget_checkpoints,
    load_checkpoint,
    save_checkpoint,
    saved_steps,
    trainable_names,
)


def parts(width: int = 3, seed: int = 0) -> tuple[Fabric, Any, Any, list[str]]:
    """Two layers, the second frozen, set up with an optimiser that has taken one step."""
    torch.manual_seed(seed)
    fabric = Fabric(accelerator="cpu", devices=1)
    plain = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2))
    plain[1].requires_grad_(False)
    names = trainable_names(plain)
    module, optimizer = fabric.setup(plain, torch.optim.AdamW(plain[0].parameters(), lr=0.1))
    module(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return fabric, module, optimizer, names


def save(folder: Path, step: int, seed: int = 0, width: int = 3) -> None:
    fabric, module, optimizer, names = parts(width, seed)
    save_checkpoint(fabric, folder, step, module, optimizer, names)


def test_checkpoint_holds_what_trains_and_restores_all(tmp_path: Path) -> None:
    fabric, module, optimizer, names = parts()
    torch.manual_seed(5)
    save_checkpoint(fabric, tmp_path, 7, module, optimizer, names)
    expected = torch.rand(4)
    assert names == ["0.weight", "0.bias"]
    assert os.listdir(tmp_path) == ["step_00000007.pt"]
    stored = final_parameters(tmp_path, 7)
    assert set(stored) == set(names)
    _, other, fresh, _ = parts(seed=9)
    frozen = other.state_dict()["1.weight"].clone()
    load_checkpoint(fabric, tmp_path, 7, other, fresh, names)
    assert all(torch.equal(other.state_dict()[n], module.state_dict()[n]) for n in names)
    assert torch.equal(other.state_dict()["1.weight"], frozen)
    assert torch.equal(torch.rand(4), expected)
    old, new = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert all(torch.equal(old[i]["exp_avg"], new[i]["exp_avg"]) and old[i]["step"] == new[i]["step"] for i in old)


def test_last_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step_00000001.tmp").write_bytes(b"left by a killed run")
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert saved_steps(tmp_path) == [2, 10]
    assert len(os.listdir(tmp_path)) == 2


def test_steps_of_files_that_are_whole(tmp_path: Path) -> None:
    for name in ("step_00000003.pt", ".step_00000009.tmp", "step_x.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert saved_steps(tmp_path) == [3]
    assert saved_steps(tmp_path / "absent") == []


def test_forgetting_removes_checkpoints_only(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("mine")
    forget_checkpoints(Fabric(accelerator="cpu", devices=1), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "foreign"])
def test_damaged_checkpoint_is_a_user_error(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 3)
    path = tmp_path / "step_00000003.pt"
    whole = path.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.ones(1)}, path)
    else:
        path.write_bytes({"empty": b"", "garbage": b"not a checkpoint", "cut": whole[: len(whole) // 2]}[damage])
    fabric, module, optimizer, names = parts()
    with pytest.raises(UserError, match=r"step_00000003\.pt: cannot be resumed from") as caught:
        load_checkpoint(fabric, tmp_path, 3, module, optimizer, names)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_shape_or_policy_is_a_user_error(tmp_path: Path) -> None:
    save(tmp_path, 3, width=4)
    fabric, module, optimizer, names = parts()
    with pytest.raises(UserError, match=r"step_00000003\.pt: cannot be resumed from"):
        load_checkpoint(fabric, tmp_path, 3, module, optimizer, names)
    save(tmp_path, 4)
    with pytest.raises(UserError, match=r"another set-up \(parameters differ, such as '1\.bias'\)"):
        load_checkpoint(fabric, tmp_path, 4, module, optimizer, [*names, "1.bias"])


def test_missing_checkpoint_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step_00000001\.pt: no such checkpoint"):
        final_parameters(tmp_path, 1)


def test_disk_that_refuses_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = (tmp_path / "step_00000001.pt").read_bytes()

    def full(self: Fabric, path: Path, *args: Any, **more: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Fabric, "save", full)
    with pytest.raises(UserError, match=r"step_00000002\.pt: not written \(No space left on device\); earlier"):
        save(tmp_path, 2)
    assert os.listdir(tmp_path) == ["step_00000001.pt"]
    assert (tmp_path / "step_00000001.pt").read_bytes() == before


def test_real_limit_on_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    save(tmp_path / "run", 1)
    fabric, module, optimizer, names = parts(width=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"step_00000002\.pt: not written \(File too large\)"):
            save_checkpoint(fabric, tmp_path / "run", 2, module, optimizer, names)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "run") == ["step_00000001.pt"]
    assert os.listdir(scratch) == []
