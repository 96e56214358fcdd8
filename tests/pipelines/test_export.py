"""Exported encoders give the same features in plain timm and plain open_clip."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.cli.export_weights import TARGETS as CLI_TARGETS
from rsc_seg.cli.export_weights import main
from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.open_clip_files import open_clip_config, whole_clip
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text import TextTower, text_shape
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weights import random_state, save_encoder
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.export import TARGETS, backbone_of, export_weights

torch.set_num_threads(1)


def tuned(folder: Path, name: str, depth: int | None = None, seed: int = 0, **training: object) -> Path:
    """An encoder file whose blocks have moved away from `--weights none`."""
    encoder, info = build_backbone(BackboneConfig(name=name, weights="none", depth=depth))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trunk.blocks.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    facts = {"start": "none", "alpha": 1.0, "data": "pictures", "command": "rscv_finetune.py x", "target": "refiner"}
    path = folder / f"{name}.safetensors"
    save_encoder(path, encoder.trunk.state_dict(), dataclasses.replace(info, training={**facts, **training}))
    return path


def sidecar(path: Path) -> WeightsInfo:
    return WeightsInfo.from_json(path.with_suffix(".json").read_text())


def rewrite(path: Path, **changes: Any) -> None:
    """Changes of an encoder's sidecar."""
    path.with_suffix(".json").write_text(dataclasses.replace(sidecar(path), **changes).to_json())


def ours(path: Path, name: str) -> DenseEncoder:
    return build_backbone(BackboneConfig(name=name, weights=str(path)))[0]


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip_tiny16", "laion_tiny16"])
def test_whole_clip_in_plain_open_clip(tmp_path: Path, name: str) -> None:
    path, out = tuned(tmp_path, name), tmp_path / "out" / "whole.safetensors"
    assert export_weights(path, out, target="open_clip", text="none") == [out, out.with_suffix(".json")]
    model = open_clip.CLIP(**open_clip_config(find_backbone(name), 4)).eval()
    model.load_state_dict(load_file(out), strict=True)
    sentences, tower = ["a photo of a cat.", "the sky"], build_text_tower(name, "none")
    with torch.no_grad():
        close(model.encode_image(images(64), normalize=True), F.normalize(ours(path, name).cls(images(64)), dim=1))
        theirs = model.encode_text(open_clip.tokenize(sentences), normalize=True)
        close(theirs, F.normalize(tower.encode(tower.tokenize(sentences)), dim=1))
    # and back: the exported file is itself a checkpoint that this project reads
    close(ours_from_open_clip(tmp_path, out, name), ours(path, name).dense(images(64)))


def ours_from_open_clip(tmp_path: Path, file: Path, name: str) -> Tensor:
    lonely = tmp_path / "lonely" / "file.safetensors"
    lonely.parent.mkdir()
    lonely.write_bytes(file.read_bytes())
    return build_backbone(BackboneConfig(name=name, weights=str(lonely)))[0].dense(images(64))


def test_eva_keeps_timms_names_inside_open_clip() -> None:
    row = find_backbone("evaclip_vitb16")
    trunk = create_trunk(row, device="meta")
    with torch.device("meta"):
        text = TextTower(text_shape(row)).state_dict()
    state = whole_clip(trunk.state_dict(), text, row, row.depth)
    assert len(state) == len(trunk.state_dict()) + len(text)
    assert {k.split(".")[0] for k in state} == {"visual", "text", "logit_scale"}
    with pytest.raises(UserError, match="11 of 12 blocks: open_clip builds EVA whole only"):
        open_clip_config(row, 11)


@pytest.mark.parametrize("depth", [None, 3])
def test_hub_folder_of_a_clip(tmp_path: Path, depth: int | None) -> None:
    path, hub = tuned(tmp_path, "clip_tiny16", depth), tmp_path / "hub"
    files = export_weights(path, hub, target="hub", text="none")
    assert {f.name for f in files} == {f.name for f in hub.iterdir()}
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{hub}")
    assert tuple(transform.transforms[-1].mean) == find_backbone("clip_tiny16").mean
    with torch.no_grad():
        close(model.eval().encode_image(images(64)), ours(path, "clip_tiny16").cls(images(64)))
    card = (hub / "README.md").read_text()
    assert "`quick_gelu`" in card and "rscv_finetune.py x" in card and "Not measured." in card
    assert card.startswith("---\nlicense: other\nlibrary_name: open_clip\n")


