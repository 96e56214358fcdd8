import hashlib
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.text import TextTower, text_shape
from rsc_seg.models.trunk import create_trunk
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.official import load_official, official_state
from rsc_seg.seg.policy import apply_policy
from rsc_seg.seg.saved import load_whole, whole_state
from tests.seg.tiny import NAMES, photo, save_model, tiny_model

# names and shapes of the official models' state dicts, window masks included, sorted, "name 1x2x3" a line
LAYOUTS = {
    "clip_vitb16": (484, 180, 25.12, "458a7f17f0420e5c7ed5e4b03ceaa00e8ee2d7a66811c25ff833335a3505c2d6"),
    "clip_vitl14_336": (652, 204, 70.27, "bd4bd177a861f2730add0457202e8add8ecaabfa67903c69fae39f884ce29d34"),
}


def meta_model(name: str) -> CatSeg:
    """Names and shapes of a model of real size, without memory."""
    row = find_backbone(name)
    with torch.device("meta"):
        trunk = create_trunk(row, dense_attention=True, device="meta")
        encoder = DenseEncoder(trunk, row, position_rule="plain", last_block="catseg")  # type: ignore[arg-type]
        model = CatSeg(encoder, TextTower(text_shape(row)))
    trunk.head.bias = torch.nn.Parameter(torch.zeros(row.joint_dim or 0))  # its values are looked at
    return model


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_official_name_and_shape_and_what_trains(name: str) -> None:
    count, trained, millions, digest = LAYOUTS[name]
    model = meta_model(name)
    state = official_state(model)
    lines = sorted(f"{key} {'x'.join(map(str, value.shape)) or 'scalar'}" for key, value in state.items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    names = apply_policy(model, "attention")
    assert len(names) == trained
    sizes = dict(model.named_parameters())
    assert sum(sizes[key].numel() for key in names) / 1e6 == pytest.approx(millions, abs=0.01)


def test_there_and_back_gives_the_same_model(tmp_path: Path) -> None:
    first, second = tiny_model(seed=0), tiny_model(seed=5)
    image = [photo(64, 64)]
    with torch.no_grad():
        wanted = first(image, NAMES)["logits"]
        assert (second(image, NAMES)["logits"] - wanted).abs().max() > 1e-2
        for suffix in ("pth", "safetensors"):
            path = tmp_path / f"model.{suffix}"
            save_model(first, path)
            other = tiny_model(seed=5)
            load_whole(other, path)
            assert torch.equal(other(image, NAMES)["logits"], wanted)
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert all(torch.equal(saved[key], value) for key, value in official_state(first).items())
    key = "sem_seg_head.predictor.clip_model.visual.transformer.resblocks.3.attn.{}_proj_weight"
    packed = first.encoder.trunk.blocks[3].attn.qkv.weight
    assert torch.equal(torch.cat([saved[key.format(letter)] for letter in "qkv"]), packed)
    assert torch.equal(saved["sem_seg_head.predictor.clip_model.visual.proj"].T, first.encoder.trunk.head.weight)


def test_window_masks_may_be_absent_and_are_not_read() -> None:
    model = tiny_model()
    state = official_state(model)
    masks = [key for key in state if key.endswith("attn_mask")]
    assert len(masks) == 2
    assert set(state[masks[0]].unique().tolist()) == {0.0, -100.0}
    load_official(tiny_model(), {key: value for key, value in state.items() if key not in masks}, "bare")
    load_official(tiny_model(), {**state, masks[0]: torch.zeros(1)}, "other")


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if part not in key}


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model = tiny_model()
    state = {key: value.clone() for key, value in official_state(model).items()}
    head = "sem_seg_head.predictor.transformer.head.weight"
    cases = {
        "lacks upsample1.weight, upsample1.bias;": without(state, "upsample1"),
        "has unknown backbone.conv;": {**state, "backbone.conv": torch.zeros(2)},
        re.escape(f"{head} is (1, 8, 3, 3), must be (1, 16, 3, 3)"): {**state, head: torch.zeros(1, 8, 3, 3)},
        f"values are not finite in {head}": {**state, head: torch.full((1, 16, 3, 3), float("nan"))},
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for message, content in cases.items():
        with pytest.raises(UserError, match=f"^file.pth: .*{message}"):
            load_official(model, {"model": content}, "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="lacks .* and 95 more; has unknown"):
        load_official(model, without({**state, "x": torch.zeros(1)}, "clip_model"), "f")


def test_what_the_official_code_does_not_know_has_no_official_form() -> None:
    with pytest.raises(UserError, match="the official code has no such image tower"):
        official_state(tiny_model("evaclip_tiny16"))
    with pytest.raises(UserError, match="DINOv2 guide has no official form"):
        official_state(tiny_model(guide=True))
    biased = tiny_model()
    biased.encoder.trunk.head.bias.data += 1
    with pytest.raises(UserError, match="its projection has a bias"):
        official_state(biased)


@pytest.mark.parametrize("name", ["clip_tiny16", "evaclip_tiny16"])
def test_a_guide_joins_a_model_that_was_saved_without_one(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, guided, path = tiny_model(name), tiny_model(name, seed=5, guide=True), tmp_path / "catseg.safetensors"
    guided.aggregator.guide.bias.data.zero_()  # as a new one, which the tests' models are not
    save_tensors(path, {key: value.clone() for key, value in whole_state(plain).items()})
    with caplog.at_level(logging.INFO, "rsc_seg"):
        load_whole(guided, path)
    assert f"{path}: holds no guide" in caplog.text
    with torch.no_grad():
        one, two = (model([photo(64, 64)], NAMES)["logits"] for model in (plain, guided))
    torch.testing.assert_close(one, two)
    save_tensors(path, {key: value.clone() for key, value in whole_state(guided).items()})
    with pytest.raises(UserError, match=r"catseg.safetensors: .* has unknown .*guide.*; give clip.name and model\.\*"):
        load_whole(plain, path)
    load_whole(tiny_model(name, guide=True), path)


def test_a_cat_seg_on_clip_does_not_go_onto_another_tower(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model.pth: a Cat-Seg on one of CLIP's own ViTs, not on evaclip_tiny16; give"):
        load_whole(tiny_model("evaclip_tiny16"), tmp_path / "model.pth")
