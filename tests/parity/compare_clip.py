"""Our encoder against the numbers that make_clip_golden.py wrote: the largest difference of each.

    python -m tests.parity.compare_clip DIR

DIR holds files by make_clip_golden.py (`--out DIR`), of toy or real size. The tests call the same functions.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import fit_state, to_timm_names
from rsc_seg.ops.regions import pool_boxes, pool_masks
from tests.parity.make_clip_golden import (
    VARIANTS,
    boxes_of_two_images,
    masks_of_two_images,
    seeded_images,
    seeded_weights,
)

TOLERANCE = 1e-5
log = logging.getLogger(__name__)


def row_of(variant: str) -> BackboneRow:
    """The registry's row, or for a toy its nearest relative at this size."""
    v = VARIANTS[variant]
    if v.backbone:
        return find_backbone(v.backbone)
    row = find_backbone("clip_tiny16" if v.family == "openai" else "evaclip_tiny16")
    return replace(
        row,
        native_size=v.native,
        embed_dim=v.width,
        depth=v.depth,
        joint_dim=v.joint,
        head_blocks=1,
        timm_args={"embed_dim": v.width, "depth": v.depth, "num_heads": v.heads},
    )


def encoder_of(
    variant: str, *, row: BackboneRow | None = None, position_rule: str = "plain", last_block: str = ""
) -> DenseEncoder:
    """Our encoder with the official weights; architecture, position rule and last block as the reference has them."""
    row = row or row_of(variant)
    trunk = cast(VisionTransformer | Eva, create_trunk(row, dense_attention=True))
    official = {"state_dict": {f"visual.{name}": value for name, value in seeded_weights(variant).items()}}
    state = fit_state(to_timm_names(official, variant), row, row.depth, variant)
    trunk.load_state_dict(state, strict=True)
    mode = last_block or {"clipself": "value", "catseg": "catseg"}[VARIANTS[variant].reference]
    encoder = DenseEncoder(trunk, row, position_rule=position_rule, last_block=mode)
    return encoder.eval().requires_grad_(False)


def our_outputs(variant: str, encoder: DenseEncoder, size: tuple[int, int]) -> dict[str, Tensor]:
    """What the reference was asked for, under the same names."""
    x, dense = seeded_images(size), encoder.dense(seeded_images(size))
    if VARIANTS[variant].reference == "catseg":
        return {"dense": dense, "cls": encoder.cls(x)}
    corners = torch.tensor([size[1], size[0], size[1], size[0]])
    boxes = [box * corners for box in boxes_of_two_images()]
    return {
        "dense": normalize(dense, dim=1),
        "boxes": pool_boxes(dense, boxes, patch_size=encoder.patch_size),
        "masks": pool_masks(dense, masks_of_two_images(encoder.grid(*size))),
        "cls": encoder.cls(x),
    }


def differences(variant: str, encoder: DenseEncoder, folder: Path) -> dict[str, float]:
    """The largest absolute difference of every array in the variant's file."""
    found = {}
    with np.load(folder / f"{variant}.npz") as file:
        for size in VARIANTS[variant].sizes:
            ours = our_outputs(variant, encoder, size)
            for key in (key for key in file.files if key.startswith(f"{size[0]}x{size[1]}/")):
                theirs = torch.from_numpy(file[key])
                found[key] = float((ours[key.split("/")[1]] - theirs).abs().max())
    return found


def main() -> None:
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where make_clip_golden.py wrote")
    folder: Path = parser.parse_args().folder
    torch.set_num_threads(1)
    worst = 0.0
    for variant in (variant for variant in VARIANTS if (folder / f"{variant}.npz").is_file()):
        for key, value in differences(variant, encoder_of(variant), folder).items():
            log.info("%-20s %-16s %.1e", variant, key, value)
            worst = max(worst, value)
    sys.exit(0 if worst < TOLERANCE else f"above {TOLERANCE}: {worst:.1e}")


if __name__ == "__main__":
    main()
