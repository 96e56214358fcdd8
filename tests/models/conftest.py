"""Tiny encoders whose every parameter matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rsc_seg.config import BackboneConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder

EncoderMaker = Callable[..., DenseEncoder]


@pytest.fixture(scope="session")
def make_encoder() -> EncoderMaker:
    """A new `dinov2_tiny14` (or another name), the same weights at every call, no parameter at zero or one."""

    def make(name: str = "dinov2_tiny14", **options: Any) -> DenseEncoder:
        encoder, _ = build_backbone(BackboneConfig(name=name, weights="none", **options))
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in encoder.named_parameters():
                scale = 0.5 if key.endswith(("pos_embed", "token")) else 0.1
                parameter.add_(scale * torch.randn(parameter.shape, generator=g))
        return encoder

    return make
