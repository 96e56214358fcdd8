"""Frozen features on disk: computed once, found again by a hash of all that they depend on, read by memory map."""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.digest import module_digest
from rsc_seg.models.encoder import DenseEncoder

_log = logging.getLogger(__name__)
DTYPES = {"float32": np.float32, "float16": np.float16}
_PARTIAL = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.partial")
_STALE = 24 * 3600.0  # seconds without a write after which a partial folder is nobody's


def cache_key(**parts: Any) -> str:
    """A short name for everything that cached features depend on (JSON-able values and dataclasses)."""
    plain = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in parts.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]


def encoder_digest(encoder: DenseEncoder) -> str:
    """A hash of weights, architecture and modes: what features depend on beside the images."""
    return cache_key(
        weights=module_digest(encoder),
        name=encoder.name,
        position_rule=encoder.position_rule,
        last_block=encoder.last_block,
        norm=[list(encoder.mean), list(encoder.std)],
    )


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


def _alive(name: str) -> bool:
    """Whether the process that a partial folder's name tells of is still at work, as far as this machine knows."""
    found = _PARTIAL.fullmatch(name)
    if found is None:
        return False  # a name that no process gives
    if found["host"] != _host():
        return True
    try:
        os.kill(int(found["process"]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _last_write(folder: Path) -> float:
    """Seconds since the epoch; now, for a folder that is vanishing."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return time.time()


def _remove_left_overs(root: Path, key: str) -> None:
    """Removes what dead processes left of this cache, and what nobody has written to for a day."""
    for folder in root.glob(f".{key}.*partial"):
        if not _alive(folder.name) or time.time() - _last_write(folder) > _STALE:
            shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    """The machine's name as a short word that fits into a file's name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _opened(folder: Path, shapes: Mapping[str, tuple[int, ...]], rows: int) -> FeatureCache | None:
    """The finished cache of this folder; None, with a warning, when it is damaged."""
    if not (folder / "arrays.json").is_file():
        return None
    try:
        found = FeatureCache(folder)
        for name, shape in shapes.items():
            if found.arrays[name].shape != (rows, *shape):
                raise ValueError(f"{name} has the shape {found.arrays[name].shape}, not {(rows, *shape)}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as e:
        _log.warning("%s: damaged feature cache (%s); computed again", folder, str(e) or type(e).__name__)
        return None
    _log.info("features from the cache %s", folder)
    return found


def _move(partial: Path, folder: Path) -> None:
    """Gives a complete folder its name; one that another process finished meanwhile stays, and this one goes."""
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "arrays.json").is_file():
            raise
        shutil.rmtree(partial, ignore_errors=True)


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
    (boxes, indices) are stored in float32 whatever `dtype` says. A damaged cache is computed again. A failure leaves
    nothing; a run that is killed leaves only a folder that the next run removes. Processes that compute the same cache
    at once do not meet: the first that is ready gives its folder the name. Raises UserError when the disk refuses.
    """
    folder = root / key
    if (found := _opened(folder, shapes, rows)) is not None:
        return found
    _remove_left_overs(root, key)
    shutil.rmtree(folder, ignore_errors=True)
    partial = root / f".{key}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        dtypes = {name: np.float32 if name in exact else DTYPES[dtype] for name in shapes}
        _fill(partial, shapes, rows, dtypes, produce())
        _move(partial, folder)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(e, OSError):
            raise
        raise UserError(
            f"{folder}: feature cache not written ({e.strerror or e}); "
            "free space, lower cache.max_gb or set cache.mode=off."
        ) from e
    return FeatureCache(folder)
