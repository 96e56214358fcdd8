"""Run folders of any command as parts of a comparison; every file checked, every error names the file."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rsc_seg.errors import UserError
from rsc_seg.pipelines.catseg_report import SCORES as CATSEG_SCORES
from rsc_seg.pipelines.cause_text import ROWS, SCORES, ordered
from rsc_seg.pipelines.compare_parts import Entry, Made, Measured, Run, flat, run_names, weights_note, weights_sentence
from rsc_seg.pipelines.compare_zeroshot import read_aggregate, read_coupling, read_maskclip, read_regions
from rsc_seg.pipelines.seeds import columns_of
from rsc_seg.viz.parts import Cell, Column

_REGION_TITLES = {
    "boxes_top1": "boxes top-1",
    "thing_masks_top1": "thing masks top-1",
    "stuff_masks_top1": "stuff masks top-1",
}
_OF_THE_ENCODER = ("mean", "std", "seed", "batch_size")  # settings of the quick measure that are no part of it
_CATSEG_FREE = ("every", "pictures", "view_batch", "check", "check_images")  # options of test.* without influence
BENCHMARK = "benchmark.json"
Reader = Callable[[Mapping[str, Any], Path], list[Measured]]


def _numbers_columns(keys: Sequence[str]) -> list[Column]:
    """Columns for the headline numbers of the quick measure."""
    titles = [*columns_of(keys), *((key, title, 1) for key, title in _REGION_TITLES.items())]
    return [
        Column(key, title, "", digits, "one" if key.startswith("coupling") else "higher")
        for key, title, digits in titles
        if key in keys
    ]


def _read_probe(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    entries = []
    for row in result["rows"]:
        numbers = {key: Cell(value) for key, value in row["headline"].items()}
        for key in ("miou", "pacc"):
            numbers[f"linear_{key}"] = Cell(row["linear"][key]["mean"], row["linear"][key]["std"])
        for k in row["kmeans"]:
            numbers[f"kmeans_{k['k']}_miou"] = Cell(k["miou"]["mean"], k["miou"]["std"])
        entries.append(Entry(row["name"], numbers, row["note"], row["linear"].get("iou", ())))
    settings = {key: value for key, value in result["settings"].items() if key not in _OF_THE_ENCODER}
    names = [str(name) for name in result["classes"]]
    data = str(result["data"]).rstrip("/").rpartition("/")[2]
    protocol = {
        "set": data,
        "splits": result["splits"],
        "training pictures": result["train_images"],
        "validation pictures": result["val_images"],
        "classes": names,
        "regions": result.get("measure"),
        **settings,
    }
    height, width = result["settings"]["image_size"]
    about = (
        f"Probe and k-means fitted on {result['train_images']}, everything scored on {result['val_images']} pictures "
        f"of {data} ({' -> '.join(result['splits'])}) at {height}x{width} pixels; percent; ± over probe seeds."
    )
    columns = _numbers_columns(list(result["rows"][0]["headline"]))
    title = f"Quick measure: {data}"
    return [Measured("probe", title, columns, entries, protocol, about, names, "IoU of the linear probe, percent")]


def _read_ablation(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    found = []
    for table in result["tables"]:
        keys = list(table["rows"][0]["numbers"])
        entries = [Entry("untuned", {key: Cell(value) for key, value in table["untuned"].items()})]
        for row in table["rows"]:
            numbers = {key: Cell(value["mean"], value["std"]) for key, value in row["numbers"].items()}
            count = len(row["seeds"])
            entries.append(Entry(row["name"], numbers, f"{count} training seed{'' if count == 1 else 's'}"))
        data = str(table["measured_data"]).rstrip("/").rpartition("/")[2]
        shared = ("splits", "train_images", "val_images", "image_size", "training_images")
        protocol = {"set": data, "training data": table["training_data"], **{key: table[key] for key in shared}}
        about = (
            f"Each row trained on {table['training_images']} pictures ({table['training_data']}), scored on "
            f"{table['val_images']} pictures of {data}; percent; ± over training seeds."
        )
        title = f"Ablation: compared with {table['reference']}"
        found.append(Measured("ablation", title, _numbers_columns(keys), entries, protocol, about, several=True))
    return found


def _class_lines(path: Path, classes: int) -> dict[str, list[Optional[float]]]:
    """IoU by row of a classes.csv of CAUSE, in percent; nothing where the file is not there."""
    found: dict[str, list[Optional[float]]] = {}
    if not path.is_file():
        return found
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["row"], []).append(float(line["iou"]) if line["iou"] else None)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a table of classes as eval_cause.py writes it ({e!r}); score again.") from e
    return {row: values for row, values in found.items() if len(values) == classes}


def _over_seeds(by_row: Mapping[str, list[Optional[float]]], name: str, row: str) -> list[Optional[float]]:
    """Mean over the seeds of an encoder; a class that no seed has stays unknown."""
    columns = [v for key, v in by_row.items() if key.startswith(f"{name} / ") and key.endswith(f" / {row}")]
    means: list[Optional[float]] = []
    for values in zip(*columns, strict=True):
        known = [v for v in values if v is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _read_cause(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    names = [str(name) for name in result["classes"]]
    by_row = _class_lines(folder / "classes.csv", len(names))
    columns = [Column(key, title, better="higher") for key, title in SCORES.items()]
    recipe = {} if result["recipe"] is None else {f"recipe: {k}": v for k, v in result["recipe"].items() if k != "seed"}
    config = result["config"]
    protocol = {
        "set": result["dataset"],
        "training pictures": result["train_images"],
        "validation pictures": result["val_images"],
        **{f"list of {split} pictures": name for split, name in result["image_lists"].items()},
        "classes": names,
        **{key: config["cause"][key] for key in ("head", "preset", "probe_grad")},
        "full images": config["score"]["full_image"],
        "given weights": result["recipe"] is None,
        **recipe,
    }
    found: list[Measured] = []
    for row in ordered(result["rows"][0]["scores"]):
        entries = [
            Entry(
                entry["name"],
                {key: Cell(entry["scores"][row][key]["mean"], entry["scores"][row][key]["std"]) for key in SCORES},
                entry["note"] or weights_note(entry["weights"]),
                _over_seeds(by_row, entry["name"], row),
            )
            for entry in result["rows"]
        ]
        about = (
            f"{' '.join(result['protocol'])} ± is over seeds of CAUSE."
            if not found
            else "Protocol as of the run's first table of CAUSE."
        )
        title = f"CAUSE, {ROWS[row]}: {result['dataset']}"
        family = f"CAUSE, {ROWS[row]}"
        found.append(Measured(family, title, columns, entries, protocol, about, names, "IoU, percent", several=True))
    return found


def _percent(value: Optional[float]) -> Optional[float]:
    return None if value is None else 100 * value


def _read_catseg(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    rows = result["rows"]
    found = []
    for key in dict.fromkeys(name for row in rows for name in row["sets"]):
        of_set = [row for row in rows if key in row["sets"]]
        ends = of_set if len(of_set) == 1 else [of_set[0], of_set[-1]]
        entries = []
        for row in ends:
            one = row["sets"][key]
            numbers = {name: Cell(_percent(one["scores"][name])) for name in CATSEG_SCORES}
            numbers |= {name: Cell(_percent(one[name])) for name in ("seen", "unseen")}
            entries.append(Entry(row["name"], numbers, row["note"], [_percent(c["iou"]) for c in one["rows"]]))
        last = ends[-1]["sets"][key]
        columns = [Column(name, title, unit, better="higher") for name, (title, unit) in CATSEG_SCORES.items()]
        if last["unseen"] is not None:
            columns += [Column(name, name, "mIoU", better="higher") for name in ("seen", "unseen")]
        config = OmegaConf.to_container(OmegaConf.create(result["config"]))
        test = {} if not isinstance(config, dict) else flat(config.get("test", {}), "test")
        protocol = {
            "set": last["title"],
            "pictures": last["images"],
            "classes": [c["name"] for c in last["rows"]],
            "held out": [c["name"] for c in last["rows"] if c["unseen"]],
            **{name: value for name, value in test.items() if name.removeprefix("test.") not in _CATSEG_FREE},
        }
        names = [str(c["name"]) for c in last["rows"]]
        about = f"{last['images']} pictures, {len(names)} classes; percent. {' '.join(result['protocol'])}"
        title = f"Cat-Seg: {last['title']}"
        found.append(Measured("catseg", title, columns, entries, protocol, about, names, "IoU, percent"))
    return found


# file of a result: what it is called in words, and who reads it
READERS: dict[str, tuple[str, Reader]] = {
    "probe.json": ("quick measure", _read_probe),
    "regions.json": ("regions", read_regions),
    "maskclip.json": ("MaskCLIP", read_maskclip),
    "coupling.json": ("coupling", read_coupling),
    "aggregate.json": ("averages over contexts", read_aggregate),
    "cause.json": ("CAUSE", _read_cause),
    "catseg.json": ("Cat-Seg", _read_catseg),
    "ablation.json": ("ablation", _read_ablation),
}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; UserError that names the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not readable as JSON ({e}); make it again or leave the run out.") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no object; make it again or leave the run out.")
    return value


def _config(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of a run, flat: config.yaml, or what a result says."""
    path = folder / "config.yaml"
    try:
        if path.is_file():
            loaded = OmegaConf.to_container(OmegaConf.load(path))
            return flat(loaded) if isinstance(loaded, Mapping) else {}
        for result in results.values():
            if "config" in result:
                loaded = OmegaConf.to_container(OmegaConf.create(result["config"]))
                return flat(loaded) if isinstance(loaded, Mapping) else {}
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as e:
        raise UserError(f"{path}: not readable as options ({str(e).splitlines()[0]}); restore it.") from e
    return {}


