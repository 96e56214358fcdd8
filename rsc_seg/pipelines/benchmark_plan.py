"""Which of the paper's measures the data at hand allow, and with which options each is run."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config import EvalCauseConfig, load_config
from rsc_seg.config_zeroshot import EvaluateCouplingConfig, EvaluateMaskclipConfig, EvaluateRegionsConfig
from rsc_seg.data.segsets import segset
from rsc_seg.errors import UserError, suggestion
from rsc_seg.models.registry import find_backbone

SCENES_LIMIT = 6  # pictures of the embedded scenes, where --limit says nothing
_SCENES_SIDE = 192  # pixels of a side there, brought to whole patches


@dataclass(frozen=True)
class Setup:
    """What the command asks for: encoders, where data lie, how many pictures, which measures, other options."""

    backbone: str
    weights: Optional[str] = None
    root: Optional[Path] = None  # null: the embedded scenes
    limit: Optional[int] = None
    only: Sequence[str] = ()
    overrides: Sequence[str] = ()
    device: Optional[str] = None
    checkpoints: Sequence[Path] = ()
    refiners: Sequence[Path] = ()
    scenes: bool = False


@dataclass(frozen=True)
class Job:
    """A measure on a set: its options, and those without --limit and key=value, which the paper's tables ask for."""

    key: str
    measure: str
    title: str
    config: Any
    standard: Any
    set: Optional[str] = None


@dataclass(frozen=True)
class NotRun:
    """A measure that the data or the encoder do not allow, and why."""

    key: str
    measure: str
    title: str
    reason: str
    set: Optional[str] = None


@dataclass(frozen=True)
class Target:
    """A measure on a set: its key and title, its options' class, and how its data are found below a root.

    `find` returns options by key, or raises UserError with what is lacking.
    """

    key: str
    measure: str
    title: str
    config: type
    find: Callable[[Path], dict[str, Any]]
    set: Optional[str] = None
    tiny: dict[str, Any] = field(default_factory=dict)  # options on the embedded scenes


def _first(root: Path, below: Sequence[str], wanted: Sequence[str], what: str) -> Path:
    """The first of the folders that has one of the wanted files or folders; UserError names what was looked for."""
    for name in below:
        place = root / name
        if any((place / item).exists() for item in wanted):
            return place
    places = ", ".join(sorted({str(root / name) for name in below}))
    raise UserError(f"no {what}: looked for {' or '.join(wanted)} in {places}")


_COCO = ("coco", "coco-stuff", "cocostuff", ".")
_IMAGES = ("val2017", "val2017.zip", "images/val2017", "images/val2017.zip")
_TRAIN = ("train2017", "train2017.zip", "images/train2017", "images/train2017.zip")
_STUFF = ("stuffthingmaps/val2017", "annotations/val2017", "stuffthingmaps_detectron2/val2017")


def _regions(root: Path) -> dict[str, Any]:
    panoptic = ("annotations/panoptic_val2017.json",)
    return {"data.kind": "coco", "data.root": str(_first(root, _COCO, panoptic, "COCO panoptic labels"))}


def _coupling(root: Path) -> dict[str, Any]:
    return {"data.kind": "coco", "data.root": str(_first(root, _COCO, _IMAGES, "pictures of COCO val2017"))}


def _prepared(name: str, root: Path) -> dict[str, Any]:
    """The set as tools/prepare_data.py makes it."""
    found = segset(name)
    labels = found.label_folder(root)
    if not any(labels.rglob(f"*{found.label_end}")):  # the folder of Cityscapes holds what is downloaded, too
        raise UserError(f"no {labels}; make it with tools/prepare_data.py {found.prepared_by} --root {root}")
    return {"maskclip.set": name, "data.root": str(root)}


