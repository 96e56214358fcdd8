"""Results of the measures by class names, of coupling and of context aggregation, as parts of a comparison."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError
from rsc_seg.pipelines.compare_parts import Entry, Measured, cells, flat, weights_note
from rsc_seg.viz.charts import Series
from rsc_seg.viz.parts import Cell, Column

_REGIONS = {"boxes": "Boxes", "thing_masks": "Thing Masks", "stuff_masks": "Stuff Masks"}
_MASKCLIP = {"miou": "mIoU", "macc": "mAcc", "pacc": "pAcc", "fwiou": "fwIoU", "miou_union": "mIoU (union)"}
_COUPLING = {
    "stable_mean": "stable mean",
    "median": "median",
    "ratio_of_means": "ratio of means",
    "mean_of_ratios": "mean of ratios (Eq. 15)",
}
_AGGREGATE = {
    "linear_miou": "LP mIoU",
    "kmeans_miou": "k-means mIoU",
    "affinity_ap": "affinity AP",
    "affinity_ap_beyond_6": "AP beyond 6",
}
_COMMON_IDLE = {"data.workers", "data.root", "data.kind", "data.on_error", "data.proposals", "data.hflip"}


def _options(
    result: Mapping[str, Any], sections: Sequence[str], idle: set[str], run: Sequence[str] = ()
) -> dict[str, Any]:
    """The options of a result that its numbers depend on, but for where the data lie."""
    config = result["config"]
    found = {key: value for s in sections for key, value in flat(config[s], s).items()}
    kept = {key: value for key, value in found.items() if key not in idle | _COMMON_IDLE}
    return kept | {f"run.{key}": config["run"][key] for key in run}


def _place(path: Any) -> str:
    """The last part of a path: the folder above it may lie elsewhere on another machine."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _percent_by_class(right: Sequence[int], total: Sequence[int]) -> list[Optional[float]]:
    return [100 * a / b if b else None for a, b in zip(right, total, strict=True)]


