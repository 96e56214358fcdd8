import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.weights import random_state, save_encoder
from rsc_seg.models.weights_info import info_of_row
from rsc_seg.seg.build import CatSegPlan, build_catseg
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.towers import check_alive, check_tower, zero_shot
from tests.seg.tiny import NAMES, TINY, photo, save_model, tiny_model

PLAN = CatSegPlan(backbone="clip_tiny16", weights="none", text="none", options=TINY)


def own_labels(model: CatSeg, image: Tensor) -> Tensor:
    """What the cost maps themselves say, at 24x24: the labels of a tower that is always right."""
    with torch.no_grad():
        dense, _ = model.features(model.prepare([image]))
        cost = torch.einsum("behw,te->bthw", F.normalize(dense, dim=1), model.embed_classes(NAMES)[:, 0])
        return F.interpolate(cost, size=(24, 24), mode="bilinear", align_corners=False)[0].argmax(dim=0)


def test_zero_shot_tells_a_fitting_tower_from_one_that_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    samples = [(image, own_labels(model, image)) for image in (photo(64, 64, seed=s) for s in range(4))]
    assert len(torch.cat([labels.flatten() for _, labels in samples]).unique()) > 1
    score = zero_shot(model, samples, NAMES)
    assert score.miou == pytest.approx(1.0)
    assert score.better_than_chance
    draw = torch.Generator().manual_seed(0)
    noise = [(image, torch.randint(0, 5, (24, 24), generator=draw)) for image, _ in samples]
    with pytest.raises(UserError, match="image tower clip_tiny16: zero-shot mIoU .* do not fit the text tower"):
        check_tower(model, noise, NAMES)
    with caplog.at_level(logging.WARNING, "rsc_seg"):
        assert not check_tower(model, noise, NAMES, refuse=False).better_than_chance
    assert "no better than chance" in caplog.text
    with pytest.raises(UserError, match="0 images without a labelled pixel"):
        zero_shot(model, [], NAMES)
    with pytest.raises(UserError, match="1 images without a labelled pixel"):
        zero_shot(model, [(photo(32, 32), torch.full((8, 8), 255))], NAMES)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("norm.weight", 0.0, "the same at every place"),
        ("norm.bias", float("nan"), "not finite"),
    ],
)
def test_a_broken_tower_is_refused(key: str, value: float, message: str) -> None:
    model = tiny_model()
    check_alive(model)
    model.encoder.trunk.get_parameter(key).data.fill_(value)
    with pytest.raises(UserError, match=f"image tower clip_tiny16: its features are {message}"):
        check_alive(model)


def test_a_student_is_plugged_in_by_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = find_backbone("clip_tiny16")
    state = random_state(row, seed=9)
    path = tmp_path / "student.safetensors"
    save_encoder(path, state, info_of_row(row, depth=4, source="demo", licence="MIT"))
    with caplog.at_level(logging.INFO, "rsc_seg"):
        model, info = build_catseg(CatSegPlan(**{**vars(PLAN), "weights": str(path)}))
    assert info.source.startswith("student.safetensors sha256")
    assert f"image tower clip_tiny16 ({info.source}): {len(state)} tensors loaded" in caplog.text
    assert torch.equal(model.encoder.trunk.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])
    assert model.encoder.last_block == "catseg"  # whatever the student was tuned with
    assert model.training
    state.pop("blocks.3.attn.qkv.weight")
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth: not weights of clip_tiny16: lacks blocks.3.attn.qkv.weight"):
        build_catseg(CatSegPlan(**{**vars(PLAN), "weights": str(tmp_path / "part.pth")}))


def test_versions_checkpoints_and_guides(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model, _ = build_catseg(PLAN)
    assert torch.equal(torch.get_rng_state(), before)
    again, _ = build_catseg(PLAN)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    vanilla, _ = build_catseg(CatSegPlan(**{**vars(PLAN), "version": "vanilla"}))
    assert vanilla.encoder.last_block == "value"
    assert not any(p.requires_grad for p in vanilla.text.parameters())
    assert vanilla.encoder.trunk.pos_embed.requires_grad
    save_model(tiny_model(seed=4), tmp_path / "whole.pth")
    whole, _ = build_catseg(CatSegPlan(**{**vars(PLAN), "checkpoint": str(tmp_path / "whole.pth")}))
    assert torch.equal(whole.aggregator.conv1.weight, tiny_model(seed=4).aggregator.conv1.weight)
    guide = BackboneConfig(name="dinov2_tiny14", weights="none")
    guided, _ = build_catseg(CatSegPlan(**{**vars(PLAN), "guide": guide}))
    assert guided([photo(64, 64)], NAMES)["logits"].shape == (1, 5, 24, 24)
    for changes, message in (
        ({"version": "v3"}, "version=v3: must be one of updated, vanilla"),
        ({"backbone": "dinov2_tiny14"}, "'dinov2_tiny14' has no text tower"),
        ({"guide": BackboneConfig(name="clip_tiny16", weights="none")}, "a CLIP guides already"),
    ):
        with pytest.raises(UserError, match=message):
            build_catseg(CatSegPlan(**{**vars(PLAN), **changes}))
