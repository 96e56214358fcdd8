"""Processes: what a machine cannot have, one line for a UserError, and weights equal to those of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException

from rsc_seg.cli.train_catseg import main
from rsc_seg.d2 import launch
from rsc_seg.d2.launch import check_processes, local_device, of_first, run_processes
from rsc_seg.errors import UserError
from tests.d2.sets import NAMES, write_set
from tests.training.helpers import furthest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 240
ARGS = ["clip.name=clip_tiny16", "clip.weights=none", "model.finetune=full", "model.grid=[3,3]", "model.hidden=16"]
ARGS += ["model.heads=2", "model.layers=1", "model.window=2", "model.decoder=[16,16]", "model.taps=[8,8]"]
# fewer places for padding than classes: the padding has no gradient, which two processes must know
ARGS += ["model.decoder_guidance=[4,4]", f"model.class_length={len(NAMES) - 1}", "data.train=scenes_train"]
ARGS += ["data.test=[scenes_val]", f"data.classes=[{','.join(NAMES)}]", "data.crop=[32,32]", "data.min_size=[40]"]
ARGS += ["data.min_size_test=40", "data.workers=0", "solver.max_iter=3", "solver.batch_size=4", "solver.lr=1e-4"]
ARGS += ["test.every=0", "test.protocol=whole", "test.check=off", "run.device=cpu", "run.log_every=1"]
ARGS += ["model.ignore=mask"]  # each process has another number of labelled pixels


def test_processes_that_a_machine_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(torch.device("cpu"), 64)
    with pytest.raises(UserError, match="--num-gpus 0: must be 1 or more"):
        check_processes(torch.device("cpu"), 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--num-gpus 2: this machine has 1 CUDA devices"):
        check_processes(torch.device("cuda"), 2)
    with pytest.raises(UserError, match="run.device=mps runs in one process"):
        check_processes(torch.device("mps"), 2)


def test_one_process_is_this_one() -> None:
    found: list[int] = []
    run_processes(found.append, 1, device=torch.device("cpu"), args=(os.getpid(),))
    assert found == [os.getpid()] and of_first("x") == "x"
    assert local_device(torch.device("cpu")) == torch.device("cpu")


class InProcess:
    """detectron2's launch as it looks from outside, with one process that is this one."""

    def __init__(self) -> None:
        self.saw: list[str | None] = []

    def __call__(self, work: Callable[..., None], count: int, *, dist_url: str, args: tuple[Any, ...]) -> None:
        self.saw.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        try:
            work(*args)
        except SystemExit as e:
            raise ProcessExitedException("process 0 ended", 0, 1, exit_code=int(str(e))) from e


def fails(what: str) -> None:
    if what == "user":
        raise UserError("data.root: no such folder.")
    raise ValueError("a fault of ours")


def test_an_error_of_a_process_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started = InProcess()
    monkeypatch.setattr(launch, "launch", started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=r"^data\.root: no such folder\.$"):
        run_processes(fails, 2, device=torch.device("cpu"), args=("user",))
    with pytest.raises(ValueError, match="a fault of ours"):
        run_processes(fails, 2, device=torch.device("cuda"), args=("other",))
    assert started.saw == ["", "3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UserError):
        run_processes(fails, 2, device=torch.device("cpu"), args=("user",))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def two_processes(root: Path, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    given = [*ARGS, f"data.root={root}", "--num-gpus", "2", "--output-dir", str(folder), *more]
    return subprocess.run(
        [sys.executable, "tools/train_catseg.py", *given],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=8, val=5)
    one, two = tmp_path / "one", tmp_path / "two"
    done = two_processes(root, two)
    assert done.returncode == 0, done.stderr[-4000:]
    assert main([*ARGS, f"data.root={root}", "--output-dir", str(one)]) == 0
    weights = [load_file(folder / "catseg.safetensors") for folder in (one, two)]
    assert furthest(*weights) < 1e-6
    results = [json.loads((folder / "catseg.json").read_text()) for folder in (one, two)]
    sets = [result["rows"][-1]["sets"]["scenes_val"] for result in results]
    assert [s["images"] for s in sets] == [5, 5]
    assert sets[0]["scores"]["pacc"] == pytest.approx(sets[1]["scores"]["pacc"], abs=0.01)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    for a, b in zip(*rows, strict=True):
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        if a["stage"] == "train":
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert "train 3/3" in done.stderr and done.stderr.count("train 3/3") == 1
    assert "FutureWarning" not in done.stderr


def test_an_error_of_one_of_two_processes_is_all_that_is_said(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", train=4, val=2)
    (root / "ADEChallengeData2016" / "images" / "validation" / "val1.jpg").write_bytes(b"no picture")
    done = two_processes(root, tmp_path / "run", "--eval-only")
    assert done.returncode == 2, done.stderr[-4000:]
    assert "val1.jpg" in done.stderr.rstrip().splitlines()[-1]
    assert not any(word in done.stderr for word in ("Traceback", "FutureWarning", "resource_tracker"))
