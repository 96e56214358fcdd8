"""Frozen features on disk: computed once, found again by a hash of all that they depend on, read by memory map."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)
DTYPES = {"float32": np.float32, "float16": np.float16}


def cache_key(**parts: Any) -> str:
    """A short name for everything that cached features depend on (JSON-able values and dataclasses)."""
    plain = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in parts.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]


class FeatureCache:
    """Arrays with one row an image, in a folder named by its key; complete or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = json.loads((folder / "arrays.json").read_text())
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def rows(self, name: str, indices: list[int]) -> Tensor:
        """Rows of one array as float32, stacked."""
        return torch.from_numpy(np.stack([self.arrays[name][i] for i in indices]).astype(np.float32))


def estimate_gb(shapes: Mapping[str, tuple[int, ...]], rows: int, dtype: str) -> float:
    """Size on disk in GB of `rows` images with these per-image shapes."""
    per_image = sum(int(np.prod(shape)) for shape in shapes.values())
    return per_image * rows * np.dtype(DTYPES[dtype]).itemsize / 1e9


class _ArrayFile:
    """An .npy file filled row by row through plain writes: a full disk is an OSError here, a signal in a memory map."""

    def __init__(self, file: BinaryIO, dtype: Any, shape: tuple[int, ...]) -> None:
        self.file, self.dtype, self.row = file, np.dtype(dtype), shape[1:]
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
        self.start = self.file.tell()
        self.row_bytes = int(np.prod(self.row)) * self.dtype.itemsize
        if hasattr(os, "posix_fallocate"):
            self._reserve(self.start + shape[0] * self.row_bytes)

    def _reserve(self, size: int) -> None:
        """Takes the space before hours of work go into it."""
        try:
            os.posix_fallocate(self.file.fileno(), 0, size)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot reserve
                raise

    def write(self, indices: list[int], values: Tensor) -> None:
        """Rows at `indices`."""
        for i, value in zip(indices, values.detach().float().cpu().numpy(), strict=True):
            if value.shape != self.row:
                raise ValueError(f"feature cache: a row of shape {value.shape} where {self.row} is expected")
            self.file.seek(self.start + i * self.row_bytes)
            self.file.write(np.ascontiguousarray(value, self.dtype).tobytes())

    def sync(self) -> None:
        """On disk, or OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())


def _fill(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    rows: int,
    dtypes: Mapping[str, Any],
    produced: Iterator[tuple[list[int], dict[str, Tensor]]],
) -> None:
    seen: set[int] = set()
    with ExitStack() as stack:
        out = {}
        for name, shape in shapes.items():
            file = stack.enter_context(open(folder / f"{name}.npy", "wb"))
            out[name] = _ArrayFile(file, dtypes[name], (rows, *shape))
        for indices, arrays in produced:
            for name, values in arrays.items():
                out[name].write(indices, values)
            seen.update(indices)
        for array in out.values():
            array.sync()
    if len(seen) != rows:
        raise RuntimeError(f"feature cache: {len(seen)} of {rows} images were produced")
    (folder / "arrays.json").write_text(json.dumps(list(shapes)))


def open_cache(
    root: Path,
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rows: int,
    dtype: str,
    produce: Callable[[], Iterator[tuple[list[int], dict[str, Tensor]]]],
    exact: Collection[str] = (),
) -> FeatureCache:
    """The cache `key` under `root`; computed first when it is not there.

    `produce()` yields (image indices, arrays of these images) until all `rows` images came. The arrays named in `exact`
    (boxes, indices) are stored in float32 whatever `dtype` says. A failure leaves nothing; a run that is killed leaves
    only a folder that the next run removes. Raises UserError when the disk refuses.
    """
    folder, partial = root / key, root / f".{key}.partial"
    if (folder / "arrays.json").is_file():
        _log.info("features from the cache %s", folder)
        return FeatureCache(folder)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        dtypes = {name: np.float32 if name in exact else DTYPES[dtype] for name in shapes}
        _fill(partial, shapes, rows, dtypes, produce())
        partial.rename(folder)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(e, OSError):
            raise
        raise UserError(
            f"{folder}: feature cache not written ({e.strerror or e}); "
            "free space, lower cache.max_gb or set cache.mode=off."
        ) from e
    return FeatureCache(folder)
