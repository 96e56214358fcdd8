"""The quick measure of a run or of checkpoints, with its controls beside it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Optional

import torch

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.segmentation import LabelledSet, open_labelled
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.candidates import Candidate, checkpoint_candidate, layer_candidate, run_candidates, untuned
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.probe.layers import best_layer
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.probe.suite import ProbeRow, probe_suite

_log = logging.getLogger(__name__)
_NO_CONTROL = "no SCD control: the run has no control.safetensors (train it with distill.control=true)"


def pick_device(name: str) -> torch.device:
    """The device of run.device; auto takes CUDA when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def labelled_pair(config: EvaluateConfig) -> tuple[LabelledSet, LabelledSet]:
    """Training and validation images of the probe section."""
    data, probe = config.data, config.probe
    train = open_labelled(data.kind, data.root, probe.train_split, every=probe.train_every)
    return train, open_labelled(data.kind, data.root, probe.val_split, every=probe.val_every)


def settings_of(config: EvaluateConfig, encoder: DenseEncoder) -> ProbeSettings:
    """Probe settings for an encoder; UserError when the image size does not fit its patch."""
    height, width = config.data.image_size
    encoder.grid(height, width)
    probe = config.probe
    return ProbeSettings(
        image_size=(height, width),
        mean=encoder.mean,
        std=encoder.std,
        linear_seeds=probe.linear_seeds,
        linear_epochs=probe.linear_epochs,
        kmeans_seeds=probe.kmeans_seeds,
        coupling_pairs=probe.coupling_pairs,
        score_scale=probe.score_scale,
    )


def _best_layer_row(
    encoder: DenseEncoder, device: torch.device, sets: tuple[LabelledSet, LabelledSet], settings: ProbeSettings
) -> tuple[Candidate, dict[str, Any]]:
    numbers = list(range(1, encoder.depth + 1))
    found = best_layer(
        lambda x: encoder.intermediates(x.to(device), numbers, norm=True), *sets, settings, layers=numbers
    )
    note = f"layer {found['best']} of {encoder.depth}, {found['note']}"
    return layer_candidate(encoder, found["best"], device, note), found


def _row(candidate: Candidate) -> ProbeRow:
    return ProbeRow(candidate.name, candidate.dense, candidate.note, candidate.pair, candidate.norms)


def run_probe(
    config: EvaluateConfig, *, run: Optional[Path] = None, checkpoints: Optional[list[Path]] = None
) -> dict[str, Any]:
    """Measures the untuned encoder, its best layer, and everything in the run folder or the given checkpoints.

    Returns the suite's result with `layers` (linear probe of every untuned layer), `weights` (what is known about the
    start), and command, commit and versions.
    """
    device = pick_device(config.run.device)
    encoder, info, first = untuned(config.backbone, device)
    settings = dataclasses.replace(settings_of(config, encoder), seed=config.run.seed)
    sets = labelled_pair(config)
    candidates = [first]
    if run is not None:
        tuned = run_candidates(run, config.backbone, encoder, device)
    else:
        tuned = [checkpoint_candidate(path, path.stem, config.backbone, device) for path in checkpoints or []]
    layers = None
    if config.probe.best_layer:
        row, layers = _best_layer_row(encoder, device, sets, settings)
        candidates += [row] if layers["best"] != encoder.depth else []
    candidates += tuned
    result = probe_suite([_row(c) for c in candidates], *sets, settings)
    if layers is not None and layers["best"] == encoder.depth:
        last = result["rows"][0]  # measured once: the last layer is the best one
        result["rows"].insert(1, {**last, "name": row.name, "note": row.note})
    remarks = [f"untuned layers: {layers['best']} of {encoder.depth} is the best by linear probe"] if layers else []
    if run is not None and not any(c.name.startswith("SCD control") for c in tuned):
        remarks.append(_NO_CONTROL)
        _log.warning(_NO_CONTROL)
    return {
        **result,
        "layers": layers,
        "remarks": remarks,
        "weights": dataclasses.asdict(info),
        "data": config.data.root or config.data.kind,
        "splits": [config.probe.train_split, config.probe.val_split],
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
    }
