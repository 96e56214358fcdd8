"""What a run of Cat-Seg leaves: which folder, which options make it the same run, evaluations set by set, tables."""

import csv
import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np
from PIL import Image

from rsc_seg.config_catseg import TrainCatSegConfig
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.pipelines.folder import open_run_folder
from rsc_seg.probe.suite import save_json

if TYPE_CHECKING:  # importing it needs detectron2
    from rsc_seg.d2.evaluation import SetResult

_log = logging.getLogger(__name__)

RESULT, CLASSES, REPORT = "catseg.json", "classes.csv", "report.html"
WEIGHTS, WEIGHTS_FACTS = "catseg.safetensors", "catseg_weights.json"
CHECKPOINTS, EVALUATIONS = Path("checkpoints") / "catseg", "evaluation"
MADE = ("config.yaml", "run.json", "metrics.jsonl", "tensorboard", "wandb", "checkpoints", EVALUATIONS)
# how, where and how often: no weight and no score depends on it
_FREE = {
    "clip": ("attention",),
    "model": ("class_chunk", "gradient_checkpointing"),
    "data": ("workers",),
    "test": ("every", "pictures", "view_batch"),
    "run": ("device", "devices", "nodes", "strategy", "log_every", "save_every", "wandb"),
}
_TRAINING_ONLY = ("train", "vocabulary", "crop", "min_size", "max_size", "color", "hflip", "limit")


def default_folder(config: TrainCatSegConfig, *, weights: Optional[Path] = None, eval_only: bool = False) -> Path:
    """runs/catseg_<tower>_<training set>, or of an evaluation runs/catseg_<tower>_eval_<weights or their run>."""
    if not eval_only:
        return Path("runs") / f"catseg_{config.clip.name}_{config.data.train}"
    of_run = weights is not None and weights.name == WEIGHTS  # all runs call theirs so
    label = "untrained" if weights is None else weights.absolute().parent.name if of_run else weights.stem
    return Path("runs") / f"catseg_{config.clip.name}_eval_{label}"


def what_counts(config: TrainCatSegConfig) -> dict[str, Any]:
    """The options that weights and scores of a training run depend on."""
    found = dataclasses.asdict(config)
    for section, keys in _FREE.items():
        for key in keys:
            del found[section][key]
    return found


def what_counts_in_evaluation(config: TrainCatSegConfig) -> dict[str, Any]:
    """The options that scores of given weights depend on."""
    found = what_counts(config)
    del found["solver"]
    for key in _TRAINING_ONLY:
        del found["data"][key]
    return found


@dataclasses.dataclass(frozen=True)
class StartWeights:
    """A whole Cat-Seg as run.json names it; `digest`: the beginning of its SHA-256, empty where it was not recorded."""

    path: Path
    digest: str


def digest_in(source: str) -> str:
    """The beginning of a file's SHA-256 in the words of `load_whole`, "NAME sha256 DIGEST"; empty without one."""
    found = re.search(r" sha256 ([0-9a-f]{12,64})$", source)
    return "" if found is None else found.group(1)


def weights_of_run(folder: Path) -> Optional[StartWeights]:
    """The whole Cat-Seg from which the run in `folder` started or which it evaluates; None for none, or no run."""
    path = folder / "run.json"
    run = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = run.get("weights_file")
    return None if found is None else StartWeights(Path(found), digest_in(run.get("weights", {}).get("source", "")))


def refuse_used_folder(folder: Path, *, eval_only: bool, resume: bool) -> None:
    """UserError for a folder whose run is of the other kind, or a training run that is not to go on."""
    run = folder / "run.json"
    kind = json.loads(run.read_text(encoding="utf-8")).get("kind") if run.is_file() else None
    if kind is not None and kind != ("eval" if eval_only else "train"):
        what, other = ("evaluation", "a training run") if eval_only else ("training", "an evaluation")
        raise UserError(f"{folder}: holds {other}; give the {what} a folder of its own (--output-dir).")
    if not eval_only and resume and not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: no run there to go on with; check --output-dir, or leave out --resume to begin one."
        )
    if not eval_only and not resume and (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: holds a run already; add --resume to go on with it, or choose another --output-dir."
        )