def _weights(result: Mapping[str, Any]) -> list[str]:
    """Sentences on the weights behind a result."""
    held = [row["weights"] for row in result.get("rows", ()) if isinstance(row, Mapping) and "weights" in row]
    held += [table["weights"] for table in result.get("tables", ()) if "weights" in table]
    held += [result["weights"]] if isinstance(result.get("weights"), Mapping) else []
    return [weights_sentence(weights) for weights in held]


def read_run(name: str, folder: Path) -> Run:
    """Everything of a run folder that a comparison shows.

    Raises UserError for a folder that is none, or holds nothing of this project, and for a damaged file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder.")
    present = [file for file in READERS if (folder / file).is_file()]
    if not present and not (folder / "run.json").is_file():
        raise UserError(
            f"{folder}: holds no result (looked for {', '.join(READERS)} and run.json); name the folder of a run."
        )
    run = Run(name, folder)
    if (folder / "run.json").is_file():
        record = read_object(folder / "run.json")
        run.made.append(Made("training", str(record.get("command", "unknown")), str(record.get("commit", "unknown"))))
        if isinstance(record.get("weights"), Mapping):
            run.weights.append(weights_sentence(record["weights"]))
    for file in present:
        result = read_object(folder / file)
        title, read = READERS[file]
        try:
            run.measures += read(result, folder)
            run.weights += _weights(result)
            run.made.append(Made(title, result["command"], result["commit"]))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as e:
            raise UserError(f"{folder / file}: not a whole result ({e!r}); make it again or leave the run out.") from e
        run.results[file] = result
    run.config = _config(folder, run.results)
    return run


def _expanded(folder: Path) -> list[Path]:
    """The folders of a benchmark's measures in the place of its own; any other folder as it is."""
    path = folder / BENCHMARK
    if not path.is_file():
        return [folder]
    jobs = read_object(path).get("jobs")
    try:
        found = [folder / job["folder"] for job in jobs or ()]
    except (KeyError, TypeError) as e:
        raise UserError(f"{path}: not a whole result ({e!r}); run the benchmark again or leave it out.") from e
    whole = [place for place in found if any((place / file).is_file() for file in READERS)]
    if not whole:
        raise UserError(f"{path}: names no finished measure; run the benchmark again or leave it out.")
    return whole


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """`read_run` for every folder, under names that differ; a benchmark stands for the folders of its measures."""
    folders = [place for folder in folders for place in _expanded(folder)]
    return [read_run(name, folder) for name, folder in zip(run_names(folders), folders, strict=True)]
