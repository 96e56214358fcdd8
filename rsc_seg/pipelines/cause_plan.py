"""Everything about a CAUSE run that can be wrong before work begins: options, sets, views, sizes."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch

from rsc_seg.cause.crf import crf_wanted
from rsc_seg.cause.heads import KINDS
from rsc_seg.cause.labels import CAUSE_SETS, OpenedSet, open_cause_set, open_stored_crops
from rsc_seg.cause.sampling import cells_of
from rsc_seg.cause.stages import PRESETS, PROBE_GRADS, CauseOptions, cause_options, whole_patches
from rsc_seg.cause.tokens import cache_gb
from rsc_seg.cause.views import Views, full_views, set_crops, train_views, val_views
from rsc_seg.config import CauseConfig, CauseDataConfig, EvalCauseConfig, RunConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.device import choose_device
from rsc_seg.training.cache import DTYPES

_log = logging.getLogger(__name__)
_CLIPS = ("head_clip", "probe_clip")
_RESOLUTIONS = ("codebook_resolution", "head_resolution", "test_resolution")
_RUN = ("seed", "device")  # of RunConfig, the rest steers a loop that CAUSE does not have
_OWN = ("head", "preset", "probe_grad", "seeds")  # of CauseConfig, the rest are hyper-parameters
# (lowest, highest, whether the lowest itself is refused) where it is not "above 0"
_RANGES = {key: (0.0, math.inf, False) for key in (*_CLIPS, "weight_decay", "codebook_decay", "probe_decay")}
_RANGES |= {"dropout": (0.0, 1.0, False), "ema": (0.0, 1.0, False), "share": (0.0, 1.0, True)}
_RANGES |= {key: (-1.0, 1.0, False) for key in ("positive", "negative")}  # cosines
HYPER_PARAMETERS = tuple(f.name for f in dataclasses.fields(CauseConfig) if f.name not in _OWN)


@dataclass(frozen=True)
class Sets:
    """The splits: `train` is None where nothing is trained."""

    train: Optional[OpenedSet]
    val: OpenedSet


@dataclass(frozen=True)
class Plan:
    """A checked run: its configuration, where its files go, the recipe (with the first seed), sets and device."""

    config: EvalCauseConfig
    cache: Path
    options: CauseOptions
    sets: Sets
    device: torch.device
    crf: bool
    changed: tuple[str, ...]  # hyper-parameters that are not the preset's, as key=value

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return [self.config.run.seed + k for k in range(self.config.cause.seeds)]

    def shown(self) -> list[int]:
        """Validation images whose predictions are kept for the report, at even distances."""
        count, wanted = len(self.sets.val.data), self.config.score.pictures
        return sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(min(count, wanted))})


def check_choices(config: EvalCauseConfig) -> None:
    """Raises UserError for an option that no value of the data could make right."""
    cause, score = config.cause, config.score
    require_choice("data.dataset", config.data.dataset, tuple(CAUSE_SETS))
    require_choice("cause.head", cause.head, KINDS)
    require_choice("cause.preset", cause.preset, PRESETS)
    require_choice("cause.probe_grad", cause.probe_grad, PROBE_GRADS)
    require_choice("cache.mode", config.cache.mode, ("auto", "on", "off"))
    require_choice("cache.dtype", config.cache.dtype, tuple(DTYPES))
    least = [
        ("cause.seeds", cause.seeds, 1),
        ("data.limit", config.data.limit, 1),
        ("data.train_every", config.data.train_every, 1),
        ("data.val_every", config.data.val_every, 1),
        ("score.pictures", score.pictures, 0),
        ("score.batch_size", score.batch_size, 1),
        ("score.crf_workers", score.crf_workers, 0),
        ("run.seed", config.run.seed, 0),
        ("cache.max_gb", config.cache.max_gb, 0),
    ]
    for key, value, lowest in least:
        if value is not None and not value >= lowest:  # a NaN is refused too
            raise UserError(f"{key}={value}: must be {lowest} or more.")
    for field in dataclasses.fields(RunConfig):
        value = getattr(config.run, field.name)
        if field.name not in _RUN and value != field.default:
            raise UserError(
                f"run.{field.name}={value}: CAUSE runs on one device in float32 and keeps every stage, so of run.* "
                f"it takes {' and '.join(_RUN)} alone; leave this one out."
            )


def _said(lowest: float, highest: float, open_below: bool) -> str:
    below = f"above {lowest:g}" if open_below else f"{lowest:g} or more"
    return f"{below}, and finite" if highest == math.inf else f"{below}, and at most {highest:g}"


def recipe(config: EvalCauseConfig, classes: int) -> tuple[CauseOptions, tuple[str, ...]]:
    """The preset's hyper-parameters with those that the configuration names, and which of them differ, as key=value.

    Raises UserError for a value out of its range.
    """
    preset = cause_options(
        config.cause.preset, config.data.dataset, config.cause.head, classes=classes, seed=config.run.seed
    )
    named: dict[str, Any] = {}
    for key in HYPER_PARAMETERS:
        value = getattr(config.cause, key)
        if value is None:
            continue
        lowest, highest, open_below = _RANGES.get(key, (0.0, math.inf, True))
        inside = (lowest < value if open_below else lowest <= value) and value <= highest
        if not (inside and math.isfinite(value)):
            raise UserError(f"cause.{key}={value}: must be {_said(lowest, highest, open_below)}.")
        named[key] = None if key in _CLIPS and value == 0 else value
    changed = [f"cause.{k}={getattr(config.cause, k):g}" for k, v in named.items() if getattr(preset, k) != v]
    return dataclasses.replace(preset, **named), tuple(changed)


def resolved(config: EvalCauseConfig) -> EvalCauseConfig:
    """The configuration with the preset's hyper-parameters in the place of nulls."""
    check_choices(config)
    options, _ = recipe(config, classes=1)
    found = {key: getattr(options, key) for key in HYPER_PARAMETERS}
    found |= {key: 0.0 for key in _CLIPS if found[key] is None}
    return dataclasses.replace(config, cause=dataclasses.replace(config.cause, **found))