def _maskclip(name: str, kind: str, below: Sequence[str], wanted: Sequence[str]) -> Callable[[Path], dict[str, Any]]:
    def find(root: Path) -> dict[str, Any]:
        try:
            return _prepared(name, root)
        except UserError as e:
            if not kind:
                raise
            try:
                place = _first(root, below, wanted, f"labels of {kind}")
            except UserError as other:
                raise UserError(f"{e}; {other}") from other
            return {"data.kind": kind, "data.root": str(place)}

    return find


def _cause(name: str, below: Sequence[str], labels: Sequence[str], train: Sequence[str]) -> Callable[[Path], Any]:
    def find(root: Path) -> dict[str, Any]:
        place = _first(root, below, labels, f"labels of {name}")
        if not any((place / item).exists() for item in train):
            raise UserError(f"no training pictures of {name}: looked for {' or '.join(train)} in {place}")
        return {"data.dataset": name, "data.root": str(place)}

    return find


_CITYSCAPES = ("cityscapes", ".")
_TINY_MASKCLIP = {"maskclip.short_side": 160}
_TINY_CAUSE = {
    "cause.head": "mlp",
    "cause.preset": "full-epoch",
    "cause.codes": 32,
    "cause.batch_size": 4,
    "cause.positive": 0.0,  # codes of so few pictures lie near each other: every pair attracts or repels
    "cause.negative": -0.01,
    "cause.codebook_epochs": 2,
    "cause.head_epochs": 2,
    "cause.probe_epochs": 2,
    "cause.codebook_resolution": 112,
    "cause.head_resolution": 112,
    "cause.test_resolution": 112,
    "score.crf": "off",
}
TARGETS = (
    Target("regions", "regions", "zero-shot regions, COCO Panoptic", EvaluateRegionsConfig, _regions),
    *(
        Target(
            f"maskclip_{key}",
            "maskclip",
            f"MaskCLIP, {title}",
            EvaluateMaskclipConfig,
            _maskclip(f"{key}_val", kind, below, wanted),
            key,
            _TINY_MASKCLIP,
        )
        for key, title, kind, below, wanted in (
            ("pascal_context_59", "PASCAL Context (59 classes)", "", (), ()),
            ("coco_stuff_171", "COCO-Stuff (171 classes)", "cocostuff", _COCO, _STUFF),
            (
                "ade20k_150",
                "ADE20K (150 classes)",
                "ade20k",
                ("ADEChallengeData2016", "ade20k", "."),
                ("annotations/validation", "ADEChallengeData2016/annotations/validation"),
            ),
            ("cityscapes", "Cityscapes (19 classes)", "cityscapes", _CITYSCAPES, ("gtFine/val",)),
        )
    ),
    Target("coupling", "coupling", "coupling ratio, COCO val2017", EvaluateCouplingConfig, _coupling),
    Target(
        "cause_cityscapes",
        "cause",
        "CAUSE, Cityscapes (27 classes)",
        EvalCauseConfig,
        _cause("cityscapes", _CITYSCAPES, ("gtFine/val",), ("leftImg8bit/train",)),
        "cityscapes",
        _TINY_CAUSE,
    ),
    Target(
        "cause_cocostuff27",
        "cause",
        "CAUSE, COCO-Stuff (27 classes)",
        EvalCauseConfig,
        _cause("cocostuff27", _COCO, _STUFF[:2], _TRAIN),
        "cocostuff27",
        _TINY_CAUSE,
    ),
)
# as CAUSE's released code makes the published rows: labels reach its head, see docs/cause.md
_PUBLISHED_CAUSE = {"cause.probe_grad": "released", "score.flip": True}
_NO_SCENES = "pascal_context_59"  # the embedded scenes have no such layout
_NEEDS_TEXT = ("regions", "maskclip")


