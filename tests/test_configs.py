"""Every file in configs/rscv loads, names options that exist, and fits the encoder that it names."""

from pathlib import Path

import pytest

from rsc_seg.config import RscvConfig, load_config
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.trunk import create_trunk

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "rscv").rglob("*.yaml"))


def test_there_are_presets() -> None:
    names = {path.name for path in CONFIGS}
    assert {"dinov2_vitb14.yaml", "dinov2_vitb14_paper.yaml", "demo.yaml", "camvid_vits14.yaml"} <= names
    assert {"clip_vitb16.yaml", "clip_vitl14_336.yaml", "evaclip_vitb16.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_preset_fits_its_encoder(path: Path) -> None:
    config = load_config(RscvConfig, path)
    row = find_backbone(config.backbone.name)
    trunk = create_trunk(row, depth=config.backbone.depth, dense_attention=True, device="meta")
    encoder = DenseEncoder(trunk, row, position_rule=row.position_rule, last_block=row.last_block)
    encoder.grid(*config.data.image_size)
    encoder.grid(*config.crops.size)
    refiner = Refiner(encoder, config.refiner)
    assert len(refiner.taps) == 2 and refiner.front_depth < encoder.depth
    if path.name.endswith("_paper.yaml"):
        assert (config.refine.align.loss, config.refine.align.normalize, config.distill.alpha) == (
            "infonce",
            False,
            1.0,
        )


@pytest.mark.parametrize("name", ["dinov2_vitb14", "clip_vitb16", "evaclip_vitb16"])
def test_papers_hyper_parameters(name: str) -> None:
    config = load_config(RscvConfig, next(p for p in CONFIGS if p.stem == name))
    first, second = config.refine.optim, config.distill.optim
    assert (first.lr, first.epochs, first.batch_size) == (1e-4, 4, 16)
    assert (second.lr, second.epochs, second.batch_size) == (2e-5, 6, 4)
    assert (config.refiner.depth, config.refiner.taps, config.refiner.hidden) == (4, [4, 7], 4096)
    assert (config.distill.temperature_student, config.distill.temperature_teacher) == (0.2, 0.2)