def _train_set(data: CauseDataConfig) -> OpenedSet:
    if not data.stored_crops:
        return open_cause_set(data.dataset, data.root, data.train_split, data.limit, data.train_every)
    if data.train_every != 1:
        raise UserError("data.train_every: stored crops are not images; use data.limit, or data.stored_crops=false.")
    crops = None if data.limit is None else data.limit * len(set_crops(CAUSE_SETS[data.dataset].crops))
    return open_stored_crops(data.dataset, data.root, data.train_split, crops)


def make_plan(config: EvalCauseConfig, folder: Path, *, trained: bool = True) -> Plan:
    """Opens the sets and resolves the recipe; `trained` False: CAUSE weights are given, no training set is read.

    Raises UserError for options that do not fit, another layout, a missing split, or a CRF that cannot run.
    """
    check_choices(config)
    device = choose_device(config.run.device)
    crf = crf_wanted(config.score.crf)
    data = config.data
    val = open_cause_set(data.dataset, data.root, data.val_split, data.limit, data.val_every)
    train = _train_set(data) if trained else None
    if train is not None and train.data.classes != val.data.classes:
        raise UserError(f"{data.root}: training and validation labels have different class lists.")
    for split, opened in ((data.train_split, train), (data.val_split, val)):
        if opened is not None and len(opened.data) == 0:
            raise UserError(f"{data.root}: split '{split}' holds no image; check data.limit and data.*_every.")
        if opened is not None:
            opened.data.labels(0)  # labels of another set are told from the first file, not after hours
    options, changed = recipe(config, len(val.data.classes))
    cache = Path(config.cache.dir).expanduser() if config.cache.dir else folder / "cache"
    return Plan(config, cache, options, Sets(train, val), device, crf, changed)


@dataclass(frozen=True)
class EncoderViews:
    """The views that an encoder's stages use; codebook and head share one object where their resolution is the same."""

    codebook: Optional[Views]
    head: Optional[Views]
    val: Views
    flipped: Optional[Views]

    def distinct(self) -> dict[str, Views]:
        """Each view list once, by what it is for."""
        named = {"training crops": self.codebook, "training crops of the head": self.head}
        named |= {"validation views": self.val, "mirrored validation views": self.flipped}
        found: dict[str, Views] = {}
        for name, views in named.items():
            if views is not None and all(views is not other for other in found.values()):
                found[name] = views
        return found


def encoder_views(plan: Plan, encoder: DenseEncoder, head: str) -> EncoderViews:
    """Views at the recipe's resolutions, brought to whole patches of this encoder.

    Raises UserError for a training resolution without a cell of tokens, and for CAUSE-TR with another one in the test.
    """
    options, score = plan.options, plan.config.score
    sides = {key: whole_patches(getattr(options, key), encoder.patch_size) for key in _RESOLUTIONS}
    if head == "tr" and plan.sets.train is not None and sides["head_resolution"] != sides["test_resolution"]:
        raise UserError(
            f"cause.test_resolution={options.test_resolution}: CAUSE-TR is scored at the resolution that it is trained "
            f"at, cause.head_resolution={options.head_resolution}; make them equal, or use --head mlp."
        )
    made: dict[int, Views] = {}
    if plan.sets.train is not None:
        for side in (sides["codebook_resolution"], sides["head_resolution"]):
            cells_of(encoder.grid(side, side))
            made[side] = made.get(side) or train_views(plan.sets.train, side)
    scored, side = full_views if score.full_image else val_views, sides["test_resolution"]
    return EncoderViews(
        made.get(sides["codebook_resolution"]),
        made.get(sides["head_resolution"]),
        scored(plan.sets.val, side),
        scored(plan.sets.val, side, flipped=True) if score.flip else None,
    )


def cached_views(plan: Plan, encoder: DenseEncoder, views: EncoderViews) -> list[Views]:
    """The views whose tokens are kept on disk: all, or those that are scored, or none (cache.mode, cache.max_gb)."""
    cache, every = plan.config.cache, list(views.distinct().values())
    if cache.mode != "auto":
        return every if cache.mode == "on" else []
    scored = [v for v in every if v in (views.val, views.flipped)]
    for chosen in (every, scored):
        size = sum(cache_gb(encoder, v, cache.dtype) for v in chosen)
        if size <= cache.max_gb:
            return chosen
        _log.info("tokens of %d lists of views take %.1f GB, above cache.max_gb=%g", len(chosen), size, cache.max_gb)
    return []
