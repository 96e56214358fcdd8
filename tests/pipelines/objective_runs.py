"""Runs of a few steps of any objective on the embedded scenes, as small as they go."""

import json
from pathlib import Path
from typing import Any

from rsc_seg.cli.ablate import main as compare
from rsc_seg.cli.make_scenes import main as make_scenes
from rsc_seg.cli.rscv_finetune import main

CLIP = ["backbone.name=clip_tiny16", "backbone.weights=none", "data.image_size=[64,64]", "crops.size=[32,32]"]
SMALL = ["run.device=cpu", "data.kind=coco", "data.workers=0", "crops.per_image=2", "distill.boxes=2"]
SMALL += ["refiner.hidden=16", "cache.mode=off", "rla.per_image=3", "run.log_every=1"]
SMALL += [f"{stage}.optim.{key}" for stage in ("refine", "distill") for key in ("batch_size=2", "max_steps=2")]
PICTURES = 4
PROBE = ["probe.linear_seeds=1", "probe.linear_epochs=1", "probe.kmeans_seeds=1", "probe.coupling_pairs=1"]
PRESET = "objective: r-sc-clipself\nbackbone: {name: clip_tiny16, weights: none}\n"
FILE = """base: preset.yaml
with: {objective: clipself}
reference: clipself
runs:
  sc-clipself: {objective: sc-clipself}
  r-sc-clipself: {objective: r-sc-clipself}
"""


def scenes(folder: Path) -> Path:
    """The embedded set, small, in COCO's layout: its folder."""
    sizes = ["--train", str(PICTURES), "--val", "2", "--size", "240x180", "--layouts", "plain,coco"]
    assert make_scenes(["--output", str(folder), *sizes]) == 0
    return folder / "coco"


def labels(root: Path) -> str:
    """The option that makes the scenes' own boxes RegionText's."""
    return f"rla.pseudo_labels={root / 'annotations' / 'instances_train2017.json'}"


def tune(folder: Path, root: Path, objective: str, *more: str) -> int:
    """The command; RegionText gets the scenes' labelled boxes."""
    given = [labels(root)] if objective.endswith("regiontext") else []
    flags = ["--objective", objective, "--output-dir", str(folder), f"data.root={root}"]
    return main([*CLIP, *SMALL, *flags, *given, *more])


def rows(folder: Path) -> list[dict[str, Any]]:
    """The training log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sidecar(folder: Path, name: str = "student") -> dict[str, Any]:
    """What stands beside a student about its training."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())["training"]
    return found


def comparison_files(folder: Path) -> Path:
    """A preset and three comparisons on it, the last with a run that cannot be."""
    (folder / "preset.yaml").write_text(PRESET)
    (folder / "threeway.yaml").write_text(FILE)
    (folder / "lambda.yaml").write_text("base: preset.yaml\nruns:\n  lambda-1: {distill.weight: 1.0}\n")
    (folder / "broken.yaml").write_text("base: preset.yaml\nruns:\n  deep: {refiner.depth: 9}\n")
    return folder


def ablate(root: Path, folder: Path, *given: object) -> int:
    """The command that compares, on all of the scenes in whose folder `root` lies."""
    options = [*CLIP, *SMALL, *PROBE, "data.kind=scenes", f"data.root={root.parent}", "distill.optim.lr=1e-2"]
    return compare([*map(str, given), "--output-dir", str(folder), *options])
