"""The HTML page of Cat-Seg's training or evaluation: scores, classes, curves, predictions over the photographs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from omegaconf import OmegaConf

from rsc_seg.errors import UserError
from rsc_seg.pipelines.page_parts import MOST_CLASSES, capital, change_cell, picture_credits, provenance
from rsc_seg.viz.overlay import RGB
from rsc_seg.viz.parts import Cell, Chart, Column, FigureGroup, Report, Row, Table
from rsc_seg.viz.report import write_report
from rsc_seg.viz.segmentation import SECTION, Look, Segmented, segmentation_groups

# what `rsc_seg.metrics.confusion.Scores` calls them; heading and what tells the two means apart
SCORES = {
    "miou_present": ("mIoU", "present"),
    "miou_union": ("mIoU", "union"),
    "macc": ("mAcc", ""),
    "pacc": ("pAcc", ""),
    "fwiou": ("fwIoU", ""),
}
HELD_OUT = {"seen": ("seen", "mIoU"), "unseen": ("unseen", "mIoU"), "harmonic": ("harmonic mean", "mIoU")}
DEFINITIONS = (
    "Scores in percent, higher is better, from all labelled pixels of the set together. mIoU (present): mean IoU of "
    "the classes that occur in the labels; mIoU (union): of those that occur in labels or predictions, so a class that "
    "is only predicted counts as 0. mAcc: mean recall of the classes in the labels; pAcc: share of right pixels; "
    "fwIoU: IoU weighted by the share of the labelled pixels."
)
_HELD_OUT_DEFINITION = (
    "Seen and unseen: mIoU (present) of the classes that training had and of those held out of it, names and pixels; "
    "harmonic mean of the two."
)
_PROTOCOL_LIMIT = (
    "Scores compare only under one protocol: tiles, the global view, pooling and the size of the pictures each change "
    "mIoU, and so does the list of class names."
)
_MEANS_LIMIT = (
    "Two means are called mIoU. The published numbers of Cat-Seg and detectron2 since July 2022 have the first, "
    "earlier versions of detectron2 the second, which can be lower by several points."
)
_ONE_RUN_LIMIT = "The rows come from one training run: how much another seed would change them is not known."
_RANDOM_LIMIT = (
    "Weights at random: the towers never learnt what words mean. The scores show that training runs and learns the "
    "named classes, not what Cat-Seg reaches; expect scores near chance for classes held out of training."
)
_ALPHA, _MOST_KEYS = 0.6, 60
Pictures = Mapping[str, tuple[Sequence[Segmented], Sequence[str], Sequence[RGB]]]


def _percent(value: Optional[float]) -> Optional[float]:
    return None if value is None or not math.isfinite(value) else 100 * value


def _of_set(result: Mapping[str, Any], key: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(row, its result on the set) for every row that was evaluated on it."""
    return [(row, row["sets"][key]) for row in result["rows"] if key in row["sets"]]


def _set_keys(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key for row in result["rows"] for key in row["sets"]))


def _title(result: Mapping[str, Any], key: str) -> str:
    return str(_of_set(result, key)[0][1]["title"])


