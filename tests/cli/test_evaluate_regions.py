"""evaluate.py regions as a user types it."""

import json
import shutil
from pathlib import Path

import pytest

from rsc_seg.cli.evaluate import main
from rsc_seg.config import BackboneConfig
from rsc_seg.models.build import build_backbone
from rsc_seg.models.weights import save_encoder
from tests.zeroshot.sample import drawn_segments, write_set

TINY = ["regions", "--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu", "regions.prompts=single"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions") / "set"
    write_set(folder, {0: drawn_segments(0)})
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints of one stem."""
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    found = []
    for run in ("a", "b"):
        found.append(tmp_path_factory.mktemp("weights") / run / "student.safetensors")
        save_encoder(found[-1], encoder.trunk.state_dict(), info)
    return [str(path) for path in found]


def test_checkpoints_and_options_in_any_order(
    root: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = [
        *TINY,
        "regions.mask_resize=antialias",
        "--checkpoint",
        *files,
        f"data.root={root}",
        "--output-dir",
        str(out),
    ]
    assert main([*argv, "data.limit=1", "data.workers=0"]) == 0
    shown = capsys.readouterr()
    result = json.loads((out / "regions.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["untuned", "a/student", "b/student"]
    assert result["config"]["data"]["limit"] == 1 and result["config"]["regions"]["mask_resize"] == "antialias"
    assert "Boxes top-1" in shown.out and "Stuff Masks top-5" in shown.out
    assert f"written: {out / 'regions.json'}, {out / 'classes.csv'}" in shown.out
    assert "untuned: 1 of 1 pictures" in shown.err
    assert main([*argv, "data.limit=1", "data.workers=0"]) == 0
    assert "all counted before" in capsys.readouterr().err


def test_a_checkpoint_may_be_named_like_an_option(
    root: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in ("safetensors", "json"):
        shutil.copy(files[0].replace("safetensors", ending), f"data.root=x.{ending}")
    argv = [*TINY, "--checkpoint", "data.root=x.safetensors", "--checkpoint", files[0], f"data.root={root}"]
    assert main(argv) == 0
    result = json.loads(Path("runs/regions_clip_tiny16/regions.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["untuned", "data.root=x", "student"]


def test_configuration_is_printed_with_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regions", "--backbone", "clip_vitl14_336", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "mask_resize: plain" in text and "- 896" in text and "split: val" in text


def test_bad_input_is_one_line(
    root: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"data.root={root}", "--output-dir", str(tmp_path / "out")]
    for argv, said in (
        (["regions", "--backbone", "dinov2_tiny14", "--weights", "none", *data], "has no text beside it"),
        ([*TINY, "--checkpoint", files[0], files[0], *data], "named twice"),
        ([*TINY, "--checkpoint", "nowhere.safetensors", *data], "nowhere.safetensors: no such checkpoint"),
        ([*TINY, *data, "regions.mask_rezize=plain"], "there is no option 'regions.mask_rezize'"),
        ([*TINY, "data.root=nowhere"], "nowhere: no such file or folder"),
        ([*TINY], "data.root is not set"),
        ([*TINY, *data, "data.split=train"], "no split 'train'"),
    ):
        assert main(argv) == 2
        err = capsys.readouterr().err
        line = err.rstrip().splitlines()[-1]
        assert line.startswith("evaluate.py: error: ") and said in line and "Traceback" not in err
    assert not (tmp_path / "out").exists()
