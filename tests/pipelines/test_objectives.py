"""Every objective trains the stages and losses that its name says, resumes exactly, and refuses what has no sense."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.pipelines.objectives import OBJECTIVES, objective_title
from tests.pipelines.objective_runs import PICTURES, labels, rows, scenes, sidecar, tune
from tests.training.helpers import furthest
from tests.training.test_distributed import TIMEOUT, free_port

RLA = tuple(name for name, objective in OBJECTIVES.items() if objective.kind)
RESUMED = {
    "r-sc-clipself": [],
    "sc-clipself": ["distill.loss=densecl", "distill.ema=0.5"],
    "clipself": ["distill.optim.accumulate=2"],
    "sc-regiontext": ["distill.loss=ibot", "distill.ema=0.5"],
    "r-sc-regiontext": ["distill.end_to_end=true"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in COCO's layout."""
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


def student(folder: Path, name: str = "student_alpha1") -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def refused(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> None:
    """Exit code 2 and one line that says all `parts`."""
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert code == 2 and len(errors) == 1, errors
    for part in parts:
        assert part in errors[0], errors[0]


def test_the_objectives_are_the_documented_ones() -> None:
    assert list(OBJECTIVES) == [
        *("rscv", "scd", "clipself", "sc-clipself", "r-sc-clipself"),
        *("regiontext", "sc-regiontext", "r-sc-regiontext"),
    ]


def test_names_in_print() -> None:
    assert [objective_title(name) for name in OBJECTIVES] == [
        *("R-SC-V", "SCD", "CLIPSelf", "SC-CLIPSelf", "R-SC-CLIPSelf"),
        *("RegionText", "SC-RegionText", "R-SC-RegionText"),
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_steps_train_what_the_name_says(tmp_path: Path, root: Path, name: str) -> None:
    assert tune(tmp_path / "run", root, name, "distill.optim.lr=1e-3") == 0
    folder, objective = tmp_path / "run", OBJECTIVES[name]
    stages = ["refine", "refine"] if objective.has_refiner else []
    log = rows(folder)
    assert [row["stage"] for row in log] == [*stages, "distill", "distill"]
    assert ("rla" in log[-1]) == (objective.kind is not None)
    assert (folder / "refiner.safetensors").exists() == objective.has_refiner
    if objective.kind is not None and objective.target is not None:
        assert log[-1]["loss"] == pytest.approx(log[-1]["rla"] + 0.2 * log[-1]["scd"], rel=1e-5)
    facts, run = sidecar(folder), json.loads((folder / "run.json").read_text())
    assert facts["objective"] == name and run["training"]["objective"] == name
    assert facts.get("target") == objective.target and run["images"] == PICTURES
    assert facts.get("lambda") == (0.2 if objective.kind and objective.target else None)
    assert ("rla" in facts) == (objective.kind is not None) and ("refiner" in facts) == objective.has_refiner
    assert facts.get("boxes") == {"clipself": "grid", "regiontext": "labels", None: None}[objective.kind]
    half, full = student(folder, "student"), student(folder)
    moved = {key.split(".")[0] for key in full if not torch.equal(half[key], full[key])}
    assert moved == {"blocks"}


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_run_goes_on_exactly(tmp_path: Path, root: Path, name: str) -> None:
    more = [*RESUMED[name], "distill.optim.max_steps=4", "run.save_every=2", "distill.optim.lr=1e-3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert tune(whole, root, name, *more) == 0
    shutil.copytree(whole, stopped)
    stage = "end_to_end" if "distill.end_to_end=true" in more else "distill"
    (stopped / "checkpoints" / stage / "step_00000004.pt").unlink()
    for path in stopped.glob("student*"):
        path.unlink()
    assert tune(stopped, root, name, *more, "--resume") == 0
    assert furthest(student(whole), student(stopped)) == 0
    assert [r["loss"] for r in rows(whole)] == [r["loss"] for r in rows(stopped)]


def test_the_control_of_r_sc_is_sc_and_scd_is_rscv_with_the_teacher(tmp_path: Path, root: Path) -> None:
    more = ["distill.optim.lr=1e-3"]
    assert tune(tmp_path / "r", root, "r-sc-clipself", *more, "distill.control=true") == 0
    assert tune(tmp_path / "sc", root, "sc-clipself", *more) == 0
    assert furthest(student(tmp_path / "r", "control_alpha1"), student(tmp_path / "sc")) == 0
    assert furthest(student(tmp_path / "r"), student(tmp_path / "sc")) > 1e-5
    assert sidecar(tmp_path / "r", "control")["target"] == "teacher"
    assert tune(tmp_path / "scd", root, "scd", *more) == 0
    assert tune(tmp_path / "rscv", root, "rscv", *more, "distill.target=teacher") == 0
    assert furthest(student(tmp_path / "scd"), student(tmp_path / "rscv")) == 0


def test_lambda_of_nothing_leaves_the_alignment(tmp_path: Path, root: Path) -> None:
    more = ["distill.optim.lr=1e-3"]
    assert tune(tmp_path / "sc", root, "sc-clipself", *more, "distill.weight=0") == 0
    assert tune(tmp_path / "plain", root, "clipself", *more) == 0
    assert furthest(student(tmp_path / "sc"), student(tmp_path / "plain")) < 1e-6


def test_end_to_end_with_alignment_logs_both(tmp_path: Path, root: Path) -> None:
    assert tune(tmp_path / "run", root, "r-sc-clipself", "distill.end_to_end=true") == 0
    last = rows(tmp_path / "run")[-1]
    assert last["stage"] == "end_to_end"
    assert last["loss"] == pytest.approx(last["refine_loss"] + last["distill_loss"], rel=1e-5)
    assert last["distill_loss"] == pytest.approx(last["distill_rla"] + 0.2 * last["distill_scd"], rel=1e-5)
    assert (tmp_path / "run" / "refiner.safetensors").exists()


def test_a_refiner_of_another_run(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own" / "refiner.safetensors"
    assert tune(tmp_path / "own", root, "r-sc-clipself", "distill.optim.lr=1e-3") == 0
    given = [f"distill.refiner={file}", "distill.optim.lr=1e-3"]
    assert tune(tmp_path / "loaded", root, "r-sc-clipself", *given) == 0
    assert furthest(student(tmp_path / "own"), student(tmp_path / "loaded")) == 0
    assert [row["stage"] for row in rows(tmp_path / "loaded")] == ["distill", "distill"]
    run = json.loads((tmp_path / "loaded" / "run.json").read_text())
    assert run["refiner"]["file"] == str(file) and len(run["refiner"]["sha256"]) == 64
    assert sidecar(tmp_path / "loaded")["refiner_file"] == run["refiner"]

    for more, parts in (
        (["refiner.hidden=8"], ["refiner.hidden=16", "refiner.hidden=8"]),
        (["refiner.depth=1"], ["refiner.depth=2", "refiner.depth=1"]),
        ([f"backbone.weights={tmp_path / 'own' / 'student.safetensors'}"], ["trained on other encoder weights"]),
        (["distill.end_to_end=true"], ["distill.end_to_end=true trains its own"]),
        (["--stage", "refiner"], ["distill.refiner is given"]),
        (["objective=clipself"], ["objective=clipself has none"]),
    ):
        refused(capsys, tune(tmp_path / "bad", root, "r-sc-clipself", *given, *more), *parts)
        assert not (tmp_path / "bad").exists()
    refused(capsys, tune(tmp_path / "bad", root, "r-sc-clipself", "distill.refiner=absent.safetensors"), "absent")
    assert tune(tmp_path / "other", root, "r-sc-clipself", "--stage", "refiner", "--seed", "1") == 0
    for suffix in (".safetensors", ".json"):
        shutil.copy((tmp_path / "other" / "refiner").with_suffix(suffix), file.with_suffix(suffix))
    refused(capsys, tune(tmp_path / "loaded", root, "r-sc-clipself", *given, "--resume"), "not the file", "began with")


def test_its_second_stage_alone(tmp_path: Path, root: Path) -> None:
    file = tmp_path / "first" / "refiner.safetensors"
    assert tune(tmp_path / "first", root, "r-sc-clipself", "--stage", "refiner") == 0
    assert tune(tmp_path / "apart", root, "r-sc-clipself", "--stage", "distill", f"distill.refiner={file}") == 0
    assert tune(tmp_path / "first", root, "r-sc-clipself", "--stage", "distill") == 0
    assert furthest(student(tmp_path / "first"), student(tmp_path / "apart")) == 0


_DINOV2 = ["data.image_size=[56,56]", "crops.size=[28,28]", "backbone.name=dinov2_tiny14"]


@pytest.mark.parametrize(
    ("objective", "more", "parts"),
    [
        ("clipslef", [], ["objective=clipslef", "Did you mean 'clipself'?"]),
        ("clipself", _DINOV2, ["needs a CLIP", "dinov2_tiny14", "clip_vitb16"]),
        ("r-sc-regiontext", _DINOV2, ["needs a CLIP"]),
        ("sc-clipself", ["distill.control=true"], ["distill.control=true", "objective=sc-clipself"]),
        ("clipself", ["distill.end_to_end=true"], ["distill.end_to_end=true", "objective=clipself"]),
        ("clipself", ["--stage", "refiner"], ["--stage refiner", "objective=clipself has no Refiner"]),
        ("rscv", ["distill.boxes_from=rla"], ["distill.boxes_from=rla", "no RLA regions"]),
        ("sc-clipself", ["distill.weight=-1"], ["distill.weight=-1"]),
        ("r-sc-clipself", ["distill.loss=densecl"], ["distill.loss=densecl", "distill.target=teacher"]),
        ("sc-clipself", ["distill.loss=frobeinus"], ["distill.loss=frobeinus", "frobenius"]),
        ("regiontext", ["rla.pseudo_labels=absent.json"], ["absent.json", "rla.pseudo_labels"]),
        ("regiontext", ["rla.nouns=absent.txt"], ["absent.txt", "rla.nouns"]),
        ("regiontext", ["rla.noun_embeddings=absent.npy"], ["absent.npy", "rla.noun_embeddings"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1] if value else "",
)
def test_bad_options_leave_nothing(
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    more: list[str],
    parts: list[str],
) -> None:
    refused(capsys, tune(tmp_path / "run", root, objective, *more), *parts)
    assert not (tmp_path / "run").exists()


def test_print_config_shows_what_the_objective_says(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(Path("unused"), root, "sc-clipself", "--print-config") == 0
    out = capsys.readouterr().out
    assert "objective: sc-clipself" in out and "  target: teacher" in out


_PAIR = ["distill.optim.lr=5e-5", "distill.optim.warmup_steps=0", "distill.boxes_from=rla"]


def work(folder: Path, root: Path, rank: int, port: int) -> None:
    """One of two processes, each with half of the batch."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # as torchrun sets them
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    halves = [f"{stage}.optim.batch_size=1" for stage in ("refine", "distill")]
    code = tune(folder, root, "r-sc-clipself", *_PAIR, *halves, "run.devices=2", "run.strategy=ddp")
    raise SystemExit(code)


def main(folder: Path, root: Path) -> int:
    """Forks both processes before this one has computed anything, so that the libraries are imported once."""
    context, port = multiprocessing.get_context("fork"), free_port()
    started = [context.Process(target=work, args=(folder, root, rank, port)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(TIMEOUT / 2)
        if process.exitcode is None:
            process.kill()
    return max(abs(process.exitcode if process.exitcode is not None else 1) for process in started)


def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path, root: Path) -> None:
    project = Path(__file__).resolve().parents[2]
    code = "import sys; from pathlib import Path; from tests.pipelines.test_objectives import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(*map(Path, sys.argv[1:])))", str(tmp_path / "two"), str(root)],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert tune(tmp_path / "one", root, "r-sc-clipself", *_PAIR) == 0
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [r["stage"] for r in two] == [r["stage"] for r in one] == ["refine"] * 2 + ["distill"] * 2
    for a, b in zip(one, two, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5 and abs(a["grad_norm"] / b["grad_norm"] - 1) < 1e-3
    # Adam divides by the gradient's size, so rounding grows where a gradient is nearly zero, as that of a key's bias
    assert furthest(student(tmp_path / "one"), student(tmp_path / "two")) < 1e-5
    assert furthest(student(tmp_path / "one"), student(tmp_path / "one", "student")) > 2e-5


def test_labels_of_regiontext_are_given_or_made(tmp_path: Path, root: Path) -> None:
    assert tune(tmp_path / "run", root, "regiontext") == 0
    facts = sidecar(tmp_path / "run")["rla"]
    assert f"rla.pseudo_labels={facts['pseudo_labels']}" == labels(root)
    assert tune(tmp_path / "made", root, "regiontext", "rla.pseudo_labels=null", "rla.boxes=gt") == 0
    assert sidecar(tmp_path / "made")["boxes"] == "gt" and rows(tmp_path / "made")[-1]["rla"] > 0
