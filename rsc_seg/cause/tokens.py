"""Frozen tokens of views: on the fly, or computed once and read from disk."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from rsc_seg.cause.views import Views, signed
from rsc_seg.data.transforms import normalize
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.training.cache import FeatureCache, cache_key, encoder_digest, estimate_gb, open_cache

log = logging.getLogger(__name__)


class TokenSource(Protocol):
    """Tokens and labels of views by number; tokens lie row by row, h * w = L of them, on the CPU."""

    grid: tuple[int, int]
    dim: int

    def __len__(self) -> int: ...

    def tokens(self, indices: Sequence[int]) -> Float[Tensor, "B L D"]:
        """Tokens after the encoder's final norm without prefix tokens, float32, no gradient."""
        ...

    def labels(self, indices: Sequence[int]) -> Int16[Tensor, "B R R"]:
        """Classes of each pixel of the views, -1 where nothing is scored."""
        ...


def input_batch(
    views: Views, indices: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 R R"]:
    """Views as an encoder's input."""
    pixels = torch.from_numpy(np.stack([views.pixels(i) for i in indices]))
    return normalize(pixels.permute(0, 3, 1, 2).float().div(255), mean, std)


class LiveTokens:
    """Tokens computed when asked for; `batch_size` views a pass. Nothing grows with the number of images."""

    def __init__(
        self, encoder: DenseEncoder, views: Views, device: torch.device | str = "cpu", batch_size: int = 16
    ) -> None:
        self.encoder, self.views, self.device, self.batch_size = encoder, views, torch.device(device), batch_size
        self.grid = encoder.grid(views.resolution, views.resolution)
        self.dim = encoder.out_dim

    def __len__(self) -> int:
        return len(self.views)

    def _pass(self, indices: Sequence[int]) -> Float[Tensor, "B L D"]:
        batch = input_batch(self.views, indices, self.encoder.mean, self.encoder.std)
        with torch.inference_mode():
            dense = self.encoder.dense(batch.to(self.device)).float().cpu()
        tokens = dense.flatten(2).transpose(1, 2)  # (B, D, h, w) to (B, L, D)
        if not bool(torch.isfinite(tokens).all()):
            names = ", ".join(self.views.name(i) for i in indices)
            raise UserError(f"{self.encoder.name}: tokens are not finite on {names}; check the checkpoint.")
        return tokens

    def tokens(self, indices: Sequence[int]) -> Float[Tensor, "B L D"]:
        """See TokenSource."""
        parts = [
            self._pass(indices[start : start + self.batch_size]) for start in range(0, len(indices), self.batch_size)
        ]
        return torch.cat(parts)  # outside inference mode: a tensor that a head may train on

    def labels(self, indices: Sequence[int]) -> Int16[Tensor, "B R R"]:
        """See TokenSource."""
        return torch.from_numpy(np.stack([signed(self.views.labels(i)) for i in indices]))


class CachedTokens:
    """Tokens and labels read from disk by memory map; labels are written at the first look."""

    def __init__(self, cache: FeatureCache, views: Views, root: Path, grid: tuple[int, int]) -> None:
        self.cache, self.views, self.root, self.grid = cache, views, root, grid
        self.dim = int(cache.arrays["tokens"].shape[2])

    def __len__(self) -> int:
        return len(self.views)

    @functools.cached_property
    def _label_file(self) -> np.ndarray:
        return _labels_on_disk(self.views, self.root)

    def tokens(self, indices: Sequence[int]) -> Float[Tensor, "B L D"]:
        """See TokenSource."""
        return self.cache.rows("tokens", list(indices))

    def labels(self, indices: Sequence[int]) -> Int16[Tensor, "B R R"]:
        """See TokenSource."""
        return torch.from_numpy(signed(np.stack([self._label_file[i] for i in indices])))


def _told(count: int, batch_size: int, say: Callable[[int], None]) -> Iterator[range]:
    """Batches of 0..count-1; `say` hears how many are done about five times."""
    told = 0
    for start in range(0, count, batch_size):
        done = min(start + batch_size, count)
        yield range(start, done)
        if done == count or done - told >= max(count / 5, 1):
            told = done
            say(done)


def _labels_on_disk(views: Views, root: Path) -> np.ndarray:
    """(N,R,R) uint8 labels of all views by memory map, written first when they are not there."""
    path = root / f"labels-{views.label_digest()[:20]}.npy"
    shape = (len(views), views.resolution, views.resolution)

    def write(temporary: Path) -> None:
        # plain writes: a full disk is an error here, where a memory map would end the process
        with open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i in range(len(views)):
                file.write(np.ascontiguousarray(views.labels(i), np.uint8).tobytes())

    def read() -> np.ndarray:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape != shape or found.dtype != np.uint8:
            raise ValueError(f"shape {found.shape} of {found.dtype}, not {shape} of bytes")
        return found

    if path.is_file():
        try:
            return read()
        except (OSError, ValueError, EOFError) as e:
            log.warning("%s: damaged label file (%s); written again", path, str(e) or type(e).__name__)
    log.info("labels of %d views into %s", len(views), path)
    atomic_write(path, write)
    return read()


def cache_gb(encoder: DenseEncoder, views: Views, dtype: str = "float16") -> float:
    """Size on disk of the cached tokens and labels of these views, in GB."""
    h, w = encoder.grid(views.resolution, views.resolution)
    tokens = estimate_gb({"tokens": (h * w, encoder.out_dim)}, len(views), dtype)
    return tokens + len(views) * views.resolution**2 / 1e9


def open_tokens(
    encoder: DenseEncoder,
    views: Views,
    cache: Path | None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    dtype: str = "float16",
    name: str = "views",
) -> TokenSource:
    """Tokens of all views: read from the folder `cache` (computed into it at first), or on the fly when it is None.

    Cached arrays are found by a hash of encoder, images, views and resolution, so those of another checkpoint are never
    taken. Raises UserError when the resolution does not fit the patch, a token is not finite, or the disk refuses.
    """
    live = LiveTokens(encoder, views, device, batch_size)
    if cache is None:
        return live
    shape = (live.grid[0] * live.grid[1], live.dim)
    key = cache_key(encoder=encoder_digest(encoder), views=views.digest(), dtype=dtype, version=1)
    start = time.perf_counter()

    def say(done: int) -> None:
        log.info("%s: tokens of %d/%d views, %.0f s", name, done, len(views), time.perf_counter() - start)

    def produce() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        log.info("%s: %d views take %.2f GB in %s", name, len(views), cache_gb(encoder, views, dtype), cache)
        for part in _told(len(views), batch_size, say):
            tokens = live.tokens(part)
            if dtype == "float16" and float(tokens.abs().max()) > torch.finfo(torch.float16).max:
                raise UserError(f"{encoder.name}: tokens of {views.name(part[0])} exceed float16; cache in float32.")
            yield list(part), {"tokens": tokens}

    found = open_cache(Path(cache), key, {"tokens": shape}, rows=len(views), dtype=dtype, produce=produce)
    return CachedTokens(found, views, Path(cache), live.grid)
