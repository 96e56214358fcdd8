"""Preparing a split: what is there is kept, the rest is converted beside its place and moved there as a whole."""

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from rsc_seg.data.prepare_convert import Convert, Item
from rsc_seg.data.prepare_files import (
    publish,
    read_values,
    require_size,
    staging_folder,
    store,
    stored_size,
    whole_size,
)
from rsc_seg.data.prepare_sources import Recipe
from rsc_seg.data.segsets import SegSet
from rsc_seg.errors import UserError

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0
_CHUNK = 16  # items sent to a worker at once
KEPT, CONVERTED, EMPTY = "kept", "converted", "empty"


@dataclass(frozen=True)
class Outcome:
    """How many images of a split had their labels already, got them now, and have no pixel with a class."""

    segset: SegSet
    labels: Path
    kept: int
    converted: int
    empty: int

    @property
    def line(self) -> str:
        """The outcome in one line."""
        left_out = f", {self.empty} without any class left out" if self.empty else ""
        return (
            f"{self.segset.name}: {self.kept + self.converted} images with labels in {self.labels} "
            f"({self.converted} converted, {self.kept} kept{left_out})"
        )


def staged(recipe: Recipe, out: Path) -> Path:
    """Where a file to be made waits."""
    folder = next(f for f in recipe.folders if out.is_relative_to(f))
    return staging_folder(recipe.base / folder) / out.relative_to(folder)


def is_sound(item: Item, files: list[Path]) -> bool:
    """Whether an item's files are there, whole by header and end, and of its image's size."""
    sizes = [whole_size(file) if file.is_file() else None for file in files]
    if None in sizes:
        return False
    wanted = sizes[0] if len(sizes) > 1 else stored_size(item.image)
    return sizes[-1] in (wanted, wanted[::-1] if wanted else None)


def _convert(recipe_convert: Convert, job: tuple[Item, list[Path]]) -> str:
    item, files = job
    made = recipe_convert(item)
    if made is None:
        return EMPTY
    for file, data in zip(files, made, strict=True):
        store(file, data)
    return CONVERTED


def _examine(recipe_convert: Convert, segset: SegSet, job: tuple[Item, list[Path]]) -> str:
    item, files = job
    if not all(file.is_file() for file in files):
        return EMPTY if recipe_convert(item) is None else CONVERTED
    values = read_values(files[-1])
    require_size(values.shape, files[-1], files[0] if len(files) > 1 else item.image)
    wrong = (values >= segset.label_count) & (values != segset.ignore_label)
    if wrong.any():
        y, x = (int(v) for v in np.argwhere(wrong)[0])
        raise UserError(
            f"{files[-1]}: label {int(values[y, x])} at pixel ({x}, {y}) is neither below {segset.label_count} nor "
            f"{segset.ignore_label}; remove the file and run the command again."
        )
    return KEPT


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcomes(work: Callable[[tuple[Item, list[Path]]], str], jobs: list, workers: int) -> Iterator[str]:
    if workers <= 1 or len(jobs) <= _CHUNK:
        yield from map(work, jobs)
        return
    # spawned, not forked: the calling process may have threads
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
    try:
        yield from pool.map(work, jobs, chunksize=_CHUNK)
    except BrokenProcessPool as e:
        raise UserError("a worker was ended from outside (out of memory?): run again with fewer --workers.") from e
    finally:
        pool.shutdown(cancel_futures=True)


def _tally(title: str, work: Callable[[tuple[Item, list[Path]]], str], jobs: list, workers: int) -> dict[str, int]:
    counts = {KEPT: 0, CONVERTED: 0, EMPTY: 0}
    said = time.monotonic()
    for done, outcome in enumerate(_outcomes(work, jobs, workers), 1):
        counts[outcome] += 1
        if time.monotonic() - said > _REPORT_SECONDS:
            said = time.monotonic()
            logger.info("%s: %d of %d", title, done, len(jobs))
    return counts


def prepare_split(recipe: Recipe, workers: int = 1) -> Outcome:
    """Makes what is missing of a split.

    Files that are whole and of the right size stay; new ones wait in a hidden folder beside their place, where an
    interrupted run's files are found again, and go to their place when all of them are done. Raises UserError for
    a source that cannot be used (named) and for a system that refuses to write; what is converted by then is kept.
    """
    jobs: list[tuple[Item, list[Path]]] = []
    kept = 0
    for item in recipe.items:
        waiting = [staged(recipe, out) for out in item.outs]
        if is_sound(item, [recipe.base / out for out in item.outs]) or is_sound(item, waiting):
            kept += 1
        else:
            jobs.append((item, waiting))
    logger.info("%s: %d images, %d to convert", recipe.title, len(recipe.items), len(jobs))
    counts = _tally(recipe.title, partial(_convert, recipe.convert), jobs, workers)
    for folder in recipe.folders:
        publish(recipe.base / folder)
    labels = recipe.base / recipe.segset.labels
    return Outcome(recipe.segset, labels, kept, counts[CONVERTED], counts[EMPTY])


def check_split(recipe: Recipe, workers: int = 1) -> Outcome:
    """Reads every pixel of a split's labels, writes nothing: prepared ones (`kept`), else the raw ones (`converted`).

    Raises UserError for the first file that cannot be used.
    """
    jobs = [(item, [recipe.base / out for out in item.outs]) for item in recipe.items]
    counts = _tally(f"{recipe.title} (check)", partial(_examine, recipe.convert, recipe.segset), jobs, workers)
    labels = recipe.base / recipe.segset.labels
    return Outcome(recipe.segset, labels, counts[KEPT], counts[CONVERTED], counts[EMPTY])


def unready(outcome: Outcome) -> Optional[str]:
    """What a checked split still lacks, None when it is ready."""
    if not outcome.converted:
        return None
    total = outcome.kept + outcome.converted
    return f"{outcome.segset.name}: {outcome.converted} of {total} images lack prepared labels in {outcome.labels}"
