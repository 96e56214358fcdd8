"""Our numbers beside the paper's, row by row, and whether both were made in the same setting."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError
from rsc_seg.pipelines import cause_plan, evaluate_coupling, evaluate_maskclip, evaluate_regions
from rsc_seg.pipelines.benchmark_plan import Job, NotRun
from rsc_seg.pipelines.cause_text import ROWS, headline_row
from rsc_seg.pipelines.compare_parts import flat
from rsc_seg.pipelines.objectives import objective_title
from rsc_seg.pipelines.paper_numbers import NOT_MEASURED, UNTUNED, PaperRow, PaperTable, nearest_rows, paper_tables

DONE, NOT_RUN, FAILED = "done", "not run", "failed"
SAME, OTHER, NOTHING = "yes, as far as the paper says", "no", "the paper has no number"
NO_TABLE = "–"
COCO_TRAIN = 118287
UNKNOWN = "unknown method"
NO_METHOD = "method unknown"
METRICS = {
    "boxes_top1": "Boxes top-1",
    "boxes_top5": "Boxes top-5",
    "thing_masks_top1": "Thing Masks top-1",
    "thing_masks_top5": "Thing Masks top-5",
    "stuff_masks_top1": "Stuff Masks top-1",
    "stuff_masks_top5": "Stuff Masks top-5",
    "miou": "mIoU",
    "macc": "mAcc",
    "pacc": "pAcc",
    "mean_of_ratios": "CR (mean of ratios)",
}
_OWN_METRICS = {"maskclip": ("miou", "macc", "pacc"), "cause": ("miou", "pacc")}  # where the paper has no table
# options that a number depends on, by measure
_SECTIONS = {
    "regions": ("backbone", "data", "regions"),
    "maskclip": ("backbone", "data", "maskclip"),
    "coupling": ("backbone", "data", "coupling"),
    "cause": ("backbone", "data", "cause", "score"),
}
# the options with what follows from the encoder and the preset filled in
_RESOLVED: dict[str, Callable[[Any], Any]] = {
    "regions": evaluate_regions.resolved,
    "maskclip": evaluate_maskclip.resolved,
    "coupling": evaluate_coupling.resolved,
    "cause": cause_plan.resolved,
}
# without influence, or said in other words: how much data, which weights, CRF
_NOT_PROTOCOL = {
    *(f"backbone.{key}" for key in ("name", "weights", "attention", "gradient_checkpointing")),
    *(f"data.{key}" for key in ("root", "kind", "dataset", "limit", "workers", "on_error", "hflip", "proposals")),
    *(f"regions.{key}" for key in ("batch_size", "save_every", "text_weights")),
    *(f"maskclip.{key}" for key in ("set", "class_chunk", "window_batch", "save_every", "text_weights")),
    *(f"score.{key}" for key in ("crf", "crf_workers", "pictures", "batch_size")),
    "coupling.save_every",
    "cause.seeds",  # the mean of several is the better known number of one
}


@dataclass
class BenchmarkRow:
    """One encoder in one table of the paper.

    `ours` and `paper` by metric; `same` says whether the settings agree, `reasons` why they do not. `unstated` is what
    the paper leaves open, so that nobody can say whether it agrees.
    """

    table: str
    title: str
    measure: str
    status: str
    encoder: str = ""
    method: str = ""
    paper_encoder: str = ""
    ours: dict[str, Optional[float]] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    same: str = ""
    reasons: list[str] = field(default_factory=list)
    unstated: list[str] = field(default_factory=list)
    note: str = ""
    table_note: str = ""
    digits: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def method_of(name: str, weights: Mapping[str, Any]) -> str:
    """The method that made an encoder, in the paper's words, from what its weights record; `UNKNOWN` where they do not.

    A control of R-SC-V (SCD without the Refiner) is no method of the paper and is called SCD.
    """
    if name == UNTUNED:
        return UNTUNED
    if name.startswith("Refiner"):
        return "Refiner"
    training = weights.get("training") or {}
    objective = training.get("objective") or ("rscv" if training.get("target") == "refiner" else None)
    if training.get("target") == "teacher" and objective in (None, "rscv"):
        return "SCD"
    try:
        return UNKNOWN if objective is None else objective_title(str(objective))
    except KeyError:
        return UNKNOWN


def _scores(job: Job, row: Mapping[str, Any]) -> dict[str, Optional[float]]:
    scores = row["scores"]
    if job.measure == "regions":
        kinds = ("boxes", "thing_masks", "stuff_masks")
        return {f"{kind}_top{k}": scores[kind][f"top{k}"] for kind in kinds for k in (1, 5)}
    if job.measure == "cause":
        return {key: value["mean"] for key, value in scores[headline_row(scores)].items()}
    return dict(scores)


def is_scenes(root: Optional[str]) -> bool:
    """Whether a data root holds embedded scenes, known by their list there or in a folder above."""
    if root is None:
        return True
    path = Path(root).absolute()
    return any((place / "scenes.json").is_file() for place in (path, *list(path.parents)[:2]))


def _pictures(job: Job, result: Mapping[str, Any]) -> int:
    return int(result["val_images"] if job.measure == "cause" else result["pictures"])


def changed_options(job: Job, result: Mapping[str, Any]) -> list[str]:
    """`key=value (the paper's tables: value)` for every option of the protocol that is not the standard one."""
    standard, used = flat(asdict(_RESOLVED[job.measure](copy.deepcopy(job.standard)))), flat(result["config"])
    found = []
    for key, value in standard.items():
        counts = key.partition(".")[0] in _SECTIONS[job.measure] and key not in _NOT_PROTOCOL
        if counts and used.get(key) != value:
            found.append(f"{key}={used.get(key)} in place of {value}")
    return found


def _data_reasons(job: Job, result: Mapping[str, Any], table: Optional[PaperTable]) -> list[str]:
    reasons = []
    root = result["config"]["data"]["root"]
    official = table.pictures if table is not None else None
    count = _pictures(job, result)
    if is_scenes(root):
        reasons.append("data: embedded scenes in the layout of the set, not the set")
    elif official is not None and count != official:
        reasons.append(f"data: {count} pictures, not {official}")
    limit = result["config"]["data"].get("limit")
    if job.measure == "cause" and limit is not None and not is_scenes(root):
        reasons.append(f"data: at most {limit} training pictures")
    return reasons


def _weights_reasons(method: str, weights: Mapping[str, Any], paper: Optional[PaperRow]) -> list[str]:
    training, source = weights.get("training") or {}, str(weights.get("source"))
    if paper is None:
        return []
    reasons = []
    if weights.get("backbone") != paper.backbone:
        reasons.append(f"encoder: {weights.get('backbone')}, the paper's is {paper.backbone}")
    if method in (UNTUNED, "Refiner"):
        reasons += [] if source == "official" else [f"weights: {source}, not known to be the official ones"]
    elif not training:
        reasons.append("weights: how they were trained is not recorded")
    else:
        start = training.get("start")
        reasons += [] if start == "official" else [f"weights: tuned from {start}, not from official ones"]
        images, wanted = training.get("images"), paper.trained or "COCO"
        if wanted == "COCO" and images != COCO_TRAIN:
            reasons.append(f"tuned on {images} pictures ({_last(training.get('data'))}), not on COCO's {COCO_TRAIN}")
        boxes = (training.get("rla") or {}).get("boxes")
        if paper.boxes is not None and boxes != paper.boxes:
            reasons.append(f"boxes: {boxes}, the paper's row has {paper.boxes}")
    if method == "Refiner":
        reasons.append("a Refiner's file does not record all of its training")
    return reasons


def _why_unknown(entry: Mapping[str, Any]) -> list[str]:
    """Why nobody can say which of the paper's methods made an encoder."""
    file = f"{_last(str(entry['name']).partition(',')[0])}.json"
    held = (entry["weights"].get("training") or {}) != {}
    return [f"{NO_METHOD}: " + (f"{file} names no known objective" if held else f"no {file} beside it")]


