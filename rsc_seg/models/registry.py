"""The encoders by our short names: where timm has them and what belongs to their official weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rsc_seg.errors import UserError, suggestion

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class BackboneRow:
    """One encoder. `depth`, `embed_dim` and `num_prefix_tokens` are checked against timm's model in the tests."""

    name: str
    timm_id: str  # architecture, without tag
    release: str  # timm's name of the official weights, architecture.tag
    patch_size: int
    native_size: int  # pixels of a side at which position embeddings are stored
    embed_dim: int
    depth: int
    num_prefix_tokens: int  # [CLS] and registers
    head_blocks: int  # K of the Refiner
    activation: str  # gelu | quick_gelu | swiglu
    position_rule: str  # see rsc_seg.ops.position
    last_block: str  # full | value | catseg
    licence: str
    official_file: str  # file name of the official release
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    image_side: int = 518  # pixels of a side for tuning and measuring, where nothing else is said
    crop_side: int = 224  # pixels of a teacher's crop, where nothing else is said
    joint_dim: int | None = None  # width of the space shared with text; None: an encoder without text
    text_id: str = ""  # open_clip's architecture, for the text tower
    text_tag: str = ""  # open_clip's tag of the official weights
    timm_args: Mapping[str, Any] = field(default_factory=dict)  # differences from timm's architecture


def _dinov2(size: str, letter: str, dim: int, depth: int, head_blocks: int, registers: bool) -> BackboneRow:
    suffix = "_reg" if registers else ""
    timm_id = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    return BackboneRow(
        name=f"dinov2_vit{letter}14{suffix}",
        timm_id=timm_id,
        release=f"{timm_id}.lvd142m",
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


def _clip(
    name: str, timm_id: str, *, tag: str, text: tuple[str, str], licence: str, file: str, activation: str
) -> BackboneRow:
    """A CLIP image tower; its sizes follow from timm's name. `text`: open_clip's architecture and tag."""
    large = "_large_" in timm_id
    return BackboneRow(
        name=name,
        timm_id=timm_id,
        # timm keeps one set of weights for its GELU and QuickGELU architectures, under the former's name or both
        release=f"{timm_id.replace('_quickgelu', '')}.{tag}",
        patch_size=14 if large else 16,
        native_size=int(timm_id.rsplit("_", 1)[1]),
        embed_dim=1024 if large else 768,
        depth=24 if large else 12,
        num_prefix_tokens=1,
        head_blocks=6 if large else 4,
        activation=activation,
        position_rule="plain",
        last_block="value",
        licence=licence,
        official_file=file,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        image_side=896 if large else 1024,  # as CLIPSelf
        crop_side=int(timm_id.rsplit("_", 1)[1]),
        joint_dim=768 if large else 512,
        text_id=text[0],
        text_tag=text[1],
    )


_QUICK_B, _QUICK_L = "vit_base_patch16_clip_quickgelu_224", "vit_large_patch14_clip_quickgelu_224"
_CLIP_ROWS = [
    # name, timm's architecture and tag, open_clip's architecture and tag, the release's own file
    ("clip_vitb16", _QUICK_B, "openai", "ViT-B-16-quickgelu", "openai", "ViT-B-16.pt"),
    ("clip_vitl14", _QUICK_L, "openai", "ViT-L-14-quickgelu", "openai", "ViT-L-14.pt"),
    (
        "clip_vitl14_336",
        "vit_large_patch14_clip_quickgelu_336",
        "openai",
        "ViT-L-14-336-quickgelu",
        "openai",
        "ViT-L-14-336px.pt",
    ),
    ("metaclip_vitb16", _QUICK_B, "metaclip_2pt5b", "ViT-B-16-quickgelu", "metaclip_fullcc", "b16_fullcc2.5b.pt"),
    ("metaclip_vitl14", _QUICK_L, "metaclip_2pt5b", "ViT-L-14-quickgelu", "metaclip_fullcc", "l14_fullcc2.5b.pt"),
    ("dfn_vitb16", _QUICK_B, "dfn2b", "ViT-B-16-quickgelu", "dfn2b", "open_clip_pytorch_model.bin"),
    ("dfn_vitl14", _QUICK_L, "dfn2b", "ViT-L-14-quickgelu", "dfn2b", "open_clip_pytorch_model.bin"),
    # the one family with plain GELU: what a QuickGELU checkpoint must not be loaded into
    (
        "laion_vitb16",
        "vit_base_patch16_clip_224",
        "laion2b",
        "ViT-B-16",
        "laion2b_s34b_b88k",
        "open_clip_pytorch_model.bin",
    ),
    (
        "evaclip_vitb16",
        "eva02_base_patch16_clip_224",
        "merged2b",
        "EVA02-B-16",
        "merged2b_s8b_b131k",
        "EVA02_CLIP_B_psz16_s8B.pt",
    ),
    (
        "evaclip_vitl14",
        "eva02_large_patch14_clip_224",
        "merged2b",
        "EVA02-L-14",
        "merged2b_s4b_b131k",
        "EVA02_CLIP_L_psz14_s4B.pt",
    ),
    (
        "evaclip_vitl14_336",
        "eva02_large_patch14_clip_336",
        "merged2b",
        "EVA02-L-14-336",
        "merged2b_s6b_b61k",
        "EVA02_CLIP_L_336_psz14_s6B.pt",
    ),
]
_CLIP_LICENCES = {"clip": "MIT", "metaclip": "CC-BY-NC-4.0", "dfn": "apple-ascl", "laion": "MIT", "evaclip": "MIT"}


def _activation(timm_id: str) -> str:
    return "swiglu" if timm_id.startswith("eva") else "quick_gelu" if "quickgelu" in timm_id else "gelu"


_ROWS += [
    _clip(
        name,
        timm_id,
        tag=tag,
        text=(arch, text_tag),
        licence=_CLIP_LICENCES[name.split("_")[0]],
        file=file,
        activation=_activation(timm_id),
    )
    for name, timm_id, tag, arch, text_tag, file in _CLIP_ROWS
]
_ROWS += [
    replace(
        row,
        name=row.name.replace("vitb16", "tiny16"),
        official_file="",
        native_size=64,
        image_side=128,
        crop_side=64,
        embed_dim=64,
        depth=4,
        head_blocks=2,
        joint_dim=32,
        text_id="",
        text_tag="",
        timm_args=_TINY,
    )
    for row in _ROWS
    if row.name in ("clip_vitb16", "laion_vitb16", "evaclip_vitb16")
]
REGISTRY: dict[str, BackboneRow] = {row.name: row for row in _ROWS}


def find_backbone(name: str) -> BackboneRow:
    """The row of `name`; UserError with the nearest known name otherwise."""
    if name not in REGISTRY:
        raise UserError(f"unknown backbone '{name}'.{suggestion(name, REGISTRY)} Known: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[name]