@pytest.mark.parametrize("depth", [None, 2])
def test_hub_folder_of_an_encoder_without_text(tmp_path: Path, depth: int | None) -> None:
    path, hub = tuned(tmp_path, "dinov2_tiny14_reg", depth), tmp_path / "hub"
    export_weights(path, hub, target="hub")
    model = timm.create_model(f"local-dir:{hub}", pretrained=True).eval()
    encoder = ours(path, "dinov2_tiny14_reg")
    with torch.no_grad():
        tokens = model.forward_features(images(518))
        close(tokens[:, 5:].transpose(1, 2).unflatten(2, (37, 37)), encoder.dense(images(518)))
    assert json.loads((hub / "model.json").read_text())["depth"] == (depth or 4)
    assert torch.equal(ours(hub, "dinov2_tiny14_reg").dense(images(56)), encoder.dense(images(56)))


@pytest.mark.parametrize(("name", "mode"), [("clip_tiny16", "catseg"), ("dinov2_tiny14", "full")])
def test_properties_survive_the_hub(tmp_path: Path, name: str, mode: str) -> None:
    path, hub = tuned(tmp_path, name, alpha=0.5), tmp_path / "hub"
    rewrite(path, position_rule="antialias", last_block=mode)
    files = export_weights(path, hub, target="hub", text="none")
    file = next(f for f in files if f.suffix == ".safetensors")
    original = ours(path, name).dense(images(112))
    for way in (hub, file):
        assert backbone_of(way) == name
        encoder, info = build_backbone(BackboneConfig(name=name, weights=str(way)))
        assert (info.position_rule, info.last_block, info.training["alpha"]) == ("antialias", mode, 0.5)
        assert torch.equal(encoder.dense(images(112)), original)
        with pytest.raises(UserError, match=r"already a blend with alpha=0\.5"):
            export_weights(way, tmp_path / "x.safetensors", target="timm", initial="none", alpha=0.7)


