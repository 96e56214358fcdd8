"""CAUSE's own files: segment_{tr,mlp}.pth, cluster_{tr,mlp}.pth and modular.npy, read and written."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.heads import CauseModel
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group
from rsc_seg.models.checkpoint_files import read_checkpoint, unwrap

_log = logging.getLogger(__name__)

_STUDENT = ("head.", "projection_head.", "projection_head_ema.")  # what evaluation does without


@dataclass(frozen=True)
class CauseFiles:
    """Where the three files are; the cluster file holds the codebook too, so `codebook` may be left out.

    `head` (tr or mlp) is what the files are said to be; None takes what they are.
    """

    segment: Path
    cluster: Path
    codebook: Path | None = None
    head: str | None = None

    @classmethod
    def in_folder(cls, folder: Path, kind: str) -> "CauseFiles":
        """The official names in one folder."""
        return cls(folder / f"segment_{kind}.pth", folder / f"cluster_{kind}.pth", folder / "modular.npy")


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefix that a wrapped module leaves."""
    state = unwrap(read_checkpoint(path), str(path))
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in state.items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _as_codes(array: Tensor, where: str) -> Float[Tensor, "K D"]:
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or not array.is_floating_point():
        raise UserError(f"{where}: shape {tuple(array.shape)} of {array.dtype}, a codebook is codes x width of floats.")
    if not torch.isfinite(array).all():
        raise UserError(f"{where}: values are not finite; train the codebook again.")
    return array.float()


def load_codebook(path: Path) -> Float[Tensor, "K D"]:
    """The codebook of a modular.npy; UserError for a missing or damaged file, or an array of another kind."""
    if not path.is_file():
        raise UserError(f"{path}: no such codebook; give CAUSE's modular.npy.")
    try:
        array = np.load(path, allow_pickle=False)
        codes = torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, EOFError, OSError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not a plain .npy array ({str(e).splitlines()[0]}); give modular.npy.") from e
    return _as_codes(codes, str(path))


def load_cluster(path: Path) -> tuple[ClusterProbe, Float[Tensor, "K D"] | None]:
    """The probe of a cluster_*.pth, and the codebook in it (None when there is none)."""
    state = _read_state(path)
    if "cluster_probe" not in state or state["cluster_probe"].ndim != 2:
        raise UserError(f"{path}: lacks cluster_probe (clusters x width); give CAUSE's cluster_tr.pth or _mlp.pth.")
    centers = state["cluster_probe"].float()
    if not torch.isfinite(centers).all():
        raise UserError(f"{path}: values are not finite in cluster_probe; use an earlier checkpoint.")
    probe = ClusterProbe(*centers.shape)
    probe.load_state_dict({"cluster_probe": centers})
    codes = _as_codes(state["codebook"], f"{path}: codebook") if "codebook" in state else None
    return probe.eval().requires_grad_(False), codes


def _shape(state: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, ...]:
    if key not in state:
        raise UserError(f"{path}: lacks {key}; give CAUSE's segment_tr.pth or segment_mlp.pth.")
    return tuple(state[key].shape)


def load_segment(path: Path, codes: Float[Tensor, "K D"], grid: tuple[int, int]) -> CauseModel:
    """The frozen model of a segment_*.pth on maps of `grid` tokens; kind, widths and classes are read off its shapes.

    A file without the student (evaluation needs the teacher alone) loads, with the teacher in the student's place.
    Raises UserError that names missing, unknown or misshapen tensors, and for a grid or codebook that does not fit.
    """
    state = _read_state(path)
    kind = "tr" if "head_ema.query_pos" in state else "mlp"
    if kind == "tr" and len(state["head_ema.query_pos"]) != grid[0] * grid[1]:
        raise UserError(
            f"{path}: made for {len(state['head_ema.query_pos'])} tokens an image, this run has {grid[0]}x{grid[1]}; "
            "use the resolution and patch size that it was trained with."
        )
    layer = "head_ema.tr.f1.weight" if kind == "tr" else "head_ema.f1.weight"
    width, probe = _shape(state, layer, path)[1], _shape(state, "linear.f.weight", path)
    if width != codes.shape[1]:
        raise UserError(f"{path}: its tokens are {width} wide, the codebook's {codes.shape[1]}; files of two encoders.")
    projection = state["projection_head_ema.f.weight"].shape[0] if "projection_head_ema.f.weight" in state else 2048
    model = CauseModel(kind, codes, grid, probe[0], reduced=probe[1], projection=projection)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    lacking = [key for key in wanted if key not in state]
    bare = not any(key.startswith(_STUDENT) for key in state)
    problems = {
        "lacks": [key for key in lacking if not (bare and key.startswith(_STUDENT))],
        "has unknown": [key for key in state if key not in wanted],
        "has misshapen": [key for key in wanted if key in state and tuple(state[key].shape) != wanted[key]],
        "has values that are not finite in": [key for key, value in state.items() if not torch.isfinite(value).all()],
    }
    found = [f"{what} {_few(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise UserError(f"{path}: not a CAUSE-{kind.upper()} file: {'; '.join(found)}.")
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    if bare:
        model.head.load_state_dict(model.head_ema.state_dict())
        model.projection_head.load_state_dict(model.projection_head_ema.state_dict())
    return model.eval().requires_grad_(False)


def load_cause(files: CauseFiles, grid: tuple[int, int]) -> tuple[CauseModel, ClusterProbe]:
    """Model and cluster probe from the official files; UserError that names the file and what does not fit."""
    probe, held = load_cluster(files.cluster)
    codes = held if files.codebook is None else load_codebook(files.codebook)
    if codes is None:
        raise UserError(f"{files.cluster}: holds no codebook; give modular.npy as well.")
    if files.codebook is not None and held is not None and not (held.shape == codes.shape and torch.equal(held, codes)):
        _log.warning("%s: not the codebook that %s holds; this one is used", files.codebook, files.cluster)
    model = load_segment(files.segment, codes, grid)
    if files.head not in (None, model.kind):
        raise UserError(
            f"{files.segment}: a CAUSE-{model.kind.upper()} file, but --head {files.head} was asked for; leave --head "
            "out, or give the files of that head."
        )
    clusters, width = probe.cluster_probe.shape
    reduced = model.linear.f.weight.shape[1]
    if width != reduced:
        raise UserError(f"{files.cluster}: clusters of width {width}, {files.segment} makes features of {reduced}.")
    if clusters != model.classes:
        raise UserError(
            f"{files.cluster}: {clusters} clusters, the linear probe of {files.segment} has {model.classes} classes; "
            "give files of one run."
        )
    return model, probe


def _write_codes(path: Path, codes: Tensor) -> None:
    np.save(path, codes.detach().cpu().float().numpy())


def save_cause(folder: Path, model: CauseModel, probe: ClusterProbe) -> CauseFiles:
    """All three files under the official names, all of them or none."""
    files = CauseFiles.in_folder(folder, model.kind)
    segment = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    cluster = {"codebook": model.codes.detach().cpu(), "cluster_probe": probe.cluster_probe.detach().cpu()}
    atomic_write_group(
        {
            files.segment: lambda p: torch.save(segment, p),
            files.cluster: lambda p: torch.save(cluster, p),
            folder / "modular.npy": lambda p: _write_codes(p, model.codes),
        }
    )
    return files
