"""MaskCLIP for several encoders: result, files, text, sets, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rsc_seg.config import BackboneConfig, load_config
from rsc_seg.config_zeroshot import EvaluateMaskclipConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.weights import save_encoder
from rsc_seg.pipelines.class_vectors import TextOptions, text_vectors
from rsc_seg.pipelines.evaluate_maskclip import (
    SCORES,
    default_folder,
    maskclip_options,
    result_lines,
    run_maskclip,
    summary,
    text_table,
)
from rsc_seg.zeroshot.class_sets import PreparedSet, open_class_set
from rsc_seg.zeroshot.maskclip import maskclip_counts
from tests.d2.sets import write_set
from tests.zeroshot.slow_context import write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("maskclip") / "set")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights have moved away from `--weights none`."""
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    generator = torch.Generator().manual_seed(0)
    state = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in encoder.trunk.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    save_encoder(path, state, dataclasses.replace(info, training={"alpha": 0.5}))
    return path


def configuration(root: Path, *more: str) -> EvaluateMaskclipConfig:
    flags = ["backbone.name=clip_tiny16", "backbone.weights=none", "run.device=cpu", f"data.root={root}"]
    flags += ["data.kind=plain", "data.workers=0", "maskclip.prompts=single", "maskclip.short_side=48"]
    return load_config(EvaluateMaskclipConfig, None, [*flags, *more])


def test_encoders_side_by_side(root: Path, tuned: Path, tmp_path: Path) -> None:
    config = configuration(root)
    result = run_maskclip(config, tmp_path / "out", checkpoints=[tuned])
    assert [row["name"] for row in result["rows"]] == ["untuned", "student, alpha 0.5"]
    encoder, _ = build_backbone(dataclasses.replace(config.backbone, weights=str(tuned)))
    source = open_class_set(config.data, None, None)
    vectors, text = text_vectors(config.backbone, source.names, TextOptions("maskclip", "single"), torch.device("cpu"))
    alone = maskclip_counts(encoder, vectors, source, maskclip_options(config))
    first, second = (row["scores"] for row in result["rows"])
    assert second == summary(alone) and text == result["text"]
    assert result["rows"][1]["delta"] == {key: second[key] - first[key] for key in SCORES}
    assert json.loads((tmp_path / "out/maskclip.json").read_text()) == json.loads(json.dumps(result))
    assert load_config(EvaluateMaskclipConfig, tmp_path / "out/config.yaml") == config
    assert "RANDOM TEXT WEIGHTS" in "\n".join(result_lines(result))
    assert "one view of the whole picture" in result["remarks"][0] and "4 of them" in result["remarks"][1]
    table = text_table(result)
    assert (
        len(table) == 4 and f"{second['miou']:.1f} ({round(second['miou'] - first['miou'], 1) + 0.0:+.1f})" in table[3]
    )
    with open(tmp_path / "out/classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [f"thing {t}" for t in range(5)] and rows[4]["pixels"] == "0"
    own = [float(row["untuned: IoU"]) for row in rows if row["pixels"] != "0"]
    assert np.mean(own) == pytest.approx(first["miou"], abs=1e-3)
    recall = [float(row["student, alpha 0.5: accuracy"]) for row in rows if row["pixels"] != "0"]
    assert np.mean(recall) == pytest.approx(second["macc"], abs=1e-3) and rows[4]["untuned: accuracy"] == ""


def test_a_further_checkpoint_costs_only_itself(root: Path, tuned: Path, tmp_path: Path) -> None:
    first = run_maskclip(configuration(root), tmp_path)
    (record,) = (tmp_path / "counts").iterdir()
    before = record.stat().st_mtime_ns
    both = run_maskclip(configuration(root, "maskclip.class_chunk=2"), tmp_path, checkpoints=[tuned])
    assert both["rows"][0]["scores"] == first["rows"][0]["scores"] and record.stat().st_mtime_ns == before
    assert len(list((tmp_path / "counts").iterdir())) == 2


def test_a_prepared_set_by_name(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data", train=0, val=3)
    config = configuration(root, "maskclip.set=scenes_val", "data.limit=2")
    source = open_class_set(config.data, "scenes_val", None)
    assert isinstance(source, PreparedSet) and (len(source), source.classes, len(source.names)) == (2, 150, 150)
    image, labels = source.load(0)
    assert (image.height, image.width) == labels.shape and 255 in labels
    result = run_maskclip(config, tmp_path / "out")
    assert result["set"] == "Embedded scenes val" and result["pictures"] == 2 and result["names"][0] == "wall"
    assert default_folder(config) == Path("runs/maskclip_clip_tiny16_scenes_val")
    words = tmp_path / "names.txt"
    words.write_text("\n".join(f"word {t}" for t in range(149)))
    changed = configuration(root, "maskclip.set=scenes_val", f"maskclip.vocabulary={words}")
    with pytest.raises(UserError, match="names.txt: 149 class names .*has 150 classes"):
        run_maskclip(changed, tmp_path / "new")


def test_windows_are_said(root: Path, tmp_path: Path) -> None:
    more = ("maskclip.window=32", "maskclip.stride=16", "maskclip.average=probabilities", "run.precision=bf16-mixed")
    result = run_maskclip(configuration(root, *more), tmp_path)
    assert "windows of 32 pixels, 16 apart, probabilities (softmax of 100 cosines) averaged" in result["remarks"][0]
    assert "precision bf16-mixed" in result["remarks"][0]


def test_a_result_of_other_options_is_not_replaced(root: Path, tmp_path: Path) -> None:
    run_maskclip(configuration(root), tmp_path)
    run_maskclip(configuration(root, "data.workers=1", "maskclip.save_every=1", "data.fit=squash"), tmp_path)
    for change, said in (
        ("maskclip.short_side=64", r"maskclip.short_side \(48 -> 64\)"),
        ("run.precision=bf16-mixed", r"run.precision \(32-true -> bf16-mixed\)"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path}: holds the result of other options: {said}"):
            run_maskclip(configuration(root, change), tmp_path)
    (tmp_path / "maskclip.json").write_text("[]")
    with pytest.raises(UserError, match="maskclip.json: not a result of this command"):
        run_maskclip(configuration(root), tmp_path)


def test_embeddings_from_a_file(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.npy"
    np.save(path, np.random.RandomState(0).standard_normal((5, 32)))
    result = run_maskclip(configuration(root, f"maskclip.embeddings={path}"), tmp_path / "out")
    assert "RANDOM TEXT" not in "\n".join(result_lines(result)) and result["text"]["embeddings"] == str(path)
    np.save(path, np.ones((4, 32)))
    with pytest.raises(UserError, match=r"5 classes .* shape \(5, 32\) are needed \(maskclip.embeddings\)"):
        run_maskclip(configuration(root, f"maskclip.embeddings={path}"), tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("backbone.name=dinov2_vitb14", "backbone 'dinov2_vitb14' has no text beside it, and tokens are classified"),
        ("maskclip.average=votes", "maskclip.average=votes: must be one of logits, probabilities"),
        ("maskclip.window=50", "maskclip.window=50: must be a multiple of the patch, 16"),
        ("maskclip.prompts=imagenett", "prompts 'imagenett': neither .* Did you mean 'imagenet'"),
        ("maskclip.set=pascal_contxt_59_val", "Did you mean 'pascal_context_59_val'"),
        ("data.kind=folder", "data.kind=folder: must be one of"),
        ("data.split=test", "no split 'test'"),
        ("data.limit=0", "data.limit=0: must be 1 or more"),
    ],
)
def test_what_cannot_be_measured(root: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run_maskclip(configuration(root, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()
