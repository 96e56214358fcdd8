"""Two processes with half a batch each train like one process with the whole batch.

The gradients are equal only because the wrapped task itself is called: a method called past the wrapper would leave
each process with its own.
"""

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning_fabric import Fabric

from rsc_seg.config import DistillStageConfig
from rsc_seg.training.batch import Batch
from rsc_seg.training.fit import FitOptions, fit
from rsc_seg.training.log import RunLog
from rsc_seg.training.optim import make_optimizer
from rsc_seg.training.tasks import Task
from tests.training.clip_helpers import rla_batch, rla_task
from tests.training.clip_helpers import share as region_share
from tests.training.helpers import (
    distill_task,
    furthest,
    groups,
    optim,
    refiner_task,
    tiny_batch,
    tiny_encoder,
    tiny_refiner,
    values,
)

# micro-batches of a step
STAGES = {"refine": 2, "distill": 1, "clipself": 1, "regiontext": 1, "densecl": 1, "ibot": 2, "attention": 1}
GLOBAL, STEPS, TIMEOUT = 4, 3, 240


def new_task(stage: str) -> Task:
    if stage in ("clipself", "regiontext"):  # one beside a distillation, one alone
        return rla_task(stage, refined=stage == "clipself")
    if stage not in ("refine", "distill"):
        return rla_task(distill=DistillStageConfig(loss=stage, ema=0.9))
    encoder = tiny_encoder()
    return refiner_task(encoder) if stage == "refine" else distill_task(encoder, tiny_refiner(encoder, noise=0.1))


def whole_batch(stage: str, seed: int) -> Batch:
    """What all processes have in one micro-step; with regions, each image has another number of boxes."""
    return tiny_batch(seed, GLOBAL) if stage in ("refine", "distill") else rla_batch(seed, GLOBAL)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """One process's contiguous part of a global batch."""
    n = GLOBAL // world
    mine = slice(rank * n, (rank + 1) * n)
    if batch.regions is not None:
        return region_share(batch, mine)
    return dataclasses.replace(
        batch, boxes=batch.boxes[mine], names=batch.names[mine], images=batch.pictures[mine], crops=batch.cuts[mine]
    )


def gradients(fabric: Fabric, stage: str) -> dict[str, torch.Tensor]:
    """Gradients of one step; the task must be moved by `fabric` and called through its wrapper."""
    task = new_task(stage)
    module, _ = fabric.setup(task, make_optimizer(groups(task, optim())))
    batch = share(whole_batch(stage, 50), fabric.global_rank, fabric.world_size)
    fabric.backward(module(batch)["loss"])
    return {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}


def trained(fabric: Fabric, stage: str, folder: Path) -> dict[str, torch.Tensor]:
    """Weights after a few steps of the loop."""
    task, config = new_task(stage), optim(lr=1e-3, accumulate=STAGES[stage])

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, start + 100):
            yield share(whole_batch(stage, 100 + step), fabric.global_rank, fabric.world_size)

    log = RunLog(folder, enabled=fabric.is_global_zero)
    options = FitOptions(stage, STEPS, config, log_every=1, save_every=2)
    fit(fabric, task, groups=groups(task, config), batches=batches, options=options, folder=folder, log=log)
    return values(task)


def without_key_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights less the bias of the keys, which no softmax sees: its gradient is rounding, and Adam steps along it."""
    packed = {n: w.unflatten(0, (3, -1))[[0, 2]] for n, w in weights.items() if n.endswith("attn.qkv.bias")}
    return weights | packed


def work(folder: Path, rank: int, world: int, port: int) -> None:
    """What one process does; its results lie in rank<N>.pt."""
    torch.set_num_threads(1)
    if world > 1:  # as torchrun sets them
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    assert (fabric.world_size, fabric.global_rank) == (world, rank)
    found = {
        stage: {"gradients": gradients(fabric, stage), "weights": trained(fabric, stage, folder)} for stage in STAGES
    }
    torch.save(found, folder / f"rank{rank}.pt")
    fabric.barrier()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def main(folder: Path) -> int:
    """Forks two processes before this one has computed anything, so that the libraries are imported once."""
    context, port = multiprocessing.get_context("fork"), free_port()
    started = [context.Process(target=work, args=(folder, rank, 2, port)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT / 2)
        if process.exitcode is None:
            process.kill()
    return max(abs(process.exitcode if process.exitcode is not None else 1) for process in started)


def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = "import sys; from pathlib import Path; from tests.training.test_distributed import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(Path(sys.argv[1])))", str(tmp_path)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (tmp_path / "one").mkdir()
    work(tmp_path / "one", 0, 1, 0)
    one = torch.load(tmp_path / "one" / "rank0.pt")
    two = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for stage in STAGES:
        for kind in ("gradients", "weights"):
            assert furthest(two[0][stage][kind], two[1][stage][kind]) == 0
        scale = max(float(g.abs().max()) for g in one[stage]["gradients"].values())
        assert furthest(one[stage]["gradients"], two[0][stage]["gradients"]) < 1e-5 * scale
        # Adam divides by the gradient's size, so rounding grows where a gradient is nearly zero
        assert furthest(*(without_key_biases(found[stage]["weights"]) for found in (one, two[0]))) < 2e-4
    lines = [
        [json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (tmp_path / "one", tmp_path)
    ]
    assert [(r["stage"], r["step"]) for r in lines[1]] == [(s, i) for s in STAGES for i in range(STEPS)]
    for a, b in zip(*lines, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5 and abs(a["grad_norm"] / b["grad_norm"] - 1) < 1e-3
