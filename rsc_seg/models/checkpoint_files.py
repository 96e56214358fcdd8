"""Weights files and hub folders read from disk: tensors only; of TorchScript archives, those that hold a CLIP."""

import pickle
import textwrap
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.errors import UserError

# Keys under which training checkpoints keep weights
CONTAINERS = ("teacher", "state_dict", "model", "module", "model_state_dict")
# Files of hub folders; those of open_clip first, because they hold the text tower too
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
FOLDER_FILES = OPEN_CLIP_FILES + TRANSFORMERS_FILES
# OpenAI's archives hold these numbers beside the weights
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive written by `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def torchscript_code(path: Path) -> str:
    """The source text inside a TorchScript archive."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.split("/")[1:2] == ["code"] and n.endswith(".py")]
        return "\n".join(archive.read(name).decode("utf-8", "replace") for name in names)


def _holds_clip(path: Path) -> bool:
    """Whether a TorchScript archive names the parameter that OpenAI's vision transformers have, without loading it."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        return any(b"class_embedding" in archive.read(name) for name in names)


def _load_torchscript(path: Path) -> dict[str, Tensor]:
    if not _holds_clip(path):
        raise UserError(
            f"{path}: a TorchScript archive without a CLIP vision transformer; where you trust it, save its state dict "
            "with torch.save(torch.jit.load(FILE).state_dict(), OTHER) and pass that file."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load is deprecated, OpenAI's files are what they are
        state = torch.jit.load(path, map_location="cpu").state_dict()
    return {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}


def _load_torch(path: Path) -> Any:
    try:
        if is_torchscript(path):
            return _load_torchscript(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path}: not a file of plain weights (pickled objects, truncated, or another format); for safety only "
            "tensors are read: save the state dict alone, or get the file again."
        ) from e
    except (OSError, UserError):
        raise
    except Exception as e:  # the reader fails on bad bytes in more ways than it documents
        reason = textwrap.shorten((str(e).strip() or type(e).__name__).splitlines()[0], 120, placeholder=" ...")
        raise UserError(f"{path}: damaged or truncated ({reason}); get the file again.") from e


def weights_file(path: Path) -> Path:
    """The path itself, or the weights file of a folder in hub layout: open_clip's, else that of transformers or timm.

    Raises UserError for a folder without any of them and for what does not exist.
    """
    if path.is_dir():
        found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: a folder without {', '.join(FOLDER_FILES)}; give the weights file in it.")
        return found
    if not path.is_file():
        raise UserError(f"{path}: no such weights file.")
    return path


def read_checkpoint(path: Path) -> Any:
    """Content of a weights file or hub folder, on the CPU.

    Takes `.safetensors`, what `torch.save` wrote (tensors and plain containers only) and OpenAI's TorchScript archives
    (of which the state dict). Raises UserError for a file that is missing, damaged, pickled with code, or TorchScript
    of something else.
    """
    path = weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _load_torch(path)
    except SafetensorError as e:
        raise UserError(f"{path}: damaged, truncated or not safetensors ({e}); get the file again.") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}).") from e


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """The tensors by name inside a checkpoint's containers; UserError beginning with `where` when there are none."""
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


def under_one_prefix(state: Mapping[str, Tensor], last: str, where: str) -> tuple[str, dict[str, Tensor]] | None:
    """The prefix before the key that ends in `last`, and what stands behind it; None when there is no such key.

    Of a teacher and a student the teacher is taken. Raises UserError beginning with `where` for several encoders.
    """
    prefixes = {key.removesuffix(last) for key in state if key == last or key.endswith(f".{last}")}
    if len(prefixes) > 1:
        prefixes = {p for p in prefixes if "teacher" in p.split(".")} or prefixes
    if len(prefixes) > 1:
        raise UserError(f"{where}: holds several encoders ({', '.join(sorted(prefixes))}); save one of them alone.")
    if not prefixes:
        return None
    prefix = prefixes.pop()
    return prefix, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
