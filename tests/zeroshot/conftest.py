"""The sample on disk, a tiny CLIP, and class embeddings that are right for some of its regions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.zeroshot.panoptic_regions import PanopticRegions, open_panoptic_regions
from rsc_seg.zeroshot.regions import RegionOptions, picture_regions, region_features
from tests.zeroshot.sample import informed, write_sample
from tests.zeroshot.slow import GRID, SIDE

OPTIONS = RegionOptions((SIDE, SIDE), antialias=False)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in COCO's layout; not to be changed."""
    root = tmp_path_factory.mktemp("panoptic") / "coco"
    write_sample(root)
    return root


@pytest.fixture(scope="session")
def source(sample: Path) -> PanopticRegions:
    return open_panoptic_regions("auto", str(sample), "val")


@pytest.fixture(scope="session")
def encoder() -> DenseEncoder:
    """Random weights, each moved once more so that tokens differ."""
    found, _ = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.fixture(scope="session")
def embeddings(encoder: DenseEncoder, source: PanopticRegions) -> Tensor:
    pictures = [picture_regions(source, i, OPTIONS, (GRID, GRID)) for i in range(len(source))]
    boxes, _ = region_features(encoder, pictures)
    return torch.from_numpy(informed(boxes.numpy(), torch.cat([p.labels for p in pictures]).numpy()))
