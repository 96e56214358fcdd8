"""Which parameters train, by name, and their groups for the optimiser."""

import re
from typing import Any

from torch import nn

from rsc_seg.config import require_choice
from rsc_seg.models.attention import VALUE_MODES, unused_in_value_mode
from rsc_seg.seg.model import CatSeg

POLICIES = ("attention", "vanilla", "full", "none")
_VISUAL, _TEXT = r"encoder\.trunk\.", r"text\.text\."
_BLOCKS = rf"^({_VISUAL}blocks|{_TEXT}transformer\.resblocks)\.\d+\."
_QV = (
    r"attn\.(qkv\.parametrizations\.weight|parametrizations\.in_proj_weight)\.original[02]$"
    r"|" + _BLOCKS + r"attn\.[qv]_proj\.weight$"
)
_RULES = {
    "attention": re.compile(_BLOCKS + _QV),
    "vanilla": re.compile(rf"^{_VISUAL}(blocks\.\d+\.attn\.|pos_embed$)"),
    "full": re.compile(_BLOCKS),
    "none": re.compile(r"(?!)"),
}
CLIP = ("encoder.", "text.")
GUIDE = "guide."
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def apply_policy(model: CatSeg, policy: str = "attention") -> list[str]:
    """Sets `requires_grad` throughout the model and returns the names of what trains.

    attention: query and value weights of both towers (CVPR version). vanilla: all of the image tower's attention and
    its positions, nothing of the text tower (first version). full: all transformer blocks of both. none: neither. The
    aggregator and the layers before it always train, a DINOv2 guide never. Parameters that the last block never reads
    stay frozen, except for packed projections, whose gradient is exactly zero there, as in the official code.
    """
    require_choice("finetune", policy, POLICIES)
    rule, names = _RULES[policy], []
    encoder = model.encoder
    unread = unused_in_value_mode(encoder.trunk.blocks[-1]) if encoder.last_block in VALUE_MODES else []
    idle = {id(parameter) for parameter in unread}
    for name, parameter in model.named_parameters():
        inside = bool(rule.search(name)) and id(parameter) not in idle
        parameter.requires_grad_(not name.startswith(GUIDE) and (inside or not name.startswith(CLIP)))
        if parameter.requires_grad:
            names.append(name)
    return names


def parameter_groups(
    model: CatSeg, lr: float = 2e-4, clip_factor: float = 0.01, weight_decay: float = 1e-4
) -> list[dict[str, Any]]:
    """One group for each kind of trainable parameter, with the official rates and decays.

    CLIP learns at `clip_factor` times the rate of the rest. Norm layers and embeddings do not decay, biases do. Each
    group has a `name` besides what optimisers read.
    """
    owners = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        clip, bare = name.startswith(CLIP), isinstance(owners[id(parameter)], (*_NORMS, nn.Embedding))
        group = groups.setdefault(
            (clip, bare),
            {
                "params": [],
                "lr": lr * (clip_factor if clip else 1.0),
                "weight_decay": 0.0 if bare else weight_decay,
                "name": ("clip" if clip else "aggregator") + (" without decay" if bare else ""),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
