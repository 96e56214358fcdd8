"""Every file in configs/rscv, rla and catseg loads, names options that exist, and fits what it names."""

from pathlib import Path

import pytest

from rsc_seg.config import RscvConfig, load_config
from rsc_seg.config_catseg import CatSegModelConfig, CatSegSolverConfig, CatSegTestConfig, TrainCatSegConfig
from rsc_seg.data.scenes import CLASS_TABLE
from rsc_seg.data.segsets import segset
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.models.trunk import create_trunk
from rsc_seg.pipelines.catseg_plan import catseg_plan, model_options, sliding_options
from rsc_seg.pipelines.objectives import OBJECTIVES
from rsc_seg.pipelines.rscv_check import check_config
from rsc_seg.seg.build import options_of
from rsc_seg.seg.inference import SlidingOptions
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.training.rla import distill_weight

FOLDER = Path(__file__).parents[1] / "configs"
RLA = sorted((FOLDER / "rla").glob("*.yaml"))
CONFIGS = [*sorted((FOLDER / "rscv").rglob("*.yaml")), *RLA, *sorted((FOLDER / "ablation" / "presets").glob("*.yaml"))]
CATSEG = sorted((FOLDER / "catseg").rglob("*.yaml"))


def test_there_are_presets() -> None:
    names = {path.name for path in CONFIGS}
    assert {"dinov2_vitb14.yaml", "dinov2_vitb14_paper.yaml", "demo.yaml", "camvid_vits14.yaml"} <= names
    assert {"clip_vitb16.yaml", "clip_vitl14_336.yaml", "evaclip_vitb16.yaml"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_preset_fits_its_encoder(path: Path) -> None:
    config = load_config(RscvConfig, path)
    fill_sizes(config.backbone.name, config.data, config.crops)
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


def catseg(name: str) -> TrainCatSegConfig:
    return load_config(TrainCatSegConfig, next(p for p in CATSEG if p.stem == name))


@pytest.mark.parametrize("path", CATSEG, ids=lambda p: p.name)
def test_preset_of_catseg_fits_its_towers(path: Path) -> None:
    config = load_config(TrainCatSegConfig, path)
    row = find_backbone(config.clip.name)
    assert row.joint_dim is not None and catseg_plan(config.clip, config.model, seed=0).backbone == row.name
    for name in (config.data.train, *config.data.test):
        segset(name)
    # each training view has the size that the tower sees, but for ViT-L: 384 pixels are brought to 336, as officially
    sides = [n * row.patch_size for n in config.model.grid]
    assert sides == config.data.crop or (config.clip.name, sides) == ("clip_vitl14_336", [336, 336])


@pytest.mark.parametrize("name", ["vitb", "vitl", "vitb_ade20k", "vitl_ade20k", "vanilla_vitb"])
def test_official_hyper_parameters(name: str) -> None:
    config = catseg(name)
    assert model_options(config.model) == options_of(config.model.version)
    assert sliding_options(config.test) == SlidingOptions()
    assert config.solver == CatSegSolverConfig() and config.test == CatSegTestConfig()
    solver, data = config.solver, config.data
    assert (solver.max_iter, solver.batch_size, solver.lr, solver.clip_factor) == (80000, 4, 2e-4, 0.01)
    assert (solver.weight_decay, solver.clip_norm, solver.warmup_iters, solver.ema) == (1e-4, 0.01, 0, None)
    assert (data.crop, data.min_size, data.max_size, data.color, data.hflip) == ([384, 384], [384], 1333, True, True)
    assert (data.min_size_test, data.max_size_test) == (640, 2560)
    assert data.train.startswith("ade20k_150" if "ade20k" in name else "coco_stuff_171")
    assert config.model.version == ("vanilla" if name == "vanilla_vitb" else "updated")


def test_the_first_version_keeps_the_options_that_are_given() -> None:
    own = model_options(CatSegModelConfig(version="vanilla"))
    assert (own.prompts, own.class_length) == ("catseg_v1", 0) and own != CatSegOptions()
    given = model_options(CatSegModelConfig(version="vanilla", prompts="a {}", class_length=8))
    assert (given.prompts, given.class_length) == ("a {}", 8)


def test_demo_of_catseg_names_the_classes_of_the_scenes() -> None:
    config, names = catseg("demo"), segset("scenes_train").class_names()
    assert sorted(config.data.classes) == sorted(names[c.ade20k - 1] for c in CLASS_TABLE)
    assert set(config.data.held_out) < set(config.data.classes) and len(config.data.held_out) == 2


@pytest.mark.parametrize("path", RLA, ids=lambda p: p.name)
def test_alignment_presets_are_what_their_names_say(path: Path) -> None:
    config = load_config(RscvConfig, path)
    objective = check_config(config, "all")
    if path.stem != "demo":
        name = config.objective.replace("-", "_")
        assert path.stem == f"{name}_{config.backbone.name}" and objective == OBJECTIVES[config.objective]
        row = find_backbone(config.backbone.name)
        assert config.data.image_size == [row.image_side] * 2 and config.rla.crop_size == [row.native_size] * 2
        assert config.distill.alpha == (0.95 if row.depth == 24 else 0.7)
    assert objective.kind is not None and config.distill.trainable == "blocks"


def test_recipe_of_clipself_and_of_the_paper() -> None:
    clipself, paper = (
        load_config(RscvConfig, FOLDER / "rla" / f"{name}_evaclip_vitb16.yaml")
        for name in ("clipself", "r_sc_clipself")
    )
    first, second = clipself.distill.optim, paper.distill.optim
    assert (first.lr, first.weight_decay, first.warmup_steps, first.epochs, first.batch_size) == (1e-5, 0.1, 1000, 6, 2)
    assert (clipself.rla.per_image, clipself.rla.enlarge) == (20, 1.5)
    assert (second.lr, second.epochs, second.batch_size) == (2e-5, 6, 4)
    large = load_config(RscvConfig, FOLDER / "rla" / "r_sc_clipself_evaclip_vitl14_336.yaml")
    assert distill_weight(paper.distill, 12) == 0.2 and distill_weight(large.distill, 24) == 0.4
    assert (large.refiner.depth, large.refiner.taps) == (6, [9, 14])
