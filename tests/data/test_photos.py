from pathlib import Path

import numpy as np
import pytest

from rsc_seg.cache_dir import cache_dir
from rsc_seg.data import photos
from rsc_seg.errors import UserError

SIZES = {
    "astronaut": (512, 512),
    "chelsea": (451, 300),
    "coffee": (600, 400),
    "rocket": (640, 427),
    "motorcycle_left": (741, 500),
    "motorcycle_right": (741, 500),
    "china": (640, 427),
    "flower": (640, 427),
    "voc": (500, 375),
    "arc2017": (640, 480),
}


def test_every_photograph_is_in_an_installed_package() -> None:
    paths = photos.photo_paths()
    assert set(paths) == set(SIZES) and all(p.is_file() for p in paths.values())
    for name, size in SIZES.items():
        image = photos.load_photo(name)
        assert image.mode == "RGB" and image.size == size


def test_textures_and_disparity_match_their_photographs() -> None:
    assert all(photos.load_photo(name).size == (512, 512) for name in photos.TEXTURES)
    disparity = photos.motorcycle_disparity()
    assert disparity.shape == (500, 741) and 0.9 < np.isfinite(disparity).mean() < 1


def test_masked_photographs_have_instances() -> None:
    voc = photos.load_masked_photo("voc")
    assert voc.masks.shape == (19, 375, 500) and voc.image.shape == (375, 500, 3)
    assert voc.names.count("person") == 7 and set(voc.names) == {"person", "chair", "bottle", "diningtable"}
    assert voc.masks.sum(0).max() == 1  # no pixel has two owners
    arc = photos.load_masked_photo("arc2017")
    assert len(arc.names) == 8 and arc.masks.any((1, 2)).all()


def test_credits_name_every_photograph_and_the_licence_that_asks_for_it() -> None:
    table = photos.credits_table()
    assert all(f"| {name} |" in table for name in photos.PHOTOS | photos.TEXTURES)
    assert table.count("CC BY 2.0") == 2 and "lena" not in table
    assert table in Path(__file__).parents[2].joinpath("docs", "embedded_set.md").read_text(encoding="utf-8")


def test_unknown_photograph_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'coffee'"):
        photos.load_photo("cofee")
    with pytest.raises(UserError, match="only voc and arc2017"):
        photos.load_masked_photo("china")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn: pip install 'rsc-seg\[demo\]'"):
        photos.load_photo("china")


def test_package_without_the_file_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photos, "_package_root", lambda module, package: tmp_path)
    with pytest.raises(UserError, match=r"china\.jpg"):
        photos.load_photo("china")


def test_cache_dir_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RSC_SEG_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("RSC_SEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "rsc_seg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "rsc_seg"
    assert not (tmp_path / "own").exists() and not (tmp_path / "xdg").exists()
