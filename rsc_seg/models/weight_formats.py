"""State dicts of DINOv2, CLIP, timm and this project in timm's names, fitted strictly to a backbone."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.checkpoint_files import read_checkpoint, under_one_prefix, unwrap
from rsc_seg.models.clip_formats import clip_image_state
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.models.trunk import create_trunk

__all__ = [
    "check_shapes",
    "count_blocks",
    "fit_state",
    "keep_blocks",
    "matching_backbones",
    "read_checkpoint",
    "to_timm_names",
]

# DINOv2 trains with blocks.<chunk>.<block>., the block counted over all chunks
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
# Feed-forward and attention as DINOv2 and EVA-02-CLIP spell them
_SPELLINGS = {
    ".mlp.w12.": ".mlp.fc1.",
    ".mlp.w1.": ".mlp.fc1_g.",
    ".mlp.w2.": ".mlp.fc1_x.",
    ".mlp.w3.": ".mlp.fc2.",
    ".mlp.ffn_ln.": ".mlp.norm.",
    ".attn.inner_attn_ln.": ".attn.norm.",
    ".attn.q_bias": ".attn.q_proj.bias",
    ".attn.v_bias": ".attn.v_proj.bias",
}


def _rename(key: str) -> str:
    key = _CHUNKED.sub(r"blocks.\1.", key)
    for theirs, timms in _SPELLINGS.items():
        key = key.replace(theirs, timms)
    return key


def _timm_tower(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tower with timm's `cls_token`, without its prefix; open_clip keeps the projection of some beside it."""
    found = under_one_prefix(tensors, "cls_token", where)
    if found is None:
        return dict(tensors)
    prefix, state = found
    beside = f"{prefix.removesuffix('trunk.')}head.proj."
    for key in ("weight", "bias"):
        if prefix.endswith("trunk.") and beside + key in tensors:
            state[f"head.{key}"] = tensors[beside + key]
    # mask tokens serve pretraining alone, rotary tables are constants
    return {key: value for key, value in state.items() if key != "mask_token" and "rope" not in key.split(".")}


def to_timm_names(content: Any, where: str) -> dict[str, Tensor]:
    """State dict in timm's names from the content of a checkpoint; shapes are not judged here.

    Takes DINOv2's releases and training checkpoints (their teacher), CLIPs in the names of OpenAI, open_clip (its own
    towers and timm's), EVA-02-CLIP, CLIPSelf and transformers, timm's files and ours, under any of `CONTAINERS` and any
    prefix. With registers DINOv2 adds a position to [CLS] that timm has folded into `cls_token`; the mask token is left
    out; a CLIP's projection is `head`, with a bias of zero where the tower has none. The result is that of timm's own
    filters for what they know. Raises UserError beginning with `where` when there are no weights, or several encoders.
    """
    tensors = unwrap(content, where)
    state = clip_image_state(tensors, where)
    if state is None:
        state = _timm_tower(tensors, where)
    if "register_tokens" in state and "cls_token" in state and "pos_embed" in state:
        positions = state["pos_embed"]  # (1, 1 + N, D), [CLS] first
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
        state["reg_token"] = state.pop("register_tokens")
    if "norm_pre.weight" in state and "head.weight" in state and "head.bias" not in state:
        state["head.bias"] = torch.zeros(state["head.weight"].shape[0])
    return {_rename(key): value for key, value in state.items()}


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """Number of transformer blocks: the highest index and one."""
    return 1 + max((int(m[1]) for key in state if (m := _BLOCK.match(key))), default=-1)


