"""Region classification of several encoders: result, files, text, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsc_seg.config import BackboneConfig, load_config
from rsc_seg.config_zeroshot import EvaluateRegionsConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.models.weights import save_encoder
from rsc_seg.pipelines import evaluate_regions
from rsc_seg.pipelines.evaluate_regions import class_vectors, region_options, resolved, run_regions
from rsc_seg.pipelines.regions_text import delta, result_lines, text_table
from rsc_seg.zeroshot.panoptic_regions import Category, open_panoptic_regions
from rsc_seg.zeroshot.regions import region_accuracy
from tests.zeroshot.sample import drawn_segments, write_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions") / "set"
    write_set(folder, {number: drawn_segments(number) for number in (0, 1)})
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights have moved away from `--weights none`."""
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    generator = torch.Generator().manual_seed(0)
    state = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in encoder.trunk.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    save_encoder(path, state, dataclasses.replace(info, training={"alpha": 0.5}))
    return path


def configuration(root: Path, *more: str) -> EvaluateRegionsConfig:
    flags = ["backbone.name=clip_tiny16", "backbone.weights=none", "run.device=cpu", f"data.root={root}"]
    return load_config(EvaluateRegionsConfig, None, [*flags, "data.workers=0", "regions.prompts=single", *more])


def test_encoders_side_by_side(root: Path, tuned: Path, tmp_path: Path) -> None:
    config = configuration(root, "regions.prompts=clipself")
    result = run_regions(config, tmp_path / "out", checkpoints=[tuned])
    assert [row["name"] for row in result["rows"]] == ["untuned", "student, alpha 0.5"]
    assert config.data.image_size == [128, 128] and result["pictures"] == 2
    source = open_panoptic_regions("coco", str(root), "val")
    encoder, _ = build_backbone(dataclasses.replace(config.backbone, weights=str(tuned)))
    vectors, text = class_vectors(config, source.categories, CPU)
    alone = region_accuracy(encoder, vectors, source, region_options(config))
    assert result["rows"][1]["scores"] == alone.summary()
    assert text == {"weights": "none", "prompts": "clipself, 63 templates"} == result["text"]
    for row in result["rows"]:
        assert row["delta"] == delta(row["scores"], result["rows"][0]["scores"])
    assert json.loads((tmp_path / "out/regions.json").read_text()) == json.loads(json.dumps(result))
    assert load_config(EvaluateRegionsConfig, tmp_path / "out/config.yaml") == config
    assert "the nearest of all 133 classes (80 things)" in result["remarks"][0] and "plain" in result["remarks"][0]
    assert "RANDOM TEXT WEIGHTS" in "\n".join(result_lines(result))
    assert result["empty_masks"] == int(alone.counts.by_class["empty_masks"].sum()) and result["outside_boxes"] == 0


def test_the_table_and_the_csv_hold_the_same_numbers(root: Path, tuned: Path, tmp_path: Path) -> None:
    result = run_regions(configuration(root, "regions.mask_resize=antialias"), tmp_path, checkpoints=[tuned])
    table = text_table(result)
    assert table[0].split("  ")[0] == "mean accuracy, %" and len(table) == 4
    scores, change = result["rows"][1]["scores"], result["rows"][1]["delta"]
    for kind in ("boxes", "thing_masks", "stuff_masks"):
        for k in ("top1", "top5"):
            assert f"{scores[kind][k]:.1f} ({round(change[kind][k], 1) + 0.0:+.1f})" in table[3]
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 133
    for name, entry in zip(("untuned", "student, alpha 0.5"), result["rows"], strict=True):
        for kind, what, thing in (("boxes", "boxes", "1"), ("stuff_masks", "masks", "0")):
            cells = [row[f"{name}: {what} top-5"] for row in rows if row["thing"] == thing and row["regions"] != "0"]
            mean = np.mean([float(cell) for cell in cells])
            assert mean == pytest.approx(entry["scores"][kind]["top5"], abs=1e-3)
    empty = [row for row in rows if row["regions"] == "0"]
    assert empty and all(row["untuned: boxes top-1"] == "" for row in empty)


def test_no_score_is_a_dash() -> None:
    none = {kind: {"top1": None, "top5": None} for kind in ("boxes", "thing_masks", "stuff_masks")}
    some = {kind: {"top1": 20.04, "top5": 50.0} for kind in none}
    rows: list[dict[str, Any]] = [{"name": "a", "scores": none, "delta": delta(none, none)}]
    rows.append({"name": "b", "scores": some, "delta": delta(some, none)})
    assert text_table({"rows": rows})[2].split() == ["a"] + ["-"] * 6
    assert text_table({"rows": rows})[3].split() == ["b"] + ["20.0", "50.0"] * 3


