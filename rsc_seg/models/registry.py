"""The encoders by our short names: where timm has them and what belongs to their official weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rsc_seg.errors import UserError, suggestion

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneRow:
    """One encoder. `depth`, `embed_dim` and `num_prefix_tokens` are checked against timm's model in the tests."""

    name: str
    timm_id: str  # architecture, without tag
    timm_tag: str  # pretrained tag of the official weights
    patch_size: int
    native_size: int  # pixels of a side at which position embeddings are stored
    embed_dim: int
    depth: int
    num_prefix_tokens: int  # [CLS] and registers
    head_blocks: int  # K of the Refiner
    activation: str
    position_rule: str  # see rsc_seg.ops.position
    last_block: str  # full | value
    licence: str
    official_file: str  # file name of the official release
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    timm_args: Mapping[str, int] = field(default_factory=dict)  # differences from timm's architecture


def _dinov2(size: str, letter: str, dim: int, depth: int, head_blocks: int, registers: bool) -> BackboneRow:
    suffix = "_reg" if registers else ""
    return BackboneRow(
        name=f"dinov2_vit{letter}14{suffix}",
        timm_id=f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2",
        timm_tag="lvd142m",
        patch_size=14,
        native_size=518,
        embed_dim=dim,
        depth=depth,
        num_prefix_tokens=5 if registers else 1,
        head_blocks=head_blocks,
        activation="swiglu" if letter == "g" else "gelu",
        position_rule="dinov2_reg" if registers else "dinov2",
        last_block="full",
        licence="Apache-2.0",
        official_file=f"dinov2_vit{letter}14{'_reg4' if registers else ''}_pretrain.pth",
    )


_SIZES = (
    ("small", "s", 384, 12, 4),
    ("base", "b", 768, 12, 4),
    ("large", "l", 1024, 24, 6),
    ("giant", "g", 1536, 40, 10),
)
_ROWS = [_dinov2(*size, registers=reg) for reg in (False, True) for size in _SIZES]
_TINY = {"embed_dim": 64, "depth": 4, "num_heads": 4}  # for tests and dry runs: no official weights exist
_ROWS += [
    replace(
        row,
        name=row.name.replace("vits14", "tiny14"),
        official_file="",
        embed_dim=64,
        depth=4,
        head_blocks=2,
        timm_args=_TINY,
    )
    for row in _ROWS
    if row.name.startswith("dinov2_vits14")
]
REGISTRY: dict[str, BackboneRow] = {row.name: row for row in _ROWS}


def find_backbone(name: str) -> BackboneRow:
    """The row of `name`; UserError with the nearest known name otherwise."""
    if name not in REGISTRY:
        raise UserError(f"unknown backbone '{name}'.{suggestion(name, REGISTRY)} Known: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[name]
