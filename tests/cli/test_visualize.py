"""visualize.py as a user types it."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from rsc_seg.cli.visualize import main
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.weights import random_state, save_encoder
from rsc_seg.models.weights_info import info_of_row
from tests.pipelines.tiny import TINY, labelled_set, train
from tests.training.helpers import write_pictures
from tests.viz.click_affinity import held

SMALL = [*TINY, "--size", "28x42", "--queries", "1"]
PLAIN = [*TINY, "--size", "28x42"]
CLIP = ["--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu", "--size", "48x64"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return [str(p) for p in sorted(write_pictures(tmp_path / "in", 2).iterdir())]


def tuned(path: Path, name: str = "dinov2_tiny14", seed: int = 1) -> str:
    """A checkpoint of other random weights."""
    row = REGISTRY[name]
    save_encoder(path, random_state(row, seed), info_of_row(row, depth=row.depth, source="x", licence="MIT", note="n"))
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> None:
    code = main(argv)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    for part in parts:
        assert part in err.rstrip().splitlines()[-1], err


def test_one_picture_has_all_maps_but_coupling(pictures: list[str], tmp_path: Path) -> None:
    assert main([pictures[0], *SMALL, "--output-dir", str(tmp_path / "one")]) == 0
    names = {p.name.partition("-")[0] for p in (tmp_path / "one").iterdir()}
    assert names == {"affinity", "joint", "token", "maps.html"}
    assert {p.suffix for p in (tmp_path / "one").iterdir()} == {".png", ".svg", ".html"}


def test_two_pictures_have_coupling(pictures: list[str], tmp_path: Path) -> None:
    assert main([*pictures, *SMALL, "--maps", "coupling", "--output-dir", str(tmp_path / "two")]) == 0
    assert {p.name.partition("-")[0] for p in (tmp_path / "two").iterdir()} == {"coupling", "maps.html"}


@pytest.mark.parametrize(("kind", "stem"), [("pca", "joint-pca"), ("norms", "token-norms")])
def test_a_kind_alone_in_one_format(pictures: list[str], tmp_path: Path, kind: str, stem: str) -> None:
    argv = [kind, str(Path(pictures[0]).parent), *PLAIN, "--format", "svg", "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{stem}.svg", "maps.html"}


def test_checkpoints_stand_side_by_side_wherever_they_are_typed(pictures: list[str], tmp_path: Path) -> None:
    files = [tuned(tmp_path / name / "student.safetensors", seed=k) for k, name in enumerate(("a", "b"))]
    # the flag takes all words that follow it: pictures and options among them are told by what they are
    argv = [
        "affinity",
        *SMALL,
        "--output-dir",
        str(tmp_path / "out"),
        "--checkpoint",
        *files,
        *pictures,
        "data.limit=1",
    ]
    assert main(argv) == 0
    (svg,) = (tmp_path / "out").glob("*.svg")
    text = svg.read_text(encoding="utf-8")
    labels = [">untuned, last layer<", ">a/student<", ">b/student<"]
    assert sorted(text.index(label) for label in labels) == [text.index(label) for label in labels]
    assert "one scale holds for all encoders" in text and "Made by:" in text and "alpha" not in text


def test_a_run_gives_its_student_and_refiner(pictures: list[str], tmp_path: Path) -> None:
    run = train(tmp_path / "run", labelled_set(tmp_path / "set"))
    assert main(["refiner", pictures[0], "--run", str(run), "--output-dir", str(tmp_path / "out")]) == 0
    (svg,) = (tmp_path / "out").glob("*.svg")
    text = svg.read_text(encoding="utf-8")
    for label in (">untuned, last layer, in the picture<", ">student, alpha 0.5, in the picture<", ">Refiner<"):
        assert label in text
    assert "in the picture: Pictures" not in text and ">crop by itself<" in text
    main(["page", *pictures, "--run", str(run), "--output-dir", str(tmp_path / "page")])
    data = held(tmp_path / "page" / "affinity.html")
    assert data["encoders"] == ["untuned, last layer", "student, alpha 0.5"] and data["grid"] == [4, 6]
    assert [p["name"] for p in data["pictures"]] == ["00.png", "01.png"]


def test_maskclip_finds_classes_by_name(pictures: list[str], tmp_path: Path) -> None:
    student = tuned(tmp_path / "student.safetensors", "clip_tiny16")
    argv = ["maskclip", pictures[0], *CLIP, "--classes", "cat, green grass, sky", "--prompts", "single"]
    assert main([*argv, "--checkpoint", student, "--output-dir", str(tmp_path / "out")]) == 0
    text = next((tmp_path / "out").glob("*.svg")).read_text(encoding="utf-8")
    assert ">untuned, last layer<" in text and ">student<" in text and "RANDOM TEXT WEIGHTS" in text
    assert "Legend of 00.png" in text


def test_bad_input_is_one_line(pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output-dir", str(tmp_path / "none")]
    refused(capsys, [pictures[0], *SMALL, "--maps", "coupling", *out], "coupling", "two pictures")
    refused(capsys, [pictures[0], *TINY, "--queries", "0", *out], "--queries 0")
    refused(capsys, [pictures[0], *SMALL, "--device", "qqq", *out], "run.device=qqq")
    if not torch.cuda.is_available():
        refused(capsys, [pictures[0], *SMALL, "--device", "cuda", *out], "no usable CUDA device")
    small = tmp_path / "deep" / "small.png"
    small.parent.mkdir()
    Image.new("RGB", (5, 40)).save(small)
    refused(capsys, [str(small), *SMALL, *out], str(small), "5")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, ["affinity", str(empty), *SMALL, *out], str(empty), "no pictures in this folder")
    refused(capsys, ["pca", *PLAIN, *out], "no picture given")
    refused(capsys, ["pca", pictures[0], *PLAIN, "--format", "pdf", *out], "--format=pdf", "png, svg")
    refused(capsys, ["affinity", pictures[0], *SMALL, "--query", "0.5", *out], "--query 0.5", "2 numbers")
    other = tuned(tmp_path / "other.safetensors", "dinov2_tiny14_reg")
    for kind in ("pca", "page"):
        refused(capsys, [kind, pictures[0], *PLAIN, "--checkpoint", other, *out], other, "dinov2_tiny14_reg")
    refused(capsys, ["page", pictures[0], *PLAIN, "--components", "0", *out], "--components 0")
    refused(capsys, ["tsne", pictures[0], *PLAIN, *out], "tsne takes labelled pictures")
    refused(capsys, ["tsne", *PLAIN, *out], "data.root: not set")
    refused(capsys, ["maskclip", pictures[0], *PLAIN, "--classes", "a,b", *out], "dinov2_tiny14", "has no text")
    refused(capsys, ["maskclip", pictures[0], *CLIP, *out], "--classes: name what to look for")
    refused(capsys, ["maskclip", pictures[0], *CLIP, "--classes", "cat", *out], "'cat' alone takes every pixel")
    refused(capsys, ["refiner", pictures[0], *PLAIN, "--box", "1,2", *out], "--box 1,2", "4 numbers")
    refused(capsys, ["refiner", pictures[0], *PLAIN, "--run", str(empty), *out], str(empty), "not a run folder")
    assert not (tmp_path / "none").exists()
