"""Weights by name: random, official and demo; depth; blending."""

import logging
import socket
import urllib.error
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from rsc_seg.errors import UserError
from rsc_seg.models import official_weights
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.models.weights import blend_states, create_trunk, random_state, resolve_weights

torch.set_num_threads(1)
CLIP, GELU_CLIP, EVA = REGISTRY["clip_tiny16"], REGISTRY["laion_tiny16"], REGISTRY["evaclip_tiny16"]
TINY, TINY_REG, SMALL = REGISTRY["dinov2_tiny14"], REGISTRY["dinov2_tiny14_reg"], REGISTRY["dinov2_vits14"]
OFFICIAL = [row for row in REGISTRY.values() if row.official_file]


@pytest.mark.parametrize("row", [TINY, TINY_REG, CLIP, GELU_CLIP, EVA])
def test_random_weights_fit_and_repeat(row: BackboneRow, caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        state, info = resolve_weights(row, "none")
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(before, torch.random.get_rng_state())
    assert info.source == "none" and info.depth == row.depth and "RANDOM WEIGHTS" in info.note
    create_trunk(row).load_state_dict(state, strict=True)
    again, _ = resolve_weights(row, "none")
    other, _ = resolve_weights(row, "none", seed=1)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not torch.equal(state["pos_embed"], other["pos_embed"])


@pytest.mark.parametrize("row", [TINY, CLIP, EVA], ids=lambda row: row.name)
def test_random_blocks_change_their_input(row: BackboneRow) -> None:
    trunk = create_trunk(row).eval()
    trunk.load_state_dict(random_state(row))
    x = torch.randn(1, 9, row.embed_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (trunk.get_submodule("blocks.0")(x) - x).norm() / x.norm()
    # with DINOv2's LayerScale of 1e-5 it would be below 1e-4, and a narrow CLIP at timm's scales would move by 0.02
    assert change > (1e-2 if row is TINY else 0.2)


@pytest.mark.parametrize("row", [CLIP, EVA], ids=lambda row: row.name)
def test_random_clip_towers_are_not_degenerate(row: BackboneRow) -> None:
    state = random_state(row)
    width = row.embed_dim**-0.5
    for key in ("cls_token", "pos_embed", "head.weight"):
        assert 0.7 * width < state[key].std().item() < 1.3 * width
    assert bool(state["head.bias"].any()) == (row is EVA)  # OpenAI's projection has none
    trunk = create_trunk(row).eval()
    trunk.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = torch.nn.functional.normalize(trunk(x), dim=-1)
    assert features.shape == (2, 32) and (features[0] @ features[1]).item() < 0.999


def test_depth_keeps_first_blocks_and_final_norm() -> None:
    full, _ = resolve_weights(TINY, "none")
    cut, info = resolve_weights(TINY, "none", depth=2)
    assert info.depth == 2
    assert set(full) - set(cut) == {key for key in full if key.startswith(("blocks.2.", "blocks.3."))}
    assert all(torch.equal(cut[key], full[key]) for key in cut)
    create_trunk(TINY, depth=2).load_state_dict(cut, strict=True)


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_depth_out_of_range(depth: int) -> None:
    with pytest.raises(UserError, match=rf"backbone.depth={depth}: dinov2_tiny14 has 1 to 4 blocks"):
        resolve_weights(TINY, "none", depth=depth)


def test_trunk_on_meta_has_shapes_without_memory() -> None:
    trunk = create_trunk(REGISTRY["dinov2_vitg14"], device="meta")
    assert {p.device.type for p in trunk.parameters()} == {"meta"}
    assert trunk.state_dict()["blocks.39.mlp.fc1.weight"].shape == (8192, 1536)


def test_misspelt_name_and_missing_file() -> None:
    with pytest.raises(UserError, match="Did you mean 'official'"):
        resolve_weights(TINY, "offical")
    with pytest.raises(UserError, match="no such weights file"):
        resolve_weights(TINY, "nowhere/x.pth")


@pytest.mark.parametrize("row", OFFICIAL, ids=lambda row: row.name)
def test_official_addresses(row: BackboneRow) -> None:
    release = official_weights.official_release(row)
    assert release.hub == f"timm/{row.release}"
    if row.joint_dim is None:
        assert release.url.startswith("https://dl.fbaipublicfiles.com/dinov2/")
        assert release.url.rsplit("/", 1)[1] == row.official_file
    else:
        assert release.url == ""


def test_a_file_name_that_several_releases_share_proves_nothing(tmp_path: Path) -> None:
    shared = [row.name for row in OFFICIAL if not official_weights.has_own_name(row)]
    assert shared == ["dfn_vitb16", "dfn_vitl14", "laion_vitb16"]
    assert official_weights.torch_hub_file(REGISTRY["dfn_vitb16"]) is None
    assert official_weights.release_row("open_clip_pytorch_model.bin") is None
    row = official_weights.release_row("ViT-L-14-336px.pt")
    assert row is not None and row.name == "clip_vitl14_336"


def test_tiny_has_no_official_weights() -> None:
    with pytest.raises(UserError, match="dinov2_tiny14' has no official weights"):
        resolve_weights(TINY, "official")


def _no_cached_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Empty caches; every call of the hub's client is noted and finds nothing."""
    calls: list[str] = []

    def not_found(repository: str, file: str, **options: object) -> str:
        calls.append(f"{repository} {sorted(options)}")
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_found)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return calls


NO_NETWORK = [
    urllib.error.URLError(socket.gaierror(-2, "Name or service not known")),
    urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")),
    TimeoutError("timed out"),
]


@pytest.mark.parametrize("error", NO_NETWORK, ids=["dns", "refused", "timeout"])
def test_no_network_says_which_file_to_put_where(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = _no_cached_file(monkeypatch, tmp_path)

    def urlopen(request: object, timeout: float) -> None:
        assert timeout <= 10
        raise error

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(UserError) as caught:
        resolve_weights(SMALL, "official")
    message = str(caught.value)
    assert "\n" not in message
    assert "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth" in message
    assert "--weights PATH/dinov2_vits14_pretrain.pth" in message and str(tmp_path) in message
    assert calls == ["timm/vit_small_patch14_dinov2.lvd142m ['local_files_only']"]  # no slow retries by the client


@pytest.mark.parametrize("name", ["clip_vitb16", "evaclip_vitl14_336", "dfn_vitb16"])
def test_no_network_names_repository_and_release_of_clip(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = _no_cached_file(monkeypatch, tmp_path)
    monkeypatch.setattr(official_weights, "unreachable", lambda address: "no route")
    row = REGISTRY[name]
    with pytest.raises(UserError) as caught:
        resolve_weights(row, "official")
    message = str(caught.value)
    assert "\n" not in message and len(calls) == 1
    assert f"model.safetensors of https://huggingface.co/timm/{row.release} elsewhere" in message
    assert f"--weights PATH/{row.official_file}" in message
    assert (str(tmp_path) in message) == official_weights.has_own_name(row)


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _no_cached_file(monkeypatch, tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(official_weights, "unreachable", lambda address: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        resolve_weights(SMALL, "official")


def test_hub_refuses_after_answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _no_cached_file(monkeypatch, tmp_path)
    monkeypatch.setattr(official_weights, "unreachable", lambda address: "")
    with pytest.raises(UserError, match=r"cannot be fetched \(not in the cache\)"):
        resolve_weights(SMALL, "official")
    assert len(calls) == 2


def test_official_file_of_torch_hub_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / SMALL.official_file
    file.parent.mkdir(parents=True)
    wanted = random_state(SMALL)
    torch.save({**wanted, "mask_token": torch.zeros(1, 384)}, file)
    state, info = resolve_weights(SMALL, "official", depth=1)
    assert info.source == "official" and info.licence == "Apache-2.0" and info.position_rule == "dinov2"
    assert torch.equal(state["blocks.0.attn.qkv.weight"], wanted["blocks.0.attn.qkv.weight"])
    assert "blocks.1.attn.qkv.weight" not in state


def test_demo_weights_are_of_one_backbone() -> None:
    with pytest.raises(UserError, match="demo weights fit dinov2_vits14, not dinov2_vitb14"):
        resolve_weights(REGISTRY["dinov2_vitb14"], "demo")


def test_blend_ends_and_middle() -> None:
    start, tuned = random_state(TINY), random_state(TINY, seed=1)
    key = "blocks.1.mlp.fc1.weight"
    assert torch.equal(blend_states(start, tuned, 0.0)[key], start[key])
    assert torch.equal(blend_states(start, tuned, 1.0)[key], tuned[key])
    torch.testing.assert_close(blend_states(start, tuned, 0.25)[key], 0.75 * start[key] + 0.25 * tuned[key])


def test_blend_in_float32() -> None:
    blended = blend_states({"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0078125], dtype=torch.bfloat16)}, 0.5)
    assert blended["a"].dtype == torch.float32
    assert blended["a"].item() == 1.00390625  # bfloat16 would round it to 1.0


def test_blend_refuses() -> None:
    state = random_state(TINY)
    with pytest.raises(UserError, match=r"alpha=1\.5"):
        blend_states(state, state, 1.5)
    with pytest.raises(UserError, match=r"1 keys or shapes differ \(norm.bias\)"):
        blend_states(state, {key: value for key, value in state.items() if key != "norm.bias"}, 0.5)
    with pytest.raises(UserError, match=r"1 keys or shapes differ \(norm.bias\)"):
        blend_states(state, {**state, "norm.bias": torch.zeros(3)}, 0.5)
