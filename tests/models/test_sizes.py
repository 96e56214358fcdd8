"""Sizes that a configuration leaves open come from the backbone; those it gives must be whole patches."""

import pytest

from rsc_seg.config import CropConfig, DataConfig
from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.sizes import fill_sizes


@pytest.mark.parametrize(
    ("name", "image", "crop"),
    [
        ("dinov2_vitb14", 518, 224),
        ("clip_vitb16", 1024, 224),
        ("clip_vitl14", 896, 224),
        ("evaclip_vitl14_336", 896, 336),
    ],
)
def test_open_sizes_are_the_backbones(name: str, image: int, crop: int) -> None:
    data, crops = DataConfig(), CropConfig()
    fill_sizes(name, data, crops)
    assert (data.image_size, crops.size) == ([image, image], [crop, crop])


def test_every_backbone_has_sizes_that_fit_it() -> None:
    for name in REGISTRY:
        fill_sizes(name, DataConfig(), CropConfig())


def test_given_sizes_stay_and_must_fit() -> None:
    data = DataConfig(image_size=[320, 480])
    fill_sizes("clip_vitb16", data)
    assert data.image_size == [320, 480]
    with pytest.raises(UserError, match=r"data\.image_size=518x518: clip_vitb16 .* 16 \(nearest: 512x512\)"):
        fill_sizes("clip_vitb16", DataConfig(image_size=[518, 518]))
    with pytest.raises(UserError, match=r"crops\.size=224: dinov2"):
        fill_sizes("dinov2_vitb14", DataConfig(), CropConfig(size=[224]))