def open_folder(folder: Path, config: TrainCatSegConfig, *, eval_only: bool, resume: bool) -> bool:
    """Makes the folder, or goes on in it when it holds the same run; True when it was made.

    A training run needs `resume` for that, an evaluation does not: finished sets are kept. Raises UserError for a
    folder that holds another run or other files.
    """
    refuse_used_folder(folder, eval_only=eval_only, resume=resume)
    if not eval_only:
        return open_run_folder(folder, config, resume=resume, counts=what_counts)
    try:
        return open_run_folder(folder, config, resume=True, counts=what_counts_in_evaluation)
    except UserError as e:
        raise UserError(str(e).replace("--resume with another configuration", "holds another evaluation")) from e


@dataclasses.dataclass(frozen=True)
class Shown:
    """A test image with its labels and what one state of the model predicts."""

    name: str
    image: Image.Image
    labels: np.ndarray
    predicted: np.ndarray


class EvaluationStore:
    """Results set by set in `evaluation/<row>/<set>.json`, with the pictures to show beside them as .npz.

    `key` says what they depend on; a result of another key counts as none.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder / EVALUATIONS, key

    def find(self, row: str, name: str) -> Optional[dict[str, Any]]:
        """The finished result of a set, None when there is none."""
        path = self.folder / row / f"{name}.json"
        if not path.is_file():
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return dict(held["result"]) if held["key"] == self.key else None
        except (OSError, ValueError, KeyError, TypeError) as e:
            _log.warning("%s: damaged (%s); the set is evaluated again", path, e)
            return None

    def keep(self, row: str, result: "SetResult") -> None:
        """Writes a finished result; the pictures first, so that a result is whole when it is there."""
        folder = self.folder / row
        arrays: dict[str, np.ndarray] = {"names": np.array([p.name for p in result.pictures], dtype=np.str_)}
        for i, picture in enumerate(result.pictures):
            arrays |= {f"image{i}": np.asarray(picture.image), f"labels{i}": picture.labels}
            arrays[f"predicted{i}"] = picture.predicted
        atomic_write(folder / f"{result.key}.npz", lambda path: _write_arrays(path, arrays))
        save_json({"key": self.key, "result": result.as_dict()}, folder / f"{result.key}.json")

    def shown(self, row: str, name: str) -> list[Shown]:
        """The pictures kept with a result; none when the file is not there or damaged."""
        path = self.folder / row / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as held:
                return [
                    Shown(str(title), Image.fromarray(held[f"image{i}"]), held[f"labels{i}"], held[f"predicted{i}"])
                    for i, title in enumerate(held["names"])
                ]
        except (OSError, ValueError, KeyError) as e:
            _log.warning("%s: no pictures from there (%s)", path, e)
            return []

    def any(self) -> bool:
        """Whether a finished result lies here."""
        return any(self.folder.glob("*/*.json"))

    def steps(self) -> list[int]:
        """Steps at which something was evaluated, ascending."""
        found = [re.fullmatch(r"step_(\d{8})", p.name) for p in self.folder.glob("step_*")]
        return sorted(int(m.group(1)) for m in found if m)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with open(path, "wb") as file:  # by name, numpy would add its own suffix
        np.savez_compressed(file, allow_pickle=False, **arrays)


def row_key(step: Optional[int]) -> str:
    """The folder of a row: of a step of training, or None for weights that are only evaluated."""
    return "weights" if step is None else f"step_{step:08d}"


def write_classes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """classes.csv: a line for every class of every set of every row of a result; IoU and recall in percent."""

    def percent(value: Optional[float]) -> str:
        return "" if value is None else f"{100 * value:.3f}"

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["row", "step", "set", "label", "name", "unseen", "iou", "recall", "pixels"])
            for row in rows:
                for name, found in row["sets"].items():
                    for k, one in enumerate(found["rows"]):
                        numbers = [percent(one["iou"]), percent(one["recall"]), one["pixels"]]
                        first = [row["name"], "" if row["step"] is None else row["step"], name, k, one["name"]]
                        table.writerow([*first, int(one["unseen"]), *numbers])

    atomic_write(path, write)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for every set: the scores of the last row, and how the first row did where there are several."""
    first, last = result["rows"][0], result["rows"][-1]

    def shown(value: Optional[float]) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    lines = []
    for name, found in last["sets"].items():
        scores = found["scores"]
        text = f"{name}: mIoU {shown(scores['miou_present'])}, pAcc {shown(scores['pacc'])}"
        if found["unseen"] is not None:
            text += f", seen {shown(found['seen'])}, unseen {shown(found['unseen'])}"
        before = first["sets"].get(name) if first is not last else None
        if before is not None:
            text += f" ({first['name']}: mIoU {shown(before['scores']['miou_present'])})"
        text += f"; {found['note']}" if found.get("note") else ""
        lines.append(text)
    return lines
