"""One command on several processes, by detectron2's launch: on GPUs by NCCL, on the CPU by gloo."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from rsc_seg.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # detectron2 calls torch.jit.script
    from detectron2.engine import launch

T = TypeVar("T")
_HIDES_GPUS, _WARNINGS = "CUDA_VISIBLE_DEVICES", "PYTHONWARNINGS"


def check_processes(device: torch.device, count: int) -> None:
    """UserError for a number of processes that this machine or device cannot have."""
    if count < 1:
        raise UserError(f"--num-gpus {count}: must be 1 or more.")
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise UserError(f"--num-gpus {count}: this machine has {torch.cuda.device_count()} CUDA devices.")
    if device.type not in ("cpu", "cuda") and count > 1:
        raise UserError(f"--num-gpus {count}: run.device={device.type} runs in one process; leave it out.")


def local_device(device: torch.device) -> torch.device:
    """The device of this process: with several, each has the GPU of its number."""
    return torch.device("cuda", comm.get_local_rank()) if device.type == "cuda" else device


def is_main() -> bool:
    """Whether this is the first process, the one that writes files."""
    return bool(comm.is_main_process())


def wait_for_all() -> None:
    """Returns when all processes are here."""
    comm.synchronize()


def of_first(value: T) -> T:
    """What the first process gives, in all of them; a picklable value."""
    found: list[T] = comm.all_gather(value if is_main() else None)
    return found[0]


def _quiet_warnings() -> str:
    """What Python is told about warnings, and those that a user can do nothing about.

    detectron2 calls torch.jit.script; the option of torch that keeps buffers apart has a successor that older versions
    lack; and processes that end by an error leave semaphores that Python itself removes.
    """
    ours = ["ignore:`torch.jit.script`:FutureWarning", "ignore:`broadcast_buffers`:FutureWarning"]
    ours.append("ignore:resource_tracker:UserWarning")
    return ",".join([*filter(None, [os.environ.get(_WARNINGS)]), *ours])


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Processes started inside have these variables.

    They see no GPU where the run is on the CPU: detectron2 takes NCCL wherever there is one, which moves no CPU
    tensors.
    """
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _guarded(work: Callable[..., None], args: tuple[Any, ...], notes: str, threads: int) -> None:
    """What each process runs: a UserError is left as a note, as a traceback would come of it."""
    torch.set_num_threads(threads)
    try:
        work(*args)
    except UserError as e:
        (Path(notes) / f"{comm.get_rank():05d}.txt").write_text(str(e), encoding="utf-8")
        raise SystemExit(1) from e
    dist.destroy_process_group()


def run_processes(work: Callable[..., None], count: int, *, device: torch.device, args: tuple[Any, ...] = ()) -> None:
    """`work(*args)` in `count` processes of one machine that know each other; with one, in this process.

    `work` and `args` must be picklable. Processes share the threads of this one. A UserError of any of them ends all
    and is raised here.
    """
    if count == 1:
        work(*args)
        return
    threads = max(1, torch.get_num_threads() // count)
    hidden = {_HIDES_GPUS: ""} if device.type == "cpu" else {}
    with tempfile.TemporaryDirectory() as notes, _environment({**hidden, _WARNINGS: _quiet_warnings()}):
        try:
            launch(_guarded, count, dist_url="auto", args=(work, args, notes, threads))
        except (ProcessRaisedException, ProcessExitedException):
            told = sorted(Path(notes).glob("*.txt"))
            if told:
                raise UserError(told[0].read_text(encoding="utf-8")) from None
            raise