def _last(path: Any) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _pick(found: Sequence[PaperRow], weights: Mapping[str, Any]) -> list[PaperRow]:
    """Of several rows of one method those whose boxes and training set are ours, else all."""
    training = weights.get("training") or {}
    boxes = (training.get("rla") or {}).get("boxes")
    trained = "CC3M" if "cc3m" in str(training.get("data")).lower() else "COCO"
    kept = [row for row in found if row.trained in (None, trained)] or list(found)
    return [row for row in kept if row.boxes == boxes] or kept


def _row(
    job: Job,
    result: Mapping[str, Any],
    entry: Mapping[str, Any],
    table: Optional[PaperTable],
    paper: Optional[PaperRow],
) -> BenchmarkRow:
    method, scores = method_of(entry["name"], entry["weights"]), _scores(job, entry)
    metrics = table.metrics if table is not None else _OWN_METRICS.get(job.measure, tuple(scores))
    reasons = _weights_reasons(method, entry["weights"], paper) + _data_reasons(job, result, table)
    reasons += changed_options(job, result) if paper is not None else []
    if job.measure == "cause" and "crf" not in headline_row(entry["scores"]):
        reasons.append("no CRF, which CAUSE's published rows have")
    reasons = _why_unknown(entry) if method == UNKNOWN else [] if paper is None else reasons
    without = NO_METHOD if method == UNKNOWN else NOTHING
    notes = [entry["note"], f"scores: {ROWS[headline_row(entry['scores'])]}" if job.measure == "cause" else ""]
    return BenchmarkRow(
        table=NO_TABLE if table is None else table.name,
        title=job.title,
        measure=job.measure,
        status=DONE,
        encoder=f"{entry['weights'].get('backbone')}, {entry['name']}",
        method=method,
        paper_encoder="" if paper is None else f"{paper.backbone}, {_paper_method(paper)}",
        ours={key: scores.get(key) for key in metrics},
        paper={} if paper is None else dict(paper.numbers),
        same=without if paper is None else OTHER if reasons else SAME,
        reasons=reasons,
        unstated=list(table.unstated) if table is not None and paper is not None else [],
        note="; ".join(note for note in notes if note),
        table_note="" if table is None else table.note,
        digits=1 if table is None else table.digits,
    )