def test_backbone_of_what_cannot_be_read(tmp_path: Path) -> None:
    path = tuned(tmp_path, "dinov2_tiny14")
    with pytest.raises(UserError, match=r"none\.safetensors: no such weights file"):
        backbone_of(tmp_path / "none.safetensors")
    path.with_suffix(".json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"dinov2_tiny14\.json: the sidecar of .* cannot be read"):
        backbone_of(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"no dinov2_tiny14\.json beside the weights .* give --backbone"):
        backbone_of(path)


@pytest.mark.parametrize("target", ["open_clip", "hub"])
def test_open_clip_cannot_build_a_tiny_eva(tmp_path: Path, target: str) -> None:
    path = tuned(tmp_path, "evaclip_tiny16")
    with pytest.raises(UserError, match="cannot be told embed_dim, depth, num_heads; export it for timm"):
        export_weights(path, tmp_path / "out.safetensors", target=target)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["evaclip_tiny16.json", "evaclip_tiny16.safetensors"]


def write_probe(folder: Path, *names: str) -> None:
    headline = dict.fromkeys(["affinity_ap", "affinity_ap_beyond_6"], 12.34)
    headline |= dict.fromkeys(["coupling_median", "coupling_ratio_of_means"], 0.5)
    headline |= dict.fromkeys(["coupling_cos_joint", "coupling_cos_alone"], 0.25)
    score = {"mean": 45.6, "std": None}
    linear = {"miou": score, "pacc": score}
    delta = dict.fromkeys(["linear_miou", "linear_pacc", "affinity_ap", "affinity_ap_beyond_6"], 1.5)
    row = {"name": "untuned", "note": "", "headline": headline, "linear": linear, "kmeans": [], "delta": delta}
    facts = dict.fromkeys(["weights", "data", "splits", "command", "commit", "remarks", "config"], "as said")
    settings = {"image_size": [56, 84]}
    rows = [row, *({**row, "name": name} for name in names)]
    probe = {"rows": rows, "settings": settings, "train_images": 7, "val_images": 5}
    folder.mkdir(exist_ok=True)
    (folder / "probe.json").write_text(json.dumps({**facts, **probe}))


@pytest.mark.parametrize(
    ("file", "alpha", "row"),
    [
        ("student", 0.5, "student, alpha 0.5"),
        ("student_alpha1", 1.0, "student, alpha 1"),
        ("control", 0.5, "SCD control, alpha 0.5"),
        ("mine", 0.5, "mine, alpha 0.5"),
        ("student", 0.7, None),
        ("other", 0.5, None),
    ],
)
def test_card_says_which_measured_row_is_this_file(tmp_path: Path, file: str, alpha: float, row: str | None) -> None:
    write_probe(tmp_path, "SCD control, alpha 0.5", "student, alpha 1", "student, alpha 0.5", "mine, alpha 0.5")
    path = tuned(tmp_path, "dinov2_tiny14", alpha=alpha).rename(tmp_path / f"{file}.safetensors")
    (tmp_path / "dinov2_tiny14.json").rename(path.with_suffix(".json"))
    export_weights(path, tmp_path / "hub", target="hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert re.search(r"\| student, alpha 1 \| 45\.6 \(\+1\.5\) \|", card)
    assert "7 training and 5 validation images" in card
    says = "It is not recorded which of these rows" if row is None else f"The row of this file is `{row}`."
    assert says in card and ("The row of this file" in card) == (row is not None)
    # the same measure of another run: the names prove nothing
    write_probe(tmp_path / "run", "SCD control, alpha 0.5", "student, alpha 1", "student, alpha 0.5", "mine, alpha 0.5")
    export_weights(path, tmp_path / "hub", target="hub", probe=tmp_path / "run" / "probe.json")
    assert "It is not recorded which of these rows" in (tmp_path / "hub" / "README.md").read_text()


def test_a_blend_made_at_export_is_not_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tuned(tmp_path, "dinov2_tiny14")
    write_probe(tmp_path, "dinov2_tiny14, alpha 1")
    options: dict[str, Any] = {"target": "hub", "initial": "none", "alpha": 0.7}
    for probe in (None, tmp_path / "probe.json"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            export_weights(path, tmp_path / "hub", **options, probe=probe)
        card = (tmp_path / "hub" / "README.md").read_text()
        assert "Not measured: these weights were blended at export" in card and "45.6" not in card
        assert "| blended with | none, alpha 0.7 |" in card
        assert ("is not shown in the card" in caplog.text) == (probe is not None)


def test_export_is_recorded_in_sidecar_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole, hub = tuned(tmp_path, "clip_tiny16"), tmp_path / "whole.safetensors", tmp_path / "hub"
    monkeypatch.setattr("sys.argv", ["tools/export_weights.py", "first"])
    export_weights(path, whole, target="open_clip", text="none")
    assert sidecar(whole).training["text"] == "none" and sidecar(whole).training["data"] == "pictures"
    monkeypatch.setattr("sys.argv", ["tools/export_weights.py", "second"])
    export_weights(whole, hub, target="hub", text="none", initial="none", alpha=0.7)
    card = (hub / "README.md").read_text()
    assert "**RANDOM TEXT TOWER" in card and card.index("    tools/export_weights.py first") < card.index("py second")
    export_weights(whole, hub, target="hub", text=str(whole), initial="none", alpha=0.7)
    info, card = sidecar(hub / "open_clip_model.safetensors"), (hub / "README.md").read_text()
    assert [entry["command"].split()[1] for entry in info.training["exports"]] == ["first", "second"]
    assert (info.training["initial"], info.training["alpha"], info.training["command"]) == (
        "none",
        0.7,
        "rscv_finetune.py x",
    )
    assert re.fullmatch(r"whole\.safetensors sha256 [0-9a-f]{12}", info.training["text"])
    assert f"| text tower | {info.training['text']} |" in card and "RANDOM TEXT" not in card
    export_weights(hub, tmp_path / "again.safetensors", target="timm")
    assert "text" not in sidecar(tmp_path / "again.safetensors").training


def test_only_what_was_tuned_by_rscv_is_said_to_be(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"target": "refiner", "alpha": 1.0}, "tuned by R-SC-V, the visual-only form"),
        ({"target": "teacher", "alpha": 1.0}, "without a Refiner, the control of R-SC-V"),
        ({"alpha": 1.0}, "tuned by a method that its records do not name"),
        ({}, "without any record of tuning"),
    ]
    path = tuned(tmp_path, "dinov2_tiny14")
    for training, says in cases:
        rewrite(path, training=training)
        export_weights(path, tmp_path / "hub", target="hub")
        card = (tmp_path / "hub" / "README.md").read_text()
        assert says in card and ("tuned by R-SC-V" in card) == (training.get("target") == "refiner")
        assert (", refined\n" in card) == (training.get("target") == "refiner")


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"objective": "clipself"}, "tuned by CLIPSelf, region-language alignment alone"),
        ({"objective": "sc-clipself", "target": "teacher"}, "tuned by SC-CLIPSelf, region-language alignment beside a"),
        ({"objective": "r-sc-regiontext", "target": "refiner"}, "distillation of a Refiner's spatial correlations"),
    ],
)
def test_what_was_aligned_is_named(tmp_path: Path, training: dict[str, Any], says: str) -> None:
    path = tuned(tmp_path, "clip_tiny16")
    rewrite(path, training={"alpha": 1.0, **training})
    export_weights(path, tmp_path / "hub", target="hub", text="none")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert says in card and "R-SC-V" not in card and f"| objective | `{training['objective']}` |" in card


