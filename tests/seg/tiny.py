"""A Cat-Seg of four blocks on a small grid, and pictures for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.text import TextTower, text_shape
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weights import random_state
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.official import official_state
from rsc_seg.seg.options import CatSegOptions

NAMES = ["cat", "grass", "sky, heaven", "wooden chair", "road"]
TINY = CatSegOptions(
    grid=(6, 6),
    hidden=16,
    heads=2,
    window=3,
    class_length=8,
    decoder=(32, 16),
    taps=(12, 8),
    decoder_guidance=(6, 4),
    class_chunk=2,
)


def tiny_encoder(name: str = "clip_tiny16", last_block: str = "catseg") -> DenseEncoder:
    row = find_backbone(name)
    trunk = cast(VisionTransformer | Eva, create_trunk(row, dense_attention=True))
    trunk.load_state_dict(random_state(row, seed=1))
    return DenseEncoder(trunk, row, position_rule=row.position_rule, last_block=last_block).requires_grad_(False)


def tiny_model(name: str = "clip_tiny16", seed: int = 0, guide: bool = False, **changes: Any) -> CatSeg:
    """Random weights, with no zero among the new layers, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = TextTower(text_shape(find_backbone(name))).requires_grad_(False)
        other = tiny_encoder("dinov2_tiny14", "full") if guide else None
        model = CatSeg(tiny_encoder(name), text, replace(TINY, **changes), guide=other)
        for key, parameter in model.named_parameters():
            if "padding" in key or key.endswith("bias"):
                parameter.data += 0.3 * torch.randn_like(parameter)
        if model.encoder.row.activation != "swiglu":
            model.encoder.trunk.head.bias.data.zero_()
    return model.eval()


def save_model(model: CatSeg, path: Path) -> None:
    """A file of the official form: `.pth` as detectron2 keeps weights, or `.safetensors`."""
    state = {name: value.detach().clone().contiguous() for name, value in official_state(model).items()}
    if path.suffix == ".safetensors":
        save_tensors(path, state)
    else:
        torch.save({"model": state}, path)


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """(3, H, W) uint8 in patches."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, height // 8 + 1, width // 8 + 1), generator=draw).float()
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].to(torch.uint8)


def label_map(height: int, width: int, classes: int, seed: int = 0) -> Tensor:
    """(H, W) with every class, and 255 in the last rows."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (height, width), generator=draw)
    labels[-3:] = 255
    return labels
