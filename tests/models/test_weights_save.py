"""Tuned encoders: written whole, read back with their sidecar, loaded by plain timm."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rsc_seg.errors import UserError
from rsc_seg.models import weights as weights_module
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.models.weights import WeightsInfo, create_trunk, random_state, resolve_weights, save_encoder
from rsc_seg.models.weights_info import info_of_row

torch.set_num_threads(1)
CLIP, GELU_CLIP, EVA = REGISTRY["clip_tiny16"], REGISTRY["laion_tiny16"], REGISTRY["evaclip_tiny16"]
TINY, TINY_REG = REGISTRY["dinov2_tiny14"], REGISTRY["dinov2_tiny14_reg"]


def info_for(row: BackboneRow, depth: int | None = None) -> WeightsInfo:
    info = info_of_row(row, depth=depth or row.depth, source="demo", licence="MIT", note="A note.")
    return replace(info, position_rule="plain", training={"data": "coco", "alpha": 0.5, "seed": 3, "commit": "abc"})


def test_info_survives_json() -> None:
    info = info_for(TINY)
    assert WeightsInfo.from_json(info.to_json()) == info
    assert json.loads(info.to_json())["training"]["alpha"] == 0.5
    hash(info)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable as JSON"),
        ("[]", "lacks backbone"),
        ('{"backbone": "x"}', "lacks depth, activation"),
        ('{"backbone": "dinov2_tiny14"}', "lacks depth, activation, position_rule, last_block, source, licence;"),
    ],
)
def test_text_that_is_no_sidecar(text: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.json: .*{says}.*remove or rename it"):
        WeightsInfo.from_json(text, where="a.json")


def test_sidecar_with_a_wrong_type() -> None:
    values = {**json.loads(info_for(TINY).to_json()), "depth": "4"}
    with pytest.raises(UserError, match="'depth' is '4', a int is needed"):
        WeightsInfo.from_json(json.dumps(values))


def test_sidecar_of_a_later_version_may_hold_more() -> None:
    values = {**json.loads(info_for(TINY).to_json()), "later": 1}
    assert WeightsInfo.from_json(json.dumps(values)) == info_for(TINY)


def test_sidecar_from_before_normalisation_was_kept() -> None:
    for row in (TINY, CLIP):
        values = json.loads(info_for(row).to_json())
        del values["mean"], values["std"]
        old = WeightsInfo.from_json(json.dumps(values))
        assert (old.mean, old.std) == (row.mean, row.std) and old == info_for(row)


@pytest.mark.parametrize("value", ["CLIP", [0.5, 0.5], [0.5, "0.5", 0.5], [True, 0.5, 0.5], None])
def test_sidecar_with_a_wrong_mean(value: Any) -> None:
    values = {**json.loads(info_for(TINY).to_json()), "mean": value}
    with pytest.raises(UserError, match=r"a\.json: 'mean' is .* needed"):
        WeightsInfo.from_json(json.dumps(values), where="a.json")


def test_sidecar_with_another_normalisation(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save(file, replace(info_for(TINY), std=CLIP.std))
    with pytest.raises(UserError, match=r"normalised with std \[0\.26.*backbone 'dinov2_tiny14' takes \[0\.229, "):
        resolve_weights(TINY, str(file))
    for std in ((0.2295, 0.224, 0.225), (0.22901, 0.224, 0.225)):  # rounded, as published configs are
        save(file, replace(info_for(TINY), std=std))
        assert resolve_weights(TINY, str(file))[1].std == std
    save(file, replace(info_for(TINY), std=(float("nan"), 0.224, 0.225)))
    with pytest.raises(UserError, match="normalised with std"):
        resolve_weights(TINY, str(file))


@pytest.mark.parametrize("row", [TINY, TINY_REG, CLIP, EVA], ids=lambda row: row.name)
@pytest.mark.parametrize("depth", [None, 2])
def test_saved_encoder_reads_back(row: BackboneRow, depth: int | None, tmp_path: Path) -> None:
    file = tmp_path / "runs" / "student.safetensors"
    state, _ = resolve_weights(row, "none", depth=depth)
    save_encoder(file, state, info_for(row, depth))
    assert sorted(os.listdir(file.parent)) == ["student.json", "student.safetensors"]
    again, info = resolve_weights(row, str(file))
    assert list(again) == list(state) and all(torch.equal(again[key], state[key]) for key in state)
    assert info.depth == (depth or row.depth) and info.position_rule == "plain" and info.note == "A note."
    assert info.source.startswith("student.safetensors sha256 ") and info.source.endswith(", from demo")
    assert info.training["seed"] == 3
    with pytest.raises(UserError, match=rf"backbone.depth=5: .*student.safetensors has 1 to {depth or 4} blocks"):
        resolve_weights(row, str(file), depth=5)
    assert resolve_weights(row, str(file), depth=1)[1].depth == 1


@pytest.mark.parametrize("row", [TINY, TINY_REG, CLIP, GELU_CLIP, EVA], ids=lambda row: row.name)
@pytest.mark.parametrize("depth", [4, 2])
def test_plain_timm_loads_a_saved_encoder(row: BackboneRow, depth: int, tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    state, _ = resolve_weights(row, "none", depth=depth)
    save_encoder(file, state, info_for(row, depth))
    arguments: dict[str, Any] = {**row.timm_args, "depth": depth}
    model = timm.create_model(
        row.timm_id,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": row.joint_dim or 0},
        num_classes=row.joint_dim or 0,
        img_size=row.native_size,
        dynamic_img_size=True,
        **arguments,
    ).eval()
    loaded = model.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    trunk = create_trunk(row, depth=depth).eval()
    trunk.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, row.native_size, row.native_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), trunk(x))


def save(file: Path, info: WeightsInfo) -> None:
    save_encoder(file, random_state(TINY), info)


def test_sidecar_of_another_backbone_or_activation(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save(file, replace(info_for(TINY), backbone="dinov2_vitb14"))
    with pytest.raises(UserError, match="weights of backbone 'dinov2_vitb14', not of 'dinov2_tiny14'"):
        resolve_weights(TINY, str(file))
    save(file, replace(info_for(TINY), activation="quick_gelu"))
    with pytest.raises(UserError, match="trained with activation 'quick_gelu', backbone 'dinov2_tiny14' runs 'gelu'"):
        resolve_weights(TINY, str(file))


@pytest.mark.parametrize("change", [{"position_rule": "bilinear"}, {"last_block": "half"}])
def test_sidecar_with_an_unknown_rule(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save(file, replace(info_for(TINY), **change))
    key, value = next(iter(change.items()))
    with pytest.raises(UserError, match=rf"x\.json: {key} is '{value}', must be one of"):
        resolve_weights(TINY, str(file))


def test_sidecar_that_belongs_to_another_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save(file, info_for(TINY))
    (tmp_path / "x.json").write_text(info_for(TINY, depth=2).to_json())
    with pytest.raises(UserError, match="holds 4 blocks, its sidecar says 2"):
        resolve_weights(TINY, str(file))


def test_suffix_and_depth_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save(tmp_path / "x.pth", info_for(TINY))
    with pytest.raises(ValueError, match="4 blocks in the state dict, 3"):
        save(tmp_path / "x.safetensors", info_for(TINY, depth=3))
    assert os.listdir(tmp_path) == []


def test_views_and_half_precision_are_written_contiguous(tmp_path: Path) -> None:
    state = random_state(TINY)
    key = "blocks.0.mlp.fc1.weight"
    wide = torch.stack([state[key], state[key]])
    save_encoder(tmp_path / "x.safetensors", {**state, key: wide[1], "norm.bias": wide[0, 0].half()}, info_for(TINY))
    again, _ = resolve_weights(TINY, str(tmp_path / "x.safetensors"))
    assert torch.equal(again[key], state[key]) and again["norm.bias"].dtype == torch.float32
    assert (tmp_path / "x.safetensors").stat().st_size < 1_400_000  # the views' other halves are not stored


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write files beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_system_refuses_to_write(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save(file, info_for(TINY))
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with (
        largest_file(100_000),
        pytest.raises(UserError, match=r"x\.safetensors: not written .* nothing was overwritten"),
    ):
        save(file, replace(info_for(TINY), note="Later."))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_full_disk_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, state: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights_module, "save_tensors", full)
    with pytest.raises(UserError, match=r"x\.safetensors: not written \(No space left on device\)"):
        save(tmp_path / "x.safetensors", info_for(TINY))
    assert os.listdir(tmp_path) == []
