"""Exported encoders give the same features in plain timm and plain open_clip."""

import dataclasses
import json
import re
from pathlib import Path

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
from rsc_seg.models.weights import save_encoder
from rsc_seg.pipelines.export import TARGETS, export_weights

torch.set_num_threads(1)


def tuned(folder: Path, name: str, depth: int | None = None, seed: int = 0, **training: object) -> Path:
    """An encoder file whose blocks have moved away from `--weights none`."""
    encoder, info = build_backbone(BackboneConfig(name=name, weights="none", depth=depth))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trunk.blocks.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    facts = {"start": "none", "alpha": 1.0, "data": "pictures", "command": "rscv_finetune.py x", **training}
    path = folder / f"{name}.safetensors"
    save_encoder(path, encoder.trunk.state_dict(), dataclasses.replace(info, training=facts))
    return path


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
    assert json.loads((hub / "rsc_seg.json").read_text())["depth"] == (depth or 4)


def test_card_shows_the_measure_beside_the_checkpoint(tmp_path: Path) -> None:
    path = tuned(tmp_path, "dinov2_tiny14")
    headline = dict.fromkeys(["affinity_ap", "affinity_ap_beyond_6"], 12.34)
    headline |= dict.fromkeys(["coupling_median", "coupling_ratio_of_means"], 0.5)
    headline |= dict.fromkeys(["coupling_cos_joint", "coupling_cos_alone"], 0.25)
    score = {"mean": 45.6, "std": None}
    linear = {"miou": score, "pacc": score}
    delta = dict.fromkeys(["linear_miou", "linear_pacc", "affinity_ap", "affinity_ap_beyond_6"], 1.5)
    row = {"name": "untuned", "note": "", "headline": headline, "linear": linear, "kmeans": [], "delta": delta}
    facts = dict.fromkeys(["weights", "data", "splits", "command", "commit", "remarks", "config"], "as said")
    settings = {"image_size": [56, 84]}
    probe = {"rows": [row, {**row, "name": "student"}], "settings": settings, "train_images": 7, "val_images": 5}
    (tmp_path / "probe.json").write_text(json.dumps({**facts, **probe}))
    export_weights(path, tmp_path / "hub", target="hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert re.search(r"\| student \| 45\.6 \(\+1\.5\) \|", card) and "7 training and 5 validation images" in card


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
        ([str(tmp_path / "no.safetensors"), "--to", "timm", "--output", str(tmp_path / "a")], "no no.json beside it"),
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
