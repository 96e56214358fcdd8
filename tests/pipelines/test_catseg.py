"""The demo in small: Cat-Seg learns the embedded scenes through detectron2, and its page shows it."""

import json
import logging
from pathlib import Path

import pytest

from rsc_seg.cli.train_catseg import main
from rsc_seg.data import scenes
from rsc_seg.data.scenes_prepared import prepared_scenes

DEMO = Path(__file__).resolve().parents[2] / "configs" / "catseg" / "demo.yaml"
SMALL = ["model.grid=[5,6]", "model.window=3", "model.layers=1", "model.decoder=[16,16]", "model.taps=[16,16]"]
SMALL += ["model.decoder_guidance=[8,8]", "data.crop=[80,96]", "data.min_size=[80]", "data.min_size_test=80"]
SMALL += ["solver.max_iter=240", "solver.warmup_iters=60", "test.every=120", "test.pictures=2", "run.device=cpu"]


def test_the_demo_in_small_learns(tmp_path: Path) -> None:
    plain = scenes.ensure_scenes(tmp_path / "scenes", train=12, val=6, size=(96, 72))
    folder, root = tmp_path / "run", prepared_scenes(plain)
    assert main(["--config", str(DEMO), f"data.root={root}", "--output-dir", str(folder), *SMALL]) == 0
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if row["stage"] == "train"]
    assert losses[-1] < 0.5 * losses[0] and sum(losses[-5:]) < 0.8 * sum(losses[5:10])
    result = json.loads((folder / "catseg.json").read_text())
    rows = {row["name"]: row["sets"]["scenes_val"] for row in result["rows"]}
    assert list(rows) == ["untrained", "step 120", "trained"]
    before, after = rows["untrained"], rows["trained"]
    assert after["scores"]["miou_present"] > 3 * before["scores"]["miou_present"]
    assert after["seen"] > 3 * before["seen"]
    assert {row["name"] for row in after["rows"] if row["unseen"]} == {"water", "boat"} and after["unseen"] is not None
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Held out of training, names and pixels: water, boat." in page and "RANDOM WEIGHTS" in page
    assert page.count("<img") >= 2 * 4  # two photographs with labels, untrained and trained


@pytest.fixture(autouse=True)
def quiet() -> None:
    """240 steps log much."""
    logging.getLogger("rsc_seg").setLevel(logging.WARNING)
