"""The Refiner starts at the frozen encoder, and every ablation does what its name says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsc_seg.config import RefinerConfig
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, EarlyFeatures
from rsc_seg.models.refiner import Refiner, default_taps
from rsc_seg.ops.boxes import roi_tokens

torch.set_num_threads(1)
Maker = Callable[..., DenseEncoder]
GRID = (3, 4)
BOXES = torch.tensor(
    [[[0.0, 0.0, 50.0, 60.0], [30.0, 20.0, 100.0, 84.0]], [[14.0, 14.0, 70.0, 56.0], [5.0, 3.0, 111.0, 99.0]]]
)


def images(height: int = 112, width: int = 126, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def make(encoder: DenseEncoder, *, stirred: bool = False, **options: Any) -> Refiner:
    torch.manual_seed(0)
    refiner = Refiner(encoder, RefinerConfig(hidden=32, **options))
    if stirred:  # away from the start, so that every part has a say
        with torch.no_grad():
            for p in refiner.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return refiner


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inter": False},
        {"region_cls": False},
        {"inter": False, "region_cls": False},
        {"placement": "late"},
        {"head": "pacl"},
        {"depth": 1},
        {"depth": 3, "taps": [1, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(98, 98), (70, 126), (140, 56)])
@pytest.mark.parametrize("name", ["dinov2_tiny14", "dinov2_tiny14_reg"])
def test_starts_at_the_frozen_encoder(
    make_encoder: Maker, name: str, size: tuple[int, int], options: dict[str, Any]
) -> None:
    encoder, x = make_encoder(name), images(*size)
    refiner = make(encoder, **options)
    with torch.no_grad():
        refined = refiner.whole_image(refiner.early(encoder, x))
        torch.testing.assert_close(refined, encoder.dense(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"placement": "late"}, {"head": "pacl"}, {"depth": 1}], ids=str)
@pytest.mark.parametrize("mode", ["auto", "full", "catseg"])
@pytest.mark.parametrize("name", ["clip_tiny16", "laion_tiny16", "evaclip_tiny16"])
def test_starts_at_clips_projected_features(make_encoder: Maker, name: str, mode: str, options: dict[str, Any]) -> None:
    encoder, x = make_encoder(name, last_block=mode), images(80, 48)
    refiner = make(encoder, **options)
    refined = refiner.whole_image(refiner.early(encoder, x))
    assert refined.shape == (2, 32, 5, 3)
    torch.testing.assert_close(refined, encoder.dense(x).detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"depth": 1}, {"placement": "late"}, {"head": "exogenous"}], ids=str)
@pytest.mark.parametrize("name", ["clip_tiny16", "evaclip_tiny16"])
def test_gradients_reach_every_part_of_clips_refiner(make_encoder: Maker, name: str, options: dict[str, Any]) -> None:
    encoder = make_encoder(name)
    refiner = make(encoder, stirred=True, **options)
    assert (refiner.region_cls is None) == (options in ({"depth": 1}, {"placement": "late"}))  # nothing reads it there
    refined = refiner(refiner.early(encoder, images(96, 112)), BOXES, GRID)
    assert refined.shape == (4, 12, 32)
    refined.square().sum().backward()
    trained = {n: p.grad for n, p in refiner.named_parameters() if p.requires_grad}
    assert not [n for n, grad in trained.items() if grad is None or not grad.abs().sum() > 0]
    assert not any(n.startswith("head.project") for n in trained)


@pytest.mark.parametrize("name", ["dinov2_tiny14", "dinov2_tiny14_reg"])
def test_head_runs_in_the_encoders_value_mode(make_encoder: Maker, name: str) -> None:
    encoder, x = make_encoder(name, last_block="value"), images()
    refiner = make(encoder)
    torch.testing.assert_close(
        refiner.whole_image(refiner.early(encoder, x)), encoder.dense(x).detach(), atol=1e-6, rtol=0
    )


def test_regions_come_by_image_then_box(make_encoder: Maker) -> None:
    encoder, x = make_encoder("dinov2_tiny14_reg"), images()
    refiner = make(encoder, stirred=True)
    together = refiner(refiner.early(encoder, x), BOXES, GRID)
    assert together.shape == (4, 12, 64)
    for image in range(2):
        for box in range(2):
            early = refiner.early(encoder, x[image : image + 1])
            alone = refiner(early, BOXES[image : image + 1, box : box + 1], GRID)
            torch.testing.assert_close(together[2 * image + box], alone[0], atol=1e-5, rtol=0)


def test_clone_is_a_trainable_copy_with_a_frozen_norm(make_encoder: Maker) -> None:
    encoder = make_encoder()
    refiner = make(encoder)
    frozen = {name for name, p in refiner.named_parameters() if not p.requires_grad}
    assert frozen == {"head.norm.weight", "head.norm.bias"}
    assert not {p.data_ptr() for p in refiner.parameters()} & {p.data_ptr() for p in encoder.parameters()}
    before = encoder.dense(images())
    with torch.no_grad():
        for p in refiner.parameters():
            p.zero_()
    assert torch.equal(encoder.dense(images()), before)


def test_gradients_reach_the_refiner_and_not_the_encoder(make_encoder: Maker) -> None:
    encoder = make_encoder().requires_grad_(True)
    refiner = make(encoder, stirred=True)
    early = refiner.early(encoder, images())
    assert not any(t.requires_grad for t in early)
    refiner(early, BOXES, GRID).square().sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in refiner.parameters() if p.requires_grad)


def outside_changed(early: EarlyFeatures) -> EarlyFeatures:
    """Other features in the last three columns of the maps, which the box [0, 50] x [0, 60] does not touch."""
    patches, taps = early.patches.clone(), early.taps.clone()
    patches[..., -3:] += 1.0 + patches[..., -3:].flip(1)
    taps[..., -3:] += 1.0 + taps[..., -3:].flip(2)
    return EarlyFeatures(early.prefix, patches, taps)


def test_early_placement_sees_the_box_alone_and_late_the_whole_image(make_encoder: Maker) -> None:
    encoder, box = make_encoder(), BOXES[:, :1].clone()
    box[:] = BOXES[0, 0]
    for placement, changes in (("early", False), ("late", True)):
        refiner = make(encoder, stirred=True, placement=placement)
        early = refiner.early(encoder, images())
        gap = (refiner(early, box, GRID) - refiner(outside_changed(early), box, GRID)).abs().max()
        assert (gap > 1e-2) if changes else (gap == 0)


def test_late_is_roi_align_of_the_refined_image_and_has_no_region_cls(make_encoder: Maker) -> None:
    encoder = make_encoder("dinov2_tiny14_reg")
    refiner = make(encoder, stirred=True, placement="late")
    assert refiner.region_cls is None
    early = refiner.early(encoder, images())
    expected = roi_tokens(refiner.whole_image(early), BOXES, patch_size=14, grid=GRID)
    torch.testing.assert_close(refiner(early, BOXES, GRID), expected, atol=1e-5, rtol=0)


def test_inter_reads_the_taps_and_without_it_there_are_none(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images()
    refiner = make(encoder, stirred=True, taps=[1, 2])
    early = refiner.early(encoder, x)
    assert early.taps.shape == (2, 2, 64, 8, 9)
    other = early._replace(taps=early.taps.flip(1))
    assert (refiner(early, BOXES, GRID) - refiner(other, BOXES, GRID)).abs().max() > 1e-3
    without = make(encoder, stirred=True, inter=False)
    assert without.inter is None and without.taps == ()
    assert without.early(encoder, x).taps.shape == (2, 0, 64, 8, 9)


def test_inter_is_added_before_the_head(make_encoder: Maker) -> None:
    encoder = make_encoder()
    refiner, plain = make(encoder), make(encoder, inter=False)
    assert isinstance(refiner.inter, nn.Sequential)
    early = refiner.early(encoder, images())
    shift = torch.linspace(-1, 1, 64)
    with torch.no_grad():
        refiner.inter[2].bias.copy_(shift)  # FC_inter is now this constant
    moved = early._replace(patches=early.patches + shift[:, None, None])
    # FC_cls reads the features without Z_inter, but starts at zero: only the sum counts
    torch.testing.assert_close(refiner(early, BOXES, GRID), plain(moved, BOXES, GRID), atol=1e-5, rtol=0)


def test_taps_are_counted_from_one_and_kept_in_order(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images()
    refiner = make(encoder, depth=1, taps=[3, 1])
    early = refiner.early(encoder, x)
    three, one = encoder.intermediates(x, [3, 1])
    assert torch.equal(early.taps[:, 0], three) and torch.equal(early.taps[:, 1], one)


@pytest.mark.parametrize(
    ("depth", "head", "taps"), [(12, 4, (4, 7)), (24, 6, (9, 14)), (12, 5, (3, 6)), (40, 10, (15, 29)), (4, 3, (1, 1))]
)
def test_default_taps(depth: int, head: int, taps: tuple[int, int]) -> None:
    assert default_taps(depth, head) == taps


def test_region_cls_starts_as_the_images_own_and_learns_the_regions(make_encoder: Maker) -> None:
    encoder = make_encoder("dinov2_tiny14_reg")
    refiner, without = make(encoder), make(encoder, region_cls=False)
    assert without.region_cls is None and isinstance(refiner.region_cls, nn.Sequential)
    early = refiner.early(encoder, images())
    assert torch.equal(refiner(early, BOXES, GRID), without(early, BOXES, GRID))
    with torch.no_grad():
        refiner.region_cls[2].weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (refiner(early, BOXES, GRID) - without(early, BOXES, GRID)).abs().max() > 1e-3
    prefix = refiner._prefix(early, BOXES)
    assert (prefix[0, 0] - prefix[1, 0]).abs().max() > 1e-2  # a [CLS] for each region
    assert torch.equal(prefix[:, 1:], early.prefix[:, 1:].repeat_interleave(2, dim=0))  # the image's registers


def test_region_cls_reads_the_features_without_inter(make_encoder: Maker) -> None:
    encoder = make_encoder()
    refiner = make(encoder, stirred=True, taps=[1, 2])
    early = refiner.early(encoder, images())
    other = early._replace(taps=early.taps.flip(1))
    assert not torch.equal(refiner._fused(early), refiner._fused(other))
    assert torch.equal(refiner._prefix(early, BOXES), refiner._prefix(other, BOXES))


@pytest.mark.parametrize("residual", [True, False])
def test_cls_residual_decides_whether_the_images_cls_counts(make_encoder: Maker, residual: bool) -> None:
    encoder = make_encoder()
    refiner = make(encoder, cls_residual=residual)
    early = refiner.early(encoder, images())
    gap = refiner(early, BOXES, GRID) - refiner(early._replace(prefix=-early.prefix), BOXES, GRID)
    assert (gap.abs().max() > 1e-2) if residual else (gap == 0).all()


def test_literal_region_cls_starts_as_an_ordinary_mlp(make_encoder: Maker) -> None:
    region_cls = make(make_encoder(), cls_residual=False).region_cls
    assert isinstance(region_cls, nn.Sequential)
    assert 0.015 < region_cls[2].weight.std() < 0.025


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_moves_the_border_between_early_and_head(make_encoder: Maker, depth: int) -> None:
    encoder, x = make_encoder(), images()
    refiner = make(encoder, depth=depth)
    assert refiner.front_depth == 4 - depth and len(refiner.head.blocks) == depth
    assert torch.equal(refiner.early(encoder, x).patches, encoder.intermediates(x, [4 - depth])[0])


def test_depth_null_is_the_backbones_own(make_encoder: Maker) -> None:
    assert make(make_encoder()).front_depth == 2
    assert make(make_encoder(depth=2)).front_depth == 1  # K of the row, but one block is left to f_A


def test_random_head_has_fresh_weights_in_the_clones_place(make_encoder: Maker) -> None:
    encoder = make_encoder()
    refiner = make(encoder, head="random")
    assert refiner.front_depth == 2
    for block in refiner.head.blocks:
        assert 0.015 < block.attn.qkv.weight.std() < 0.025 and (block.attn.qkv.bias == 0).all()
        assert (block.norm1.weight == 1).all() and (block.ls1.gamma == 1).all()
    assert torch.equal(refiner.head.norm.weight, encoder.trunk.norm.weight)
    early = refiner.early(encoder, images())
    assert (refiner.whole_image(early) - encoder.dense(images())).abs().max() > 0.1


def test_exogenous_head_stands_on_the_whole_encoder_with_a_norm_of_its_own(make_encoder: Maker) -> None:
    encoder, x = make_encoder(), images()
    refiner = make(encoder, head="exogenous")
    early = refiner.early(encoder, x)
    assert refiner.front_depth == 4 and len(refiner.head.blocks) == 2
    assert torch.equal(early.patches, encoder.intermediates(x, [4])[0])
    assert (refiner.head.norm.weight == 1).all() and (refiner.head.norm.bias == 0).all()
    assert all(p.requires_grad for p in refiner.parameters())
    assert 0.015 < refiner.head.blocks[0].mlp.fc1.weight.std() < 0.025


def test_pacl_head_works_token_by_token_and_reads_no_cls(make_encoder: Maker) -> None:
    encoder = make_encoder()
    refiner = make(encoder, stirred=True, head="pacl")
    assert refiner.front_depth == 4 and refiner.region_cls is None
    early = refiner.early(encoder, images())
    out = refiner.whole_image(early)
    assert torch.equal(refiner.whole_image(early._replace(prefix=-early.prefix)), out)
    turned = EarlyFeatures(early.prefix, early.patches.flip(3), early.taps.flip(4))
    torch.testing.assert_close(refiner.whole_image(turned), out.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "clones"}, r"refiner.head=clones: must be one of clone, random, exogenous, pacl.*'clone'"),
        ({"placement": "latest"}, r"refiner.placement=latest: must be one of early, late.*'late'"),
        ({"depth": 0}, "refiner.depth=0: dinov2_tiny14 has 4 blocks, so 1 to 3 are possible"),
        ({"depth": 4}, "refiner.depth=4: dinov2_tiny14 has 4 blocks, so 1 to 3 are possible"),
        ({"taps": [1]}, r"refiner.taps=\[1\]: two blocks of f_A are needed, each from 1 to 2"),
        ({"taps": [0, 2]}, r"refiner.taps=\[0, 2\]: two blocks"),
        ({"taps": [1, 3]}, r"refiner.taps=\[1, 3\]: two blocks"),
    ],
)
def test_refusals(make_encoder: Maker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(make_encoder(), **options)
