"""DenseEncoder and region pooling against numbers of the official CLIPSelf and CAT-Seg code (make_clip_golden.py)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rsc_seg.models.registry import find_backbone
from rsc_seg.ops.regions import masks_to_grid
from tests.parity.compare_clip import TOLERANCE, differences, encoder_of, row_of
from tests.parity.make_clip_golden import GOLDEN, MASK_GRID, TINY, pixel_masks

torch.set_num_threads(1)


@pytest.mark.parametrize("variant", TINY)
def test_official_numbers(variant: str) -> None:
    found = differences(variant, encoder_of(variant), GOLDEN)
    sizes = [f"{height}x{width}" for height, width in TINY[variant].sizes]
    if TINY[variant].reference == "clipself":
        assert list(found) == [f"{size}/{key}" for size in sizes for key in ("dense", "boxes", "masks", "cls")]
    else:
        assert list(found) == ["224x224/dense", "224x224/cls", "384x384/dense"]
    assert {key: value for key, value in found.items() if not value < TOLERANCE} == {}


@pytest.mark.parametrize("variant", TINY)
@pytest.mark.parametrize("last_block", ["full", "value", "catseg"])
def test_the_comparison_sees_another_last_block_in_all_but_cls(variant: str, last_block: str) -> None:
    encoder = encoder_of(variant, last_block=last_block)
    right = encoder.last_block == encoder_of(variant).last_block
    for key, value in differences(variant, encoder, GOLDEN).items():
        assert (value < TOLERANCE) if right or key.endswith("cls") else (value > 0.1), key


@pytest.mark.parametrize("variant", TINY)
@pytest.mark.parametrize("rule", ["antialias", "dinov2"])
def test_the_comparison_sees_another_position_rule_at_other_sizes(variant: str, rule: str) -> None:
    for key, value in differences(variant, encoder_of(variant, position_rule=rule), GOLDEN).items():
        assert (value < TOLERANCE) if key.startswith("224x224") else (value > 1e-3), key


@pytest.mark.parametrize("variant", [variant for variant in TINY if TINY[variant].family == "openai"])
def test_the_comparison_sees_a_lost_quick_gelu(variant: str) -> None:
    plain = find_backbone("laion_tiny16")
    row = replace(row_of(variant), timm_id=plain.timm_id, activation=plain.activation)
    assert min(differences(variant, encoder_of(variant, row=row), GOLDEN).values()) > 1e-3


def test_the_comparison_sees_a_part_in_a_thousand_of_one_bias() -> None:
    for variant in TINY:
        encoder = encoder_of(variant)
        encoder.get_parameter("trunk.blocks.0.attn.proj.bias")[0] += 1e-3
        assert min(differences(variant, encoder, GOLDEN).values()) > 1e-4


@pytest.mark.parametrize("antialias", [False, True])
def test_official_masks_on_the_token_grid(antialias: bool) -> None:
    with np.load(GOLDEN / "clipself_masks.npz") as file:
        official = torch.from_numpy(file["antialiased" if antialias else "plain"])
    assert torch.equal(masks_to_grid(pixel_masks(), (MASK_GRID, MASK_GRID), antialias=antialias), official)
    assert official.sum(dim=(1, 2)).tolist() == ([64, 32, 8, 8, 144] if antialias else [40, 0, 1, 0, 38])


def test_golden_files_hold_few_numbers_and_say_where_they_come_from() -> None:
    files = [GOLDEN / f"{name}.npz" for name in (*TINY, "clipself_masks")]
    for path in files:
        assert path.stat().st_size < 150_000
        with np.load(path) as file:
            assert len(str(file["commit"])) == 40
            assert all(np.isfinite(file[key]).all() for key in file.files if "/" in key)
