"""A run that is killed at any step and resumed gives the weights of a run that is not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from rsc_seg.cli.rscv_finetune import main
from tests.training.helpers import furthest, write_pictures

STEPS = 60
ARGS = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu", "data.kind=folder", "data.workers=0"]
ARGS += ["data.image_size=[56,84]", "crops.size=[28,28]", "crops.per_image=2", "crops.bank=4", "distill.boxes=2"]
ARGS += ["refiner.hidden=16", "refine.optim.batch_size=2", f"refine.optim.max_steps={STEPS}", "run.log_every=1"]
ARGS += ["distill.optim.batch_size=2", f"distill.optim.max_steps={STEPS}", "distill.optim.lr=1e-3", "run.save_every=2"]
ROOT = Path(__file__).resolve().parents[2]


def steps(folder: Path) -> list[tuple[str, int]]:
    """(stage, step) of every whole line of the log."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    return [(row["stage"], row["step"]) for row in rows]


def kill_at(folder: Path, args: list[str], stage: str, step: int) -> None:
    """Starts the command as a user does and kills it once `stage` has logged `step`."""
    with (folder.parent / f"killed_{stage}.txt").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "rsc_seg.cli.rscv_finetune", *args],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=err,
            stderr=err,
        )
        try:
            deadline = time.monotonic() + 120
            while (stage, step) not in steps(folder):
                assert process.poll() is None and time.monotonic() < deadline, Path(err.name).read_text()
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    assert code == -signal.SIGKILL, "the run ended before it was killed"


def test_killed_in_both_stages_and_resumed(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*ARGS, f"data.root={root}", "--output-dir", str(whole)]) == 0
    args = [*ARGS, f"data.root={root}", "--output-dir", str(killed)]
    rng = random.Random(2)
    kill_at(killed, args, "refine", rng.randrange(3, 15))
    assert not (killed / "refiner.safetensors").exists()
    kill_at(killed, [*args, "--resume"], "distill", rng.randrange(3, 15))
    assert (killed / "refiner.safetensors").exists() and not (killed / "student.safetensors").exists()
    assert main([*args, "--resume"]) == 0
    for name in ("refiner", "student", "student_alpha1"):
        a, b = (load_file(folder / f"{name}.safetensors") for folder in (whole, killed))
        assert furthest(a, b) <= 1e-6
    assert steps(killed) == steps(whole) == [(s, i) for s in ("refine", "distill") for i in range(STEPS)]
    assert not [p for p in killed.rglob("*") if p.name.startswith(".") and p.suffix == ".tmp"]
