"""What is looked at once more before hours of work begin: the output folder, and every label."""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from rsc_seg.cause.labels import OpenedSet
from rsc_seg.config import EvalCauseConfig
from rsc_seg.data.segmentation import IGNORE
from rsc_seg.errors import UserError
from rsc_seg.pipelines.cause_plan import HYPER_PARAMETERS, Plan
from rsc_seg.pipelines.cause_stages import Arrays, StageFiles

_log = logging.getLogger(__name__)
RESULT = "cause.json"
# where the work is done: a result is the same one wherever it was made
_FREE = {"cache.dir", "run.device", "score.crf_workers"}
# what given weights make of no use; their resolution counts
_TRAINING = {f"cause.{k}" for k in (*HYPER_PARAMETERS, "head", "preset", "probe_grad") if k != "test_resolution"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _asked(config: Mapping[str, Any], checkpoints: Any, weights: Any) -> dict[str, Any]:
    """Everything that two calls must share for one to replace the other's result."""
    left_out = _FREE | (_TRAINING if weights else set())
    found = {key: value for key, value in _flat(config).items() if key not in left_out}
    return found | {"--checkpoint": checkpoints, "--cause-weights": weights}


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False


def check_folder(
    folder: Path, config: EvalCauseConfig, checkpoints: Sequence[Path], weights: Optional[Sequence[Path]]
) -> None:
    """Raises UserError when `folder` (of a resolved `config`) is a file, or holds the result of another call."""
    for place in (folder, *folder.parents):
        if _is_file(place):
            raise UserError(f"{place}: is a file; --output-dir names a folder, give another one.")
    path = folder / RESULT
    if not path.exists():
        return
    ask = "give this call a folder of its own (--output-dir), or delete that one."
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before = _asked(old["config"], old["checkpoints"], old["cause_weights"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: does not say which call made it ({type(e).__name__}: {e}); {ask}") from e
    paths = [str(p) for p in checkpoints], None if weights is None else [str(p) for p in weights]
    now = _asked(dataclasses.asdict(config), *paths)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if other:
        few = ", ".join(f"{key}: {before.get(key)} there, {now.get(key)} here" for key in other[:3])
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        raise UserError(f"{path}: the result of another call ({few}{more}); {ask}")


def _class_pixels(opened: OpenedSet, split: str, use: str) -> np.ndarray:
    """(T,) pixels of each class in all label files of a split; UserError for a bad file, or without any pixel."""
    count, begun, told = len(opened.data), time.monotonic(), 0
    found = np.zeros(IGNORE + 1, np.int64)
    for i in range(count):
        found += np.bincount(opened.data.labels(i).ravel(), minlength=IGNORE + 1)
        if 5 * (i + 1) // count > told:
            told = 5 * (i + 1) // count
            _log.info("split '%s': labels of %d/%d images read, %.0f s", split, i + 1, count, time.monotonic() - begun)
    classes = found[: len(opened.data.classes)]
    if not classes.any():
        first = opened.data.label_files.where(0)
        raise UserError(
            f"{first}: no pixel of the {count} label files of split '{split}' has a class of {opened.rule.title}: "
            f"{use}; check data.root, labels and split."
        )
    return classes


def check_labels(plan: Plan) -> Arrays:
    """Pixels of each class by split, `val` and (where something is trained) `train`, from reading every label file.

    Kept as a stage, so that the same files are read once. Raises UserError that names a file which is unreadable, of
    another size than its image or of another set, or a split without a labelled pixel.
    """
    data, train = plan.config.data, plan.sets.train

    def make() -> Arrays:
        found = {"val": _class_pixels(plan.sets.val, data.val_split, "nothing can be scored")}
        if train is not None:
            found["train"] = _class_pixels(train, data.train_split, "the linear probe cannot be trained")
        return found

    depends = {"val": plan.sets.val.label_digest, "train": None if train is None else train.label_digest}
    return StageFiles(plan.cache / "stages").get("labels", depends, make, "all encoders").arrays
