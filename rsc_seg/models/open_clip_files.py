"""A tuned image tower and its text tower as one CLIP in open_clip's names, for plain open_clip to load."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.text import text_shape

_TOP = {
    "patch_embed.proj.weight": "conv1.weight",
    "norm_pre.weight": "ln_pre.weight",
    "norm_pre.bias": "ln_pre.bias",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
}
_IN_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)\.(weight|bias)$")


def open_clip_config(row: BackboneRow, depth: int) -> dict[str, Any]:
    """open_clip's model configuration of `row` with its first `depth` blocks; UserError where there is none.

    EVA's tower is a timm model inside open_clip, which knows that model by its name alone.
    """
    if row.joint_dim is None:
        raise UserError(f"{row.name} has no text tower, so it is no CLIP: export it for timm.")
    eva = row.timm_id.startswith("eva")
    if eva and depth != row.depth:
        raise UserError(
            f"{row.name} with {depth} of {row.depth} blocks: open_clip builds EVA whole only; export it for timm."
        )
    if eva and row.timm_args:
        raise UserError(
            f"{row.name}: open_clip builds EVA by timm's name alone and cannot be told {', '.join(row.timm_args)}; "
            "export it for timm."
        )
    if row.text_id:
        config = copy.deepcopy(open_clip.get_model_config(row.text_id))
    else:
        text = text_shape(row)
        vision: dict[str, Any] = {"image_size": row.native_size, "patch_size": row.patch_size, "width": row.embed_dim}
        vision["head_width"] = row.embed_dim // row.timm_args["num_heads"]
        config = {
            "embed_dim": row.joint_dim,
            "quick_gelu": row.activation == "quick_gelu",
            "vision_cfg": vision,
            "text_cfg": {"width": text.width, "heads": text.heads, "layers": text.layers},
        }
    if not eva:
        config["vision_cfg"]["layers"] = depth
    return config


def _visual_name(key: str) -> str:
    found = _BLOCK.match(key)
    if found is None:
        return _TOP.get(key, key)
    number, part, kind = found.groups()
    return f"transformer.resblocks.{number}.{_IN_BLOCK[part + '.']}{kind}"


def visual_state(state: Mapping[str, Tensor], row: BackboneRow) -> dict[str, Tensor]:
    """An image tower's state dict from timm's names into open_clip's, with their prefix `visual.`.

    Raises UserError when the projection has a bias that open_clip's tower has no place for.
    """
    if row.timm_id.startswith("eva"):
        return {f"visual.trunk.{key}": value for key, value in state.items()}
    named = dict(state)
    bias = named.pop("head.bias", None)
    if bias is not None and bias.abs().max() > 0:
        raise UserError(f"{row.name}: the projection's bias was trained, and open_clip's tower has none.")
    out = {
        "class_embedding": named.pop("cls_token").flatten(),
        "positional_embedding": named.pop("pos_embed")[0],
        "proj": named.pop("head.weight").T.contiguous(),
    }
    out |= {_visual_name(key): value for key, value in named.items()}
    return {f"visual.{key}": value for key, value in out.items()}


def whole_clip(
    image: Mapping[str, Tensor], text: Mapping[str, Tensor], row: BackboneRow, depth: int
) -> dict[str, Tensor]:
    """State dict of open_clip's model: `image` in timm's names, `text` as TextTower has it (`text.*`, `logit_scale`).

    Checked against open_clip's own model, key by key and shape by shape; ValueError when they differ.
    """
    config = open_clip_config(row, depth)
    custom = bool(config.pop("custom_text", False))
    inside = dict(text) if custom else {key.removeprefix("text."): value for key, value in text.items()}
    state = {**visual_state(image, row), **inside}
    with torch.device("meta"):
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    held = {key: tuple(value.shape) for key, value in state.items()}
    if wanted != held:
        odd = sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key))
        raise ValueError(f"open_clip's {row.text_id or row.name} and the exported one differ in {', '.join(odd[:3])}")
    return {key: state[key] for key in wanted}
