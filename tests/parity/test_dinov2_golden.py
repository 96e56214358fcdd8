"""DenseEncoder against numbers of the official DINOv2 code (golden/, written by make_dinov2_golden.py)."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import fit_state, to_timm_names

torch.set_num_threads(1)
HERE = Path(__file__).parent
ROW_OF = {
    "plain": "dinov2_tiny14",
    "registers": "dinov2_tiny14_reg",
    "swiglu": "dinov2_vitg14",
    "vits14": "dinov2_vits14",
    "vits14_reg": "dinov2_vits14_reg",
}
TOLERANCE = 1e-5


def _maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dinov2_golden", HERE / "make_dinov2_golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = _maker()


def row_of(variant: str) -> BackboneRow:
    v, row = MAKER.VARIANTS[variant], find_backbone(ROW_OF[variant])
    if variant.startswith("vits14"):
        return row
    args = {"embed_dim": v.width, "depth": v.depth, "num_heads": v.heads}
    if v.swiglu_hidden:
        args["mlp_ratio"] = 2 * v.swiglu_hidden / v.width  # timm counts both halves
    return replace(row, embed_dim=v.width, depth=v.depth, head_blocks=1, timm_args=args)


@pytest.fixture(scope="module", params=list(MAKER.VARIANTS))
def case(request: pytest.FixtureRequest) -> tuple[str, DenseEncoder, dict[str, torch.Tensor]]:
    row = row_of(request.param)
    trunk = create_trunk(row, dense_attention=True)
    official = to_timm_names(MAKER.seeded_weights(request.param), "golden")
    trunk.load_state_dict(fit_state(official, row, row.depth, "golden"), strict=True)
    encoder = DenseEncoder(trunk, row, position_rule=row.position_rule, last_block=row.last_block)
    with np.load(HERE / "golden" / f"dinov2_{request.param}.npz") as file:
        numbers = {key: torch.from_numpy(file[key]) for key in file.files if "/" in key}
    return request.param, encoder.eval().requires_grad_(False), numbers


@pytest.mark.parametrize("which", range(3))
def test_official_numbers(case: tuple[str, DenseEncoder, dict[str, torch.Tensor]], which: int) -> None:
    variant, encoder, numbers = case
    size, stride = MAKER.VARIANTS[variant].sizes[which], MAKER.VARIANTS[variant].stride
    x, name = MAKER.seeded_image(size), f"{size[0]}x{size[1]}"
    ours = {
        "patch": encoder.dense(x).flatten(2).mT[:, ::stride],
        "cls": encoder.cls(x),
        "block1": encoder.intermediates(x, [1])[0].flatten(2).mT[:, ::stride],
    }
    for key, value in ours.items():
        assert (value - numbers[f"{name}/{key}"]).abs().max() < TOLERANCE, key


def test_the_comparison_would_see_a_wrong_position_rule() -> None:
    row = row_of("plain")
    trunk = create_trunk(row, dense_attention=True)
    trunk.load_state_dict(to_timm_names(MAKER.seeded_weights("plain"), "golden"), strict=True)
    wrong = DenseEncoder(trunk, row, position_rule="antialias", last_block="full").eval()
    with np.load(HERE / "golden" / "dinov2_plain.npz") as file, torch.no_grad():
        patch = torch.from_numpy(file["70x98/patch"])
        assert (wrong.dense(MAKER.seeded_image((70, 98))).flatten(2).mT - patch).abs().max() > 0.1


def test_golden_files_hold_few_numbers_and_say_where_they_come_from() -> None:
    files = sorted((HERE / "golden").glob("dinov2_*.npz"))
    assert [f.stem for f in files] == sorted(f"dinov2_{variant}" for variant in MAKER.VARIANTS)
    for path in files:
        assert path.stat().st_size < 400_000
        with np.load(path) as file:
            assert len(str(file["commit"])) == 40
