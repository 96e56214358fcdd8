"""eval_cause.py as a user types it: numbers, files, what is found again, and what is refused."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.official import save_cause
from rsc_seg.cli.eval_cause import main
from rsc_seg.config import EvalCauseConfig, load_config
from rsc_seg.pipelines.cause_plan import resolved
from tests.cause.trees import blocks, cityscapes_tree, plain_tree, put
from tests.pipelines.tiny import train

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu", "--crf", "off"]
TINY += ["cause.codes=16", "cause.projection=16", "cause.reduced=8", "cause.batch_size=4", "score.pictures=2"]
TINY += [f"cause.{step}_resolution=112" for step in ("codebook", "head", "test")]
TINY += ["cause.probe_epochs=2", "cause.positive=0.0", "cause.negative=-0.01"]
PLAIN = [*TINY, "--dataset", "plain", "--preset", "full-epoch"]
ROWS = ["cluster", "cluster flip", "linear", "linear flip"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("data") / "set", count=4, size=(60, 90))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    run = train(tmp_path_factory.mktemp("runs") / "a", data, "distill.optim.lr=1e-2")
    return run / "student.safetensors"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, data: Path, student: Path) -> tuple[Path, list[str]]:
    """A finished before/after run of both seeds, and its arguments; not to be changed."""
    folder = tmp_path_factory.mktemp("cause")
    argv = [*PLAIN, "--data-root", str(data), "--head", "mlp", "--checkpoint", str(student), "--flip", "--seeds", "2"]
    argv += ["--cache", str(folder / "cache")]
    assert main([*argv, "--output-dir", str(folder / "out")]) == 0
    return folder, argv


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cause.json").read_text())
    return found


def numbers(result: dict[str, Any]) -> list[Any]:
    """Every score of every encoder and seed."""
    return [[(seed["seed"], seed["scores"]) for seed in row["seeds"]] for row in result["rows"]]


def stages(folder: Path) -> dict[str, tuple[int, int]]:
    """Stage files with their identity: a file that was written again differs."""
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted((folder / "stages").iterdir())}


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> None:
    """Exit code 2 and one last line with all `parts`."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    line = err.rstrip().splitlines()[-1]
    assert line.startswith("eval_cause.py: error: ")
    for part in parts:
        assert part in line, line


def test_before_and_after_in_one_call(measured: tuple[Path, list[str]]) -> None:
    result = read(measured[0] / "out")
    before, after = result["rows"]
    assert (before["name"], after["name"]) == ("untuned", "student, alpha 0.5")
    assert before["delta"] is None and sorted(before["scores"]) == ROWS
    for row in ROWS:
        for key in ("miou", "pacc", "macc"):
            found = [row_["scores"][row][key] for row_ in result["rows"]]
            assert found[0]["mean"] == pytest.approx(np.mean(found[0]["seeds"])) and len(found[0]["seeds"]) == 2
            assert found[1]["std"] == pytest.approx(np.std(found[1]["seeds"], ddof=1))
            assert after["delta"][row][key] == pytest.approx(found[1]["mean"] - found[0]["mean"])
    for entry in result["rows"]:
        assert [seed["seed"] for seed in entry["seeds"]] == [0, 1]
        for seed in entry["seeds"]:
            assert sorted(seed["scores"]["cluster flip"]["matching"]) == [0, 1, 2]
            assert "matching" not in seed["scores"]["linear"]
            assert list(seed["stages"]) == ["codebook", "head", "probes", "scores"]
    assert numbers(result)[0] != numbers(result)[1]  # the checkpoint's own features were used


