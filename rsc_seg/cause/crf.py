"""The dense CRF of CAUSE's reported numbers, and a pool of processes for it; the one file that knows pydensecrf.

Worker processes import this file alone, so it keeps clear of torch.
"""

import contextlib
import importlib
import logging
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Optional, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from rsc_seg.errors import UserError

log = logging.getLogger(__name__)
Tag = TypeVar("Tag")
MODES = ("auto", "on", "off")
_EXTRA = "the dense CRF needs the package pydensecrf2: install rsc-seg[crf], or switch it off (crf=off)"


@dataclass(frozen=True)
class CrfSettings:
    """The official values: pixels, colour steps (0..255) and weights of both pairwise terms."""

    iterations: int = 10
    gaussian_xy: float = 1.0
    gaussian_weight: float = 3.0
    bilateral_xy: float = 67.0
    bilateral_rgb: float = 3.0
    bilateral_weight: float = 4.0
    floor: float = 1e-5


def _densecrf() -> Any:
    try:
        module = importlib.import_module("pydensecrf.densecrf")
    except ImportError as e:
        raise UserError(f"{_EXTRA} ({e}).") from e
    if getattr(module, "DenseCRF2D", None) is None:
        raise UserError(f"{_EXTRA}; what is installed lacks DenseCRF2D, so install it anew.")
    return module


def crf_available() -> bool:
    """Whether the dense CRF can run here."""
    try:
        _densecrf()
    except UserError:
        return False
    return True


def crf_wanted(mode: str) -> bool:
    """What a setting of `MODES` means here: auto uses the CRF when its package is there, and logs a line when not.

    Raises UserError for another setting, and for `on` without the package.
    """
    if mode not in MODES:
        raise UserError(f"crf={mode}: must be one of {', '.join(MODES)}.")
    if mode == "on":
        _densecrf()
    if mode == "auto" and not crf_available():
        log.warning("no CRF: pydensecrf2 is not installed (rsc-seg[crf]); only the rows without it are made")
        return False
    return mode != "off"


def crf_image(
    normalized: Float[np.ndarray, "3 H W"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[np.ndarray, "H W 3"]:
    """A normalised RGB image as the CRF's: BGR, 0..255, fractions cut off as officially (rounding gives another Q)."""
    # in the order and precision of the official inverse: x / (1 / std), then less -mean
    scale = np.array([1 / s for s in std], np.float32).reshape(3, 1, 1)
    shift = np.array([-m for m in mean], np.float32).reshape(3, 1, 1)
    values = (normalized.astype(np.float32) / scale - shift) * np.float32(255)
    return np.ascontiguousarray(values.astype(np.uint8)[::-1].transpose(1, 2, 0))  # (3,H,W) RGB to (H,W,3) BGR


def dense_crf(
    probabilities: Float[np.ndarray, "T H W"],
    image: UInt8[np.ndarray, "H W 3"],
    settings: CrfSettings | None = None,
) -> Float[np.ndarray, "T H W"]:
    """Class probabilities after mean-field inference of the fully connected CRF.

    `image` as `crf_image` gives it. Matches the official code bit for bit. Raises UserError without pydensecrf2.
    """
    s = settings if settings is not None else CrfSettings()
    count, height, width = probabilities.shape
    crf = _densecrf().DenseCRF2D(width, height, count)
    unary = -np.log(np.clip(probabilities, s.floor, 1.0))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(count, -1), np.float32))
    crf.addPairwiseGaussian(sxy=s.gaussian_xy, compat=s.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=s.bilateral_xy, srgb=s.bilateral_rgb, rgbim=np.ascontiguousarray(image), compat=s.bilateral_weight
    )
    return np.array(crf.inference(s.iterations), np.float32).reshape(count, height, width)


def crf_labels(
    probabilities: Float[np.ndarray, "T H W"], image: UInt8[np.ndarray, "H W 3"], settings: CrfSettings
) -> UInt8[np.ndarray, "H W"]:
    """The class of each pixel after the CRF; at most 256 classes."""
    return dense_crf(probabilities, image, settings).argmax(0).astype(np.uint8)


