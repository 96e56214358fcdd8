"""The bare timm network of a registry row, without weights."""

from typing import Any

import timm
from torch import nn

from rsc_seg.models.attention import use_dense_attention
from rsc_seg.models.registry import BackboneRow


def create_trunk(
    row: BackboneRow, *, depth: int | None = None, dense_attention: bool = False, device: str = "cpu"
) -> nn.Module:
    """timm's vision transformer of `row`: timm's own initialisation, positions stored at native size.

    A row with a joint space has its projection as `head`; others have none. `depth` keeps the first blocks and the
    final norm; `dense_attention` replaces timm's attention modules by ours (same parameter names); `device="meta"`
    gives names and shapes without memory. Any image size that the patch divides may go in.
    """
    options: dict[str, Any] = dict(row.timm_args)
    if depth is not None:
        options["depth"] = depth
    trunk = timm.create_model(
        row.timm_id,
        pretrained=False,
        num_classes=row.joint_dim or 0,
        global_pool="token",
        img_size=row.native_size,
        dynamic_img_size=True,
        device=device,
        **options,  # a registry row's differences from timm's architecture, by timm's names
    )
    return use_dense_attention(trunk) if dense_attention else trunk
