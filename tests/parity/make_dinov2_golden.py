"""Writes golden/*.npz: what the official DINOv2 code computes with seeded weights, at toy size and as ViT-S/14.

    python tests/parity/make_dinov2_golden.py CHECKOUT

CHECKOUT is a clone of github.com/facebookresearch/dinov2. The test calls `seeded_weights` and `seeded_image` from this
file, so that only outputs are stored. The official code is called here and is no part of this project.
"""

import argparse
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
NATIVE, PATCH, REGISTERS = 518, 14, 4
TINY_SIZES = ((56, 56), (70, 98), (224, 224))
REAL_SIZES = ((224, 224), (322, 322), (322, 490))


@dataclass(frozen=True)
class Variant:
    """A model and what is kept of it: every `stride`-th patch token."""

    width: int = 32
    depth: int = 2
    heads: int = 2
    registers: int = 0
    swiglu_hidden: int = 0  # two thirds of 4 * width, rounded up to a multiple of 8; 0: an ordinary MLP
    sizes: tuple[tuple[int, int], ...] = TINY_SIZES
    stride: int = 1


VARIANTS = {
    "plain": Variant(),
    "registers": Variant(registers=REGISTERS),
    "swiglu": Variant(swiglu_hidden=88),
    "vits14": Variant(384, 12, 6, sizes=REAL_SIZES, stride=23),
    "vits14_reg": Variant(384, 12, 6, registers=REGISTERS, sizes=REAL_SIZES, stride=23),
}


def official_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of an official model of this size."""
    v = VARIANTS[variant]
    d, tokens = v.width, 1 + (NATIVE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "mask_token": (1, d),
        "pos_embed": (1, tokens, d),
        "patch_embed.proj.weight": (d, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if v.registers:
        shapes["register_tokens"] = (1, v.registers, d)
    if v.swiglu_hidden:
        layers = {"mlp.w12": (2 * v.swiglu_hidden, d), "mlp.w3": (d, v.swiglu_hidden)}
    else:
        layers = {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    layers |= {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
    for block in range(v.depth):
        for name, shape in layers.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (d,)
    return shapes


def seeded_weights(variant: str) -> dict[str, Tensor]:
    """Every parameter from a generator of its own, seeded by its name's CRC-32, so that order does not matter.

    numpy's RandomState, whose numbers never change between versions: offset + scale * standard normal. Nothing is zero.
    """
    state = {}
    for name, shape in official_shapes(variant).items():
        numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            offset, scale = 1.0, 0.1
        elif name.endswith("weight"):
            offset, scale = 0.0, float(np.prod(shape[1:])) ** -0.5
        elif name.endswith(("token", "tokens", "pos_embed")):
            offset, scale = 0.0, 0.5
        else:
            offset, scale = 0.0, 0.1
        state[name] = torch.from_numpy((offset + scale * numbers).astype(np.float32))
    return state


def seeded_image(size: tuple[int, int]) -> Tensor:
    """One image of standard normal numbers, (1, 3, H, W)."""
    numbers = np.random.RandomState(size[0] * 1000 + size[1]).standard_normal((1, 3, *size))
    return torch.from_numpy(numbers.astype(np.float32))


def official_model(variant: str) -> Any:
    """The official network with the settings of its hub, registers included where the variant has them."""
    from dinov2.models.vision_transformer import DinoVisionTransformer

    v = VARIANTS[variant]
    model = DinoVisionTransformer(
        img_size=NATIVE,
        patch_size=PATCH,
        embed_dim=v.width,
        depth=v.depth,
        num_heads=v.heads,
        mlp_ratio=4,
        init_values=1.0,
        block_chunks=0,
        ffn_layer="swiglufused" if v.swiglu_hidden else "mlp",
        num_register_tokens=v.registers,
        interpolate_antialias=v.registers > 0,
        interpolate_offset=0.0 if v.registers else 0.1,
    )
    model.load_state_dict(seeded_weights(variant), strict=True)
    return model.eval()


def outputs(model: Any, size: tuple[int, int], stride: int) -> dict[str, np.ndarray]:
    """Final patch and [CLS] tokens and the first block's patch tokens, under names that begin with the size."""
    x, name = seeded_image(size), f"{size[0]}x{size[1]}"
    with torch.no_grad():
        final = model.forward_features(x)
        (block,) = model.get_intermediate_layers(x, n=[0], reshape=True, norm=False)
    found = {
        "patch": final["x_norm_patchtokens"][:, ::stride],
        "cls": final["x_norm_clstoken"],
        "block1": block.flatten(2).mT[:, ::stride],
    }
    return {f"{name}/{key}": value.numpy() for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="clone of github.com/facebookresearch/dinov2")
    checkout: Path = parser.parse_args().checkout
    os.environ["XFORMERS_DISABLED"] = "1"  # read by the official code at import
    sys.path.insert(0, str(checkout.resolve()))
    commit = subprocess.check_output(["git", "-C", checkout, "rev-parse", "HEAD"], text=True).strip()
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for variant in VARIANTS:
        model, arrays = official_model(variant), {"commit": np.array(commit), "torch": np.array(torch.__version__)}
        for size in VARIANTS[variant].sizes:
            arrays |= outputs(model, size, VARIANTS[variant].stride)
        np.savez(GOLDEN / f"dinov2_{variant}.npz", **arrays)


if __name__ == "__main__":
    main()
