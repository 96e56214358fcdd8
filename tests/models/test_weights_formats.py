"""Checkpoint files of several origins give the same state dict, or one clear line."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import matching_backbones, to_timm_names
from rsc_seg.models.weights import random_state, resolve_weights

torch.set_num_threads(1)
TINY, TINY_REG = REGISTRY["dinov2_tiny14"], REGISTRY["dinov2_tiny14_reg"]
SWIGLU = replace(
    REGISTRY["dinov2_vitg14"],
    name="swiglu",
    embed_dim=96,
    depth=2,
    timm_args={"embed_dim": 96, "depth": 2, "num_heads": 4},
)
State = dict[str, Tensor]


def release_of(row: BackboneRow, state: State) -> State:
    """The state dict as DINOv2 releases it: mask token, its names of SwiGLU and registers, a position of [CLS]."""
    release = {"mask_token": torch.zeros(1, row.embed_dim), **state}
    if "reg_token" in release:
        place = torch.full((1, 1, row.embed_dim), 0.5)
        release["register_tokens"] = release.pop("reg_token")
        release["cls_token"] = release["cls_token"] - place
        release["pos_embed"] = torch.cat([place, release["pos_embed"]], dim=1)
    if row.activation == "swiglu":
        release = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in release.items()}
    return release


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def chunked(state: State) -> State:
    """Blocks two by two in chunks, counted over all chunks, as DINOv2 trains."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // 2))
        renamed[".".join(parts)] = value
    return renamed


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "release": lambda s: s,
    "without mask token": lambda s: {k: v for k, v in s.items() if k != "mask_token"},
    "with classifier": lambda s: {**s, "head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)},
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": prefixed("module.", s)},
    "module backbone": lambda s: prefixed("module.backbone.", s),
    "teacher": lambda s: {"teacher": {**prefixed("backbone.", chunked(s)), "dino_head.mlp.0.weight": torch.ones(2)}},
    "teacher and student": lambda s: {
        "model": {
            **prefixed("teacher.backbone.", chunked(s)),
            **prefixed("student.backbone.", {k: v + 1 for k, v in chunked(s).items()}),
        }
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("row", [TINY, TINY_REG, SWIGLU], ids=lambda row: row.name)
def test_dinov2_files_give_the_state_they_hold(row: BackboneRow, wrapping: str, tmp_path: Path) -> None:
    wanted = random_state(row)
    file = tmp_path / "x.pth"
    torch.save(WRAPPINGS[wrapping](release_of(row, wanted)), file)
    state, info = resolve_weights(row, str(file))
    assert list(state) == list(wanted)
    for key in wanted:
        torch.testing.assert_close(state[key], wanted[key], atol=1e-7, rtol=0, msg=key)
    assert (
        info.source.startswith("x.pth sha256 ")
        and info.licence == "unknown"
        and info.position_rule == row.position_rule
    )


@pytest.mark.parametrize("row", [TINY, TINY_REG, SWIGLU], ids=lambda row: row.name)
def test_same_as_timm_for_releases(row: BackboneRow) -> None:
    release = release_of(row, random_state(row))
    ours = to_timm_names(dict(release), "x")
    trunk = create_trunk(row)
    assert isinstance(trunk, VisionTransformer)
    theirs = checkpoint_filter_fn(dict(release), trunk)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    half = {key: value.to(torch.float16) for key, value in random_state(TINY).items()}
    save_file(half, tmp_path / "x.safetensors")
    state, _ = resolve_weights(TINY, str(tmp_path / "x.safetensors"))
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert torch.equal(state["pos_embed"], half["pos_embed"].float())


def test_released_file_name_brings_its_licence(tmp_path: Path) -> None:
    row = replace(TINY, official_file="tiny_pretrain.pth")
    torch.save(release_of(row, random_state(row)), tmp_path / "tiny_pretrain.pth")
    assert resolve_weights(row, str(tmp_path / "tiny_pretrain.pth"))[1].licence == "Apache-2.0"


def test_missing_sidecar_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(random_state(TINY), tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        resolve_weights(TINY, str(tmp_path / "x.pth"))
        resolve_weights(TINY, str(tmp_path / "x.pth"))
    assert [r.getMessage().count("no x.json beside it") for r in caplog.records] == [1]


def refusal(row: BackboneRow, file: Path, depth: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        resolve_weights(row, str(file), depth=depth)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    return message


def test_other_backbone_is_named_with_shapes(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save(release_of(TINY, random_state(TINY)), file)
    message = refusal(TINY_REG, file)
    assert "lacks reg_token" in message and "pos_embed is (1, 1370, 64), must be (1, 1369, 64)" in message
    assert "it fits --backbone dinov2_tiny14." in message
    message = refusal(REGISTRY["dinov2_vits14"], file)
    assert "cls_token is (1, 1, 64), must be (1, 1, 384)" in message and "it fits --backbone dinov2_tiny14." in message
    assert message.count(", must be ") == 3  # no more than three shapes


def test_unknown_architecture_and_keys(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({**random_state(TINY), "blocks.0.attn.rel_pos": torch.zeros(2)}, file)
    message = refusal(TINY, file)
    assert "has unknown blocks.0.attn.rel_pos" in message and "no known backbone fits this file" in message


def test_fewer_blocks_than_the_backbone(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save(random_state(replace(TINY, timm_args={**TINY.timm_args, "depth": 2})), file)
    assert "holds 2 of the 4 blocks of dinov2_tiny14: backbone.depth=2 loads them." in refusal(TINY, file)
    assert "it fits --backbone dinov2_tiny14 with backbone.depth=2." in refusal(REGISTRY["dinov2_vits14"], file)
    assert "backbone.depth=3" in refusal(TINY, file, depth=3) and "has 1 to 2 blocks" in refusal(TINY, file, depth=3)
    state, info = resolve_weights(TINY, str(file), depth=2)
    assert info.depth == 2 and "blocks.1.norm1.weight" in state


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    state = random_state(TINY)
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    assert "not finite in norm.bias" in refusal(TINY, tmp_path / "x.pth")


class Custom:
    """An object that a pickle would have to build by running code."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"model": random_state(TINY), "args": Custom()}, tmp_path / "x.pth")
    assert "for safety only tensors are read" in refusal(TINY, tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    assert "a TorchScript archive without a CLIP vision transformer" in refusal(TINY, tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(suffix: str, keep: float, tmp_path: Path) -> None:
    file, state = tmp_path / f"x{suffix}", random_state(TINY)
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    refusal(TINY, file)


def test_a_long_reason_ends_with_a_word(tmp_path: Path) -> None:
    torch.save(random_state(TINY), tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
    found = re.search(r"damaged or truncated \((.*)\); get the file again\.$", refusal(TINY, tmp_path / "x.pt"))
    assert found is not None and len(found[1]) <= 120
    with pytest.raises(RuntimeError) as caught:
        torch.load(tmp_path / "x.pt", weights_only=True)
    whole = str(caught.value).splitlines()[0]
    kept = found[1].removesuffix(" ...")
    assert whole.startswith(kept) and whole[len(kept) : len(kept) + 1] in ("", " ")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(99)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_another_kind(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    refusal(TINY, tmp_path / f"x{suffix}")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed: int, tmp_path: Path) -> None:
    values = torch.randint(0, 256, (300,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    (tmp_path / "x.pth").write_bytes(b"\x80\x02" + bytes(values.tolist()))
    refusal(TINY, tmp_path / "x.pth")


def test_content_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "x.pth")
    assert "holds a list" in refusal(TINY, tmp_path / "x.pth")
    torch.save({"epoch": 1}, tmp_path / "x.pth")
    assert "holds no tensors" in refusal(TINY, tmp_path / "x.pth")
    torch.save({**prefixed("a.", random_state(TINY)), **prefixed("b.", random_state(TINY))}, tmp_path / "x.pth")
    assert "several encoders (a., b.)" in refusal(TINY, tmp_path / "x.pth")
    assert "a folder" in refusal(TINY, tmp_path)


def test_matching_prefers_the_depth_of_the_file() -> None:
    state = create_trunk(REGISTRY["dinov2_vitl14_reg"], device="meta").state_dict()
    assert matching_backbones(state) == ["dinov2_vitl14_reg"]
    assert matching_backbones({}) == []
