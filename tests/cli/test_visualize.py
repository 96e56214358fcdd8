"""visualize.py as a user types it."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from rsc_seg.cli.visualize import main
from tests.pipelines.tiny import TINY
from tests.training.helpers import write_pictures

SMALL = [*TINY, "--size", "28x42", "--queries", "1"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return [str(p) for p in sorted(write_pictures(tmp_path / "in", 2).iterdir())]


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


def test_two_pictures_have_coupling(pictures: list[str], tmp_path: Path) -> None:
    assert main([*pictures, *SMALL, "--maps", "coupling", "--output-dir", str(tmp_path / "two")]) == 0
    assert {p.name.partition("-")[0] for p in (tmp_path / "two").iterdir()} == {"coupling", "maps.html"}


def test_bad_input_is_one_line(pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output-dir", str(tmp_path / "none")]
    refused(capsys, [pictures[0], *SMALL, "--maps", "coupling", *out], "--maps coupling", "two pictures")
    refused(capsys, [pictures[0], *TINY, "--queries", "0", *out], "--queries 0")
    refused(capsys, [pictures[0], *SMALL, "--device", "qqq", *out], "run.device=qqq")
    if not torch.cuda.is_available():
        refused(capsys, [pictures[0], *SMALL, "--device", "cuda", *out], "no usable CUDA device")
    small = tmp_path / "deep" / "small.png"
    small.parent.mkdir()
    Image.new("RGB", (5, 40)).save(small)
    refused(capsys, [str(small), *SMALL, *out], str(small), "5")
    assert not (tmp_path / "none").exists()