def test_a_further_checkpoint_costs_only_itself(
    root: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_regions(configuration(root), tmp_path)
    read: list[str] = []
    monkeypatch.setattr("rsc_seg.zeroshot.regions.region_features", counting(read))
    both = run_regions(configuration(root), tmp_path, checkpoints=[tuned])
    assert both["rows"][0]["scores"] == first["rows"][0]["scores"] and len(both["rows"]) == 2
    assert read == ["clip_tiny16"] * 2  # two pictures, of one encoder
    assert len(list((tmp_path / "counts").iterdir())) == 2


def counting(read: list[str]) -> Any:
    from rsc_seg.zeroshot.regions import region_features

    def counted(encoder: Any, pictures: Any) -> Any:
        read.append(encoder.name)
        return region_features(encoder, pictures)

    return counted


def test_a_result_of_other_options_is_not_replaced(root: Path, tmp_path: Path) -> None:
    run_regions(configuration(root), tmp_path)
    before = (tmp_path / "regions.json").read_bytes()
    run_regions(configuration(root, "data.workers=1", "regions.save_every=1"), tmp_path)  # these change no number
    for change, said in (
        ("regions.mask_resize=antialias", r"regions.mask_resize \(plain -> antialias\)"),
        ("data.limit=1", r"data.limit \(None -> 1\)"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}: holds the result of other options: {said}"):
            run_regions(configuration(root, change), tmp_path)
    assert (
        json.loads(before)["rows"][0]["scores"]
        == json.loads((tmp_path / "regions.json").read_text())["rows"][0]["scores"]
    )
    (tmp_path / "regions.json").write_text("{}")
    with pytest.raises(UserError, match="regions.json: not a result of this command"):
        run_regions(configuration(root), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output-dir is a file"):
        run_regions(configuration(root), tmp_path / "file")


def test_sizes_are_the_backbones() -> None:
    for name, side in (("clip_vitb16", 1024), ("clip_vitl14_336", 896), ("evaclip_vitb16", 1024)):
        assert resolved(configuration(Path("x"), f"backbone.name={name}")).data.image_size == [side, side]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("backbone.name=dinov2_vitb14", "backbone 'dinov2_vitb14' has no text beside it.* choose a CLIP such as"),
        ("regions.mask_resize=smooth", "regions.mask_resize=smooth: must be one of plain, antialias"),
        ("regions.no_pixels=warn", "regions.no_pixels=warn: must be one of skip, fatal"),
        ("data.fit=squash", "data.fit=squash: regions are measured on padded pictures"),
        ("data.image_size=[100,100]", "data.image_size=100x100: clip_tiny16 needs"),
        ("regions.per_image=0", "regions.per_image=0: must be 1 or more"),
        ("regions.prompts=vilt", "prompts 'vilt': neither .* Did you mean 'vild'"),
        ("regions.text_weights=nowhere.pt", "nowhere.pt"),
        ("data.split=test", "no split 'test'"),
    ],
)
def test_what_cannot_be_measured(root: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_regions(configuration(root, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_comes_from_the_whole_clip_or_is_named_apart(tuned: Path, root: Path) -> None:
    categories = [Category(1, "cat", True), Category(2, "wall-other-merged", False)]
    apart = configuration(root, f"backbone.weights={tuned}", "regions.text_weights=none", "regions.prompts=single")
    vectors, text = class_vectors(apart, categories, CPU)
    tower = build_text_tower("clip_tiny16", "none")
    wanted = tower.encode(tower.tokenize(["a photo of a cat.", "a photo of a wall-other-merged."]))
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(wanted, dim=-1))
    assert text == {"weights": "none", "prompts": "single, 1 templates"}
    with pytest.raises(UserError, match="holds no text tower.* Text weights can be named apart.*regions.text_weights"):
        class_vectors(configuration(root, f"backbone.weights={tuned}"), categories, CPU)


def test_embeddings_from_a_file(root: Path, tmp_path: Path) -> None:
    path, width = tmp_path / "classes.npy", find_backbone("clip_tiny16").joint_dim
    values = np.random.RandomState(0).standard_normal((133, width or 0))
    np.save(path, values)
    config = configuration(root, f"regions.embeddings={path}")
    vectors, text = class_vectors(config, open_panoptic_regions("coco", str(root), "val").categories, CPU)
    assert vectors.dtype == torch.float32 and np.allclose(vectors.numpy(), values)
    assert text["embeddings"] == str(path) and len(text["sha256"]) == 64
    result = run_regions(config, tmp_path / "out")
    assert "RANDOM TEXT" not in "\n".join(result_lines(result))
    for wrong, said in (
        (values[:80], r"float64 of shape \(80, 32\); this set has 133 classes .* \(133, 32\) are needed"),
        (values[:, :8], r"float64 of shape \(133, 8\)"),
        (values.astype(int), "int64 of shape"),
        (values * 0, "a row of zeros"),
    ):
        np.save(path, wrong)
        with pytest.raises(UserError, match=rf"{path}: holds {said}"):
            run_regions(config, tmp_path / "new")
    path.write_bytes(b"no array")
    with pytest.raises(UserError, match=rf"{path}: not readable as an .npy file"):
        run_regions(config, tmp_path / "new")


def test_other_classes_than_cocos_are_said(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    path = write_set(folder, {0: drawn_segments(0)})
    document = json.loads(path.read_text())
    used = {segment["category_id"] for a in document["annotations"] for segment in a["segments_info"]}
    document["categories"] = [c for c in document["categories"] if c["id"] in used]
    path.write_text(json.dumps(document))
    result = run_regions(configuration(folder), tmp_path / "out")
    assert f"the nearest of all {len(used)} classes" in result["remarks"][0]
    assert "are not COCO's 133: compare with no published number" in "\n".join(result["remarks"])


def test_default_folder(root: Path) -> None:
    assert evaluate_regions.default_folder(configuration(root)) == Path("runs/regions_clip_tiny16")


def test_empty_masks_are_wrong_or_official() -> None:
    assert region_options(resolved(configuration(Path("x"), "regions.empty_masks=official"))).empty_masks == "official"
    with pytest.raises(UserError, match="regions.empty_masks=right: must be one of wrong, official"):
        resolved(configuration(Path("x"), "regions.empty_masks=right"))