def _paper_method(row: PaperRow) -> str:
    return ", ".join([row.method, *filter(None, (row.boxes and f"{row.boxes} boxes", row.trained))])


def tables_of(measure: str, name: Optional[str]) -> list[PaperTable]:
    """The paper's tables of a measure on a set."""
    return [t for t in paper_tables() if t.measure == measure and t.set in (None, name)]


def rows_of_result(job: Job, result: Mapping[str, Any]) -> list[BenchmarkRow]:
    """Every encoder of a result in every table of the paper that has its method.

    An encoder whose method no table has stands in the first table of the measure without a number of the paper.
    Raises UserError for a result that lacks what its command writes.
    """
    tables = tables_of(job.measure, job.set)
    found: list[BenchmarkRow] = []
    try:
        for entry in result["rows"]:
            method, backbone = method_of(entry["name"], entry["weights"]), str(entry["weights"]["backbone"])
            own = []
            for table in tables:
                for paper in _pick(nearest_rows(table, method, backbone), entry["weights"]):
                    own.append(_row(job, result, entry, table, paper))
            found += own or [_row(job, result, entry, tables[0] if tables else None, None)]
    except (KeyError, TypeError, IndexError) as e:
        raise UserError(f"{job.key}: not a whole result ({e!r}); remove its folder and run it again.") from e
    return found


def rows_not_run(missing: Sequence[NotRun], status: str = NOT_RUN) -> list[BenchmarkRow]:
    """A row for each table of measures that did not run, or one without a table."""
    found = []
    for item in missing:
        names = [table.name for table in tables_of(item.measure, item.set)] or [NO_TABLE]
        found += [BenchmarkRow(name, item.title, item.measure, status, reasons=[item.reason]) for name in names]
    return found


def rows_without_measure(rows: Sequence[BenchmarkRow], asked: Sequence[str]) -> list[BenchmarkRow]:
    """A row for every table of the paper that has none: why no measure of this call fills it."""
    have = {row.table for row in rows}
    found = []
    for table in paper_tables():
        if table.name in have:
            continue
        reason = NOT_MEASURED.get(table.measure)
        if reason is None and table.measure in asked:
            reason = f"no encoder of {', '.join(table.methods)} was given (--checkpoint)"
        found.append(
            BenchmarkRow(
                table.name, table.title, table.measure, NOT_RUN, reasons=[reason or f"not asked for ({table.measure})"]
            )
        )
    return found


def in_paper_order(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Rows by the paper's tables; those without a table last."""
    order = {table.name: k for k, table in enumerate(paper_tables())}
    return sorted(rows, key=lambda row: order.get(row.table, len(order)))
