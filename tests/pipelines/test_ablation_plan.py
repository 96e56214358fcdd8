"""Each ablation changes exactly the options that its file names, and trains."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rsc_seg.config import RscvConfig, load_config
from rsc_seg.errors import UserError
from rsc_seg.pipelines.ablation_plan import Variant, differences, flat, plan_runs, refiner_key
from rsc_seg.pipelines.rscv import run_rscv
from tests.pipelines.objective_runs import CLIP, SMALL, rows, scenes

FOLDER = Path(__file__).parents[2] / "configs" / "ablation"
FILES = sorted(FOLDER.glob("*.yaml"))
PLAN = plan_runs(FILES)
DINOV2 = ["backbone.weights=none", "backbone.depth=null", "data.image_size=[56,56]", "crops.size=[28,28]"]
DINOV2 += ["data.every=1", "crops.bank=0"]


def content(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in COCO's layout."""
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


def test_the_ablations_of_the_paper_are_there() -> None:
    whats = {variant.what for variant in PLAN}
    assert whats >= {f"distill.loss={loss}" for loss in ("frobenius", "inter", "attention", "densecl", "ibot")}
    assert whats >= {f"refiner.head={head}" for head in ("random", "exogenous", "pacl")}
    assert whats >= {f"refiner.depth={depth}" for depth in (2, 3, 5)}  # 4 is the preset's
    assert whats >= {"refiner.placement=late", "refiner.inter=false", "refiner.region_cls=false"}
    assert whats >= {"refine.align.direction=l2g", "refine.align.loss=cosine", "distill.end_to_end=true"}
    assert whats >= {"distill.regions=global", "distill.weight=0.4", "distill.temperature_teacher=0.3"}
    assert whats >= {"objective=sc-clipself", "objective=r-sc-clipself"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_each_run_changes_what_its_file_names(path: Path) -> None:
    file, plan = content(path), plan_runs([path])
    preset = load_config(RscvConfig, path.parent / file["base"], named=flat(file.get("with", {})))
    assert plan[0].is_reference and plan[0].changed == {} and differences(plan[0].config, preset) == {}
    assert [variant.name for variant in plan[1:]] == list(file["runs"])
    for variant in plan[1:]:
        assert variant.changed == flat(file["runs"][variant.name]) == differences(variant.config, preset)
        assert variant.reference == plan[0].name


def shrunk(variant: Variant) -> list[str]:
    """Options that make a run of this row as small as it goes."""
    if variant.config.backbone.name.startswith("clip"):
        return CLIP
    # depths up to 5 need more blocks than the tiny encoder has
    name = "dinov2_vits14" if "refiner.depth" in variant.changed else "dinov2_tiny14"
    return [*DINOV2, f"backbone.name={name}"]


@pytest.mark.parametrize("variant", PLAN, ids=lambda v: v.name)
def test_each_run_trains_two_steps(tmp_path: Path, root: Path, variant: Variant) -> None:
    files = [FOLDER / Path(variant.sources[0]).name]
    options = [*shrunk(variant), *SMALL, f"data.root={root}", "distill.optim.lr=1e-3"]
    own = next(v for v in plan_runs(files, overrides=options) if v.name == variant.name)
    assert own.changed == variant.changed
    run_rscv(own.with_seed(0), tmp_path / "run")
    half, full = (load_file(tmp_path / "run" / f"student{end}.safetensors") for end in ("", "_alpha1"))
    assert any((half[key] != full[key]).any() for key in full)
    assert all(row["loss"] == row["loss"] and row["grad_norm"] > 0 for row in rows(tmp_path / "run"))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_plain_files_are_runs_and_the_first_is_the_reference(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.yaml", "distill: {boxes: 3}"), write(tmp_path, "b.yaml", "distill: {boxes: 5}")
    plan = plan_runs([a, b], overrides=["run.seed=7"])
    assert [(v.name, v.reference, v.what) for v in plan] == [("a", "a", ""), ("b", "a", "distill.boxes=5")]
    assert plan[0].with_seed(9).run.seed == 9 and plan[0].config.run.seed == 7
    base = write(tmp_path, "base.yaml", "distill: {boxes: 2, alpha: 0.9}")
    plan = plan_runs([a, b], base=base)
    assert [(v.name, v.what) for v in plan] == [("base", ""), ("a", "distill.boxes=3"), ("b", "distill.boxes=5")]
    assert all(v.config.distill.alpha == 0.9 for v in plan)


def test_files_of_one_preset_share_its_row() -> None:
    names = [variant.name for variant in plan_runs([FOLDER / "loss_inter.yaml", FOLDER / "loss_ibot.yaml"])]
    assert names == ["preset-sc-clipself", "inter", "ibot"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: base.yaml\nruns:\n  x: {distill.bxes: 3}", ["x.yaml", "run 'x'", "distill.bxes", "distill.boxes"]),
        ("base: base.yaml\nruns:\n  x: {distill.boxes: 2}", ["run 'x'", "distill.boxes=2", "change nothing"]),
        ("base: absent.yaml\nruns:\n  x: {distill.boxes: 3}", ["absent.yaml: no such config file"]),
        ("base: base.yaml\nrun:\n  x: {}\nruns: {}", ["'run' is none of", "Did you mean 'runs'?"]),
        ("runs:\n  x: {distill.boxes: 3}", ["names no preset", "--base"]),
        ("base: base.yaml\nruns: [a]", ["'runs' is ['a']"]),
        ("base: base.yaml\nruns:\n  base: {distill.boxes: 3}", ["a run 'base' is there already"]),
        ("distill: {boxes: [", ["not readable"]),
        ("- 1", ["holds options"]),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    write(tmp_path, "base.yaml", "distill: {boxes: 2}")
    with pytest.raises(UserError) as error:
        plan_runs([write(tmp_path, "x.yaml", text)])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_an_override_of_what_a_run_is_about_is_refused() -> None:
    with pytest.raises(UserError, match=r"run 'frobenius': distill\.loss=frobenius.*leave out the key=value"):
        plan_runs([FOLDER / "loss_frobenius.yaml"], overrides=["distill.loss=inter"])


def test_stage_1_is_shared_where_it_is_equal() -> None:
    keys = {variant.name: refiner_key(variant.config) for variant in PLAN}
    assert (
        keys["preset-r-sc-clipself"] is not None
        and keys["preset-r-sc-clipself"] == keys["temperature-0.1"] == keys["global"]
    )
    assert keys["preset-dinov2"] != keys["depth-2"] and keys["preset-dinov2"] != keys["cosine"]
    assert keys["end-to-end"] is None and keys["preset-sc-clipself"] is None and keys["ibot"] is None
    assert refiner_key(PLAN[0].with_seed(1)) != refiner_key(PLAN[0].with_seed(0))
