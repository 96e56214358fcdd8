"""Cached features: found by what they depend on, complete or absent, read without loading."""

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsc_seg.config import CropConfig
from rsc_seg.errors import UserError
from rsc_seg.models.digest import module_digest
from rsc_seg.training import cache as cache_module
from rsc_seg.training.cache import cache_key, estimate_gb, open_cache

SHAPES = {"a": (2, 3), "b": (1,)}


def features(i: int) -> dict[str, Tensor]:
    return {"a": torch.full((1, 2, 3), i + 0.25), "b": torch.full((1, 1), float(i))}


class Counted:
    """A producer of five images that counts its calls."""

    def __init__(self, images: int = 5) -> None:
        self.images = images
        self.calls = 0

    def __call__(self) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """One image at a time, last first."""
        self.calls += 1
        for i in reversed(range(self.images)):
            yield [i], features(i)


def test_computed_once_and_read_by_rows(tmp_path: Path) -> None:
    produce = Counted()
    first = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    again = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    assert produce.calls == 1
    for cache in (first, again):
        assert torch.equal(cache.rows("a", [4, 0]), torch.cat([features(4)["a"], features(0)["a"]]))
        assert cache.rows("b", [1, 1, 3]).flatten().tolist() == [1, 1, 3]
    assert isinstance(again.arrays["a"], np.memmap)
    assert sorted(os.listdir(tmp_path)) == ["k"]


def test_rows_do_not_write_back(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=Counted())
    cache.rows("a", [2]).zero_()
    assert torch.equal(cache.rows("a", [2]), features(2)["a"])


def test_half_precision_is_half_the_size_and_keeps_exact_arrays(tmp_path: Path) -> None:
    def large() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        yield [0], {"a": torch.full((1, 2, 3), 1 / 3), "b": torch.full((1, 1), 4097.0)}

    cache = open_cache(tmp_path, "k", SHAPES, rows=1, dtype="float16", produce=large, exact=("b",))
    assert cache.arrays["a"].dtype == np.float16
    assert torch.allclose(cache.rows("a", [0]), torch.tensor(1 / 3), atol=2e-4)
    assert cache.rows("a", [0]).dtype == torch.float32
    assert cache.rows("b", [0]).tolist() == [[4097.0]]


def test_what_a_killed_run_left_is_made_anew(tmp_path: Path) -> None:
    partial, headless = tmp_path / ".k.partial", tmp_path / "k"
    for folder in (partial, headless):
        folder.mkdir()
        (folder / "a.npy").write_bytes(b"half")
    produce = Counted()
    cache = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    assert produce.calls == 1 and cache.rows("b", [3]).item() == 3
    assert os.listdir(tmp_path) == ["k"]


def test_missing_images_are_never_taken_for_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="3 of 5"):
        open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=Counted(3))
    assert not (tmp_path / "k").exists()
    assert open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=Counted()).rows("b", [4]).item() == 4


def test_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    def full() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        yield [0], features(0)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"k: feature cache not written \(No space left on device\).*cache\.mode=off"):
        open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=full)
    assert os.listdir(tmp_path) == []


