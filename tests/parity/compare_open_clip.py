"""Our pooled features against open_clip's, on random weights: the largest difference of each encoder.

    python -m tests.parity.compare_open_clip clip_vitb16 evaclip_vitb16

Builds open_clip's model of each registry name at real size without downloading anything. The tests shrink it first.
"""

import argparse
import copy
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import open_clip
import timm
import torch
from open_clip import timm_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import fit_state, to_timm_names

TOLERANCE = 5e-5
WIDTH, DEPTH, HEADS, JOINT, SIDE = 64, 3, 4, 32, 4  # a toy: SIDE in patches
log = logging.getLogger(__name__)


def shrunk_row(row: BackboneRow) -> BackboneRow:
    """The row at toy size: family, patch, activation and rules as they are."""
    return replace(
        row,
        native_size=SIDE * row.patch_size,
        embed_dim=WIDTH,
        depth=DEPTH,
        joint_dim=JOINT,
        head_blocks=1,
        timm_args={"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS},
    )


@contextmanager
def _toy_timm(row: BackboneRow) -> Iterator[None]:
    """open_clip's configurations cannot say a timm tower's size: inside, timm is told."""
    size: dict[str, Any] = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": SIDE * row.patch_size}
    with mock.patch.object(timm_model, "timm", SimpleNamespace(create_model=partial(timm.create_model, **size))):
        yield


def shrunk_open_clip(row: BackboneRow) -> nn.Module:
    """open_clip's model of the row by its own configuration, only narrower and shallower."""
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(row.text_id))
    custom = config.pop("custom_text", False)
    config["embed_dim"] = JOINT
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "vocab_size": 64, "context_length": 8}
    config["vision_cfg"]["image_size"] = SIDE * row.patch_size
    if "timm_model_name" not in config["vision_cfg"]:
        config["vision_cfg"] |= {"width": WIDTH, "layers": DEPTH, "head_width": WIDTH // HEADS}
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    with _toy_timm(row):
        return cast(nn.Module, kind(**config))


def randomize(model: nn.Module) -> nn.Module:
    """Every parameter of the image tower from one seed, none at the zero, one or near zero at which it was made."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in cast(nn.Module, model.visual).named_parameters():
            noise = torch.randn(parameter.shape, generator=g)
            if name.endswith(("embedding", "cls_token", "pos_embed")):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                fan = parameter.shape[0] if name == "proj" else parameter[0].numel()
                parameter.copy_(noise * fan**-0.5)
    return model.eval()


def encoder_of(model: nn.Module, row: BackboneRow) -> DenseEncoder:
    """Our encoder with the weights of open_clip's whole model, by our loader."""
    trunk = cast(VisionTransformer | Eva, create_trunk(row, dense_attention=True))
    state = to_timm_names({"state_dict": model.state_dict()}, row.name)
    trunk.load_state_dict(fit_state(state, row, row.depth, row.name), strict=True)
    encoder = DenseEncoder(trunk, row, position_rule=row.position_rule, last_block=row.last_block)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def difference(model: nn.Module, encoder: DenseEncoder) -> tuple[float, float]:
    """Largest difference of the pooled features of two images at native size, and the features' own spread."""
    side = encoder.row.native_size
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    theirs = cast(Any, model).encode_image(x)
    return float((encoder.cls(x) - theirs).abs().max()), float(theirs.std())


def main() -> None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="+", help="registry names of CLIP encoders")
    torch.set_num_threads(1)
    worst = 0.0
    for name in parser.parse_args().backbones:
        row = find_backbone(name)
        model = randomize(open_clip.create_model(row.text_id, pretrained=None))
        value, spread = difference(model, encoder_of(model, row))
        log.info("%-20s %-24s %.1e of %.2f", name, row.text_id, value, spread)
        worst = max(worst, value)
    sys.exit(0 if worst < TOLERANCE else f"above {TOLERANCE}: {worst:.1e}")


if __name__ == "__main__":
    main()
