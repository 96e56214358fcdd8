"""Which image comes at which step: a pure function of the step, so that a resumed run needs the step's number only."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rsc_seg.errors import UserError

Skipped = list[tuple[str, str]]


def keyed_rng(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` alone: equal in every process, on every platform, in any order of calls."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    order = keyed_rng("order", seed, epoch).permutation(n)
    order.flags.writeable = False
    return order


def step_indices(
    step: int, *, n: int, batch_size: int, world: int = 1, rank: int = 0, seed: int
) -> list[tuple[int, int]]:
    """(epoch, image) pairs of one process at one step.

    A global batch is `batch_size * world` images of the epoch's permutation, cut into contiguous parts by rank: two
    processes of batch b see what one process of 2b sees. The last incomplete batch of an epoch is dropped. With fewer
    images than a global batch holds, permutations follow each other without a gap, each with an epoch number of its
    own, so an image that comes twice in a batch comes under two epochs. With accumulation, a step here is a micro-step.
    """
    whole = batch_size * world
    if n < 1:
        raise UserError("the data set is empty (data.root, data.split): there is nothing to train on.")
    mine = range(rank * batch_size, (rank + 1) * batch_size)
    if n >= whole:
        epoch, place = divmod(step, n // whole)
        order = _permutation(n, seed, epoch)
        return [(epoch, int(order[place * whole + j])) for j in mine]
    visits = [divmod(step * whole + j, n) for j in mine]
    return [(epoch, int(_permutation(n, seed, epoch)[k])) for epoch, k in visits]


@runtime_checkable
class SampleSource(Protocol):
    """What `StepLoader` draws from: samples by (epoch, index), tensors, numbers and strings by name."""

    def __len__(self) -> int:
        """Number of images."""

    def sample(self, epoch: int, index: int) -> dict[str, Any]:
        """One sample; `skipped` in it, if there, lists (name, reason) of images replaced on the way."""

    def note_skipped(self, skipped: Skipped) -> None:
        """Takes note of replaced images; the same one may come again."""


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch: tensors are stacked, numbers become a tensor, lists are joined, strings become a list."""
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [s[key] for s in samples]
        if isinstance(first, torch.Tensor):
            batch[key] = torch.stack(values)
        elif isinstance(first, (int, float)):
            batch[key] = torch.tensor(values)
        elif isinstance(first, list):
            batch[key] = [item for value in values for item in value]
        else:
            batch[key] = values
    return batch


class _Samples(Dataset[dict[str, Any]]):
    """Samples by (epoch, index). A UserError is handed over as a value: a raised one would lose its single line."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        try:
            return self.source.sample(*key)
        except UserError as e:
            return {"error": e}


def _collate_or_fail(samples: list[dict[str, Any]]) -> dict[str, Any] | UserError:
    for sample in samples:
        if "error" in sample:
            error: UserError = sample["error"]
            return error
    return collate(samples)


class _Batches(Sampler[list[Any]]):
    """The keys of each step, made when they are asked for."""

    def __init__(self, steps: range, keys: Callable[[int], list[tuple[int, int]]]) -> None:
        self.steps = steps
        self.keys = keys

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Any]]:
        return (self.keys(step) for step in self.steps)


class StepLoader:
    """Batches of the given steps, in order, collated; the same for any number of workers.

    Workers live from the first step to the last, over all epochs. Nothing is drawn from the global random state. A
    UserError comes out of a worker as it was raised there.
    """

    def __init__(
        self,
        source: SampleSource,
        steps: range,
        *,
        batch_size: int,
        seed: int,
        world: int = 1,
        rank: int = 0,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if workers < 0 or batch_size < 1:
            raise UserError(f"data.workers={workers}, batch_size={batch_size}: must be 0 or more, and 1 or more.")
        self.source = source
        self.steps = steps
        keys = functools.partial(step_indices, n=len(source), batch_size=batch_size, world=world, rank=rank, seed=seed)
        self._loader: DataLoader[dict[str, Any]] = DataLoader(
            _Samples(source),
            batch_sampler=_Batches(steps, keys),
            num_workers=workers,
            collate_fn=_collate_or_fail,
            generator=torch.Generator().manual_seed(seed),  # else the loader takes a number from the global state
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self._loader)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                self.source.note_skipped(batch.get("skipped", []))
                yield batch
        finally:
            del batches  # ends the workers now; a traceback would keep them waiting
