"""A config section becomes an encoder, or one line says why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.attention import DenseAttention
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.weights import save_encoder

torch.set_num_threads(1)


def test_encoder_is_frozen_in_eval_mode_and_describes_itself() -> None:
    encoder, info = build_backbone(BackboneConfig(name="dinov2_tiny14_reg", weights="none"))
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert (encoder.name, encoder.depth, encoder.embed_dim, encoder.patch_size) == ("dinov2_tiny14_reg", 4, 64, 14)
    assert (encoder.num_prefix_tokens, encoder.joint_dim, encoder.mean[0]) == (5, None, 0.485)
    assert (info.backbone, info.depth, info.source) == ("dinov2_tiny14_reg", 4, "none")
    assert (encoder.position_rule, info.position_rule, encoder.last_block) == ("dinov2_reg", "dinov2_reg", "full")


def test_config_has_the_last_word_and_info_says_so() -> None:
    config = BackboneConfig(
        name="dinov2_tiny14",
        weights="none",
        depth=3,
        attention="eager",
        position_rule="plain",
        last_block="value",
        gradient_checkpointing=True,
    )
    encoder, info = build_backbone(config)
    assert (encoder.depth, encoder.position_rule, encoder.last_block) == (3, "plain", "value")
    assert (info.depth, info.position_rule, info.last_block) == (3, "plain", "value")
    assert encoder.gradient_checkpointing
    assert {m.backend for m in encoder.modules() if isinstance(m, DenseAttention)} == {"eager"}


def test_saved_encoder_brings_its_rule_and_mode_along(tmp_path: Any, make_encoder: Callable[..., DenseEncoder]) -> None:
    _, info = build_backbone(
        BackboneConfig(name="dinov2_tiny14", weights="none", position_rule="plain", last_block="value")
    )
    tuned = make_encoder(position_rule="plain", last_block="value")
    save_encoder(tmp_path / "e.safetensors", tuned.trunk.state_dict(), info)
    again, _ = build_backbone(BackboneConfig(name="dinov2_tiny14", weights=str(tmp_path / "e.safetensors")))
    x = torch.randn(1, 3, 70, 56, generator=torch.Generator().manual_seed(0))
    assert (again.position_rule, again.last_block) == ("plain", "value")
    assert torch.equal(again.dense(x), tuned.dense(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dinov2_vitb41"}, "unknown backbone 'dinov2_vitb41'.*Did you mean 'dinov2_vitb14'"),
        ({"attention": "xformers"}, "attention=xformers: xformers has no operator on 'cpu'"),
        ({"attention": "sdap"}, r"backbone.attention=sdap: must be one of auto, sdpa, xformers, eager.*'sdpa'"),
        ({"position_rule": "antialiased"}, r"backbone.position_rule=antialiased: must be one of auto.*'antialias'"),
        ({"last_block": "values"}, r"backbone.last_block=values: must be one of auto, full, value.*'value'"),
        ({"depth": 5}, "backbone.depth=5: dinov2_tiny14 has 1 to 4 blocks"),
        ({"weights": "nonne"}, "weights 'nonne': neither official, demo, none nor a file.*'none'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        build_backbone(BackboneConfig(**{"name": "dinov2_tiny14", "weights": "none", **options}))
    assert "\n" not in str(e.value)
