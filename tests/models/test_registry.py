"""Registry rows against the models of timm that they name."""

import pytest
from timm.layers import GluMlp, Mlp
from timm.models import get_pretrained_cfg

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow, find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.ops.position import POSITION_RULES

ROWS = list(REGISTRY.values())
RELEASED = [row for row in ROWS if row.official_file]


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
    assert isinstance(mlp, GluMlp) == (row.activation == "swiglu")
    assert isinstance(mlp, Mlp) == (row.activation == "gelu")
    assert 0 < row.head_blocks < row.depth
    assert row.position_rule in POSITION_RULES and row.last_block in ("full", "value")


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.name)
def test_official_release_is_the_one_that_timm_knows(row: BackboneRow) -> None:
    known = get_pretrained_cfg(f"{row.timm_id}.{row.timm_tag}")
    assert known is not None
    assert known.url.rsplit("/", 1)[-1] == row.official_file
    assert (known.mean, known.std, known.input_size[1]) == (row.mean, row.std, row.native_size)
    assert known.license == row.licence.lower()


def test_dinov2_has_four_sizes_with_and_without_registers() -> None:
    assert sorted(row.name for row in RELEASED) == sorted(
        f"dinov2_vit{letter}14{end}" for letter in "sblg" for end in ("", "_reg")
    )
    for row in ROWS:
        registers = row.name.endswith("_reg")
        assert row.position_rule == ("dinov2_reg" if registers else "dinov2")
        assert row.num_prefix_tokens == (5 if registers else 1)


@pytest.mark.parametrize(("letter", "blocks"), [("s", 4), ("b", 4), ("l", 6), ("g", 10)])
def test_refiner_depth_of_the_paper(letter: str, blocks: int) -> None:
    assert find_backbone(f"dinov2_vit{letter}14").head_blocks == blocks


def test_names_are_keys_and_unknown_ones_are_answered_with_the_nearest() -> None:
    assert all(find_backbone(name).name == name for name in REGISTRY)
    with pytest.raises(UserError, match=r"unknown backbone 'dinov2_vits14_regs'. Did you mean 'dinov2_vits14_reg'\?"):
        find_backbone("dinov2_vits14_regs")
    with pytest.raises(UserError, match=r"unknown backbone 'resnet'\. Known: dinov2_tiny14, "):
        find_backbone("resnet")