def keep_blocks(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The state dict without the blocks from index `depth` on."""
    return {key: value for key, value in state.items() if not (m := _BLOCK.match(key)) or int(m[1]) < depth}


def _shapes(row: BackboneRow, depth: int) -> dict[str, tuple[int, ...]]:
    trunk = create_trunk(row, depth=depth, device="meta")
    return {key: tuple(value.shape) for key, value in trunk.state_dict().items()}


def _of_kind(state: Mapping[str, Tensor], row: BackboneRow) -> dict[str, Tensor]:
    """Without the head where `row` has no joint space: there it is a classifier."""
    return {key: value for key, value in state.items() if row.joint_dim is not None or not key.startswith("head.")}


def _fits(state: Mapping[str, Tensor], row: BackboneRow) -> bool:
    """Whether keys and shapes are those of the first blocks of `row`, as many as the state dict has."""
    blocks, width = count_blocks(state), state["cls_token"].shape[-1] if "cls_token" in state else 0
    if not 1 <= blocks <= row.depth or width != row.embed_dim:
        return False
    return {key: tuple(value.shape) for key, value in _of_kind(state, row).items()} == _shapes(row, blocks)


def matching_backbones(state: Mapping[str, Tensor], activation: str | None = None) -> list[str]:
    """Registry names whose first blocks have the keys and shapes of the state dict, those of its own depth first.

    With `activation`, only the backbones that run it: shapes cannot tell GELU from QuickGELU.
    """
    rows = [row for row in REGISTRY.values() if activation in (None, row.activation) and _fits(state, row)]
    return [row.name for row in sorted(rows, key=lambda row: (row.depth, row.name))]


def _few(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def _advice(state: Mapping[str, Tensor]) -> str:
    names = matching_backbones(state)
    if not names:
        return "no known backbone fits this file"
    blocks = count_blocks(state)
    cut = f" with backbone.depth={blocks}" if blocks < REGISTRY[names[0]].depth else ""
    return f"it fits --backbone {' or '.join(names)}{cut}"


def _side(positions: int) -> str:
    root = round(positions**0.5)
    return f"{root}x{root}" if root * root == positions else str(positions)


def _refuse_other_size(state: Mapping[str, Tensor], row: BackboneRow, wanted: int, where: str) -> None:
    """Position embeddings of another image size are the commonest misfit and deserve words of their own."""
    side = row.native_size // row.patch_size
    prefix = wanted - side * side
    held = state["pos_embed"].shape[1] - prefix
    names = matching_backbones(state, row.activation)
    advice = f"it fits --backbone {' or '.join(names)}" if names else "use weights stored at native size"
    raise UserError(
        f"{where}: its position embeddings are those of a grid of {_side(held)} patches, {row.name} keeps "
        f"{side}x{side} ({row.native_size} pixels) and resamples them to any image itself; {advice}."
    )


def _refuse(held: Mapping[str, Tensor], state: Mapping[str, Tensor], row: BackboneRow, depth: int, where: str) -> None:
    """Raises UserError when `held` is not exactly `row` with `depth` blocks; `state` is the whole file."""
    wanted, blocks = _shapes(row, depth), count_blocks(state)
    missing = [key for key in wanted if key not in held]
    unknown = [key for key in held if key not in wanted]
    wrong = [key for key, shape in wanted.items() if key in held and tuple(held[key].shape) != shape]
    if not (missing or unknown or wrong):
        return
    if blocks < depth and _fits(state, row):
        raise UserError(
            f"{where}: holds {blocks} of the {row.depth} blocks of {row.name}: backbone.depth={blocks} loads them."
        )
    if not missing and not unknown and wrong == ["pos_embed"] and held["pos_embed"].ndim == 3:
        _refuse_other_size(state, row, wanted["pos_embed"][1], where)
    parts = [f"lacks {_few(missing)}"] if missing else []
    parts += [f"has unknown {_few(unknown)}"] if unknown else []
    parts += [_few([f"{key} is {tuple(held[key].shape)}, must be {wanted[key]}" for key in wrong])] if wrong else []
    raise UserError(f"{where}: not weights of {row.name}: {'; '.join(parts)}; {_advice(state)}.")


def check_shapes(state: Mapping[str, Tensor], row: BackboneRow, where: str) -> None:
    """UserError beginning with `where` when a state dict in timm's names is not `row`, or its first blocks."""
    depth = min(max(count_blocks(state), 1), row.depth)
    _refuse(_of_kind(state, row), state, row, depth, where)


def fit_state(state: Mapping[str, Tensor], row: BackboneRow, depth: int, where: str) -> dict[str, Tensor]:
    """The first `depth` blocks of a state dict in timm's names as contiguous float32, in the order of the architecture.

    A head is left out where `row` has no joint space. Raises UserError beginning with `where` when keys or shapes are
    not those of `row` (up to three are named, and the registry's names that would fit), or when values are not finite.
    """
    held = _of_kind(state, row)
    if depth < row.depth:
        held = keep_blocks(held, depth)
    _refuse(held, state, row, depth, where)
    result = {key: held[key].detach().to("cpu", torch.float32).contiguous() for key in _shapes(row, depth)}
    broken = [key for key, value in result.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{where}: values are not finite in {_few(broken)}; use an earlier checkpoint.")
    return result
