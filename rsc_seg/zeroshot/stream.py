"""What every measure over many pictures shares: reading ahead of the encoder, and progress in the log."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
EVERY = 20.0  # seconds between two lines of progress


def prefetched(make: Callable[[int], T], indices: Iterable[int], workers: int) -> Iterator[T]:
    """`make(i)` for every index, in order, by `workers` threads; 0 makes each when it is asked for.

    At most 2 * workers + 1 results wait at a time. What `make` raises is raised here, in order.
    """
    if workers < 1:
        yield from map(make, indices)
        return
    pool = ThreadPoolExecutor(workers, "pictures")  # decoding and resizing leave Python's lock
    waiting: deque[Future[T]] = deque()
    try:
        for i in indices:
            waiting.append(pool.submit(make, i))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Lines such as `untuned: 250 of 5000 pictures, 1.4 a second, 56 min left`, not too often.

    Speed and rest are of this call: pictures that an earlier one has `done` take no part in them.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        what: str = "pictures",
    ) -> None:
        self.name, self.total, self.start, self.done, self.clock = name, total, done, done, clock
        self.what = what
        self.began = self.told = clock()

    def add(self, count: int) -> None:
        """Counts pictures; says so when the last line is `EVERY` seconds old, and at the end."""
        self.done += count
        now = self.clock()
        if now - self.told < EVERY and self.done < self.total:
            return
        self.told = now
        seconds = max(now - self.began, 1e-9)
        rate = (self.done - self.start) / seconds
        rest = "done in " + duration(seconds)
        if self.done < self.total:
            rest = duration((self.total - self.done) / rate) + " left" if rate > 0 else "time left unknown"
        log.info("%s: %d of %d %s, %.3g a second, %s", self.name, self.done, self.total, self.what, rate, rest)
