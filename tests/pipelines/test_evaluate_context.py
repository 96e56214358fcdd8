"""Coupling ratio and context aggregation for several encoders: result, files, text, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rsc_seg.config import BackboneConfig, RefinerConfig, load_config
from rsc_seg.config_zeroshot import EvaluateAggregateConfig, EvaluateCouplingConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import save_refiner
from rsc_seg.models.weights import save_encoder
from rsc_seg.pipelines import evaluate_aggregate, evaluate_coupling
from rsc_seg.pipelines.evaluate_aggregate import run_aggregate
from rsc_seg.pipelines.evaluate_coupling import run_coupling
from tests.zeroshot.slow_context import write_pictures

BACKBONE = BackboneConfig(name="dinov2_tiny14", weights="none")
FLAGS = ["backbone.name=dinov2_tiny14", "backbone.weights=none", "run.device=cpu", "data.workers=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pictures(tmp_path_factory.mktemp("context") / "set")
    return write_pictures(root, split="train", first=4)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with student.safetensors, weights moved away from `--weights none`, and a Refiner of those weights."""
    folder = tmp_path_factory.mktemp("weights")
    encoder, info = build_backbone(BACKBONE)
    generator = torch.Generator().manual_seed(0)
    state = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in encoder.trunk.state_dict().items()}
    save_encoder(folder / "student.safetensors", state, dataclasses.replace(info, training={"alpha": 0.5}))
    options = RefinerConfig(hidden=16)
    save_refiner(folder / "refiner.safetensors", Refiner(encoder, options), options, encoder, {})
    return folder


def coupling(root: Path, *more: str) -> EvaluateCouplingConfig:
    flags = [*FLAGS, "data.kind=folder", f"data.root={root}/val/images", "data.image_size=[42,56]"]
    return load_config(EvaluateCouplingConfig, None, [*flags, *more])


def aggregate(root: Path, *more: str) -> EvaluateAggregateConfig:
    flags = [*FLAGS, "data.kind=plain", f"data.root={root}", "data.image_size=[28,42]", "aggregate.numbers=[0,1,2]"]
    flags += ["probe.linear_epochs=1", "aggregate.pictures=1"]
    return load_config(EvaluateAggregateConfig, None, [*flags, *more])


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_coupling_of_encoders_and_refiners(root: Path, tuned: Path, tmp_path: Path) -> None:
    config = coupling(root)
    result = run_coupling(
        config, tmp_path, checkpoints=[tuned / "student.safetensors"], refiners=[tuned / "refiner.safetensors"]
    )
    assert [row["name"] for row in result["rows"]] == ["untuned", "student, alpha 0.5", "Refiner"]
    assert "each image is a region of its own" in result["rows"][2]["note"] and result["pictures"] == 4
    for row in result["rows"]:
        first = result["rows"][0]["scores"]
        assert row["delta"]["median"] == row["scores"]["median"] - first["median"] and row["scores"]["pairs"] == 2
    rows = read_csv(tmp_path / "pairs.csv")
    assert [(row["encoder"], row["pair"]) for row in rows] == [
        (name, number) for name in ("untuned", "student, alpha 0.5", "Refiner") for number in ("0", "1")
    ]
    means = [float(row["mean_of_ratios"]) for row in rows[:2]]
    assert sum(means) / 2 == pytest.approx(result["rows"][0]["scores"]["mean_of_ratios"])
    assert rows[0]["tokens"] == "12" and {row["a"] for row in rows}.isdisjoint(row["b"] for row in rows)
    lines = evaluate_coupling.result_lines(result)
    assert lines[0].split()[:3] == ["coupling", "ratio", "stable"] and "each pair 112 wide" in "\n".join(lines)
    assert json.loads((tmp_path / "coupling.json").read_text()) == json.loads(json.dumps(result))
    assert load_config(EvaluateCouplingConfig, tmp_path / "config.yaml") == config
    again = run_coupling(coupling(root, "coupling.save_every=1"), tmp_path)
    assert again["rows"][0]["scores"] == result["rows"][0]["scores"]
    with pytest.raises(UserError, match=r"other options: run.seed \(0 -> 3\)"):
        run_coupling(coupling(root, "run.seed=3"), tmp_path)