def test_files_of_a_result(measured: tuple[Path, list[str]]) -> None:
    out = measured[0] / "out"
    assert sorted(p.name for p in out.iterdir()) == ["cause.json", "classes.csv", "config.yaml", "report.html"]
    with open(out / "classes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 2 * len(ROWS) * 3
    first = next(r for r in table if r["row"] == "untuned / seed 0 / cluster flip" and r["name"] == "class 1")
    seed = read(out)["rows"][0]["seeds"][0]
    assert int(first["cluster"]) == seed["scores"]["cluster flip"]["matching"][1]
    assert load_config(EvalCauseConfig, out / "config.yaml").cause.head == "mlp"


def test_the_page_holds_everything(measured: tuple[Path, list[str]]) -> None:
    page = (measured[0] / "out" / "report.html").read_text()
    for text in (
        "Clusters, flip",
        "every seed",
        "IoU by class",
        "student, alpha 0.5",
        "RANDOM WEIGHTS",
        "probe gradient",
    ):
        assert text in page, text
    images = re.findall(r'<img[^>]*?alt="([^"]+)"', page)
    assert len(images) == page.count("<img") and sum(alt.startswith("Prediction of ") for alt in images) == 4
    assert "http" not in page.replace("http-equiv", "") and "mACC" not in page
    assert "prefers-color-scheme:dark" in page


def test_console_says_protocol_and_found_stages(
    measured: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, argv = measured
    before = stages(folder / "cache")
    assert main([*argv, "--output-dir", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    for text in (
        "clusters, flip",
        "linear probe (uses labels)",
        "centre square of every image, 112x112 pixels",
        "Hungarian method on these very images",
        "probe gradient detached: labels train the linear probe alone",
        "preset full-epoch, but cause.codes=16",
        "seeds 0, 1",
        "no CRF rows: switched off",
    ):
        assert text in out, text
    assert "mACC" not in out
    assert stages(folder / "cache") == before  # nothing was made again
    assert numbers(read(tmp_path / "again")) == numbers(read(folder / "out"))


def test_heads_share_the_codebook_and_nothing_else(measured: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, argv = measured
    short = [a for a in argv if a != "--flip"]
    tr = [*short, "--head", "tr", "--seeds", "1", "--output-dir", str(tmp_path / "tr")]
    assert main(tr) == 0
    files = [[seed["stages"] for seed in read(f)["rows"][0]["seeds"]][0] for f in (folder / "out", tmp_path / "tr")]
    assert files[0]["codebook"] == files[1]["codebook"]
    assert all(files[0][stage]["file"] != files[1][stage]["file"] for stage in ("head", "probes", "scores"))


def test_released_and_detached_are_kept_apart(measured: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, argv = measured
    assert main([*argv, "--probe-grad", "released", "--seeds", "1", "--output-dir", str(tmp_path / "r")]) == 0
    result = read(tmp_path / "r")
    assert "not an unsupervised result" in result["protocol"][1]
    assert "Released mode" in (tmp_path / "r" / "report.html").read_text()
    ours, theirs = (read(f)["rows"][0]["seeds"][0]["stages"] for f in (folder / "out", tmp_path / "r"))
    assert ours["codebook"] == theirs["codebook"] and ours["probes"]["file"] != theirs["probes"]["file"]


def test_full_image_is_another_protocol(measured: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, argv = measured
    assert main([*argv, "--full-image", "--seeds", "1", "--output-dir", str(tmp_path / "f")]) == 0
    ours, full = read(folder / "out"), read(tmp_path / "f")
    assert "own protocol" in full["protocol"][0] and "own protocol" not in ours["protocol"][0]
    first, second = (r["rows"][0]["seeds"][0]["stages"] for r in (ours, full))
    assert first["probes"] == second["probes"] and first["scores"]["file"] != second["scores"]["file"]


def test_without_a_cache_of_tokens(data: Path, tmp_path: Path) -> None:
    argv = [*PLAIN, "--data-root", str(data), "--head", "mlp", "--limit", "2", "cache.mode=off"]
    assert main([*argv, "--output-dir", str(tmp_path)]) == 0
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["stages"]
    result = read(tmp_path)
    assert (result["train_images"], result["val_images"]) == (2, 2)
    assert result["rows"][0]["scores"]["cluster"]["miou"]["std"] is None  # one seed has no spread


def test_official_layout_with_27_classes(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path / "data/cityscapes", count=2, size=(64, 128))
    argv = [*TINY, "--dataset", "cityscapes", "--data-root", str(tmp_path / "data"), "--head", "mlp"]
    assert main([*argv, "--preset", "released-4gpu", "--output-dir", str(tmp_path / "out")]) == 0
    result = read(tmp_path / "out")
    assert len(result["classes"]) == 27 and result["recipe"]["lr"] == 4e-3 and result["recipe"]["share"] == 0.25


def test_given_cause_weights_are_only_scored(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = CauseModel("tr", torch.randn(16, 64), (8, 8), 3, reduced=8, projection=16)
    probe = ClusterProbe(3, 8)
    files = save_cause(tmp_path / "given", model, probe)
    argv = [*PLAIN, "--data-root", str(data), "--output-dir", str(tmp_path / "out")]
    argv += ["--cause-weights", str(files.segment), str(files.cluster), str(tmp_path / "given/modular.npy")]
    assert main(argv) == 0
    result = read(tmp_path / "out")
    assert result["recipe"] is None and result["train_images"] is None
    assert {p.name.split("-")[0] for p in (tmp_path / "out/cache/stages").iterdir()} == {"labels", "scores"}
    assert result["config"]["cause"]["head"] == "tr"
    page = (tmp_path / "out/report.html").read_text()
    assert "seed" not in re.sub(r"<(style|script|details|pre)\b.*?</\1>", "", page, flags=re.DOTALL).replace(
        "run.seed", ""
    ).replace("<dt>seeds</dt>", "")
    assert "CAUSE weights as given" in result["protocol"][1]
    before = numbers(result)
    save_cause(tmp_path / "given", model, ClusterProbe(3, 8))  # other centroids under the same names
    assert main(argv) == 0 and numbers(read(tmp_path / "out")) != before


def kill_after(folder: Path, argv: list[str], stage: str) -> None:
    """Starts the command as a user does and kills it once a file of `stage` is there."""
    with (folder.parent / "killed.txt").open("w") as err:
        command = [sys.executable, "-m", "rsc_seg.cli.eval_cause", *argv]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=err, stderr=err)
        try:
            deadline = time.monotonic() + 120
            while not list(folder.glob(f"cache/stages/{stage}-*.npz")):
                assert process.poll() is None and time.monotonic() < deadline, Path(err.name).read_text()
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            code = process.wait()
    assert code == -signal.SIGKILL, "the run ended before it was killed"


def test_a_killed_run_goes_on_with_equal_numbers(data: Path, tmp_path: Path) -> None:
    argv = [*PLAIN, "--data-root", str(data), "--head", "mlp", "--flip", "--seeds", "2", "cause.head_epochs=20"]
    assert main([*argv, "--output-dir", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    killed.mkdir()
    kill_after(killed, [*argv, "--output-dir", str(killed)], "head-mlp")
    done = stages(killed / "cache")
    assert not (killed / "cause.json").exists() and any(name.startswith("head-mlp-") for name in done)
    assert main([*argv, "--output-dir", str(killed)]) == 0
    after = stages(killed / "cache")
    assert after.items() >= done.items()  # what was there was used as it is
    assert numbers(read(killed)) == numbers(read(tmp_path / "whole"))
    assert after.keys() == stages(tmp_path / "whole/cache").keys()


def test_print_config_shows_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backbone", "dinov2_vits14", "--head", "mlp", "--print-config", "--crf", "on", "--limit", "7"]) == 0
    out = capsys.readouterr().out
    for line in ("  lr: 0.004", "  share: 0.25", "  head_resolution: 224", "  head: mlp", "  crf: 'on'", "  limit: 7"):
        assert line in out.splitlines(), line


@pytest.mark.parametrize("path", sorted((ROOT / "configs/cause").glob("*.yaml")), ids=lambda p: p.name)
def test_every_preset_file_resolves(path: Path) -> None:
    config = resolved(load_config(EvalCauseConfig, path))
    assert config.score.flip and config.cause.seeds == 3
    assert (config.cause.probe_grad == "released") == (path.stem == "released-4gpu")
    if path.stem != "demo":
        assert config.cause.preset == path.stem and config.cause.codes == 2048


def test_bad_options_are_one_line(
    data: Path, student: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [*PLAIN, "--data-root", str(data), "--output-dir", str(tmp_path)]
    refused(capsys, [*argv, "--dataset", "cityscape"], "data.dataset=cityscape", "cityscapes")
    refused(capsys, [*argv, "--head", "cnn"], "cause.head=cnn", "tr, mlp")
    refused(capsys, [*argv, "--preset", "full"], "cause.preset=full", "full-epoch")
    refused(capsys, [*argv, "--probe-grad", "none"], "cause.probe_grad=none")
    refused(capsys, [*argv, "--crf", "maybe"], "crf=maybe")
    refused(capsys, [*argv, "--seeds", "0"], "cause.seeds=0", "1 or more")
    refused(capsys, [*argv, "--limit", "0"], "data.limit=0")
    refused(capsys, [*argv, "cause.lr=0"], "cause.lr=0")
    refused(capsys, [*argv, "cause.dropout=1.5"], "cause.dropout=1.5")
    refused(capsys, [*argv, "cause.nonsense=1"], "cause.nonsense")
    refused(capsys, [*argv, "cause.test_resolution=140"], "cause.test_resolution=140", "--head mlp")
    refused(capsys, [*argv, "--head", "mlp", "cause.head_resolution=28"], "token grid 2x2")
    refused(capsys, [*argv, "--checkpoint", "no.safetensors"], "no.safetensors", "no such checkpoint")
    refused(capsys, [*argv, *["--checkpoint", str(student)] * 2], "named twice")
    refused(capsys, [*argv, "--cause-weights", "a", "b"], "--cause-weights")
    both = ["--cause-weights", "a", "b", "c", "--checkpoint", str(student)]
    refused(capsys, [*argv, *both], "--cause-weights belong to one encoder")


def test_bad_data_is_one_line(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [*TINY, "--output-dir", str(tmp_path / "out")]
    plain = [*argv, "--dataset", "plain"]
    refused(capsys, [*plain, "--data-root", str(tmp_path / "nowhere")], "nowhere")
    refused(capsys, [*plain], "data.root")
    refused(capsys, [*argv, "--dataset", "cityscapes", "--data-root", str(data)], str(data), "leftImg8bit/val/")
    refused(capsys, [*argv, "--dataset", "cocostuff27", "--data-root", str(data)], str(data), "images/val2017/")
    refused(capsys, [*argv, "--dataset", "pascalvoc", "--data-root", str(data)], str(data), "JPEGImages")
    refused(capsys, [*plain, "--data-root", str(data), "data.stored_crops=true"], "stored crops")
    other = plain_tree(tmp_path / "other", count=2, size=(60, 90))
    put(other / "val/labels/0.png", blocks(5, 60, 90, 3) + 7)  # ids of another set
    refused(capsys, [*plain, "--data-root", str(other)], "val/labels/0.png", "outside the class list")
    for folder in ("images", "labels"):
        for file in (other / "train" / folder).iterdir():
            file.unlink()
    put(other / "val/labels/0.png", blocks(5, 60, 90, 3))
    refused(capsys, [*plain, "--data-root", str(other)], "no images")
    assert not (tmp_path / "out").exists()


def test_cause_weights_that_do_not_fit(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def given(clusters: int, *, dim: int = 64, side: int = 8) -> list[str]:
        model = CauseModel("tr", torch.randn(16, dim), (side, side), clusters, reduced=8, projection=16)
        files = save_cause(tmp_path / f"{clusters}-{dim}-{side}", model, ClusterProbe(clusters, 8))
        return [str(files.segment), str(files.cluster), str(files.codebook)]

    argv = [*PLAIN, "--data-root", str(data), "--output-dir", str(tmp_path / "out"), "--cause-weights"]
    refused(capsys, [*argv, *given(27)], "cluster_tr.pth", "27 clusters", "3 classes")
    refused(capsys, [*argv, *given(3, dim=32)], "segment_tr.pth", "width 32", "64")
    refused(capsys, [*argv, *given(3, side=5)], "segment_tr.pth", "25 tokens", "8x8")
    refused(capsys, [*argv, str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c")], str(tmp_path / "b"))
    segment, cluster, modular = given(3)
    refused(capsys, [*argv, segment, cluster, modular, "--head", "mlp"], "segment_tr.pth", "--head mlp")
    refused(capsys, [*argv, segment, cluster, modular, "--seeds", "2"], "cause.seeds=2", "--seeds 1")
    assert not (tmp_path / "out").exists()
    refused(capsys, [*argv, cluster, segment, modular], "segment_tr.pth", "cluster_probe")


def test_a_damaged_stage_is_named(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [*PLAIN, "--data-root", str(data), "--head", "mlp", "--limit", "2", "--output-dir", str(tmp_path)]
    assert main(argv) == 0
    path = next(tmp_path.glob("cache/stages/probes-*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    refused(capsys, argv, str(path), "delete it")
