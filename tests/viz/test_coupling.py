import numpy as np
import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.viz.coupling import CouplingExample, coupling_maps, difference_scale


def test_an_encoder_that_looks_at_single_patches_is_not_coupled(coupling_example: CouplingExample) -> None:
    local = coupling_example.models["local"]
    assert np.allclose(local.joint, local.alone, atol=1e-6)
    numerator, denominator = local.levels
    assert numerator == pytest.approx(denominator, abs=1e-6) == pytest.approx(float(local.joint.max()), abs=1e-6)


def test_the_query_is_compared_with_b_in_both_encodings() -> None:
    def dense(x: torch.Tensor) -> torch.Tensor:
        patches = torch.nn.functional.pixel_unshuffle(x, 4)
        return patches + patches.mean(dim=(2, 3), keepdim=True)

    a, b = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    maps = coupling_maps(dense, a, b, (1, 2))
    pair = dense(torch.cat([a, b], 2)[None])[0]
    assert maps.joint.shape == (3, 4)
    cosine = torch.cosine_similarity(pair[:, 1, 2], pair[:, 2, 4 + 3], dim=0)
    assert maps.joint[2, 3] == pytest.approx(cosine.item(), abs=1e-6)
    cosine = torch.cosine_similarity(dense(a[None])[0, :, 1, 2], dense(b[None])[0, :, 2, 3], dim=0)
    assert maps.alone[2, 3] == pytest.approx(cosine.item(), abs=1e-6)
    assert maps.joint[maps.match] == maps.joint.max()


def test_difference_scale_is_symmetric(coupling_example: CouplingExample) -> None:
    scale = difference_scale([coupling_example])
    assert scale.low == -scale.high < 0


def test_unequal_sizes_and_far_queries_are_named() -> None:
    with pytest.raises(UserError, match="one size"):
        coupling_maps(lambda x: x, torch.zeros(3, 4, 4), torch.zeros(3, 4, 8), (0, 0))
    with pytest.raises(UserError, match="4 x 4 tokens"):
        coupling_maps(lambda x: x, torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), (4, 0))
