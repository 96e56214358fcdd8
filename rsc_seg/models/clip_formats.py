"""CLIP checkpoints by their own names: image towers into timm's names, text towers into open_clip's."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rsc_seg.models.checkpoint_files import under_one_prefix, unwrap

Names = tuple[tuple[str, str], ...]

_BLOCK = r"^transformer\.resblocks\.(\d+)\."
_OPENAI: Names = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^proj$", "head.weight"),
    (_BLOCK + r"ln_([12])\.", r"blocks.\1.norm\2."),
    (_BLOCK + r"attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (_BLOCK + r"attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (_BLOCK + r"mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (_BLOCK + r"mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
)
_LAYER = r"^encoder\.layers\.(\d+)\."
_TRANSFORMERS_IMAGE: Names = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),  # spelt so by transformers
    (r"^post_layernorm\.", "norm."),
    (_LAYER + r"layer_norm([12])\.", r"blocks.\1.norm\2."),
    (_LAYER + r"self_attn\.qkv\.", r"blocks.\1.attn.qkv."),
    (_LAYER + r"self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (_LAYER + r"mlp\.", r"blocks.\1.mlp."),
)
_TRANSFORMERS_TEXT: Names = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (_LAYER + r"layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (_LAYER + r"self_attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (_LAYER + r"self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (_LAYER + r"mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (_LAYER + r"mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)
# the names under which open_clip keeps a text tower, built in or as a module of its own
_TEXT = re.compile(r"^(token_embedding\.|positional_embedding$|transformer\.|ln_final\.|text_projection($|\.))")
_PART = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)$")
_POSITION_NUMBERS = "embeddings.position_ids"  # a constant that older versions of transformers saved


def _renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The first pattern that matches a key renames it; keys without one stay, for the strict check to name them."""
    result = {}
    for key, value in state.items():
        pattern, new = next(((p, new) for p, new in names if re.match(p, key)), (r"^", ""))
        result[re.sub(pattern, new, key)] = value
    return result


def _with_joined_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections of transformers one above the other, as the other formats keep them."""
    joined = {}
    for key, value in state.items():
        match = _PART.search(key)
        parts = [state.get(f"{key[: match.start()]}self_attn.{x}_proj.{match[2]}") for x in "qkv"] if match else []
        whole = [part for part in parts if part is not None]
        if match is None or len(whole) < 3:
            joined[key] = value
        elif match[1] == "q":
            joined[f"{key[: match.start()]}self_attn.qkv.{match[2]}"] = torch.cat(whole)
    return joined


def _from_transformers(tower: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    return _renamed(_with_joined_qkv({k: v for k, v in tower.items() if k != _POSITION_NUMBERS}), names)


def clip_image_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor] | None:
    """The image tower of a CLIP in OpenAI's names (open_clip's own, CLIPSelf's) or those of transformers, as timm's.

    None when the state dict has neither; towers that open_clip or EVA build on timm already have timm's names. The
    projection is `head.weight`. The result for OpenAI's names is that of timm's own filter. Raises UserError beginning
    with `where` when there are several encoders.
    """
    found = under_one_prefix(state, "embeddings.class_embedding", where)
    if found is not None:
        prefix, tower = found
        result = _from_transformers(tower, _TRANSFORMERS_IMAGE)
        projection = state.get(f"{prefix.removesuffix('vision_model.')}visual_projection.weight")
        if projection is not None:
            result["head.weight"] = projection
    else:
        found = under_one_prefix(state, "class_embedding", where)
        if found is None:
            return None
        result = _renamed(found[1], _OPENAI)
        if "head.weight" in result:
            result["head.weight"] = result["head.weight"].T
    width = result["cls_token"].shape[-1]
    result["cls_token"] = result["cls_token"].reshape(1, 1, width)
    if "pos_embed" in result:
        result["pos_embed"] = result["pos_embed"][None]
    return result


def text_state(content: Any, where: str) -> dict[str, Tensor] | None:
    """The text tower of a CLIP checkpoint in the names of open_clip's text module, and `logit_scale` as a scalar.

    `content` is what `read_checkpoint` gives. A tower built into the CLIP, one under `text.` and that of transformers
    come out alike: `token_embedding.weight`, `positional_embedding`, `transformer.*`, `ln_final.*`, `text_projection`
    (width x joint space); float32 on the CPU, shapes not judged. None when there is no text tower. Raises UserError
    beginning with `where` when there are no weights at all, or several text towers.
    """
    state = unwrap(content, where)
    found = under_one_prefix(state, "embeddings.token_embedding.weight", where)
    if found is not None:
        prefix, tower = found
        result = _from_transformers(tower, _TRANSFORMERS_TEXT)
        projection = state.get(f"{prefix.removesuffix('text_model.')}text_projection.weight")
        if projection is not None:
            result["text_projection"] = projection.T
    else:
        found = under_one_prefix(state, "token_embedding.weight", where)
        if found is None:
            return None
        prefix = found[0]
        result = found[1]
    result = {key: value for key, value in result.items() if _TEXT.match(key)}
    scale = next((value for key, value in state.items() if key.split(".")[-1] == "logit_scale"), None)
    if scale is not None and scale.numel() == 1:
        result["logit_scale"] = scale.reshape(())
    return {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in result.items()}
