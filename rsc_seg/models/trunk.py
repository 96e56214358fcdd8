"""The bare timm network of a registry row, without weights."""

from typing import Any

import timm
from torch import nn

from rsc_seg.models.registry import BackboneRow


def create_trunk(
    row: BackboneRow, *, depth: int | None = None, attn_layer: type[nn.Module] | None = None, device: str = "cpu"
) -> nn.Module:
    """timm's vision transformer of `row`: timm's own initialisation, no classifier, positions stored at native size.

    `depth` keeps the first blocks and the final norm; `attn_layer` replaces timm's attention module (same parameter
    names); `device="meta"` gives names and shapes without memory. Any image size that the patch divides may go in.
    """
    options: dict[str, Any] = dict(row.timm_args)
    if depth is not None:
        options["depth"] = depth
    if attn_layer is not None:
        options["attn_layer"] = attn_layer
    return timm.create_model(
        row.timm_id,
        pretrained=False,
        num_classes=0,
        global_pool="token",
        img_size=row.native_size,
        dynamic_img_size=True,
        device=device,
        **options,  # a registry row's differences from timm's architecture, by timm's names
    )