def _keys(config: type, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for f in dataclasses.fields(config):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            found |= _keys(type(default), f"{prefix}{f.name}.")
        else:
            found.add(f"{prefix}{f.name}")
    return found


def wanted_targets(only: Sequence[str]) -> list[Target]:
    """The targets whose key or measure is among `only`; all where it is empty. UserError for an unknown word."""
    known = list(dict.fromkeys([*(t.measure for t in TARGETS), *(t.key for t in TARGETS)]))
    for word in only:
        if word not in known:
            raise UserError(f"--only {word}: must be one of {', '.join(known)}.{suggestion(word, known)}")
    return [t for t in TARGETS if not only or t.key in only or t.measure in only]


def _check_overrides(targets: Sequence[Target], overrides: Sequence[str]) -> None:
    known = set().union(*(_keys(target.config) for target in targets))
    for item in overrides:
        key = item.partition("=")[0]
        if "=" not in item:
            raise UserError(f"'{item}': expected key=value (for example maskclip.window=224).")
        if key not in known:
            raise UserError(f"'{item}': no measure that is to run has the option '{key}'.{suggestion(key, known)}")


def _scene_options(target: Target, patch: int) -> dict[str, Any]:
    side = max(patch, round(_SCENES_SIDE / patch) * patch)
    sized = {"data.image_size": [side, side]} if target.measure in ("regions", "coupling") else {}
    return {**sized, **target.tiny}


def _standard_options(target: Target, setup: Setup) -> dict[str, Any]:
    published = _PUBLISHED_CAUSE if target.measure == "cause" else {}
    named = {"backbone.name": setup.backbone, "backbone.weights": setup.weights, "run.device": setup.device}
    return {key: value for key, value in {**published, **named}.items() if value is not None}


def _job(target: Target, setup: Setup, found: dict[str, Any], patch: int) -> Job:
    standard = {**_standard_options(target, setup), **found}
    limit = setup.limit if setup.limit is not None else SCENES_LIMIT if setup.scenes else None
    named = {**standard, **(_scene_options(target, patch) if setup.scenes else {})}
    named |= {} if limit is None else {"data.limit": limit}
    own = [item for item in setup.overrides if item.partition("=")[0] in _keys(target.config)]
    return Job(
        target.key,
        target.measure,
        target.title,
        load_config(target.config, None, own, named=named),
        load_config(target.config, named=standard),
        target.set,
    )


def make_plan(setup: Setup) -> tuple[list[Job], list[NotRun]]:
    """What runs, and what does not and why.

    Raises UserError for an unknown backbone, measure or option, for a data root that is no folder, and when nothing
    can run.
    """
    row = find_backbone(setup.backbone)
    if setup.limit is not None and setup.limit < 1:
        raise UserError(f"--limit {setup.limit}: must be 1 or more.")
    targets = wanted_targets(setup.only)
    _check_overrides(targets, setup.overrides)
    if setup.root is None or not setup.root.is_dir():
        raise UserError(
            f"{setup.root}: no such folder (--data-root); name the folder above the sets, or give --scenes."
        )
    jobs: list[Job] = []
    missing: list[NotRun] = []
    for target in targets:
        about = (target.key, target.measure, target.title)
        if target.measure in _NEEDS_TEXT and row.joint_dim is None:
            reason = f"{row.name} has no text beside it, and classes are known by their names"
            missing.append(NotRun(*about, reason, target.set))
            continue
        try:
            found = target.find(setup.root)
        except UserError as e:
            reason = str(e)
            if setup.scenes and target.set == _NO_SCENES:
                reason = "the embedded scenes have no layout of this set; prepare the set itself and give --data-root"
            missing.append(NotRun(*about, reason, target.set))
            continue
        jobs.append(_job(target, setup, found, row.patch_size))
    if not jobs:
        told = "; ".join(f"{m.key}: {m.reason}" for m in missing)
        advice = (
            ""
            if setup.scenes or all(m.set == _NO_SCENES for m in missing)
            else " Or run on the embedded scenes: --scenes."
        )
        raise UserError(f"{setup.root}: nothing can be measured there. {told}.{advice}")
    return jobs, missing
