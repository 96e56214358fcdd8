"""R-SC-V for CLIP through the command: both stages, caches, resume and what the tuned file is worth elsewhere."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.cli.make_scenes import main as make_scenes
from rsc_seg.cli.rscv_finetune import main
from rsc_seg.config import BackboneConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.registry import find_backbone
from tests.training.helpers import furthest

torch.set_num_threads(1)
SMALL = [
    "--weights",
    "none",
    "--device",
    "cpu",
    "data.kind=scenes",
    "data.limit=4",
    "data.workers=0",
    "data.image_size=[64,96]",
]
SMALL += ["crops.size=[32,48]", "crops.per_image=2", "crops.bank=3", "distill.boxes=2", "distill.regions=both"]
SMALL += ["refiner.hidden=16", "refine.optim.batch_size=2", "refine.optim.max_steps=3", "run.save_every=2"]
SMALL += ["distill.optim.batch_size=2", "distill.optim.max_steps=3", "distill.optim.lr=1e-3", "distill.control=true"]
SMALL += ["run.log_every=1"]
NAMES = ("clip_tiny16", "evaclip_tiny16")
WEIGHTS = ("refiner", "student", "student_alpha1")  # not the control: its first gradient is zero but for rounding


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded set, small."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    sizes = ["--train", "2", "--val", "1", "--size", "240x180", "--layouts", "plain"]
    assert make_scenes(["--output", str(folder), *sizes]) == 0
    return folder


@pytest.fixture(scope="module", params=NAMES)
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path, request: pytest.FixtureRequest) -> Path:
    """A finished run of both stages and the control, for each tiny CLIP; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    code = main([*SMALL, "--backbone", request.param, "--output-dir", str(folder), f"data.root={pictures}"])
    assert code == 0
    return folder


def test_both_stages_train_and_describe_what_they_wrote(finished: Path) -> None:
    sidecar = json.loads((finished / "student.json").read_text())
    row = find_backbone(finished.name)
    assert (sidecar["backbone"], sidecar["activation"], sidecar["last_block"], sidecar["position_rule"]) == (
        row.name,
        row.activation,
        "value",
        "plain",
    )
    losses = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 9 and all(loss > 0 for loss in losses)
    start, full = (load_file(finished / f"{name}.safetensors") for name in ("control", "student_alpha1"))
    assert {k.split(".")[0] for k in full if not torch.equal(start[k], full[k])} == {"blocks"}
    assert full["head.weight"].shape == (32, 64)


def test_caches_change_nothing(tmp_path: Path, finished: Path, pictures: Path) -> None:
    code = main(
        [*SMALL, "--backbone", finished.name, "--output-dir", str(tmp_path), f"data.root={pictures}", "cache.mode=off"]
    )
    assert code == 0 and not (tmp_path / "cache").exists()
    for name in WEIGHTS:
        a, b = (load_file(f / f"{name}.safetensors") for f in (tmp_path, finished))
        assert furthest(a, b) < 1e-4


def image_features(model: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_student_gives_the_same_image_features_in_plain_timm(finished: Path) -> None:
    path, row = finished / "student.safetensors", find_backbone(finished.name)
    encoder, _ = build_backbone(BackboneConfig(name=row.name, weights=str(path)))
    plain = timm.create_model(row.timm_id, num_classes=32, img_size=64, **row.timm_args).eval()
    plain.load_state_dict(load_file(path), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.cls(x), image_features(plain, x), atol=1e-6, rtol=0)
