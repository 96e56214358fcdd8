"""Refiners on disk: the same function after reading, and no way to put one on the wrong encoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsc_seg.config import RefinerConfig
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import load_refiner, save_refiner

torch.set_num_threads(1)
Maker = Callable[..., DenseEncoder]
BOXES = torch.tensor([[[3.0, 5.0, 50.0, 60.0]]])


def output(refiner: Refiner, encoder: DenseEncoder) -> Tensor:
    x = torch.randn(1, 3, 70, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return refiner(refiner.early(encoder, x), BOXES, (3, 3))


def saved(path: Path, encoder: DenseEncoder, **options: Any) -> Refiner:
    torch.manual_seed(1)
    config = RefinerConfig(hidden=16, **options)
    refiner = Refiner(encoder, config)
    with torch.no_grad():
        for p in refiner.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    save_refiner(path, refiner, config, encoder, {"steps": 7, "loss": "soft"})
    return refiner


@pytest.fixture
def path(tmp_path: Path, make_encoder: Maker) -> Path:
    saved(tmp_path / "refiner.safetensors", make_encoder())
    return tmp_path / "refiner.safetensors"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    sidecar = json.loads(path.with_suffix(".json").read_text())
    change(sidecar)
    path.with_suffix(".json").write_text(json.dumps(sidecar))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "exogenous", "depth": 1},
        {"head": "pacl"},
        {"placement": "late"},
        {"inter": False, "cls_residual": False},
        {"depth": 1, "taps": [3, 2]},
    ],
    ids=str,
)
def test_round_trip(tmp_path: Path, make_encoder: Maker, options: dict[str, Any]) -> None:
    encoder, file = make_encoder("dinov2_tiny14_reg"), tmp_path / "deep" / "r.safetensors"
    refiner = saved(file, encoder, **options)
    loaded, sidecar = load_refiner(file, encoder)
    assert torch.equal(output(loaded, encoder), output(refiner, encoder))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert sidecar["training"] == {"steps": 7, "loss": "soft"}
    assert sidecar["encoder"]["backbone"] == "dinov2_tiny14_reg"
    assert sorted(p.name for p in file.parent.iterdir()) == ["r.json", "r.safetensors"]


def test_file_holds_the_refiner_and_nothing_of_the_encoder(path: Path, make_encoder: Maker) -> None:
    encoder = make_encoder()
    parameters = sum(p.numel() for p in Refiner(encoder, RefinerConfig(hidden=16)).parameters())
    assert 0 < path.stat().st_size - 4 * parameters < 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "dinov2_tiny14_reg"},
            "trained with backbone=dinov2_tiny14, this encoder has backbone=dinov2_tiny14_reg",
        ),
        ({"depth": 3}, "trained with depth=4, this encoder has depth=3"),
        ({"position_rule": "plain"}, "trained with position_rule=dinov2, this encoder has position_rule=plain"),
        ({"last_block": "value"}, "trained with last_block=full, this encoder has last_block=value"),
    ],
)
def test_other_encoders_are_refused(path: Path, make_encoder: Maker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"refiner.safetensors: {message}"):
        load_refiner(path, make_encoder(**options))


def test_other_weights_of_the_same_encoder_are_refused(path: Path, make_encoder: Maker) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.trunk.blocks[3].norm1.bias[0] += 1e-6
    with pytest.raises(UserError, match=r"refiner.safetensors: trained on other encoder weights .*backbone\.weights"):
        load_refiner(path, encoder)
    edit(path, lambda sidecar: sidecar["encoder"].pop("weights"))  # a file that does not say
    with pytest.raises(UserError, match="trained on other encoder weights"):
        load_refiner(path, make_encoder())


def test_missing_file_and_missing_sidecar(path: Path, make_encoder: Maker) -> None:
    with pytest.raises(UserError, match=r"absent.safetensors: no Refiner here .*--stage refiner"):
        load_refiner(path.with_name("absent.safetensors"), make_encoder())
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"it needs refiner.safetensors and refiner.json"):
        load_refiner(path, make_encoder())


def test_damaged_tensors(path: Path, make_encoder: Maker) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="refiner.safetensors: damaged"):
        load_refiner(path, make_encoder())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"encoder": 1, "refiner": {}}', '{"encoder": {}, "refiner": "x"}']
)
def test_damaged_sidecar(path: Path, make_encoder: Maker, text: str) -> None:
    path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match="refiner.safetensors: damaged or not a Refiner"):
        load_refiner(path, make_encoder())


@pytest.mark.parametrize(
    "change", [{"hidden": 8}, {"depth": 1}, {"inter": False}, {"colour": "red"}, {"hidden": "many"}]
)
def test_sidecar_that_describes_another_refiner(path: Path, make_encoder: Maker, change: dict[str, Any]) -> None:
    edit(path, lambda sidecar: sidecar["refiner"].update(change))
    with pytest.raises(UserError, match="refiner.safetensors: does not fit its own description"):
        load_refiner(path, make_encoder())


def test_refused_writes_are_user_errors_and_leave_the_old_files(path: Path, make_encoder: Maker) -> None:
    old = path.read_bytes(), path.with_suffix(".json").read_bytes()
    folder = path.with_name("taken.safetensors")
    folder.mkdir()
    with pytest.raises(UserError, match="taken.safetensors: not written"):
        saved(folder, make_encoder())
    assert not folder.with_suffix(".json").exists()
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == old
