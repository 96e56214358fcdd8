"""Checkpoints: whole, two of them, and refused where they do not belong."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.d2.checkpoint import (
    TrainingState,
    checkpoint_path,
    last_step,
    load_checkpoint,
    not_finite,
    save_checkpoint,
)
from rsc_seg.d2.trainer import CatSegTrainer
from rsc_seg.errors import UserError
from tests.d2.sets import options, write_set
from tests.d2.training import Training, equal, solver


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CatSegDataConfig:
    return options(write_set(tmp_path_factory.mktemp("set")))


@pytest.fixture
def trainer(data: CatSegDataConfig, tmp_path: Path) -> CatSegTrainer:
    return Training(tmp_path, data).trainer()


def test_the_last_two_are_kept_and_read_without_code(trainer: CatSegTrainer, tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, trainer.state)
    assert sorted(os.listdir(tmp_path)) == ["step_00000004.pt", "step_00000006.pt"] and last_step(tmp_path) == 6
    held = torch.load(checkpoint_path(tmp_path, 6), weights_only=True)
    assert held["step"] == 6 and held["average"] is None
    assert held["model"].keys() == {n for n, p in trainer.inner.named_parameters() if p.requires_grad}


def test_a_refusing_disk_leaves_the_older_ones(
    trainer: CatSegTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, trainer.state)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("file write failed")  # as torch says it

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"step_00000002\.pt: not written .*earlier checkpoints stand"):
        save_checkpoint(tmp_path, 2, trainer.state)
    assert os.listdir(tmp_path) == ["step_00000001.pt"]


def spoiled(content: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "names":
        content["model"].pop(next(iter(content["model"])))
    elif how == "frozen":
        content["frozen"] = "0" * 64
    elif how == "average":
        content["average"] = {"decay": 0.9, "steps": 1, "average": {}}
    else:
        del content["optimizer"]
    return content


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("names", "parameters differ, such as"),
        ("frozen", "not those that the run began with"),
        ("average", "another solver.ema"),
        ("optimizer", "optimizer"),
    ],
)
def test_what_does_not_fit_is_refused(trainer: CatSegTrainer, tmp_path: Path, how: str, said: str) -> None:
    torch.save(spoiled(trainer.state.content(3), how), checkpoint_path(tmp_path, 3))
    before = {k: v.clone() for k, v in trainer.inner.state_dict().items()}
    with pytest.raises(UserError, match=f"cannot be resumed from .*{said}"):
        load_checkpoint(tmp_path, 3, trainer.state)
    assert equal(before, trainer.inner.state_dict())


def test_a_damaged_file_is_refused(trainer: CatSegTrainer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, trainer.state)
    path = checkpoint_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"step_00000003\.pt: cannot be resumed from"):
        load_checkpoint(tmp_path, 3, trainer.state)


def test_weights_that_do_not_train_belong_to_the_run(data: CatSegDataConfig, tmp_path: Path) -> None:
    trainer = Training(tmp_path, data, solver(ema=0.5)).trainer()
    digest = trainer.state.frozen
    trained, frozen = trainer.trained[0], trainer.inner.model.text.text.token_embedding.weight
    trained.data += 1
    assert TrainingState(trainer.inner, trainer.optimizer, trainer.scaler).frozen == digest
    frozen.data += 1
    assert TrainingState(trainer.inner, trainer.optimizer, trainer.scaler).frozen != digest


def test_tensors_that_are_not_finite_are_named() -> None:
    held = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, -torch.inf]),
        "c": torch.tensor([[torch.nan]]),
        "d": torch.ones(2),
    }
    assert not_finite(held) == ["b", "c"] and not_finite({"d": torch.full((2,), 3e38)}) == [] == not_finite({})


def test_a_poisoned_checkpoint_is_not_taken(trainer: CatSegTrainer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, trainer.state)
    content = torch.load(checkpoint_path(tmp_path, 1), weights_only=True)
    name = next(iter(content["model"]))
    content["model"][name].flatten()[0] = torch.nan
    torch.save(content, checkpoint_path(tmp_path, 1))
    with pytest.raises(UserError, match=r"step_00000001\.pt: cannot be resumed from \(its values are not finite in "):
        load_checkpoint(tmp_path, 1, trainer.state)
