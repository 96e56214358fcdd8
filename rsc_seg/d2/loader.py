"""Batches of a set: a stream for training that can go on from any step, and one pass for evaluation."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.d2.mapper import Sample, TestMapper, TrainMapper
from rsc_seg.data.seg_task import TaskSet
from rsc_seg.errors import UserError

_ERROR = "error"


def check_limit(key: str, limit: Optional[int]) -> None:
    """UserError for a limit below 1."""
    if limit is not None and limit < 1:
        raise UserError(f"{key}={limit}: must be 1 or more, or null for all.")


def records_of(task: TaskSet, limit: Optional[int] = None, key: str = "data.limit") -> list[dict[str, str]]:
    """Records as of detectron2's `load_sem_seg`, the first `limit` of them. Raises UserError for a limit below 1."""
    check_limit(key, limit)
    pairs = task.pairs()[:limit]
    return [{"file_name": str(image), "sem_seg_file_name": str(labels)} for image, labels in pairs]


class _Guarded:
    """A mapper that hands a UserError over as a value: raised in a worker, it would lose its single line."""

    def __init__(self, mapper: Callable[[Sample], Sample]) -> None:
        self.mapper = mapper

    def __call__(self, record: Sample) -> Sample:
        try:
            return self.mapper(record)
        except UserError as e:
            return {_ERROR: e}


def _raised(batch: list[Sample]) -> list[Sample]:
    for sample in batch:
        if _ERROR in sample:
            error: UserError = sample[_ERROR]
            raise error
    return batch


class _Places(Sampler[int]):
    """Numbers that hold an image and its place in the stream; this process's share of detectron2's training stream."""

    def __init__(self, size: int, seed: int, first: int) -> None:
        self.size, self.first = size, first
        self.stream = TrainingSampler(size, seed=seed)
        self.rank, self.world = comm.get_rank(), comm.get_world_size()  # here: a worker may not know them

    def __iter__(self) -> Iterator[int]:
        mine = zip(itertools.count(self.rank, self.world), self.stream, strict=False)
        for place, index in itertools.islice(mine, self.first, None):
            yield place * self.size + index


class _Stream(Dataset[Sample]):
    """Records with their places, by the numbers of `_Places`."""

    def __init__(self, records: list[dict[str, str]]) -> None:
        # in one tensor, which worker processes share
        self.records = DatasetFromList(records, copy=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Sample:
        place, index = divmod(number, len(self))
        return {**self.records[index], "place": place}


def train_loader(
    task: TaskSet, data: CatSegDataConfig, *, batch_size: int, seed: int, start: int = 0
) -> Iterator[list[Sample]]:
    """This process's batches from step `start` on, without end.

    The stream is a new permutation of the images for each pass over them, of which processes take turns; `batch_size`
    counts the images of all processes. A batch depends on `seed` and its step alone, whatever the number of workers;
    the images of a step, and their views, are the same for any number of processes. Nothing is drawn from the global
    random state. Raises UserError for options that cannot be used, and when its file comes for an image or labels that
    cannot.
    """
    world = comm.get_world_size()
    if batch_size < 1 or batch_size % world:
        raise UserError(f"solver.batch_size={batch_size}: must be a multiple of the number of processes, {world}.")
    if data.workers < 0:
        raise UserError(f"data.workers={data.workers}: must be 0 or more.")
    records = records_of(task, data.limit)
    loader = build_detection_train_loader(
        _Stream(records),
        mapper=_Guarded(TrainMapper(task, data, seed)),
        sampler=_Places(len(records), seed, start * (batch_size // world)),
        total_batch_size=batch_size,
        aspect_ratio_grouping=False,
        num_workers=data.workers,
        seed=seed,  # else the loader takes a number from the global random state
    )
    return map(_raised, loader)


class TestLoader(DataLoader[Any]):
    """A data loader that raises the UserError of an image that cannot be used, as it was raised."""

    def __iter__(self) -> Any:
        """Batches in order."""
        return map(_raised, super().__iter__())


def test_loader(task: TaskSet, data: CatSegDataConfig, *, batch_size: int = 1) -> TestLoader:
    """This process's share of the set once, in order; shares are contiguous and as equal as can be.

    Raises UserError as `train_loader` does.
    """
    records = records_of(task, data.test_limit, "data.test_limit")
    dataset = MapDataset(DatasetFromList(records, copy=False), _Guarded(TestMapper(task, data)))
    return TestLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(records)),
        num_workers=data.workers,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator().manual_seed(0),  # else the loader takes a number from the global random state
    )
