"""A tiny labelled set, and a run of a few steps on it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rsc_seg.cli.rscv_finetune import main as finetune
from rsc_seg.config import EvaluateConfig, load_config
from tests.training.helpers import write_pictures

TINY = ["--backbone", "dinov2_tiny14", "--weights", "none", "--device", "cpu"]
PROBE = ["probe.linear_seeds=1", "probe.linear_epochs=1", "probe.kmeans_seeds=1", "probe.coupling_pairs=1"]
_RUN = ["data.kind=auto", "data.workers=0", "data.image_size=[56,84]", "crops.size=[28,28]", "crops.per_image=2"]
_RUN += ["crops.bank=2", "distill.boxes=2", "refiner.hidden=16", "run.log_every=1"]
_RUN += [f"{stage}.optim.{key}" for stage in ("refine", "distill") for key in ("batch_size=2", "max_steps=2")]


def labelled_set(root: Path, images: int = 4) -> Path:
    """`images` pictures with three classes in each of the splits train and val, in the layout `plain`."""
    (root / "x").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"names": ["left", "middle", "right"]}))
    for split in ("train", "val"):
        write_pictures(root / split / "images", images)
        (root / split / "labels").mkdir()
        for i in range(images):
            labels = np.repeat(np.arange(3, dtype=np.uint8), 30)[None].repeat(60, 0)
            Image.fromarray(np.roll(labels, 7 * i, axis=1)).save(root / split / "labels" / f"{i:02d}.png")
    return root


def train(folder: Path, root: Path, *more: str) -> Path:
    """A finished run of both stages and the control."""
    assert finetune([*TINY, *_RUN, f"data.root={root}", "--output-dir", str(folder), *more]) == 0
    return folder


def evaluation(root: Path, *more: str) -> EvaluateConfig:
    """The quick measure on a set of `labelled_set`, as small as it goes."""
    flags = ["backbone.name=dinov2_tiny14", "backbone.weights=none", "run.device=cpu", f"data.root={root}"]
    return load_config(EvaluateConfig, None, [*flags, "data.kind=plain", "data.image_size=[56,84]", *PROBE, *more])
