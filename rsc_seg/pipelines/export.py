"""Tuned encoders in the layouts of others: timm, open_clip, the hub."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group
from rsc_seg.models.open_clip_files import open_clip_config, whole_clip
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.models.weights import blend_states, resolve_weights, save_encoder
from rsc_seg.models.weights_info import WeightsInfo, sidecar_path
from rsc_seg.pipelines.model_card import model_card, timm_hub_config
from rsc_seg.pipelines.results import read_probe

TARGETS = ("timm", "open_clip", "hub")


def backbone_of(checkpoint: Path) -> str:
    """The backbone that a checkpoint's sidecar names; UserError without one."""
    beside = sidecar_path(checkpoint)
    if not beside.is_file():
        raise UserError(f"{checkpoint}: no {beside.name} beside it that names its backbone; give --backbone.")
    return WeightsInfo.from_json(beside.read_text(encoding="utf-8"), where=str(beside)).backbone


def blended(
    row: BackboneRow, checkpoint: Path, initial: Optional[str], alpha: Optional[float]
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The checkpoint's weights, or `alpha` of them and the rest of the `initial` ones.

    Raises UserError when only one of the two is given, or when the checkpoint is a blend already.
    """
    state, info = resolve_weights(row, str(checkpoint))
    if alpha is None and initial is None:
        return state, info
    if alpha is None or initial is None:
        raise UserError("--alpha and --initial belong together: the share of the tuned weights, and those they left.")
    before = info.training.get("alpha", 1.0)
    if before != 1.0:
        raise UserError(
            f"{checkpoint}: already a blend with alpha={before}; blend the weights as trained (student_alpha1)."
        )
    start, _ = resolve_weights(row, initial, depth=info.depth)
    training = {**info.training, "alpha": alpha}
    return blend_states(start, state, alpha), dataclasses.replace(info, training=training)


def _measure_of(checkpoint: Path, probe: Optional[Path]) -> Optional[dict[str, Any]]:
    """The given measure, or the one beside the checkpoint; None without any."""
    if probe is None and not (checkpoint.parent / "probe.json").is_file():
        return None
    if probe is not None and probe.name != "probe.json":
        raise UserError(f"{probe}: give the probe.json of a run.")
    return read_probe(checkpoint.parent if probe is None else probe.parent)


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def _whole(row: BackboneRow, state: dict[str, Tensor], info: WeightsInfo, text: str) -> dict[str, Tensor]:
    tower = build_text_tower(row.name, text)
    return whole_clip(state, tower.state_dict(), row, info.depth)


def _hub_files(
    row: BackboneRow, state: dict[str, Tensor], info: WeightsInfo, text: str, result: Optional[dict[str, Any]]
) -> dict[str, Callable[[Path], object]]:
    """Names and writers of a hub repository; the card last."""
    if row.joint_dim is None:
        tensors, library = state, "timm"
        names = ("config.json", "model.safetensors")
        config = timm_hub_config(row, info.depth)
    else:
        tensors, library = _whole(row, state, info, text), "open_clip"
        names = ("open_clip_config.json", "open_clip_model.safetensors")
        preprocess = {"mean": row.mean, "std": row.std, "interpolation": "bicubic", "resize_mode": "shortest"}
        sizes = {"model_cfg": open_clip_config(row, info.depth), "preprocess_cfg": preprocess}
        config = json.dumps(sizes, indent=2) + "\n"
    card = model_card(row, info, library=library, result=result)
    return {
        names[0]: _text(config),
        names[1]: lambda path: save_tensors(path, tensors),
        "rsc_seg.json": _text(info.to_json()),
        "README.md": _text(card),
    }


def export_weights(
    checkpoint: Path,
    output: Path,
    *,
    target: str,
    backbone: Optional[str] = None,
    initial: Optional[str] = None,
    alpha: Optional[float] = None,
    text: str = "official",
    probe: Optional[Path] = None,
) -> list[Path]:
    """Writes `checkpoint` for `target` and returns the files, all whole or none.

    timm: `output.safetensors` in timm's names with our sidecar. open_clip: `output.safetensors`, a whole CLIP with the
    tuned image tower and the text tower of `text` (official, a file of a whole CLIP, or none). hub: the folder
    `output` in the hub's layout with a model card, open_clip's for a CLIP and timm's otherwise; the measure `probe`,
    or the one beside the checkpoint, goes into the card. Raises UserError for what does not fit.
    """
    require_choice("--to", target, TARGETS)
    row = find_backbone(backbone or backbone_of(checkpoint))
    state, info = blended(row, checkpoint, initial, alpha)
    if target == "hub":
        files = _hub_files(row, state, info, text, _measure_of(checkpoint, probe))
        atomic_write_group({output / name: writer for name, writer in files.items()})
        return [output / name for name in files]
    if target == "timm":
        save_encoder(output, state, info)
        return [output, sidecar_path(output)]
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: whole CLIPs are written as .safetensors; give the file that suffix.")
    if info.depth != row.depth:
        raise UserError(f"{checkpoint}: holds {info.depth} of {row.depth} blocks; open_clip needs --to hub for that.")
    tensors = _whole(row, state, info, text)
    atomic_write_group({sidecar_path(output): _text(info.to_json()), output: lambda path: save_tensors(path, tensors)})
    return [output, sidecar_path(output)]