def _has_held_out(found: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    return any(entry["unseen"] is not None for _, entry in found)


def _score_table(result: Mapping[str, Any], key: str, *, definitions: bool) -> Table:
    """A row for every evaluated state of the model; `definitions` of the scores stand below one table of a page."""
    found = _of_set(result, key)
    columns = [Column(name, title, unit) for name, (title, unit) in SCORES.items()]
    held_out = _has_held_out(found)
    if held_out:
        columns += [Column(name, title, unit) for name, (title, unit) in HELD_OUT.items()]
    rows = []
    for k, (row, entry) in enumerate(found):
        cells: dict[str, Cell | float | None] = {name: _percent(entry["scores"][name]) for name in SCORES}
        cells |= {name: _percent(entry[name]) for name in HELD_OUT}
        rows.append(Row(row["name"], cells, row["note"], reference=k == 0 and len(found) > 1))
    last = found[-1][1]
    labelled = sum(1 for c in last["rows"] if c["pixels"])
    images = f"{last['images']} image{'s' if last['images'] != 1 else ''}"
    about = f"{images}, {len(last['rows'])} classes of which {labelled} occur in the labels."
    about += f" {capital(last['note'])}." if last.get("note") else ""  # results of earlier versions have none
    about += f" {DEFINITIONS}" if definitions else ""
    about += f" {_HELD_OUT_DEFINITION}" if held_out and definitions else ""
    return Table(_title(result, key), columns, rows, about, first="model")


def _class_table(result: Mapping[str, Any], key: str) -> Table:
    """IoU of every class, for the first and the last row."""
    found = _of_set(result, key)
    ends = [found[0]] if len(found) == 1 else [found[0], found[-1]]
    columns = [Column("share", "of the labelled pixels", "percent")]
    columns += [Column(f"iou{k}", row["name"], "IoU") for k, (row, _) in enumerate(ends)]
    columns += [Column("change", "change", "IoU")] if len(ends) > 1 else []
    columns.append(Column("recall", "recall", ends[-1][0]["name"]))
    last = ends[-1][1]["rows"]
    total = sum(c["pixels"] for c in last)
    rows = []
    for t, held in enumerate(last):
        ious = [Cell(_percent(entry["rows"][t]["iou"])) for _, entry in ends]
        cells: dict[str, Cell | float | None] = {f"iou{k}": cell for k, cell in enumerate(ious)}
        cells["share"] = 100 * held["pixels"] / total if total else None
        cells["recall"] = _percent(held["recall"])
        cells["change"] = change_cell(ious[0], ious[-1])
        rows.append(Row(held["name"] + (" (unseen)" if held["unseen"] else ""), cells))
    unseen = " Unseen: held out of training." if any(c["unseen"] for c in last) else ""
    caption = f"Percent; – is a class in neither labels nor predictions.{unseen}"
    return Table(f"IoU by class: {_title(result, key)}", columns, rows, caption, section="Classes", first="class")


def _sentence(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    values = {name: _percent(entry["scores"][name]) for name in SCORES}
    words = {name: f"{title} {f'({unit}) ' if unit else ''}".strip() for name, (title, unit) in SCORES.items()}
    parts = [f"{words[name]} {v:.1f}" for name, v in values.items() if v is not None]
    parts += [f"{name} {100 * entry[name]:.1f}" for name in ("seen", "unseen") if entry[name] is not None]
    return f"{row['name']}: {', '.join(parts) or 'no labelled pixel'}"


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """What the tables say, in words made from their numbers alone."""
    lines = []
    for key in _set_keys(result):
        found = _of_set(result, key)
        text = f"{_title(result, key)}, {_sentence(*found[-1])}"
        if len(found) > 1:
            first, last = (_percent(entry["scores"]["miou_present"]) for _, entry in (found[0], found[-1]))
            text += f"; {found[0][0]['name']}: mIoU (present) {first:.1f}" if first is not None else ""
            if first and last is not None:
                text += f", a factor of {last / first:.1f}"
        lines.append(f"{capital(text)}.")
    return lines


def _limits(result: Mapping[str, Any]) -> list[str]:
    random = "RANDOM" in str(result["weights"].get("note", ""))
    many = [_title(result, k) for k in _set_keys(result) if len(_of_set(result, k)[-1][1]["rows"]) > MOST_CLASSES]
    return [
        *([_RANDOM_LIMIT] if random else []),
        _PROTOCOL_LIMIT,
        _MEANS_LIMIT,
        *([_ONE_RUN_LIMIT] if result["kind"] == "train" else []),
        *([f"Classes of {', '.join(many)}: more than {MOST_CLASSES}, they are in classes.csv alone."] if many else []),
    ]


def _figures(result: Mapping[str, Any], pictures: Pictures) -> tuple[list[FigureGroup], dict[str, str]]:
    """The pictures of every set under a heading of their own where there are several, and a sentence above them."""
    shown = {key: given for key, given in pictures.items() if given[0]}
    groups, intros = [], {}
    for key, (shots, classes, palette) in shown.items():
        title = _title(result, key) if key in _set_keys(result) else key
        section = SECTION if len(shown) == 1 else f"{SECTION}: {title}"
        groups += segmentation_groups(shots, classes, palette, Look(section, _ALPHA, _MOST_KEYS))
        intros[section] = f"{len(shots)} image{'s' if len(shots) != 1 else ''} of {title}."
    return groups, intros


def _configuration(result: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The configuration as values and as YAML, of a result that holds either."""
    config = OmegaConf.create(result["config"])
    values = OmegaConf.to_container(config)
    plain = {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}
    return plain, OmegaConf.to_yaml(config)


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    """What belongs to the numbers besides the configuration: commit, training, seconds."""
    training = result["training"] or {}
    plain = {k.replace("_", " "): str(v) for k, v in training.items() if isinstance(v, (str, int, float))}
    spent = [f"{_title(result, key)} {_of_set(result, key)[-1][1]['seconds']:.0f} s" for key in _set_keys(result)]
    return {"commit": str(result["commit"]), **plain, "evaluation": ", ".join(spent)}


def _credits(result: Mapping[str, Any], config: Mapping[str, Any], pictures: Pictures) -> str:
    root = (config.get("data") or {}).get("root")
    found = [picture_credits(key, None if root is None else Path(root)) for key in pictures]
    return next((text for text in found if text), "")


def build_catseg_report(path: Path, result: Mapping[str, Any], pictures: Pictures, curves: Sequence[Chart]) -> Path:
    """Writes the page of `result` (what catseg.json holds) and returns its path.

    `pictures` by the key of their set: segmented images, class names, colours. Raises UserError for a result without an
    evaluated set, and pictures that do not fit their labels.
    """
    keys = _set_keys(result)
    if not keys:
        raise UserError(f"{path}: no set was evaluated, so there is nothing to report; evaluate one at least.")
    config, text = _configuration(result)
    figures, intros = _figures(result, pictures)
    last_section = [group.section for group in figures][-1:]
    clip = (config.get("clip") or {}).get("name", "")
    titles = ", ".join(_title(result, key) for key in keys)
    weights = result["weights"]
    small = [key for key in keys if len(_of_set(result, key)[-1][1]["rows"]) <= MOST_CLASSES]
    report = Report(
        title=f"Cat-Seg{f' on {clip}' if clip else ''}: {'training' if result['kind'] == 'train' else 'evaluation'}",
        subtitle=f"Scored on {titles}",
        provenance=provenance(
            str(weights.get("note", "")), str(weights.get("source", "unknown")), str(weights.get("licence", "unknown"))
        ),
        summary=[*summary_lines(result), *result["protocol"]],
        limits=_limits(result),
        tables=[
            *(_score_table(result, key, definitions=key == keys[0]) for key in keys),
            *(_class_table(result, key) for key in small),
        ],
        charts=list(curves),
        figures=figures,
        intros=intros,
        outros={section: _credits(result, config, pictures) for section in last_section},
        sections=["Results", *dict.fromkeys(chart.section for chart in curves), *intros, "Classes"],
        config_yaml=text,
        command=result["command"],
        environment=_facts(result) | result["environment"],
    )
    return write_report(path, report)