def test_coupling_of_padded_pictures_says_so(root: Path, tmp_path: Path) -> None:
    result = run_coupling(coupling(root, "data.fit=pad", "coupling.pairs=1"), tmp_path)
    assert "data.fit=pad, tokens of the padding left out" in result["remarks"][0]
    assert result["rows"][0]["scores"]["pairs"] == result["pairs"] == 1
    assert result["rows"][0]["seconds_of"] == "the last call"
    sizes = coupling(root, "data.image_size=[]", "backbone.name=dinov2_vits14")
    assert evaluate_coupling.resolved(sizes).data.image_size == [518, 518]
    assert evaluate_coupling.default_folder(sizes) == Path("runs/coupling_dinov2_vits14")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.image_size=[42,50]", "data.image_size=42x50"),
        ("coupling.pairs=0", "coupling.pairs=0"),
        ("coupling.padding=some", "coupling.padding=some: must be one of exclude, include"),
        ("data.limit=1", "at least two images, got 1"),
        ("data.root=nowhere", "nowhere"),
    ],
)
def test_coupling_that_cannot_be_measured(root: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_coupling(coupling(root, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refiner_of_other_weights(root: Path, tuned: Path, tmp_path: Path) -> None:
    other = coupling(root, f"backbone.weights={tuned / 'student.safetensors'}")
    with pytest.raises(UserError, match="refiner.safetensors: trained on other encoder weights"):
        run_coupling(other, tmp_path / "out", refiners=[tuned / "refiner.safetensors"])


def test_aggregation_of_encoders(root: Path, tuned: Path, tmp_path: Path) -> None:
    config = aggregate(root)
    result = run_aggregate(config, tmp_path, checkpoints=[tuned / "student.safetensors"])
    assert [row["name"] for row in result["rows"]] == ["untuned", "student, alpha 0.5"]
    assert config.aggregate.canvas == [56, 84] and "at 28x42, pasted into random training" in result["remarks"][0]
    for row in result["rows"]:
        assert [entry["contexts"] for entry in row["numbers"]] == [0, 1, 2]
        first = row["numbers"][0]["scores"]
        assert (
            row["numbers"][2]["gain"]["linear_miou"]
            == row["numbers"][2]["scores"]["linear_miou"] - first["linear_miou"]
        )
        assert row["numbers"][0]["distance"] > row["numbers"][2]["distance"] == 0
    lines = read_csv(tmp_path / "aggregate.csv")
    assert (
        len(lines) == 6 and float(lines[4]["linear_miou"]) == result["rows"][1]["numbers"][1]["scores"]["linear_miou"]
    )
    with Image.open(tmp_path / "noise" / "token-norms-noise-of-the-contexts.png") as picture:
        assert picture.info["Title"] == "Noise of the contexts" and picture.width > 600
    assert len(result["pictures"]) == 2 and all(Path(path).is_file() for path in result["pictures"])
    shown = "\n".join(evaluate_aggregate.result_lines(result))
    assert "untuned, 0" in shown and "student, alpha 0.5, 2" in shown and "picture: " in shown
    assert json.loads((tmp_path / "aggregate.json").read_text()) == json.loads(json.dumps(result))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*.npy")}
    again = run_aggregate(aggregate(root, "aggregate.pictures=0"), tmp_path)
    assert again["rows"][0]["numbers"] == result["rows"][0]["numbers"] and again["pictures"] == []
    assert before == {path: path.stat().st_mtime_ns for path in before} and len(before) == 16


def test_affinity_needs_no_training_tokens(root: Path, tmp_path: Path) -> None:
    more = ("aggregate.measures=[affinity]", "aggregate.numbers=[2]", "aggregate.contexts=blank")
    result = run_aggregate(aggregate(root, *more), tmp_path)
    scores = result["rows"][0]["numbers"][0]["scores"]
    assert list(scores) == ["affinity_ap", "affinity_ap_beyond_6"] and result["pictures"] == []
    assert not list((tmp_path / "tokens").rglob("train/*.npy")) and "a blank canvas" in result["remarks"][0]
    assert "gain: over 2 contexts" in result["remarks"][1]
    assert evaluate_aggregate.text_table(result)[2].split()[:2] == ["untuned,", "2"]


def test_sizes_of_targets_and_contexts(root: Path) -> None:
    for name, side in (("clip_vitb16", 224), ("clip_vitl14_336", 336), ("dinov2_vitb14", 224)):
        found = evaluate_aggregate.resolved(aggregate(root, f"backbone.name={name}", "data.image_size=[]"))
        assert found.data.image_size == [side, side] and found.aggregate.canvas == [2 * side, 2 * side]
    assert evaluate_aggregate.default_folder(found) == Path("runs/aggregate_dinov2_vitb14")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.fit=pad", "data.fit=pad: targets are squashed"),
        ("aggregate.canvas=[14,84]", "aggregate.canvas=14x84: smaller than the target"),
        ("aggregate.canvas=[60,84]", "multiples of 14"),
        ("aggregate.canvas=[84]", r"aggregate.canvas=\[84\]: give \[height,width\]"),
        ("aggregate.numbers=[4,2]", "in ascending order"),
        ("aggregate.measures=[]", r"aggregate.measures=\[\]: name at least one of linear, kmeans, affinity"),
        ("aggregate.measures=[linaer]", "aggregate.measures=linaer: .* Did you mean 'linear'"),
        ("aggregate.pictures=-1", "aggregate.pictures=-1"),
        ("aggregate.max_gb=0", "on disk, more than aggregate.max_gb=0"),
        ("data.limit=1", "1 training picture: contexts need two or more"),
        ("data.kind=folder", "data.kind=folder: must be one of"),
        ("probe.val_split=test", "no split 'test'"),
    ],
)
def test_aggregation_that_cannot_be_measured(root: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_aggregate(aggregate(root, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_differences_of_what_is_not_known() -> None:
    from rsc_seg.pipelines.measure_folder import aligned, cell, difference

    assert difference(None, 1.0) is None and difference(1.0, None) is None and difference(3.0, 1.0) == 2.0
    assert (cell(None, 1.0), cell(2.04, None), cell(2.0, -0.04)) == ("-", "2.0", "2.0 (+0.0)")
    lines: list[Any] = [["a", "bb"], ["ccc", "d"]]
    assert aligned(lines) == ["a    bb", "---  --", "ccc   d"]


def test_more_pairs_than_there_are_are_named(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run_coupling(coupling(root, "coupling.pairs=99"), tmp_path)
    assert result["pairs"] == result["pictures"] // 2 == result["rows"][0]["scores"]["pairs"]
    assert "Fewer than coupling.pairs=99" in result["remarks"][0]
    assert f"coupling.pairs=99: {result['pictures']} pictures give {result['pairs']} pairs" in caplog.text
