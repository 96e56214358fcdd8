"""evaluate.py maskclip, coupling and aggregate as a user types them."""

import json
from pathlib import Path

import pytest

from rsc_seg.cli.evaluate import main
from rsc_seg.config import BackboneConfig, RefinerConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import save_refiner
from rsc_seg.models.weights import save_encoder
from tests.zeroshot.slow_context import write_pictures

CLIP = ["--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu"]
DINO = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pictures(tmp_path_factory.mktemp("context") / "set")
    return write_pictures(root, split="train", first=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student.safetensors and refiner.safetensors of the untuned tiny DINOv2."""
    folder = tmp_path_factory.mktemp("weights")
    encoder, info = build_backbone(BackboneConfig(name="dinov2_tiny14", weights="none"))
    save_encoder(folder / "student.safetensors", encoder.trunk.state_dict(), info)
    options = RefinerConfig(hidden=16)
    save_refiner(folder / "refiner.safetensors", Refiner(encoder, options), options, encoder, {})
    return folder


def test_maskclip(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = ["maskclip", *CLIP, f"data.root={root}", "maskclip.prompts=single", "--output-dir", str(out)]
    assert main([*argv, "maskclip.short_side=48", "data.workers=0"]) == 0
    shown = capsys.readouterr()
    assert "mIoU union" in shown.out and "untuned: 4 of 4 pictures" in shown.err
    assert f"written: {out / 'maskclip.json'}, {out / 'classes.csv'}" in shown.out
    assert main([*argv, "maskclip.short_side=48", "data.workers=0"]) == 0
    assert "all counted before" in capsys.readouterr().err


def test_coupling(root: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--checkpoint", f"{files}/student.safetensors", "--refiner", f"{files}/refiner.safetensors"]
    argv = ["coupling", *DINO, *given, "data.image_size=[28,42]", f"data.root={root}/val/images"]
    assert main([*argv, "--output-dir", str(out), "--seed", "2"]) == 0
    shown = capsys.readouterr()
    assert "stable mean" in shown.out and f"{out / 'pairs.csv'}" in shown.out
    assert "Refiner: 2 of 2 pairs" in shown.err
    result = json.loads((out / "coupling.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["untuned", "student", "Refiner"]
    assert result["config"]["run"]["seed"] == 2
    first, second, _ = (row["scores"] for row in result["rows"])
    assert first == second  # the same weights


def test_aggregate(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["aggregate", *DINO, "data.image_size=[28,42]", f"data.root={root}", "aggregate.measures=[affinity]"]
    assert main([*argv, "aggregate.numbers=[0,2]", "aggregate.pictures=1", "--output-dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "affinity AP" in shown.out and "aggregate.csv" in shown.out and "untuned, val: 4 of 4" in shown.err


def test_configurations_are_printed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aggregate", "--backbone", "clip_vitb16", "--print-config"]) == 0
    assert "- 448" in capsys.readouterr().out
    assert main(["coupling", "--backbone", "clip_vitb16", "--print-config"]) == 0
    assert "- 1024" in capsys.readouterr().out
    assert main(["maskclip", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "short_side: 512" in text and "window: null" in text and "prompts: imagenet" in text


def test_bad_input_is_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output-dir", str(tmp_path / "out")]
    words = tmp_path / "words.txt"
    words.write_text("cat\ndog\n")
    for argv, said in (
        (["maskclip", *DINO, f"data.root={root}"], "has no text beside it"),
        (["maskclip", *CLIP, f"data.root={root}", f"maskclip.vocabulary={words}"], "2 class names"),
        (["maskclip", *CLIP, f"data.root={root}/val/images"], "no known layout of a labelled set"),
        (["maskclip", *CLIP, f"data.root={root}", "maskclip.windows=3"], "there is no option 'maskclip.windows'"),
        (["maskclip", *CLIP], "data.root is not set"),
        (["coupling", *DINO, f"data.root={root}/val/images", "--refiner", "x.safetensors"], "no Refiner here"),
        (["coupling", *DINO, f"data.root={root}/val/images", "--checkpoint", "x.pt"], "x.pt: no such checkpoint"),
        (["aggregate", *DINO, f"data.root={root}/val/images"], "no known layout of a labelled set"),
        (["aggregate", *DINO, f"data.root={root}", "aggregate.numbers=[1,0]"], "ascending order"),
    ):
        assert main([*argv, *out]) == 2
        err = capsys.readouterr().err
        line = err.rstrip().splitlines()[-1]
        assert line.startswith("evaluate.py: error: ") and said in line and "Traceback" not in err, line
    with pytest.raises(SystemExit) as stop:
        main(["aggregate", *DINO, f"data.root={root}", "--refiner", "x.safetensors"])
    assert stop.value.code == 2 and "unrecognized arguments: --refiner" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
