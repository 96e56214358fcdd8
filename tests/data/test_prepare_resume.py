"""Interrupted preparations: what is converted stays, nothing half-written is taken for whole."""

import errno
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.prepare_files import staging_folder, whole_size
from rsc_seg.data.prepare_run import check_split, prepare_split
from rsc_seg.data.prepare_sources import make_recipe
from rsc_seg.data.segsets import segset
from rsc_seg.errors import UserError
from tests.data import prepare_trees as trees

NAME = "ade20k_150_val"


def labels_of(root: Path) -> Path:
    return segset(NAME).label_folder(root)


def prepare(root: Path, workers: int = 1) -> tuple[int, int]:
    outcome = prepare_split(make_recipe(segset(NAME), root, subset=True), workers)
    return outcome.converted, outcome.kept


def test_a_full_disk_leaves_no_folder_that_looks_ready_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.ade20k_150(tmp_path)
    write, written = Path.write_bytes, []

    def full_after_two(self: Path, data: bytes) -> int:
        if len(written) == 2:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(self)
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_after_two)
        with pytest.raises(UserError, match=r"ADE_val_00000002.png: not written \(No space left on device\)"):
            prepare(tmp_path)
    assert not labels_of(tmp_path).exists()
    waiting = staging_folder(labels_of(tmp_path))
    assert sorted(p.name for p in waiting.iterdir()) == ["ADE_val_00000000.png", "ADE_val_00000001.png"]
    assert prepare(tmp_path) == (1, 2)
    assert len(list(labels_of(tmp_path).iterdir())) == 3 and not waiting.exists()


def test_a_second_run_converts_nothing_and_touches_nothing(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    assert prepare(tmp_path) == (3, 0)
    before = {p: p.stat().st_mtime_ns for p in labels_of(tmp_path).iterdir()}
    time.sleep(0.01)
    assert prepare(tmp_path) == (0, 3)
    assert {p: p.stat().st_mtime_ns for p in labels_of(tmp_path).iterdir()} == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "other size", "no image"])
def test_a_damaged_file_among_prepared_ones_is_made_anew(damage: str, tmp_path: Path) -> None:
    wanted = trees.ade20k_150(tmp_path)
    prepare(tmp_path)
    path = labels_of(tmp_path) / "ADE_val_00000001.png"
    if damage == "missing":
        path.unlink()
    elif damage == "other size":
        Image.new("L", (3, 3)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:-8] if damage == "truncated" else b"")
    assert prepare(tmp_path) == (1, 2)
    assert np.array_equal(np.asarray(Image.open(path)), wanted[path.stem])
    assert not staging_folder(labels_of(tmp_path)).exists()


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    waiting = staging_folder(labels_of(tmp_path))
    waiting.mkdir(parents=True)
    (waiting / ".ADE_val_00000000.png.77.tmp").write_bytes(b"half")
    assert prepare(tmp_path) == (3, 0)
    assert sorted(p.name for p in labels_of(tmp_path).iterdir()) == [f"ADE_val_{i:08d}.png" for i in range(3)]


def test_check_reads_every_prepared_pixel(tmp_path: Path) -> None:
    trees.ade20k_150(tmp_path)
    prepare(tmp_path)
    path = labels_of(tmp_path) / "ADE_val_00000002.png"
    values = np.asarray(Image.open(path)).copy()
    values[4, 6] = 150
    Image.fromarray(values).save(path)
    assert prepare(tmp_path) == (0, 3)  # a run that resumes looks at headers and ends only
    with pytest.raises(UserError, match=r"ADE_val_00000002.png: label 150 at pixel \(6, 4\) is neither below 150"):
        check_split(make_recipe(segset(NAME), tmp_path, subset=True))


def test_several_workers_do_what_one_does(tmp_path: Path) -> None:
    """Errors reach the user as one line from there, too."""
    wanted = trees.ade20k_150(tmp_path, count=20)
    bad = tmp_path / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000019.png"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"ADE_val_00000019.png: not readable as an image"):
        prepare(tmp_path, workers=2)
    assert not labels_of(tmp_path).exists()
    bad.write_bytes(good)
    assert prepare(tmp_path) == (1, 19)
    got = {p.stem: np.asarray(Image.open(p)) for p in labels_of(tmp_path).iterdir()}
    assert all(np.array_equal(got[key], labels) for key, labels in wanted.items()) and len(got) == 20


def test_files_are_whole_by_header_and_end(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 400, (6, 9)).astype(np.uint16)
    for name, image in (
        ("a.png", Image.fromarray(array.astype(np.uint8))),
        ("a.tif", Image.fromarray(array)),
        ("a.jpg", Image.fromarray(array.astype(np.uint8))),
    ):
        path = tmp_path / name
        image.save(path)
        assert whole_size(path) == (9, 6)
        path.write_bytes(path.read_bytes()[:-10])
        assert whole_size(path) is None
    (tmp_path / "b.png").write_text("text")
    assert whole_size(tmp_path / "b.png") is None
