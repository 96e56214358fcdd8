"""QuickGELU cannot be lost: what a file says about itself must be what the backbone runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.stated_facts import StatedFacts, stated_facts
from rsc_seg.models.weights import random_state, resolve_weights, save_encoder
from rsc_seg.models.weights_info import info_of_row, sidecar_path

torch.set_num_threads(1)
QUICK, PLAIN, EVA = REGISTRY["clip_tiny16"], REGISTRY["laion_tiny16"], REGISTRY["evaclip_tiny16"]
MEAN, STD = list(QUICK.mean), list(QUICK.std)


def features(name: str, file: Path) -> Tensor:
    encoder, _ = build_backbone(BackboneConfig(name=name, weights=str(file)))
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return encoder.dense(x)


def refusal(name: str, file: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve_weights(REGISTRY[name], str(file))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(file))
    return message


def test_saved_encoder_keeps_its_activation(tmp_path: Path) -> None:
    state, info = resolve_weights(QUICK, "none")
    file = tmp_path / "student.safetensors"
    save_encoder(file, state, replace(info, last_block="full"))
    saved = json.loads(sidecar_path(file).read_text())
    assert (saved["activation"], saved["last_block"], saved["mean"], saved["std"]) == ("quick_gelu", "full", MEAN, STD)

    encoder, again = build_backbone(BackboneConfig(name=QUICK.name, weights=str(file)))
    assert (again.activation, again.position_rule, again.last_block) == ("quick_gelu", "plain", "full")
    assert encoder.last_block == "full"
    for key, value in encoder.trunk.state_dict().items():
        assert torch.equal(value, state[key])
    save_encoder(file, state, info)
    quick = features(QUICK.name, file)
    original, _ = build_backbone(BackboneConfig(name=QUICK.name, weights="none"))
    with torch.no_grad():
        x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(original.dense(x), quick)

    assert "weights of backbone 'clip_tiny16', not of 'laion_tiny16': use --backbone clip_tiny16." in refusal(
        PLAIN.name, file
    )
    sidecar_path(file).unlink()  # the same numbers run by GELU: shapes fit, features do not
    plain = features(PLAIN.name, file)
    assert 1e-4 < ((plain - quick).norm() / quick.norm()).item() < 0.5


def tiny(quick_gelu: bool) -> CLIP:
    vision = {"image_size": 64, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIP(32, vision, text, quick_gelu=quick_gelu).eval().requires_grad_(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("right", "wrong"), [(QUICK, PLAIN), (PLAIN, QUICK)], ids=lambda row: row.activation)
def test_archive_tells_its_activation(right: Any, wrong: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    model = tiny(right.activation == "quick_gelu")
    torch.jit.trace_module(model, {"encode_image": (torch.zeros(1, 3, 64, 64),)}, check_trace=False).save(str(file))
    message = refusal(wrong.name, file)
    assert f"activation '{right.activation}' (its code says so), backbone '{wrong.name}' runs" in message
    assert message.endswith(f"use --backbone {right.name}.")
    encoder, _ = build_backbone(BackboneConfig(name=right.name, weights=str(file)))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.cls(x), model.encode_image(x), atol=5e-5, rtol=0)


def hub(folder: Path, config: dict[str, Any], name: str, weights: str, more: dict[str, Any] | None = None) -> Path:
    """A hub folder of the tiny ViT with this config."""
    (folder / name).write_text(json.dumps(config))
    if more is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(more))
    save_tensors(folder / weights, random_state(QUICK))
    return folder / weights


OPEN_CLIP = {"model_cfg": {"quick_gelu": True, "vision_cfg": {}}, "preprocess_cfg": {"mean": MEAN, "std": STD}}
TRANSFORMERS = {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}


@pytest.mark.parametrize(
    ("config", "name", "right", "wrong"),
    [
        (OPEN_CLIP, "open_clip", QUICK, PLAIN),
        ({"model_cfg": {"vision_cfg": {}}}, "open_clip", PLAIN, QUICK),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": "vit_x_quickgelu"}}}, "open_clip", QUICK, PLAIN),
        (TRANSFORMERS, "hf", PLAIN, QUICK),
        ({"model_type": "clip", "vision_config": {}}, "hf", QUICK, PLAIN),
        ({"model_type": "clip", "vision_config": {}, "vision_config_dict": {"hidden_act": "gelu"}}, "hf", PLAIN, QUICK),
        ({"model_type": "clip_vision_model", "hidden_act": "gelu"}, "hf", PLAIN, QUICK),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "hf", QUICK, PLAIN),
    ],
)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_config_beside_tells_the_activation(
    config: dict[str, Any], name: str, right: Any, wrong: Any, by: str, tmp_path: Path
) -> None:
    names = ("open_clip_config.json", "open_clip_model.safetensors")
    file = hub(tmp_path, config, *(names if name == "open_clip" else ("config.json", "model.safetensors")))
    path = tmp_path if by == "folder" else file
    assert resolve_weights(right, str(path))[1].activation == right.activation
    with pytest.raises(UserError, match=rf"{file}: .*'{right.activation}' \(.*config\.json says so\).*{right.name}\.$"):
        resolve_weights(wrong, str(path))


def test_timms_plain_name_tells_nothing(tmp_path: Path) -> None:
    config = {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"mean": MEAN, "std": STD}}
    file = hub(tmp_path, config, "config.json", "model.safetensors")
    assert stated_facts(file) == StatedFacts(str(tmp_path / "config.json"), None, QUICK.mean, QUICK.std)
    for row in (QUICK, PLAIN):  # timm keeps QuickGELU weights under it too
        assert resolve_weights(row, str(file))[1].activation == row.activation


def test_eva_by_name(tmp_path: Path) -> None:
    config = {"model_cfg": {"vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224"}}}
    file = hub(tmp_path, config, "open_clip_config.json", "open_clip_model.safetensors")
    facts = stated_facts(file)
    assert facts is not None and facts.activation == "swiglu"
    assert "activation 'swiglu'" in refusal(QUICK.name, file)
    save_tensors(file, random_state(EVA))
    assert resolve_weights(EVA, str(tmp_path))[1].activation == "swiglu"


@pytest.mark.parametrize("kind", ["open_clip", "hf", "timm"])
def test_normalisation_beside_must_be_the_rows(kind: str, tmp_path: Path) -> None:
    half = [0.5, 0.5, 0.5]
    if kind == "open_clip":
        config = {**OPEN_CLIP, "preprocess_cfg": {"mean": MEAN, "std": half}}
        file = hub(tmp_path, config, "open_clip_config.json", "open_clip_model.safetensors")
    elif kind == "hf":
        more = {"image_mean": MEAN, "image_std": half}
        config = {"model_type": "clip", "vision_config": {}}
        file = hub(tmp_path, config, "config.json", "model.safetensors", more)
    else:
        config = {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"mean": MEAN, "std": half}}
        file = hub(tmp_path, config, "config.json", "model.safetensors")
    assert "normalises images with std (0.5, 0.5, 0.5), backbone 'clip_tiny16' with (0.268" in refusal(QUICK.name, file)


def test_rounded_normalisation_is_the_same(tmp_path: Path) -> None:
    more = {"image_mean": [0.4815, 0.4578, 0.4082], "image_std": [0.2686, 0.2613, 0.2758]}
    file = hub(tmp_path, {"model_type": "clip"}, "config.json", "model.safetensors", more)
    assert resolve_weights(QUICK, str(file))[1].mean == QUICK.mean


def test_config_that_is_no_json(tmp_path: Path) -> None:
    file = hub(tmp_path, {}, "config.json", "model.safetensors")
    assert stated_facts(file) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read as JSON"):
        resolve_weights(QUICK, str(file))


def test_released_name_tells_the_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, QUICK.name, replace(QUICK, official_file="tiny-release.pt"))
    file = tmp_path / "tiny-release.pt"
    torch.save(random_state(QUICK), file)
    assert "its name, that of the release of clip_tiny16, says so" in refusal(PLAIN.name, file)
    assert resolve_weights(REGISTRY[QUICK.name], str(file))[1].licence == "MIT"


def test_folder_without_weights(tmp_path: Path) -> None:
    assert "a folder without open_clip_model.safetensors, open_clip_pytorch_model.bin, model.safetensors" in refusal(
        QUICK.name, tmp_path
    )


def test_row_facts_are_kept() -> None:
    info = info_of_row(QUICK, depth=4, source="none", licence="none")
    assert (info.mean, info.std, info.activation, info.last_block) == (QUICK.mean, QUICK.std, "quick_gelu", "value")
