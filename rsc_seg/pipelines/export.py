"""Tuned encoders in the layouts of others: timm, open_clip, the hub."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group, sha256_of
from rsc_seg.models.checkpoint_files import weights_file
from rsc_seg.models.open_clip_files import open_clip_config, whole_clip
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.text_weights import NAMED as NAMED_TEXT
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.models.weights import NAMED, blend_states, resolve_weights, save_encoder
from rsc_seg.models.weights_info import WeightsInfo, sidecar_path, stored_info
from rsc_seg.pipelines.folder import command_line, git_commit
from rsc_seg.pipelines.model_card import Measure, model_card, timm_hub_config
from rsc_seg.pipelines.results import read_probe
from rsc_seg.seg.saved import repack_official

_log = logging.getLogger(__name__)
TARGETS = ("timm", "open_clip", "hub", "catseg")
_SHA = re.compile(r"sha256 [0-9a-f]+")


def backbone_of(checkpoint: Path) -> str:
    """The backbone that the sidecar of a weights file, or of the one in a hub folder, names; UserError without one."""
    file = weights_file(checkpoint)
    info = stored_info(file)
    if info is None:
        beside = sidecar_path(file).name
        raise UserError(f"{checkpoint}: no {beside} beside the weights that names their backbone; give --backbone.")
    return info.backbone


def _same_source(a: str, b: str) -> bool:
    """Whether two `source` entries are the same weights: files by their hash, whatever they are called."""
    hashes = [found[0] for found in map(_SHA.search, (a, b)) if found]
    return hashes[0] == hashes[1] if len(hashes) == 2 else a == b


def _check_start(initial: str, start: WeightsInfo, checkpoint: Path, tuned: WeightsInfo) -> None:
    """Weights are blended with those that they left: what is known not to be them is refused, or said."""
    recorded = tuned.training.get("start")
    if recorded is not None and _same_source(str(recorded), start.source):
        return
    if "alpha" in start.training:
        raise UserError(
            f"--initial {initial}: tuned weights themselves (alpha={start.training['alpha']}); give those that the "
            f"training of {checkpoint} started from{f', {recorded}' if recorded else ''}."
        )
    if recorded is not None:
        _log.warning(
            "--initial %s is '%s', and the training of %s started from '%s': a blend of two kinds means nothing",
            initial,
            start.source,
            checkpoint,
            recorded,
        )


def blended(
    row: BackboneRow, checkpoint: Path, initial: Optional[str], alpha: Optional[float]
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The checkpoint's weights, or `alpha` of them and the rest of the `initial` ones.

    Raises UserError when only one of the two is given, when the checkpoint is a blend already, or when `initial` is
    tuned itself; warns when it is not what the sidecar says that the training started from.
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
    start, start_info = resolve_weights(row, initial, depth=info.depth)
    _check_start(initial, start_info, checkpoint, info)
    training = {**info.training, "alpha": alpha, "initial": start_info.source}
    return blend_states(start, state, alpha), dataclasses.replace(info, training=training)


def _text_source(text: str) -> str:
    """What the text tower of the export is, as `source` names image towers."""
    if text in NAMED_TEXT:
        return text
    file = weights_file(Path(text).expanduser())
    return f"{file.name} sha256 {sha256_of(file)[:12]}"


def _with_export(info: WeightsInfo, text: Optional[str]) -> WeightsInfo:
    """`info` that keeps how this export and those before it were made; `text` is None without a text tower."""
    before = info.training.get("exports", [])
    this = {"command": command_line(), "commit": git_commit()}
    training = {**info.training, "exports": [*(before if isinstance(before, list) else []), this]}
    training.pop("text", None)
    if text is not None:
        training["text"] = _text_source(text)
    return dataclasses.replace(info, training=training)


def _refuse_inputs(outputs: list[Path], checkpoint: Path, others: list[Optional[str]]) -> None:
    """UserError when a file to be written is one of those to be read, or its sidecar; `others` may be names."""
    paths = [Path(value).expanduser() for value in others if value and value not in NAMED]
    files = [weights_file(path) for path in (checkpoint, *paths) if path.exists()]
    read = {path.resolve() for file in files for path in (file, sidecar_path(file))}
    for path in outputs:
        if path.resolve() in read:
            raise UserError(f"{path}: is read by this export and would be overwritten; choose another --output.")


def _measure_of(file: Path, probe: Optional[Path], info: WeightsInfo, *, blend: bool) -> Measure:
    """The given measure, or the one beside the checkpoint, as far as it is one of the weights to be written."""
    if blend:
        if probe is not None:
            _log.warning("%s is not shown in the card: it was taken before this blend", probe)
        return Measure(None, "these weights were blended at export, and no measure was taken since")
    if probe is None and not (file.parent / "probe.json").is_file():
        return Measure(None)
    if probe is not None and probe.name != "probe.json":
        raise UserError(f"{probe}: give the probe.json of a run.")
    folder = file.parent if probe is None else probe.parent
    result = read_probe(folder)
    beside = folder.resolve() == file.parent.resolve()
    return Measure(result, row=_own_row(file, info, result) if beside else None)


def _own_row(file: Path, info: WeightsInfo, result: dict[str, Any]) -> Optional[str]:
    """The row of a measure that is this file's, by the names that a measure gives; None where that is not certain."""
    names = {"student": ["student"], "student_alpha1": ["student"], "control": ["SCD control"]}.get(file.stem, [])
    alpha = info.training.get("alpha")
    ending = f", alpha {alpha:g}" if isinstance(alpha, (int, float)) else ""
    wanted = {name + ending for name in [*names, file.stem, f"{file.parent.name}/{file.stem}", str(file)]}
    found = [str(row["name"]) for row in result["rows"] if row["name"] in wanted]
    return found[0] if len(found) == 1 else None


