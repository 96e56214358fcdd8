"""Frozen features on disk: computed once, found again by a hash of all that they depend on, read by memory map."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)
DTYPES = {"float32": np.float32, "float16": np.float16}


def module_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


def open_cache(
    root: Path,
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    rows: int,
    dtype: str,
    produce: Callable[[], Iterator[tuple[list[int], dict[str, Tensor]]]],
    exact: Collection[str] = (),
) -> FeatureCache:
    """The cache `key` under `root`; computed first when it is not there.

    `produce()` yields (image indices, arrays of these images) until all `rows` images came. The arrays named in `exact`
    (boxes, indices) are stored in float32 whatever `dtype` says. A run that is killed leaves only a folder that the
    next run removes. Raises UserError when the disk refuses.
    """
    folder, partial = root / key, root / f".{key}.partial"
    if (folder / "arrays.json").is_file():
        _log.info("features from the cache %s", folder)
        return FeatureCache(folder)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        out = {
            name: np.lib.format.open_memmap(
                partial / f"{name}.npy",
                mode="w+",
                dtype=np.float32 if name in exact else DTYPES[dtype],
                shape=(rows, *shape),
            )
            for name, shape in shapes.items()
        }
        seen: set[int] = set()
        for indices, arrays in produce():
            for name, values in arrays.items():
                out[name][indices] = values.detach().float().cpu().numpy()
            seen.update(indices)
        if len(seen) != rows:
            raise RuntimeError(f"feature cache: {len(seen)} of {rows} images were produced")
        for array in out.values():
            array.flush()
        (partial / "arrays.json").write_text(json.dumps(list(shapes)))
        partial.rename(folder)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{folder}: feature cache not written ({e.strerror or e}); "
            "free space, lower cache.max_gb or set cache.mode=off."
        ) from e
    return FeatureCache(folder)