LIMITED = """
import os, resource, sys
from pathlib import Path
import torch
from rsc_seg.errors import UserError
from rsc_seg.training.cache import open_cache

if sys.argv[2] == "written":
    del os.posix_fallocate
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
produce = lambda: (([i], {"a": torch.zeros(1, 64)}) for i in range(100))
try:
    open_cache(Path(sys.argv[1]), "k", {"a": (64,)}, rows=100, dtype="float32", produce=produce)
except UserError as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("how", ["reserved", "written"])
def test_limit_on_file_sizes_is_an_error_and_no_signal(tmp_path: Path, how: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path), how], capture_output=True, text=True)
    assert done.returncode == 1
    assert "k: feature cache not written (File too large)" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_space_is_reserved_before_any_feature_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def full(descriptor: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    produce = Counted()
    with pytest.raises(UserError, match="No space left on device"):
        open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    assert produce.calls == 0 and os.listdir(tmp_path) == []
    assert asked == [128 + 5 * 6 * 4]


def test_file_systems_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=Counted()).rows(
        "b", [3, 0]
    ).flatten().tolist() == [3, 0]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_any_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def broken() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        yield [0], features(0)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=broken)
    assert os.listdir(tmp_path) == []


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        open_cache(tmp_path, "k", {"a": (3, 2), "b": (1,)}, rows=5, dtype="float32", produce=Counted())
    assert os.listdir(tmp_path) == []


def test_cache_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="feature cache not written"):
        open_cache(tmp_path / "file", "k", SHAPES, rows=5, dtype="float32", produce=Counted())


def test_estimate() -> None:
    assert estimate_gb({"a": (1000, 10), "b": (5,)}, 100, "float32") == pytest.approx(10005 * 100 * 4 / 1e9)
    assert estimate_gb({"a": (1000,)}, 100, "float16") == pytest.approx(2e-4)


def test_digest_follows_every_value_and_shape() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    first = module_digest(module)
    assert module_digest(module) == first
    module[1].running_mean[0] = 1e-6
    second = module_digest(module)
    assert second != first
    with torch.no_grad():
        module[0].weight[0, 0] += 1e-6
    assert module_digest(module) not in (first, second)
    assert module_digest(nn.Linear(2, 3, bias=False)) != module_digest(nn.Linear(3, 2, bias=False))


def test_key_follows_every_part() -> None:
    keys = {
        cache_key(kind="x", crops=CropConfig()),
        cache_key(kind="y", crops=CropConfig()),
        cache_key(kind="x", crops=CropConfig(size=[14, 14])),
        cache_key(kind="x", crops=CropConfig(), seed=1),
    }
    assert len(keys) == 4
    assert cache_key(kind="x", crops=CropConfig()) in keys


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _gone(path: Path) -> None:
    path.unlink()


def _other(path: Path) -> None:
    np.save(path, np.zeros((4, 2, 3), np.float32))


@pytest.mark.parametrize(
    ("file", "harm"),
    [("a.npy", _cut), ("a.npy", _empty), ("b.npy", _gone), ("a.npy", _other)]
    + [("arrays.json", _cut), ("arrays.json", _empty)],
)
def test_a_damaged_cache_is_computed_again(
    tmp_path: Path, file: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    produce = Counted()
    open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    harm(tmp_path / "k" / file)
    with caplog.at_level(logging.WARNING, "rsc_seg"):
        found = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=produce)
    assert produce.calls == 2 and torch.equal(found.rows("a", [2]), features(2)["a"])
    assert f"{tmp_path / 'k'}: damaged feature cache" in caplog.text
    assert os.listdir(tmp_path) == ["k"]


def test_two_that_compute_at_once_do_not_meet(tmp_path: Path) -> None:
    inner, outer = Counted(), Counted()
    seen: list[str] = []

    def slow() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        for row in outer():
            if not seen:  # another process begins, and ends, while this one is at work
                seen.extend(os.listdir(tmp_path))
                open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=inner)
            yield row

    found = open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=slow)
    assert (inner.calls, outer.calls) == (1, 1) and len(seen) == 1 and str(os.getpid()) in seen[0]
    assert torch.equal(found.rows("a", [4, 0]), torch.cat([features(4)["a"], features(0)["a"]]))
    assert os.listdir(tmp_path) == ["k"]


def test_only_left_overs_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = cache_module._host()
    names = {
        "dead": f".k.{here}-{dead.pid}-00000000.partial",
        "living": f".k.{here}-{os.getppid()}-00000000.partial",
        "elsewhere": ".k.00000000-1-00000000.partial",
        "old": ".k.00000000-2-00000000.partial",
        "another key": f".other.{here}-{dead.pid}-00000000.partial",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    for path in (tmp_path / names["old"] / "a.npy", tmp_path / names["old"]):
        os.utime(path, (two_days_ago, two_days_ago))
    os.utime(tmp_path / names["elsewhere"], (two_days_ago, two_days_ago))  # its file is written to still
    open_cache(tmp_path, "k", SHAPES, rows=5, dtype="float32", produce=Counted())
    left = {name for name, folder in names.items() if (tmp_path / folder).is_dir()}
    assert left == {"living", "elsewhere", "another key"}
