"""From the options of Cat-Seg's commands to a model and a protocol."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Optional, TypeVar

from rsc_seg.config import require_choice
from rsc_seg.config_catseg import CatSegModelConfig, CatSegTestConfig, ClipConfig
from rsc_seg.errors import UserError
from rsc_seg.seg.build import VERSIONS, CatSegPlan, options_of
from rsc_seg.seg.inference import SlidingOptions
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.seg.policy import POLICIES

T = TypeVar("T")
PROTOCOLS = ("sliding", "whole")


def pair(key: str, values: list[int]) -> tuple[int, int]:
    """Two numbers of an option; UserError for another count."""
    if len(values) != 2:
        raise UserError(f"{key}={values}: give two numbers.")
    return values[0], values[1]


def _named(section: str, make: Callable[[], T]) -> T:
    """What `make` gives; its UserErrors begin with the name of a field, here with that of the option."""
    try:
        return make()
    except UserError as e:
        raise UserError(f"{section}.{e}") from e


def model_options(config: CatSegModelConfig) -> CatSegOptions:
    """The model's sizes and habits, null for the version's own. Raises UserError naming what cannot be used."""
    require_choice("model.version", config.version, tuple(VERSIONS))
    own = options_of(config.version)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(CatSegOptions)}
    for name in ("grid", "decoder", "taps", "decoder_guidance"):
        values[name] = pair(f"model.{name}", values[name])
    given = {name: getattr(own, name) if value is None else value for name, value in values.items()}
    return _named("model", lambda: CatSegOptions(**given))


def catseg_plan(
    clip: ClipConfig, model: CatSegModelConfig, *, seed: int, checkpoint: Optional[Path] = None
) -> CatSegPlan:
    """What `build_catseg` builds; `checkpoint`: a whole Cat-Seg, loaded last.

    A checkpoint brings both towers along, so official CLIP weights are not fetched for it. Raises UserError for a tuned
    image tower beside a whole Cat-Seg, and for options that cannot be used.
    """
    if checkpoint is not None and clip.checkpoint is not None:
        raise UserError(
            f"clip.checkpoint={clip.checkpoint}: {checkpoint} holds an image tower already; give one of the two."
        )
    if model.finetune:
        require_choice("model.finetune", model.finetune, POLICIES)
    weights = "none" if checkpoint is not None and clip.weights == "official" else clip.weights
    return CatSegPlan(
        backbone=clip.name,
        weights=clip.checkpoint or weights,
        text=weights,
        version=model.version,
        finetune=model.finetune or "",
        checkpoint="" if checkpoint is None else str(checkpoint),
        options=model_options(model),
        guide=model.guide,
        attention=clip.attention,
        seed=seed,
    )


def sliding_options(config: CatSegTestConfig) -> Optional[SlidingOptions]:
    """The sliding window of a protocol, None for one view. Raises UserError for options that cannot be used."""
    require_choice("test.protocol", config.protocol, PROTOCOLS)
    if config.protocol == "whole":
        return None
    size = pair("test.size", config.size)
    return _named("test", lambda: SlidingOptions(size, config.window, config.overlap, config.global_view))
