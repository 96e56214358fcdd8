"""One way in: a config section becomes an encoder with weights."""

import dataclasses
from typing import cast

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from rsc_seg.config import BackboneConfig, require_choice
from rsc_seg.models.attention import set_backend
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weights import WeightsInfo, resolve_weights
from rsc_seg.models.weights_info import LAST_BLOCKS
from rsc_seg.ops.attention import BACKENDS, resolve_backend
from rsc_seg.ops.position import POSITION_RULES


def build_backbone(config: BackboneConfig, device: torch.device | str = "cpu") -> tuple[DenseEncoder, WeightsInfo]:
    """The encoder of `config` on `device`, in eval mode, all parameters frozen, with what is known about its weights.

    Position rule and last-block mode come with the weights unless the config names others. Raises UserError for an
    unknown backbone, weights that do not fit, or an attention backend that the device cannot run.
    """
    row = find_backbone(config.name)
    device = torch.device(device)
    require_choice("backbone.attention", config.attention, BACKENDS)
    require_choice("backbone.position_rule", config.position_rule, ("auto", *POSITION_RULES))
    require_choice("backbone.last_block", config.last_block, ("auto", *LAST_BLOCKS))
    resolve_backend(config.attention, device, torch.float32)
    state, info = resolve_weights(row, config.weights, depth=config.depth)
    trunk = create_trunk(row, depth=info.depth, dense_attention=True)
    trunk.load_state_dict(state, strict=True)
    rule = info.position_rule if config.position_rule == "auto" else config.position_rule
    mode = info.last_block if config.last_block == "auto" else config.last_block
    encoder = DenseEncoder(cast(VisionTransformer | Eva, trunk), row, position_rule=rule, last_block=mode)
    encoder.gradient_checkpointing = config.gradient_checkpointing
    set_backend(encoder, config.attention)
    info = dataclasses.replace(info, position_rule=rule, last_block=mode)
    return encoder.to(device).eval().requires_grad_(False), info