def read_regions(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    """regions.json: top-1 and top-5 mean accuracies, and top-1 of every class (masks)."""
    columns = [
        Column(f"{kind}_top{k}", title, f"top-{k}", better="higher") for kind, title in _REGIONS.items() for k in (1, 5)
    ]
    entries = []
    for row in result["rows"]:
        numbers = {f"{kind}_top{k}": Cell(row["scores"][kind][f"top{k}"]) for kind in _REGIONS for k in (1, 5)}
        counts = row["counts"]["by_class"]
        entries.append(
            Entry(
                row["name"],
                numbers,
                row["note"] or weights_note(row["weights"]),
                _percent_by_class(counts["masks_top1"], counts["regions"]),
            )
        )
    config = _options(result, ("data", "regions"), {"regions.batch_size", "regions.save_every", "regions.text_weights"})
    names = [str(c["name"]) for c in result["classes"]]
    protocol = {
        "set": _place(result["data"]),
        "pictures": result["pictures"],
        "classes": names,
        "regions of each class": result["rows"][0]["counts"]["by_class"]["regions"],
        **config,
    }
    about = f"{result['units'].capitalize()}. {' '.join(result['remarks'])}"
    return [
        Measured(
            "regions",
            f"Zero-shot regions: {_place(result['data'])}",
            columns,
            entries,
            protocol,
            about,
            names,
            "top-1 accuracy of masks, percent",
            several=True,
        )
    ]


def _class_columns(path: Path, what: str, rows: int) -> list[list[Optional[float]]]:
    """Columns of a classes.csv whose heading ends with `what`, in percent; none where the file is not there."""
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        places = [k for k, title in enumerate(lines[0]) if title.endswith(f": {what}")]
        found = [[float(line[k]) if line[k] else None for line in lines[1:]] for k in places]
    except (OSError, ValueError, IndexError) as e:
        raise UserError(f"{path}: not a table of classes as evaluate.py writes it ({e}); measure again.") from e
    if any(len(column) != rows for column in found):
        raise UserError(f"{path}: {len(lines) - 1} classes, the result beside it has {rows}; measure again.")
    return found


def read_maskclip(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    """maskclip.json and its classes.csv: mIoU and its companions, IoU of every class."""
    names = [str(name) for name in result["classes"]]
    by_class = _class_columns(folder / "classes.csv", "IoU", len(names))
    whole = by_class if len(by_class) == len(result["rows"]) else [[] for _ in result["rows"]]
    entries = [
        Entry(row["name"], cells(row["scores"], list(_MASKCLIP)), row["note"] or weights_note(row["weights"]), found)
        for row, found in zip(result["rows"], whole, strict=True)
    ]
    idle = {f"maskclip.{key}" for key in ("class_chunk", "window_batch", "save_every", "text_weights")}
    idle |= {"data.image_size", "data.fit"}
    title = _place(result["set"])
    protocol = {
        "set": title,
        "pictures": result["pictures"],
        "classes": names,
        "names": list(result["names"]),
        **_options(result, ("data", "maskclip"), idle, ("precision",)),
    }
    columns = [Column(key, name, better="higher") for key, name in _MASKCLIP.items()]
    about = f"Percent. {' '.join(result['remarks'])}"
    head = f"Zero-shot segmentation (MaskCLIP): {title}"
    return [Measured("maskclip", head, columns, entries, protocol, about, names, "IoU, percent", several=True)]


def read_coupling(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    """coupling.json: every reading of the coupling ratio, and the cosines that it is made of."""
    columns = [Column(key, title, "coupling ratio", 3, "one") for key, title in _COUPLING.items()]
    columns += [Column("mean_joint", "mean cosine", "side by side", 2), Column("mean_alone", "mean cosine", "alone", 2)]
    keys = [column.key for column in columns]
    entries = [
        Entry(row["name"], cells(row["scores"], keys), row["note"] or weights_note(row["weights"]))
        for row in result["rows"]
    ]
    set_name = _place(result["data"])
    protocol = {
        "set": set_name,
        "pictures": result["pictures"],
        **_options(result, ("data", "coupling"), {"coupling.save_every"}, ("seed", "precision")),
    }
    head = f"Coupling ratio: {set_name}"
    return [Measured("coupling", head, columns, entries, protocol, " ".join(result["remarks"]), several=True)]


def read_aggregate(result: Mapping[str, Any], folder: Path) -> list[Measured]:
    """aggregate.json: the fewest and the most contexts of every encoder as rows, all of them as curves."""
    measured = result["rows"][0]["numbers"][0]["scores"]
    columns = [Column(key, title, better="higher") for key, title in _AGGREGATE.items() if key in measured]
    columns.append(Column("distance", "distance", "", 3))
    entries: list[Entry] = []
    curves: dict[tuple[str, str], list[Series]] = {}
    for row in result["rows"]:
        ends = row["numbers"] if len(row["numbers"]) == 1 else [row["numbers"][0], row["numbers"][-1]]
        for entry in ends:
            numbers = cells({**entry["scores"], "distance": entry["distance"]}, [column.key for column in columns])
            count = entry["contexts"]
            name = f"{row['name']}, {count} context{'' if count == 1 else 's'}"
            entries.append(Entry(name, numbers, row["note"] or weights_note(row["weights"])))
        for column in columns[:-1]:
            known = [(e["contexts"], e["scores"][column.key]) for e in row["numbers"]]
            points = [(x, y) for x, y in known if y is not None]
            if len(points) > 1:
                line = Series(row["name"], [x for x, _ in points], [y for _, y in points])
                curves.setdefault((column.title, "contexts"), []).append(line)
    idle = {"data.split", *(f"aggregate.{key}" for key in ("pictures", "batch_size", "max_gb"))}
    settings = {f"probe: {k}": v for k, v in result["settings"].items() if k not in ("mean", "std")}
    protocol = {
        "set": _place(result["data"]),
        "splits": result["splits"],
        **settings,
        **_options(result, ("data", "aggregate"), idle, ("seed", "precision")),
    }
    about = " ".join(result["remarks"])
    head = f"Averages over contexts: {_place(result['data'])}"
    return [Measured("aggregate", head, columns, entries, protocol, about, lines=curves, several=True)]
