"""Checkpoint files of DINOv2, timm and this project, read into timm's names."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.models.trunk import create_trunk

# Keys under which training checkpoints keep weights
CONTAINERS = ("teacher", "state_dict", "model", "model_state_dict")
# DINOv2 trains with blocks.<chunk>.<block>., the block counted over all chunks
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def _load_torch(path: Path) -> Any:
    if _is_torchscript(path):
        raise UserError(
            f"{path}: a TorchScript archive; where you trust it, save its state dict with "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER) and pass that file."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path}: not a file of plain weights (pickled objects, truncated, or another format); for safety only "
            "tensors are read: save the state dict alone, or get the file again."
        ) from e
    except OSError:
        raise
    except Exception as e:  # the reader fails on bad bytes in more ways than it documents
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:120]
        raise UserError(f"{path}: damaged or truncated ({reason}); get the file again.") from e


def read_checkpoint(path: Path) -> Any:
    """Content of a `.safetensors` file or of one by `torch.save` (tensors and plain containers only), on the CPU.

    Raises UserError for a file that is missing, damaged, pickled with code, or TorchScript.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the weights file in it.")
    if not path.is_file():
        raise UserError(f"{path}: no such weights file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _load_torch(path)
    except SafetensorError as e:
        raise UserError(f"{path}: damaged, truncated or not safetensors ({e}); get the file again.") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}).") from e


def _unwrap(content: Any, where: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((key for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: holds a {type(content).__name__}, not a dictionary of weights; save the state dict.")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{where}: holds no tensors; known containers are {', '.join(CONTAINERS)}.")
    return tensors


def _strip_prefix(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    prefixes = {key.removesuffix("cls_token") for key in state if key == "cls_token" or key.endswith(".cls_token")}
    if len(prefixes) > 1:
        teachers = {p for p in prefixes if "teacher" in p.split(".")}
        prefixes = teachers or prefixes
    if len(prefixes) > 1:
        raise UserError(f"{where}: holds several encoders ({', '.join(sorted(prefixes))}); save one of them alone.")
    prefix = prefixes.pop() if prefixes else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _rename(key: str) -> str:
    key = _CHUNKED.sub(r"blocks.\1.", key)
    return key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")


def to_timm_names(content: Any, where: str) -> dict[str, Tensor]:
    """State dict in timm's names from the content of a checkpoint; shapes are not judged here.

    Takes DINOv2's releases and training checkpoints (their teacher), timm's files and ours, under any of `CONTAINERS`
    and any prefix. With registers DINOv2 adds a position to [CLS] that timm has folded into `cls_token`; mask token and
    classifier heads are left out. The result for DINOv2's releases is that of timm's own filter. Raises UserError
    beginning with `where` when there are no weights, or those of several encoders.
    """
    state = _strip_prefix(_unwrap(content, where), where)
    state = {key: value for key, value in state.items() if key != "mask_token" and not key.startswith("head.")}
    if "register_tokens" in state and "cls_token" in state and "pos_embed" in state:
        positions = state["pos_embed"]  # (1, 1 + N, D), [CLS] first
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
        state["reg_token"] = state.pop("register_tokens")
    return {_rename(key): value for key, value in state.items()}


def count_blocks(state: Mapping[str, Tensor]) -> int:
    """Number of transformer blocks: the highest index and one."""
    return 1 + max((int(m[1]) for key in state if (m := _BLOCK.match(key))), default=-1)


def keep_blocks(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The state dict without the blocks from index `depth` on."""
    return {key: value for key, value in state.items() if not (m := _BLOCK.match(key)) or int(m[1]) < depth}


def _shapes(row: BackboneRow, depth: int) -> dict[str, tuple[int, ...]]:
    trunk = create_trunk(row, depth=depth, device="meta")
    return {key: tuple(value.shape) for key, value in trunk.state_dict().items()}


def matching_backbones(state: Mapping[str, Tensor]) -> list[str]:
    """Registry names whose first blocks have the keys and shapes of the state dict, those of its own depth first."""
    blocks = count_blocks(state)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    fits = []
    for row in REGISTRY.values():
        if 1 <= blocks <= row.depth and shapes == _shapes(row, blocks):
            fits.append((row.depth - blocks, row.name))
    return [name for _, name in sorted(fits)]


def _few(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def fit_state(state: Mapping[str, Tensor], row: BackboneRow, depth: int, where: str) -> dict[str, Tensor]:
    """The first `depth` blocks of a state dict in timm's names as contiguous float32, in the order of the architecture.

    Raises UserError beginning with `where` when keys or shapes are not those of `row` (up to three are named, and the
    registry's name that would fit), or when values are not finite.
    """
    wanted, held = _shapes(row, depth), keep_blocks(state, depth)
    missing = [key for key in wanted if key not in held]
    unknown = [key for key in held if key not in wanted]
    shapes = [
        f"{key} is {tuple(held[key].shape)}, must be {shape}"
        for key, shape in wanted.items()
        if key in held and tuple(held[key].shape) != shape
    ]
    if missing or unknown or shapes:
        parts = [f"lacks {_few(missing)}"] if missing else []
        parts += [f"has unknown {_few(unknown)}"] if unknown else []
        parts += [_few(shapes)] if shapes else []
        names, blocks = matching_backbones(state), count_blocks(state)
        if row.name in names:
            advice = f"the file holds {blocks} of {depth} blocks: set backbone.depth={blocks}"
        else:
            advice = f"it fits --backbone {names[0]}" if names else "no known backbone fits this file"
        raise UserError(f"{where}: not weights of {row.name}: {'; '.join(parts)}; {advice}.")
    result = {key: held[key].detach().to("cpu", torch.float32).contiguous() for key in wanted}
    broken = [key for key, value in result.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{where}: values are not finite in {_few(broken)}; use an earlier checkpoint.")
    return result
