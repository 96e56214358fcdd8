"""The official CAT-Seg from a clone of its repository, with seeded weights at any size, and ours beside it.

The clone is imported as it is, with detectron2, einops, ftfy and regex installed. Its loader of CLIP files is replaced,
since weights come from seeds here; on a machine without CUDA `Tensor.cuda` becomes the identity, because the official
code calls it without asking.
"""

import importlib
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text import TextShape, TextTower
from rsc_seg.models.trunk import create_trunk
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.options import CatSegOptions


@dataclass(frozen=True)
class Size:
    """Widths, depths and heads of both towers; `clip` is the official name, which decides about resolution and taps."""

    clip: str = "ViT-B/16"
    row: str = "clip_vitb16"
    native: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    joint: int = 512
    text_width: int = 512
    text_depth: int = 12


SIZES = {
    # heads are 64 wide throughout, and the taps want 8 blocks at least
    "toy": Size(width=64, depth=12, joint=32, text_width=64, text_depth=2),
    "vitb16": Size(),
    "vitl14_336": Size("ViT-L/14@336px", "clip_vitl14_336", 336, 14, 1024, 24, 768, 768, 12),
}


def seeded(name: str, shape: Sequence[int]) -> Tensor:
    """One parameter of the official model, from its name and shape alone; nothing is zero that could hide an error."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "logit_scale":
        offset, scale = math.log(100), 0.0
    elif leaf.startswith("padding") or "embedding" in name:
        offset, scale = 0.0, 0.3
    elif len(shape) == 1:
        offset, scale = (1.0, 0.1) if leaf == "weight" else (0.0, 0.05)
    elif leaf in ("proj", "text_projection") or "upsample" in name or ".up." in name:
        offset, scale = 0.0, shape[0] ** -0.5
    else:
        offset, scale = 0.0, float(np.prod(shape[1:])) ** -0.5
    return torch.from_numpy(np.asarray(offset + scale * numbers, dtype=np.float32)).reshape(tuple(shape))


def seeded_photo(seed: int, height: int, width: int) -> Tensor:
    """Coarse colours with noise, (3, H, W), float32 from 0 to 255."""
    draw = np.random.RandomState(seed)
    coarse = torch.from_numpy(draw.uniform(0, 255, (1, 3, height // 32 + 2, width // 32 + 2)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0]
    return (smooth + torch.from_numpy(draw.uniform(-20, 20, (3, height, width)).astype(np.float32))).clamp(0, 255)


def seeded_labels(seed: int, classes: int, size: int) -> Tensor:
    """Squares of 32 pixels; the number after the last class is 255, to be ignored."""
    squares = torch.from_numpy(np.random.RandomState(seed).randint(0, classes + 1, (size // 32, size // 32)))
    squares[squares == classes] = 255
    return squares.repeat_interleave(32, 0).repeat_interleave(32, 1)


def our_model(size: Size, options: CatSegOptions | None = None) -> CatSeg:
    """Ours at this size, weights as they come, in evaluation mode and frozen."""
    row = replace(
        find_backbone(size.row),
        embed_dim=size.width,
        depth=size.depth,
        joint_dim=size.joint,
        native_size=size.native,
        timm_args={"embed_dim": size.width, "depth": size.depth, "num_heads": size.width // 64},
    )
    trunk = cast(VisionTransformer, create_trunk(row, dense_attention=True))
    encoder = DenseEncoder(trunk, row, position_rule="plain", last_block="catseg")
    heads = size.text_width // 64
    shape = TextShape(row.name, size.joint, size.text_width, size.text_depth, heads, "quick_gelu")
    return CatSeg(encoder, TextTower(shape), options).eval().requires_grad_(False)


def official_model(checkout: Path, names: Sequence[str], size: Size) -> Any:
    """The official model in evaluation mode with seeded weights and pooling of 1."""
    sys.path.insert(0, str(checkout))
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    meta = importlib.import_module("cat_seg.cat_seg_model")
    towers = importlib.import_module("cat_seg.third_party.model_vpt")
    predictor = importlib.import_module("cat_seg.modeling.transformer.cat_seg_predictor")
    heads = importlib.import_module("cat_seg.modeling.heads.cat_seg_head")
    clip = towers.CLIP(
        size.joint,
        size.native,
        size.depth,
        size.width,
        size.patch,
        77,
        49408,
        size.text_width,
        size.text_width // 64,
        size.text_depth,
    )
    predictor.clip.load = lambda *_, **__: (clip.eval(), None)
    # embedded at the start and never read again
    predictor.CATSegPredictor.class_embeddings = lambda _, c, t, m: torch.zeros(len(t), len(c), size.joint)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(names), file)
        file.flush()
        aggregator = predictor.CATSegPredictor(
            train_class_json=file.name,
            test_class_json=file.name,
            clip_pretrained=size.clip,
            prompt_ensemble_type="single",
            text_guidance_dim=size.joint,
            text_guidance_proj_dim=128,
            appearance_guidance_dim=size.joint,
            appearance_guidance_proj_dim=128,
            prompt_depth=0,
            prompt_length=0,
            decoder_dims=[64, 32],
            decoder_guidance_dims=[256, 128],
            decoder_guidance_proj_dims=[32, 16],
            num_heads=4,
            num_layers=2,
            hidden_dims=128,
            pooling_sizes=[1, 1],
            feature_resolution=[24, 24],
            window_sizes=12,
            attention_type="linear",
        )
    grid = {"ignore_value": 255, "feature_resolution": [24, 24], "transformer_predictor": aggregator}
    model = meta.CATSeg(
        backbone=None,
        sem_seg_head=heads.CATSegHead(num_classes=171, **grid),
        size_divisibility=32,
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        clip_pixel_mean=[122.7709383, 116.7460125, 104.09373615],
        clip_pixel_std=[68.5005327, 66.6321579, 70.3231630],
        train_class_json="",
        test_class_json="",
        sliding_window=False,
        clip_finetune="attention",
        backbone_multiplier=0.0,
        clip_pretrained=size.clip,
    )
    if size.width != model.proj_dim:
        model.upsample1 = nn.ConvTranspose2d(size.width, 256, 2, 2)
        model.upsample2 = nn.ConvTranspose2d(size.width, 128, 4, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(seeded(name, parameter.shape))
    return model.eval()


def set_official(model: Any, names: Sequence[str], *, pool: int, sliding: bool = False, length: int = 256) -> None:
    """Another vocabulary, pooling, protocol or length of the class attention for the same official model."""
    predictor = model.sem_seg_head.predictor
    predictor.class_texts = predictor.test_class_texts = list(names)
    predictor.tokens = predictor.cache = None
    model.sliding_window = sliding
    predictor.transformer.pad_len = length
    for layer in predictor.transformer.layers:
        layer.attention.pool = nn.AvgPool2d(pool)
        layer.attention.pad_len = length
