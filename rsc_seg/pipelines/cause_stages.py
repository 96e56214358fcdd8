"""What each stage of CAUSE made, as files that are found by a hash of everything that they depend on."""

import json
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.pipelines.folder import command_line, git_commit
from rsc_seg.training.cache import cache_key

_log = logging.getLogger(__name__)
_FORMAT = 2  # raised when a stage computes something else from the same options, or its file holds other entries
_ABOUT = "about"  # the entry that holds what a file depends on and what made it
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class StageResult:
    """Arrays of a stage, the hash of what they depend on, their file, and what made them (seconds, command, commit)."""

    arrays: Arrays
    key: str
    path: Path
    facts: dict[str, Any]


def numbers(state: Mapping[str, Tensor]) -> Arrays:
    """Tensors as arrays, dtype kept."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Those arrays whose name begins with `prefix`, without it, as tensors."""
    return {name[len(prefix) :]: torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def prefixed(module: nn.Module, prefix: str) -> Arrays:
    """A module's state under names with a prefix."""
    return {f"{prefix}{name}": array for name, array in numbers(module.state_dict()).items()}


def _kinds(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Shape and dtype of every array, as they stand in a file."""
    return {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}


def _damaged(path: Path, why: object) -> UserError:
    """The error of a stage file that cannot be used."""
    return UserError(f"{path}: damaged stage file ({why}); delete it and run the same command again.")


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and facts; UserError when the file lacks any of what it says it holds."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop(_ABOUT)))
        held = _kinds(arrays)
        wrong = sorted(name for name, kind in about["arrays"].items() if held.get(name) != kind)
        facts = dict(about["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, zipfile.BadZipFile) as e:
        raise _damaged(path, f"{type(e).__name__}: {e}") from e
    if wrong:
        raise _damaged(path, f"without {wrong[0]}, or with another shape of it")
    return arrays, facts


class StageFiles:
    """The folder of stage files. A file is there as a whole or not at all, so a killed run goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, stage: str, depends: Mapping[str, Any], make: Callable[[], Arrays], name: str = "") -> StageResult:
        """The result of `stage` for exactly these dependencies (JSON-able), made and written when it is not there.

        `name` says in the log whose result it is. Raises UserError for a damaged file or when the disk refuses.
        """
        key = cache_key(stage=stage, format=_FORMAT, **depends)
        path = self.folder / f"{stage}-{key}.npz"
        told = f"{name}: {stage}" if name else stage
        if path.is_file():
            _log.info("%s: found %s", told, path)
            arrays, facts = _read(path)
            return StageResult(arrays, key, path, facts)
        begun = time.monotonic()
        arrays = make()
        facts = {
            "seconds": round(time.monotonic() - begun, 1),
            "command": command_line(),
            "commit": git_commit(),
        }
        about = {"stage": stage, "depends": dict(depends), "facts": facts, "arrays": _kinds(arrays)}

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **{**arrays, _ABOUT: np.array(json.dumps(about))})

        atomic_write(path, write)
        _log.info("%s: %.0f s, kept in %s", told, facts["seconds"], path)
        return StageResult(arrays, key, path, facts)
