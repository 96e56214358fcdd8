"""Writes golden/{clipself,catseg}_*.npz: what the official CLIPSelf and CAT-Seg code computes at toy size, seeded.

    python tests/parity/make_clip_golden.py --clipself CHECKOUT --catseg CHECKOUT [--out DIR --real]

The checkouts are clones of github.com/wusize/CLIPSelf and github.com/cvlab-kaist/CAT-Seg; the first needs einops, ftfy
and regex besides this project's packages. `--real` computes the models of real size instead, for compare_clip.py.
Tests take weights, images and regions from this file, so that only outputs are stored. The official code is called here
and is no part of this project.
"""

import argparse
import importlib
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

GOLDEN = Path(__file__).parent / "golden"
MASK_IMAGE, MASK_GRID = (150, 200), 16  # pixels of the unpadded image, side of the token grid


@dataclass(frozen=True)
class Variant:
    """An official image tower: `reference` runs it, `family` says in whose parameter names."""

    reference: str  # clipself | catseg
    family: str  # openai | eva
    width: int = 32
    depth: int = 3
    heads: int = 2
    joint: int = 16
    native: int = 224
    patch: int = 16
    sizes: tuple[tuple[int, int], ...] = ((224, 224), (320, 320))
    backbone: str = ""  # the registry's name of a model of real size

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward network: four times, or two thirds of it for EVA's gated one."""
        return 4 * self.width if self.family == "openai" else int(self.width * 8 / 3)


_CLIPSELF_SIZES = ((224, 224), (320, 320), (224, 352))
TINY = {
    "clipself_openai": Variant("clipself", "openai", sizes=_CLIPSELF_SIZES),
    "clipself_eva": Variant("clipself", "eva"),
    # CAT-Seg's heads are always 64 wide; 384 pixels is what it takes
    "catseg_openai": Variant("catseg", "openai", width=128, sizes=((224, 224), (384, 384))),
}
_B16, _L14 = (768, 12, 12, 512), (1024, 24, 16, 768)
REAL = {
    "clipself_vitb16": Variant("clipself", "openai", *_B16, sizes=_CLIPSELF_SIZES, backbone="clip_vitb16"),
    "clipself_evab16": Variant("clipself", "eva", *_B16, backbone="evaclip_vitb16"),
    "catseg_vitb16": Variant("catseg", "openai", *_B16, sizes=((224, 224), (384, 384)), backbone="clip_vitb16"),
    "clipself_vitl14_336": Variant(
        "clipself", "openai", *_L14, 336, 14, sizes=((336, 336), (224, 448)), backbone="clip_vitl14_336"
    ),
    "clipself_eval14_336": Variant(
        "clipself", "eva", *_L14, 336, 14, sizes=((336, 336), (448, 448)), backbone="evaclip_vitl14_336"
    ),
    "catseg_vitl14_336": Variant("catseg", "openai", *_L14, 336, 14, sizes=((336, 336),), backbone="clip_vitl14_336"),
}
VARIANTS = TINY | REAL


