"""Stage files: found by what they depend on, whole or absent."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.pipelines.cause_stages import Arrays, StageFiles, part, prefixed


class Maker:
    """A stage that counts how often it is made."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"model.f.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "counts.a b": np.array([2**53 + 1])}


def test_made_once_and_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, make = StageFiles(tmp_path / "stages"), Maker()
    first = files.get("codebook", {"seed": 1, "views": "ab"}, make, "untuned")
    with caplog.at_level(logging.INFO, "rsc_seg"):
        again = files.get("codebook", {"views": "ab", "seed": 1}, make, "untuned")
    assert make.calls == 1 and again.key == first.key and again.facts == first.facts
    assert f"untuned: codebook: found {first.path}" in caplog.text
    assert again.arrays.keys() == {"model.f.weight", "counts.a b"}
    assert again.arrays["counts.a b"].tolist() == [2**53 + 1]  # integers stay exact
    assert [p.name for p in (tmp_path / "stages").iterdir()] == [first.path.name]


@pytest.mark.parametrize("other", [{"seed": 2, "views": "ab"}, {"seed": 1, "views": "ac"}, {"seed": 1}])
def test_another_dependency_is_another_file(tmp_path: Path, other: dict[str, object]) -> None:
    files, make = StageFiles(tmp_path), Maker()
    first = files.get("codebook", {"seed": 1, "views": "ab"}, make)
    assert files.get("codebook", other, make).path != first.path
    assert files.get("head", {"seed": 1, "views": "ab"}, make).path != first.path
    assert make.calls == 3


def test_a_file_says_what_it_depends_on(tmp_path: Path) -> None:
    found = StageFiles(tmp_path).get("codebook", {"seed": 1}, Maker())
    with np.load(found.path) as file:
        about = json.loads(str(file["about"]))
    assert about["depends"] == {"seed": 1} and about["stage"] == "codebook"
    assert set(about["facts"]) == {"seconds", "command", "commit"}


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Arrays:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StageFiles(tmp_path).get("codebook", {}, failing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0, 10, 400])
def test_a_damaged_file_is_named(tmp_path: Path, left: int) -> None:
    files, make = StageFiles(tmp_path), Maker()
    path = files.get("codebook", {}, make).path
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match="damaged stage file") as error:
        files.get("codebook", {}, make)
    assert str(path) in str(error.value) and make.calls == 1


@pytest.mark.parametrize("left", [["about"], ["model.f.weight", "about"], ["model.f.weight", "counts.a b"], []])
def test_a_file_that_lacks_arrays_is_damaged(tmp_path: Path, left: list[str]) -> None:
    files, make = StageFiles(tmp_path), Maker()
    path = files.get("codebook", {}, make).path
    with np.load(path) as file:
        arrays = {name: file[name] for name in left}
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(UserError, match="damaged stage file .*delete it") as error:
        files.get("codebook", {}, make)
    assert str(path) in str(error.value) and make.calls == 1


def test_a_module_comes_back_from_arrays() -> None:
    layer = torch.nn.Linear(3, 2)
    state = part({**prefixed(layer, "model."), "probe.x": np.zeros(1)}, "model.")
    assert state.keys() == {"weight", "bias"} and torch.equal(state["weight"], layer.weight)