def _text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def _whole(row: BackboneRow, state: dict[str, Tensor], info: WeightsInfo, text: str) -> dict[str, Tensor]:
    open_clip_config(row, info.depth)  # refuses what open_clip cannot hold before a text tower is fetched
    tower = build_text_tower(row.name, text)
    return whole_clip(state, tower.state_dict(), row, info.depth)


def _hub_names(row: BackboneRow) -> tuple[str, str]:
    """Config and weights of a hub repository."""
    if row.joint_dim is None:
        return "config.json", "model.safetensors"
    return "open_clip_config.json", "open_clip_model.safetensors"


def _hub_files(
    row: BackboneRow, tensors: dict[str, Tensor], info: WeightsInfo, measure: Measure
) -> dict[str, Callable[[Path], object]]:
    """Names and writers of a hub repository, our sidecar where loading its weights file finds it; the card last."""
    config_name, weights_name = _hub_names(row)
    if row.joint_dim is None:
        library = "timm"
        config = timm_hub_config(row, info.depth)
    else:
        library = "open_clip"
        preprocess = {"mean": row.mean, "std": row.std, "interpolation": "bicubic", "resize_mode": "shortest"}
        sizes = {"model_cfg": open_clip_config(row, info.depth), "preprocess_cfg": preprocess}
        config = json.dumps(sizes, indent=2) + "\n"
    card = model_card(row, info, library=library, measure=measure)
    return {
        config_name: _text(config),
        sidecar_path(Path(weights_name)).name: _text(info.to_json()),
        weights_name: lambda path: save_tensors(path, tensors),
        "README.md": _text(card),
    }


def _outputs(output: Path, target: str, row: BackboneRow) -> list[Path]:
    """Files that an export writes, the card aside."""
    if target != "hub":
        return [output, sidecar_path(output)]
    weights = output / _hub_names(row)[1]
    return [weights, sidecar_path(weights)]


def _check_open_clip(output: Path, checkpoint: Path, info: WeightsInfo, row: BackboneRow) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: whole CLIPs are written as .safetensors; give the file that suffix.")
    open_clip_config(row, info.depth)
    if info.depth != row.depth:
        raise UserError(f"{checkpoint}: holds {info.depth} of {row.depth} blocks; open_clip needs --to hub for that.")


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
    """Writes `checkpoint` (a file or a hub folder) for `target` and returns the files, all whole or none.

    timm: `output.safetensors` in timm's names with our sidecar. open_clip: `output.safetensors`, a whole CLIP with the
    tuned image tower and the text tower of `text` (official, a file of a whole CLIP, or none), with our sidecar. hub:
    the folder `output` in the hub's layout with sidecar and model card, open_clip's for a CLIP and timm's otherwise;
    the measure `probe`, or the one beside the checkpoint, goes into the card unless the weights are blended here.
    catseg: `checkpoint` is a whole Cat-Seg of train_catseg.py, `output.pth` what the official code loads.
    Raises UserError for what does not fit, and when the export would overwrite what it reads.
    """
    require_choice("--to", target, TARGETS)
    if target == "catseg":
        repack_official(checkpoint, output)
        return [output]
    file = weights_file(checkpoint)
    row = find_backbone(backbone or backbone_of(checkpoint))
    with_text = target == "open_clip" or (target == "hub" and row.joint_dim is not None)
    _refuse_inputs(_outputs(output, target, row), file, [initial, text if with_text else None])
    state, info = blended(row, checkpoint, initial, alpha)
    if target == "open_clip":
        _check_open_clip(output, checkpoint, info, row)
    tensors = _whole(row, state, info, text) if with_text else state
    info = _with_export(info, text if with_text else None)
    if target == "timm":
        save_encoder(output, tensors, info)
        return [output, sidecar_path(output)]
    if target == "hub":
        files = _hub_files(row, tensors, info, _measure_of(file, probe, info, blend=alpha is not None))
        atomic_write_group({output / name: writer for name, writer in files.items()})
        return [output / name for name in files]
    atomic_write_group({sidecar_path(output): _text(info.to_json()), output: lambda path: save_tensors(path, tensors)})
    return [output, sidecar_path(output)]
