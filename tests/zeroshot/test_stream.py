"""Reading ahead, and progress in the log."""

import logging
import threading

import pytest

from rsc_seg.zeroshot import stream
from rsc_seg.zeroshot.stream import Progress, duration, prefetched


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept_and_little_is_read_ahead(workers: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def make(i: int) -> int:
        with lock:
            begun.append(i)
        return i * i

    results = prefetched(make, range(20), workers)
    assert next(results) == 0
    assert len(begun) <= 2 * workers + 1
    assert list(results) == [i * i for i in range(1, 20)] and sorted(begun) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_and_ends_the_reading(workers: int) -> None:
    def make(i: int) -> int:
        if i == 3:
            raise ValueError("third")
        return i

    results, seen = prefetched(make, range(1000), workers), []
    with pytest.raises(ValueError, match="third"):
        for value in results:
            seen.append(value)
    assert seen == [0, 1, 2] and not any(t.name.startswith("pictures") for t in threading.enumerate())


def test_a_reader_that_is_left_alone_ends_its_threads() -> None:
    results = prefetched(lambda i: i, range(1000), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not any(t.name.startswith("pictures") for t in threading.enumerate())


def test_durations() -> None:
    assert [duration(s) for s in (3.4, 89, 91, 3600, 3 * 3600 + 20 * 60)] == [
        "3 s",
        "89 s",
        "2 min",
        "60 min",
        "3 h 20 min",
    ]


def test_progress_tells_speed_and_rest_of_this_call(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    progress = Progress("untuned", 1000, done=400, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "rsc_seg"):
        for _ in range(4):
            now[0] += stream.EVERY / 2
            progress.add(50)
        now[0] += 200
        progress.add(400)
    assert caplog.messages == [
        "untuned: 500 of 1000 pictures, 5 a second, 2 min left",
        "untuned: 600 of 1000 pictures, 5 a second, 80 s left",
        "untuned: 1000 of 1000 pictures, 2.5 a second, done in 4 min",
    ]
