"""One table of several runs: its numbers, what made them, and runs that do not belong together."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from rsc_seg.errors import UserError
from rsc_seg.pipelines.seeds import seeds_markdown

HEADLINE = {"linear_miou": 40.0, "linear_pacc": 60.0, "kmeans_3_miou": 20.0, "affinity_ap_beyond_6": None}


def row(name: str, miou: float) -> dict[str, Any]:
    return {"name": name, "note": "", "headline": {**HEADLINE, "linear_miou": miou}, "linear": {}, "kmeans": []}


def write(folder: Path, seed: int, miou: float, probe: Any = None, run: Any = None) -> Path:
    """A run folder with the two files that a table reads."""
    folder.mkdir()
    result = {
        "rows": [
            row("untuned, last layer", 40.0),
            row(f"untuned, layer {seed + 3} (best)", 41.0),
            row("student", miou),
        ],
        "settings": {"image_size": [56, 84]},
        "weights": {"backbone": "tiny", "depth": 4, "source": "none", "licence": "none", "note": "Random weights."},
        "data": "set",
        "splits": ["train", "val"],
        "train_images": 4,
        "val_images": 3,
        "command": f"evaluate.py probe --run {folder.name}",
        "commit": "bbb",
        "remarks": [],
        "config": {},
    }
    facts = {"command": f"train --seed {seed}", "commit": "aaa", "seed": seed, "data": "set", "images": 4}
    (folder / "probe.json").write_text(json.dumps(copy.deepcopy(result) | (probe or {})))
    (folder / "run.json").write_text(json.dumps(facts | {"environment": {}} | (run or {})))
    return folder


def test_mean_spread_and_what_made_them(tmp_path: Path) -> None:
    text = seeds_markdown([write(tmp_path / "a", 0, 42.0), write(tmp_path / "b", 1, 44.0)])
    assert "| student | 43.0 ± 1.4 | 60.0 ± 0.0 | 20.0 ± 0.0 | – | – |" in text
    assert "| untuned, best layer | 41.0 ± 0.0 |" in text
    for part in ("Random weights.", "set, 4 images", "56x84", "4 and 3 images", "training seed 0: `train --seed 0`"):
        assert part in text
    assert "at commit aaa" in text and "`evaluate.py probe --run b` at commit bbb" in text


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    text = seeds_markdown([write(tmp_path / "a", 0, 42.0)])
    assert "| student | 42.0 | 60.0 |" in text and "±" not in text


@pytest.mark.parametrize(
    ("probe", "run", "message"),
    [
        ({"data": "other"}, {}, "measured data"),
        ({"settings": {"image_size": [28, 28]}}, {}, "image size"),
        ({"settings": {"image_size": [56, 84], "linear_epochs": 1}}, {}, "measure's linear_epochs"),
        ({"weights": {"backbone": "large", "depth": 4, "source": "none"}}, {}, "backbone"),
        ({"weights": {"backbone": "tiny", "depth": 4, "source": "demo"}}, {}, "its weights is demo"),
        ({}, {"images": 9}, "training data"),
        ({}, {"seed": 0}, "has the training seed 0"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path: Path, probe: dict[str, Any], run: dict[str, Any], message: str) -> None:
    first = write(tmp_path / "a", 0, 42.0)
    with pytest.raises(UserError, match=message):
        seeds_markdown([first, write(tmp_path / "b", 1, 44.0, probe, run)])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not readable as JSON"), ("{", "not readable as JSON"), ("[]", "lacks rows"), ('{"rows": []}', "lacks")],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    run = write(tmp_path / "a", 0, 42.0)
    whole = json.loads((run / "probe.json").read_text())
    (run / "probe.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        seeds_markdown([run])
    assert str(run / "probe.json") in str(error.value)
    for rows, said in (([], "holds no rows"), ([{}], r"rows\[0\]")):
        (run / "probe.json").write_text(json.dumps(whole | {"rows": rows}))
        with pytest.raises(UserError, match=said):
            seeds_markdown([run])