def test_initial_weights_are_those_that_training_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, other = tuned(tmp_path, "clip_tiny16"), tuned(tmp_path / "other", "clip_tiny16", seed=1)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=r"--initial .*other.*: tuned weights themselves \(alpha=1\.0\); .*, none\.$"):
        export_weights(path, out, target="timm", initial=str(other), alpha=0.5)
    save_encoder(tmp_path / "a.safetensors", random_state(find_backbone("clip_tiny16")), sidecar(path))
    rewrite(tmp_path / "a.safetensors", training={})
    rewrite(path, training={**sidecar(path).training, "start": "official"})
    with caplog.at_level(logging.WARNING):
        export_weights(path, out, target="timm", initial=str(tmp_path / "a.safetensors"), alpha=0.5)
    assert "started from 'official': a blend of two kinds means nothing" in caplog.text
    assert sidecar(out).training["initial"].startswith("a.safetensors sha256 ")
    # the very file of the start, tuned earlier and called otherwise now, is right
    start = ours_source(other).replace("clip_tiny16.safetensors", "earlier.safetensors")
    rewrite(path, training={**sidecar(path).training, "start": start})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        export_weights(path, out, target="timm", initial=str(other), alpha=0.5)
    assert "a blend of two kinds" not in caplog.text


def ours_source(path: Path) -> str:
    return build_backbone(BackboneConfig(name="clip_tiny16", weights=str(path)))[1].source


def test_nothing_that_is_read_is_overwritten(tmp_path: Path) -> None:
    path, hub, whole = tuned(tmp_path, "clip_tiny16"), tmp_path / "hub", tmp_path / "whole.safetensors"
    export_weights(path, hub, target="hub", text="none")
    export_weights(path, whole, target="open_clip", text="none")
    (tmp_path / "link.safetensors").symlink_to(path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    cases: list[tuple[Path, Path, dict[str, Any]]] = [
        (path, path, {"target": "timm"}),
        (tmp_path / "link.safetensors", path, {"target": "open_clip", "text": "none", "backbone": "clip_tiny16"}),
        (hub, hub, {"target": "hub", "text": "none"}),
        (path, whole, {"target": "open_clip", "text": str(whole)}),
        (path, whole, {"target": "timm", "initial": str(whole), "alpha": 0.5}),
    ]
    for checkpoint, output, options in cases:
        with pytest.raises(UserError, match="is read by this export and would be overwritten"):
            export_weights(checkpoint, output, **options)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_timm_file_blended_with_the_start(tmp_path: Path) -> None:
    path, out = tuned(tmp_path, "clip_tiny16"), tmp_path / "blend.safetensors"
    export_weights(path, out, target="timm", initial="none", alpha=0.7)
    start, full, half = (
        build_backbone(BackboneConfig(name="clip_tiny16", weights=str(w)))[0].trunk.state_dict()
        for w in ("none", path, out)
    )
    for key, value in half.items():
        close(value, 0.7 * full[key] + 0.3 * start[key])
    assert json.loads(out.with_suffix(".json").read_text())["training"]["alpha"] == 0.7
    with pytest.raises(UserError, match=r"already a blend with alpha=0\.7"):
        export_weights(out, tmp_path / "again.safetensors", target="timm", initial="none", alpha=0.5)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CLI_TARGETS == TARGETS
    path = tuned(tmp_path, "clip_tiny16")
    args = [str(path), "--to", "open_clip", "--text", "none", "--output"]
    assert main([*args, str(tmp_path / "whole.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "whole.safetensors")
    cases = [
        ([*args, str(tmp_path / "whole.bin")], "give the file that suffix"),
        ([str(path), "--to", "timm", "--alpha", "0.5", "--output", str(tmp_path / "a.safetensors")], "belong together"),
        ([str(tmp_path / "no.safetensors"), "--to", "timm", "--output", str(tmp_path / "a")], "no such weights file"),
        ([str(path), "--backbone", "laion_tiny16", *args[1:], str(tmp_path / "b.safetensors")], "clip_tiny16"),
        ([str(tuned(tmp_path, "dinov2_tiny14")), *args[1:], str(tmp_path / "c.safetensors")], "no text tower"),
        ([str(tuned(tmp_path / "cut", "clip_tiny16", 2)), *args[1:], str(tmp_path / "d.safetensors")], "2 of 4 blocks"),
    ]
    for argv, message in cases:
        assert main(argv) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("export_weights.py: error:")]
        assert len(err) == 1 and message in err[0], err
    assert not [p for p in tmp_path.iterdir() if p.stem in "abcd" or p.name.startswith(".")]


def test_a_trained_bias_of_the_projection_has_no_place_in_open_clip(tmp_path: Path) -> None:
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    with torch.no_grad():
        encoder.trunk.head.bias.fill_(0.1)
    save_encoder(tmp_path / "x.safetensors", encoder.trunk.state_dict(), info)
    with pytest.raises(UserError, match="projection's bias was trained"):
        export_weights(tmp_path / "x.safetensors", tmp_path / "out.safetensors", target="open_clip", text="none")
