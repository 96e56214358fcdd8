"""Checkpoints of the official code: every parameter name of theirs, read strictly and written."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.checkpoint_files import unwrap
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.projections import joined_state, split_state
from rsc_seg.seg.spatial import BETWEEN_ZONES, Windows, window_biases

log = logging.getLogger(__name__)

LOAD_AS_TRAINED = "give clip.name and model.* as they were in its training (config.yaml beside it where it is a run's)"
PREDICTOR = "sem_seg_head.predictor."
_CLIP, _AGGREGATOR = f"{PREDICTOR}clip_model.", f"{PREDICTOR}transformer."
_VISUAL = (
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("head.weight", "proj"),
)
_BLOCK = (
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("attn.proj.", "attn.out_proj."),
    ("attn.qkv.", "attn.in_proj_"),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)
_PACKED = "attn.in_proj_weight"
_MASK = re.compile(r"\.swin_block\.block_2\.attn_mask$")
_HEAD_BIAS = "encoder.trunk.head.bias"


def _visual_name(name: str) -> str:
    match = re.match(r"blocks\.(\d+)\.(.*)", name)
    pairs, start, rest = (
        (_VISUAL, "", name) if match is None else (_BLOCK, f"transformer.resblocks.{match[1]}.", match[2])
    )
    if match is None and rest.startswith("norm."):
        return "ln_post." + rest.removeprefix("norm.")
    for ours, theirs in pairs:
        if rest.startswith(ours):
            return start + theirs + rest.removeprefix(ours)
    raise UserError(f"image tower: '{name}' has no counterpart in the official code; only CLIP's own ViTs have.")


def _official_name(key: str) -> str:
    """The official name of one of our keys; packed weights under `in_proj_weight`."""
    for ours, theirs in (
        ("text.text.", _CLIP),
        ("text.logit_scale", f"{_CLIP}logit_scale"),
        ("aggregator.", _AGGREGATOR),
    ):
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    if key.startswith("encoder.trunk."):
        return f"{_CLIP}visual.{_visual_name(key.removeprefix('encoder.trunk.'))}"
    return key


def _reshaped(name: str, value: Tensor) -> Tensor:
    """A tensor of ours in the official shape; transposing is its own inverse, the other way is `view_as`."""
    if name.endswith("visual.proj"):
        return value.T
    if name.endswith("visual.class_embedding"):
        return value.reshape(-1)
    return value[0] if name.endswith("visual.positional_embedding") else value


def _own_state(model: CatSeg) -> dict[str, Tensor]:
    """Our state dict with packed projections, without what the official code has no name for."""
    state = joined_state(model.state_dict())
    extra = ("guide.", "aggregator.guide.", _HEAD_BIAS)
    return {key: value for key, value in state.items() if not key.startswith(extra)}


def official_state(model: CatSeg) -> dict[str, Tensor]:
    """All tensors under the official names and shapes, window masks included; values are the model's own, not copies.

    Raises UserError for towers that the official code does not know, a projection with a bias, and a guide.
    """
    if isinstance(model.encoder.trunk, Eva):
        raise UserError(f"'{model.encoder.name}': the official code has no such image tower; save its state dict.")
    if model.guide is not None:
        raise UserError("a model with a DINOv2 guide has no official form; save its state dict.")
    bias = model.state_dict().get(_HEAD_BIAS)
    if bias is not None and bool(bias.any()):
        raise UserError("image tower: its projection has a bias, for which the official code has no place.")
    return _named(model)


def _named(model: CatSeg) -> dict[str, Tensor]:
    """What of a model has an official name, under it."""
    result = {}
    for key, value in _own_state(model).items():
        name = _official_name(key)
        if name.endswith(_PACKED):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[name.replace("in_proj", f"{letter}_proj")] = part
        else:
            result[name] = _reshaped(name, value)
    return result | _masks(model)


def _masks(model: CatSeg) -> dict[str, Tensor]:
    """Swin's masks, which the official code keeps as buffers; none where windows are not shifted."""
    windows = Windows.of(model.options.grid, model.options.window, shifted=True)
    if not windows.shift:
        return {}
    length = windows.side**2
    biases = window_biases(windows, torch.device("cpu"), torch.float32) or ()
    mask = torch.stack([torch.zeros(length, length) if b is None else b for b in biases])
    mask = mask.clamp(min=BETWEEN_ZONES)
    return {f"{_AGGREGATOR}layers.{i}.swin_block.block_2.attn_mask": mask for i in range(model.options.layers)}


def state_differences(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """In words, up to three names of each kind: what `held` lacks, has beyond `wanted`, or has in another shape."""
    lacks = [name for name in wanted if name not in held and not _MASK.search(name)]
    unknown = [name for name in held if name not in wanted and not _MASK.search(name)]
    wrong = [
        f"{name} is {tuple(held[name].shape)}, must be {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in held and not _MASK.search(name) and held[name].shape != value.shape
    ]
    parts = []
    for what, names in (("lacks", lacks), ("has unknown", unknown), ("", wrong)):
        if names:
            few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            parts.append(f"{what} {few}".strip())
    return parts


def load_official(model: CatSeg, content: Any, where: str) -> None:
    """Loads the content of an official checkpoint (`read_checkpoint`) into `model`, strictly by name and shape.

    Window masks in the file are passed over: they follow from the grid. A guide of the model stays as it is, for which
    these checkpoints have no place. Raises UserError beginning with `where` that names up to three lacking, unknown or
    misshapen tensors of each kind, or values that are not finite; the model is then as it was.
    """
    held = unwrap(content, where)
    if isinstance(model.encoder.trunk, Eva):
        raise UserError(
            f"{where}: a Cat-Seg on one of CLIP's own ViTs, not on {model.encoder.name}; {LOAD_AS_TRAINED}."
        )
    wanted = _named(model)
    found = state_differences(held, wanted)
    if found:
        size = "x".join(map(str, model.options.grid))
        raise UserError(
            f"{where}: not a checkpoint of Cat-Seg with {model.encoder.name} ({size} tokens): {'; '.join(found)}; "
            f"{LOAD_AS_TRAINED}."
        )
    broken = [name for name in wanted if name in held and not torch.isfinite(held[name]).all()]
    if broken:
        raise UserError(f"{where}: values are not finite in {', '.join(broken[:3])}; use an earlier checkpoint.")
    state = {}
    for key, value in _own_state(model).items():
        name = _official_name(key)
        if name.endswith(_PACKED):
            state[key] = torch.cat([held[name.replace("in_proj", f"{letter}_proj")] for letter in "qkv"])
        else:
            theirs = held[name]
            state[key] = (theirs.T if name.endswith("visual.proj") else theirs.reshape(value.shape)).contiguous()
    own = model.state_dict()
    split = split_state(state, own)
    if _HEAD_BIAS in own:
        split[_HEAD_BIAS] = torch.zeros_like(own[_HEAD_BIAS])
    model.load_state_dict({**own, **split}, strict=True)
    log.info("%s: %d tensors loaded", where, len(held))