def _pairs(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Weights of these shapes, each with its bias."""
    return {f"{n}.{end}": s[: 1 if end == "bias" else None] for n, s in names.items() for end in ("weight", "bias")}


def _openai_shapes(v: Variant) -> dict[str, tuple[int, ...]]:
    d, grid = v.width, v.native // v.patch
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (d,),
        "positional_embedding": (1 + grid**2, d),
        "proj": (d, v.joint),
        "conv1.weight": (d, 3, v.patch, v.patch),
        **_pairs({"ln_pre": (d,), "ln_post": (d,)}),
    }
    for i in range(v.depth):
        block = f"transformer.resblocks.{i}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * d, d), f"{block}attn.in_proj_bias": (3 * d,)}
        layers = {"ln_1": (d,), "ln_2": (d,), "attn.out_proj": (d, d)}
        layers |= {"mlp.c_fc": (v.hidden, d), "mlp.c_proj": (d, v.hidden)}
        shapes |= _pairs({block + name: shape for name, shape in layers.items()})
    return shapes


def _eva_shapes(v: Variant) -> dict[str, tuple[int, ...]]:
    d, grid = v.width, v.native // v.patch
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + grid**2, d),
        **_pairs({"patch_embed.proj": (d, 3, v.patch, v.patch), "norm": (d,), "head": (v.joint, d)}),
    }
    for i in range(v.depth):
        block = f"blocks.{i}."
        shapes |= {f"{block}attn.{name}_bias": (d,) for name in "qv"}  # keys have none
        shapes |= {f"{block}attn.{name}_proj.weight": (d, d) for name in "qkv"}
        layers = {"norm1": (d,), "norm2": (d,), "attn.inner_attn_ln": (d,), "attn.proj": (d, d)}
        layers |= {"mlp.w1": (v.hidden, d), "mlp.w2": (v.hidden, d), "mlp.ffn_ln": (v.hidden,), "mlp.w3": (d, v.hidden)}
        shapes |= _pairs({block + name: shape for name, shape in layers.items()})
    return shapes


def seeded_weights(variant: str) -> dict[str, Tensor]:
    """Every parameter of a tower in its official names, from a generator seeded by its name's CRC-32.

    numpy's RandomState, whose numbers never change between versions: offset + scale * standard normal. Nothing is zero.
    """
    v, state = VARIANTS[variant], {}
    for name, shape in (_openai_shapes(v) if v.family == "openai" else _eva_shapes(v)).items():
        numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith(("embedding", "cls_token", "pos_embed")):
            offset, scale = 0.0, 0.5
        elif len(shape) > 1:
            offset, scale = 0.0, float(shape[0] if name == "proj" else np.prod(shape[1:])) ** -0.5
        else:
            offset, scale = (1.0 if name.endswith("weight") else 0.0), 0.1
        state[name] = torch.from_numpy((offset + scale * numbers).astype(np.float32))
    return state


def seeded_images(size: tuple[int, int]) -> Tensor:
    """Two images of standard normal numbers, (2, 3, H, W)."""
    numbers = np.random.RandomState(size[0] * 1000 + size[1]).standard_normal((2, 3, *size))
    return torch.from_numpy(numbers.astype(np.float32))


def boxes_of_two_images() -> list[Tensor]:
    """Five and three boxes, xyxy in parts of the image: whole, across cells, on their borders, inside one."""
    first = [[0.0, 0.0, 1.0, 1.0], [0.11, 0.2, 0.53, 0.9], [0.45, 0.02, 0.96, 0.3], [0.31, 0.3, 0.34, 0.33]]
    second = [[0.25, 0.25, 0.75, 0.75], [0.6, 0.1, 1.0, 0.2], [0.013, 0.777, 0.211, 0.987]]
    return [torch.tensor([*first, [0.0, 0.5, 0.25, 1.0]]), torch.tensor(second)]


def masks_of_two_images(grid: tuple[int, int]) -> list[Tensor]:
    """Four and two masks on a token grid: scattered, whole, and one that is empty."""
    scattered = torch.from_numpy(np.random.RandomState(grid[0] * 100 + grid[1]).uniform(size=(4, *grid))) > 0.6
    whole, empty = torch.ones(1, *grid, dtype=torch.bool), torch.zeros(1, *grid, dtype=torch.bool)
    return [torch.cat([scattered[:2], whole, empty]), scattered[2:]]


def pixel_masks() -> Tensor:
    """Objects of an image of `MASK_IMAGE` pixels, (5, H, W): large, thin, small, below a token's size, scattered."""
    masks = torch.zeros(5, *MASK_IMAGE, dtype=torch.bool)
    corners = ((30, 20, 120, 90), (0, 140, 200, 143), (150, 5, 160, 18), (90, 100, 92, 101))
    for mask, (x0, y0, x1, y1) in zip(masks[:4], corners, strict=True):
        mask[y0:y1, x0:x1] = True
    coarse = np.random.RandomState(5).uniform(size=(15, 20)) > 0.8
    masks[4] = torch.from_numpy(coarse.repeat(10, 0).repeat(10, 1))
    return masks


def _clipself_tower(v: Variant) -> Any:
    from open_clip import transformer  # the checkout's own
    from open_clip.eva_clip.eva_vit_model import EVAVisionTransformer

    if v.family == "openai":
        return transformer.VisionTransformer(
            v.native, v.patch, v.width, v.depth, v.heads, 4.0, output_dim=v.joint, act_layer=transformer.QuickGELU
        )
    # the settings of EVA02-CLIP, but for `xattn`: without xformers, which has no kernel for the CPU
    return EVAVisionTransformer(
        img_size=v.native,
        patch_size=v.patch,
        num_classes=v.joint,
        embed_dim=v.width,
        depth=v.depth,
        num_heads=v.heads,
        mlp_ratio=2.6667,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_mean_pooling=False,
        rope=True,
        pt_hw_seq_len=16,
        intp_freq=True,
        naiveswiglu=True,
        subln=True,
        xattn=False,
    )


def _catseg_tower(v: Variant) -> Any:
    module = importlib.import_module("model_vpt")
    return module.VisualTransformer(
        v.native, v.patch, v.width, v.depth, v.width // 64, v.joint, prompt_depth=0, prompt_length=0
    )


def official_tower(variant: str) -> Any:
    """The official network with the seeded weights."""
    v, state = VARIANTS[variant], seeded_weights(variant)
    if v.reference == "catseg":
        tower = _catseg_tower(v)
        for name in [name for name in state if name.endswith("in_proj_weight")]:  # kept in three parts there
            for letter, part in zip("qkv", state.pop(name).chunk(3), strict=True):
                state[name.replace("in_proj", f"{letter}_proj")] = part
    else:
        tower = _clipself_tower(v)
        state |= {name: value for name, value in tower.state_dict().items() if "rope." in name}
    tower.load_state_dict(state, strict=True)
    return tower.eval()


@torch.no_grad()
def outputs(variant: str, tower: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What the official code gives for the seeded images of a size, under names that begin with the size."""
    v, x = VARIANTS[variant], seeded_images(size)
    grid = (size[0] // v.patch, size[1] // v.patch)
    if v.reference == "catseg":
        found = {"dense": tower(x, dense=True)[:, 1:].mT.unflatten(2, grid)}
    else:
        found = {
            "dense": tower.encode_dense(x, keep_shape=True),
            "boxes": normalize(tower.extract_roi_features(x, boxes_of_two_images()), dim=-1),
            "masks": normalize(tower.mask_pool(x, masks_of_two_images(grid)), dim=-1),
        }
    if v.reference == "clipself" or size == (v.native, v.native):  # CAT-Seg resamples positions for its dense path only
        found["cls"] = tower(x)
    return {f"{size[0]}x{size[1]}/{key}": value.contiguous().numpy() for key, value in found.items()}


def mask_outputs() -> dict[str, Any]:
    """The seeded pixel masks on the token grid, by CLIPSelf's transform under both defaults of torchvision's resize."""
    from open_clip import transform  # the checkout's own

    real, found = transform.F, {}
    for antialias in (False, True):
        transform.F = SimpleNamespace(resize=partial(real.resize, antialias=antialias), pad=real.pad)
        resized = [transform.ResizeLongest(MASK_GRID)(mask[None].float()) > 0 for mask in pixel_masks()]
        found["antialiased" if antialias else "plain"] = torch.cat(resized).numpy()
    transform.F = real
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clipself", type=Path, required=True, help="clone of github.com/wusize/CLIPSelf")
    parser.add_argument("--catseg", type=Path, required=True, help="clone of github.com/cvlab-kaist/CAT-Seg")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder for the files")
    parser.add_argument("--real", action="store_true", help="models of real size (gigabytes of memory, minutes)")
    parser.add_argument("--only", nargs="*", help="variants to compute")
    args = parser.parse_args()
    checkouts = {"clipself": args.clipself.resolve(), "catseg": args.catseg.resolve()}
    commits = {
        name: subprocess.check_output(["git", "-C", path, "rev-parse", "HEAD"], text=True).strip()
        for name, path in checkouts.items()
    }
    os.environ["RoPE"] = "1"  # noqa: SIM112 (so read by CLIPSelf's EVA code)
    # CAT-Seg's package asks for detectron2 at import, the file with its image tower does not
    sys.path[:0] = [str(checkouts["clipself"] / "src"), str(checkouts["catseg"] / "cat_seg" / "third_party")]
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for variant, v in (REAL if args.real else TINY).items():
        if args.only and variant not in args.only:
            continue
        arrays: dict[str, Any] = {"commit": np.array(commits[v.reference]), "torch": np.array(torch.__version__)}
        tower = official_tower(variant)
        for size in v.sizes:
            arrays |= outputs(variant, tower, size)
        np.savez(args.out / f"{variant}.npz", **arrays)
    if not args.real:
        np.savez_compressed(args.out / "clipself_masks.npz", commit=np.array(commits["clipself"]), **mask_outputs())


if __name__ == "__main__":
    main()
