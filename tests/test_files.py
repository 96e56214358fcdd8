"""Files are written as a whole or not at all; the cache folder follows the environment."""

import errno
import os
from pathlib import Path

import pytest

from rsc_seg.cache_dir import cache_dir
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write, atomic_write_group, sha256_of


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    atomic_write(target, lambda path: path.write_text("one"))
    atomic_write(target, lambda path: path.write_text("two"))
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == ["b.txt"]


def test_writer_sees_the_suffix_of_its_target(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_bytes(b"x")

    atomic_write(tmp_path / "x.safetensors", write)
    assert seen[0].suffix == ".safetensors" and seen[0].parent == tmp_path


def test_full_disk_leaves_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"x\.bin: not written \(No space left on device\); nothing was overwritten"):
        atomic_write(target, write)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_any_other_error_also_removes_the_temporary(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "x.bin", write)
    assert os.listdir(tmp_path) == []


def test_group_renames_nothing_before_all_are_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "a.safetensors"
    first.write_text("old")

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"a\.safetensors: not written"):
        atomic_write_group({first: lambda path: path.write_text("new"), second: fail})
    assert first.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(UserError, match="a folder has this name"):
        atomic_write(tmp_path / "x.bin", lambda path: path.write_bytes(b"x"))


def test_sha256_of_known_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_dir_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RSC_SEG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "rsc_seg"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/rsc_seg")
    monkeypatch.setenv("RSC_SEG_CACHE", "/own")
    assert cache_dir() == Path("/own")