Work = Callable[[np.ndarray, np.ndarray, CrfSettings], np.ndarray]


def serve() -> None:
    """What a worker process does: work comes in by its standard input, results leave by its standard output."""
    source, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the results
    while True:
        try:
            work, *job = pickle.load(source)
        except EOFError:
            return
        try:
            answer = (True, work(*job))
        except Exception as e:  # raised again by the caller
            answer = (False, e)
        pickle.dump(answer, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()


class _Worker:
    """A process that runs the CRF.

    Not one of `multiprocessing`: that imports the caller's main module, torch and all, into each process, and a forked
    one may wait for ever for a thread that it does not have.
    """

    def __init__(self) -> None:
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # an interrupt from the keyboard is the caller's, who ends this process
        )

    def run(self, job: tuple[Any, ...]) -> np.ndarray:
        """The result of one job; raises what it raised, or UserError when the process is gone."""
        source, results = self.process.stdin, self.process.stdout
        if source is None or results is None:
            raise RuntimeError("a CRF process without pipes")
        try:
            pickle.dump(job, source, protocol=pickle.HIGHEST_PROTOCOL)
            source.flush()
            fine, answer = pickle.load(results)
        except (OSError, EOFError, pickle.UnpicklingError) as e:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)  # its pipes close a moment before it is gone
            raise UserError(
                f"a CRF process ended unexpectedly with code {self.process.returncode} (out of memory?): "
                "use fewer CRF workers or crf=off."
            ) from e
        if not fine:
            raise answer
        return answer

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written has no reader any more
                    pipe.close()


class CrfPool(Generic[Tag]):
    """Runs the CRF in processes while the caller goes on; results come in the order they were put in.

    `put` takes one image with whatever should come back beside its result, and returns the results that are due; `rest`
    waits for the remaining ones. No more than twice as many images as processes are held. `workers` 0 runs everything
    in the calling process, None takes a process for each core. To be used in a `with` block, which ends the processes
    even on an error.
    """

    def __init__(
        self, workers: Optional[int] = None, settings: CrfSettings | None = None, work: Work = crf_labels
    ) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if self.workers < 0:
            raise UserError(f"crf workers {self.workers}: must be 0 or more.")
        self.settings = settings if settings is not None else CrfSettings()
        self._work = work
        self._pending: deque[tuple[Future[np.ndarray], Tag]] = deque()
        self._processes: list[_Worker] = []
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._threads: Optional[ThreadPoolExecutor] = None

    def __enter__(self) -> "CrfPool[Tag]":
        if self.workers > 0:
            self._threads = ThreadPoolExecutor(self.workers, "crf")  # they only wait for the processes
            for _ in range(self.workers):
                self._processes.append(_Worker())
                self._idle.put(self._processes[-1])
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.end()  # first: a thread that waits for one wakes up
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._threads, self._processes, self._idle = None, [], SimpleQueue()
        self._pending.clear()

    def _run(self, *job: Any) -> np.ndarray:
        worker = self._idle.get()
        try:
            return worker.run(job)
        finally:
            self._idle.put(worker)

    def put(
        self, tag: Tag, probabilities: Float[np.ndarray, "T H W"], image: UInt8[np.ndarray, "H W 3"]
    ) -> list[tuple[Tag, UInt8[np.ndarray, "H W"]]]:
        """Adds one image; returns results that are finished or must be waited for to keep memory flat."""
        job = (self._work, probabilities, image, self.settings)
        if self.workers == 0:
            future: Future[np.ndarray] = Future()
            future.set_result(self._work(*job[1:]))
        elif self._threads is None:
            raise RuntimeError("a CrfPool works inside its with block only")
        else:
            future = self._threads.submit(self._run, *job)
        self._pending.append((future, tag))
        due = []
        while self._pending and (len(self._pending) > 2 * self.workers or self._pending[0][0].done()):
            first, its_tag = self._pending.popleft()
            due.append((its_tag, first.result()))
        return due

    def rest(self) -> list[tuple[Tag, UInt8[np.ndarray, "H W"]]]:
        """The results that are left, in order."""
        due = [(tag, future.result()) for future, tag in self._pending]
        self._pending.clear()
        return due
