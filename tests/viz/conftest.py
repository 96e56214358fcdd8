from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.viz.coupling import CouplingExample, coupling_maps
from rsc_seg.viz.gallery import Shot

GRID = (9, 12)


def smooth_map(seed: int, width: int = 16) -> torch.Tensor:
    noise = torch.randn(1, width, 4, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=GRID, mode="bicubic")[0]


def smooth_picture(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.fixture
def feature_map() -> Callable[..., torch.Tensor]:
    """Makes a smooth random feature map (D, 9, 12) from a seed."""
    return smooth_map


@pytest.fixture
def shots() -> list[Shot]:
    """Two pictures, each with the maps of two models that share a space."""
    made = []
    for seed in (0, 10):
        start = smooth_map(seed)
        maps = {"before": start, "after": start + 0.3 * smooth_map(seed + 1)}
        made.append(Shot(f"photo {seed}", smooth_picture(seed), maps))
    return made


def mixing_encoder(x: torch.Tensor) -> torch.Tensor:
    """4 x 4 patches as features, plus a little of the whole image's mean: a coupled encoder without weights."""
    patches = torch.nn.functional.pixel_unshuffle(x, 4)
    return patches + 0.5 * patches.mean(dim=(2, 3), keepdim=True)


@pytest.fixture
def coupling_example() -> CouplingExample:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3, 36, 48, generator=generator)
    example = CouplingExample("a | b", smooth_picture(1), smooth_picture(2), (4, 5))
    example.models["coupled"] = coupling_maps(mixing_encoder, a, b, example.query)
    example.models["local"] = coupling_maps(lambda x: torch.nn.functional.pixel_unshuffle(x, 4), a, b, example.query)
    return example
