"""Registry rows against the models of timm that they name."""

import open_clip
import pytest
from timm.layers import GluMlp, Mlp, QuickGELU, SwiGLU
from timm.models import get_pretrained_cfg

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow, find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.ops.position import POSITION_RULES

ROWS = list(REGISTRY.values())
RELEASED = [row for row in ROWS if row.official_file]
DINOV2 = [row for row in ROWS if row.name.startswith("dinov2")]
CLIP = [row for row in ROWS if row.joint_dim is not None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_describes_timms_model(row: BackboneRow) -> None:
    trunk = create_trunk(row, device="meta")
    assert (trunk.embed_dim, len(trunk.blocks), trunk.num_prefix_tokens) == (
        row.embed_dim,
        row.depth,
        row.num_prefix_tokens,
    )
    assert trunk.patch_embed.patch_size == (row.patch_size, row.patch_size)
    side = row.native_size // row.patch_size
    assert side * row.patch_size == row.native_size and trunk.patch_embed.grid_size == (side, side)
    extra = 0 if trunk.no_embed_class else 1
    assert trunk.pos_embed.shape == (1, side * side + extra, row.embed_dim)
    mlp = trunk.blocks[0].mlp
    assert isinstance(mlp, (GluMlp, SwiGLU)) == (row.activation == "swiglu")
    assert isinstance(mlp, Mlp) == (row.activation in ("gelu", "quick_gelu"))
    assert isinstance(mlp.act, QuickGELU) == (row.activation == "quick_gelu")
    assert (trunk.num_classes or None) == row.joint_dim
    assert 0 < row.head_blocks < row.depth
    assert row.position_rule in POSITION_RULES and row.last_block in ("full", "value")


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.name)
def test_official_release_is_the_one_that_timm_knows(row: BackboneRow) -> None:
    known = get_pretrained_cfg(row.release)
    assert known is not None and known.hf_hub_id == f"timm/{row.release}"
    assert (known.mean, known.std, known.input_size[1]) == (row.mean, row.std, row.native_size)
    assert known.num_classes == (row.joint_dim or 0)
    if row in DINOV2:
        assert known.url.rsplit("/", 1)[-1] == row.official_file
        assert known.license == row.licence.lower()


def test_dinov2_has_four_sizes_with_and_without_registers() -> None:
    assert sorted(row.name for row in RELEASED if row in DINOV2) == sorted(
        f"dinov2_vit{letter}14{end}" for letter in "sblg" for end in ("", "_reg")
    )
    for row in DINOV2:
        registers = row.name.endswith("_reg")
        assert row.position_rule == ("dinov2_reg" if registers else "dinov2")
        assert row.num_prefix_tokens == (5 if registers else 1)


@pytest.mark.parametrize("row", [row for row in CLIP if row.text_id], ids=lambda row: row.name)
def test_clip_rows_are_the_architectures_of_open_clip(row: BackboneRow) -> None:
    config = open_clip.get_model_config(row.text_id)
    assert row.text_tag in open_clip.list_pretrained_tags_by_model(row.text_id)
    assert (config["embed_dim"], config["vision_cfg"]["image_size"]) == (row.joint_dim, row.native_size)
    published = open_clip.get_pretrained_cfg(row.text_id, row.text_tag)
    assert (tuple(published["mean"]), tuple(published["std"])) == (row.mean, row.std)
    if row.activation == "swiglu":
        assert config["vision_cfg"]["timm_model_name"] == row.timm_id
    else:
        assert config["vision_cfg"]["width"] == row.embed_dim and config["vision_cfg"]["layers"] == row.depth
        assert bool(published.get("quick_gelu", False)) == (row.activation == "quick_gelu")


def test_clip_families_and_their_dense_rules() -> None:
    assert {row.name for row in CLIP if row.text_id} == {
        *(f"{family}_vit{size}" for family in ("clip", "metaclip", "dfn", "evaclip") for size in ("b16", "l14")),
        "clip_vitl14_336",
        "evaclip_vitl14_336",
        "laion_vitb16",
    }
    for row in CLIP:
        assert (row.position_rule, row.last_block, row.num_prefix_tokens) == ("plain", "value", 1)


@pytest.mark.parametrize(("name", "blocks"), [("clip_vitb16", 4), ("evaclip_vitl14_336", 6)])
def test_refiner_depth_of_clip(name: str, blocks: int) -> None:
    assert find_backbone(name).head_blocks == blocks


@pytest.mark.parametrize(("letter", "blocks"), [("s", 4), ("b", 4), ("l", 6), ("g", 10)])
def test_refiner_depth_of_the_paper(letter: str, blocks: int) -> None:
    assert find_backbone(f"dinov2_vit{letter}14").head_blocks == blocks


def test_names_are_keys_and_unknown_ones_are_answered_with_the_nearest() -> None:
    assert all(find_backbone(name).name == name for name in REGISTRY)
    with pytest.raises(UserError, match=r"unknown backbone 'dinov2_vits14_regs'. Did you mean 'dinov2_vits14_reg'\?"):
        find_backbone("dinov2_vits14_regs")
    with pytest.raises(UserError, match=r"unknown backbone 'resnet'\. Known: clip_tiny16, "):
        find_backbone("resnet")
