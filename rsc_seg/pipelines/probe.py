"""The quick measure of a run or of checkpoints, with its controls beside it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.segmentation import LabelledSet, open_labelled
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.pipelines.candidates import checkpoint_candidates, layer_candidate, run_candidates, shortened, untuned
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.probe.layers import best_layer
from rsc_seg.probe.memory import TokenBudget, check_memory
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.probe.suite import ProbeRow, probe_suite
from rsc_seg.probe.table import text_table

_log = logging.getLogger(__name__)
_NO_CONTROL = "no SCD control: the run has no control.safetensors (train it with distill.control=true)"


def labelled_pair(config: EvaluateConfig) -> tuple[LabelledSet, LabelledSet]:
    """Training and validation images of the probe section, at most data.limit of each.

    Raises UserError for data.every, whose place probe.train_every and probe.val_every take.
    """
    data, probe = config.data, config.probe
    if data.every != 1:
        raise UserError(f"data.every={data.every}: a measure has probe.train_every and probe.val_every instead.")
    for key, every in (("probe.train_every", probe.train_every), ("probe.val_every", probe.val_every)):
        if every < 1:
            raise UserError(f"{key}={every}: must be 1 or more.")
    train = open_labelled(data.kind, data.root, probe.train_split, data.limit, probe.train_every)
    return train, open_labelled(data.kind, data.root, probe.val_split, data.limit, probe.val_every)


def _check_memory(config: EvaluateConfig, encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet]) -> None:
    height, width = encoder.grid(*config.data.image_size)
    probe, (train, val) = config.probe, sets
    layers = encoder.depth if probe.best_layer else 0
    budget = TokenBudget(height * width, encoder.embed_dim, len(train.classes), layers)
    check_memory(budget, len(train), len(val), train_every=probe.train_every, val_every=probe.val_every)


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
    encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], settings: ProbeSettings, config: EvaluateConfig
) -> tuple[ProbeRow, dict[str, Any]]:
    device = choose_device(config.run.device)
    numbers = list(range(1, encoder.depth + 1))
    found = best_layer(
        lambda x: encoder.intermediates(x.to(device), numbers, norm=True), *sets, settings, layers=numbers
    )
    note = f"layer {found['best']} of {encoder.row.depth}, {found['note']}"
    if shortened(encoder, config.backbone):
        note += f"; only blocks 1 to {encoder.depth} were searched; the last: {shortened(encoder, config.backbone)}"
    return layer_candidate(encoder, found["best"], device, note), found


def run_probe(
    config: EvaluateConfig, *, run: Optional[Path] = None, checkpoints: Optional[list[Path]] = None
) -> dict[str, Any]:
    """Measures the untuned encoder, its best layer, and everything in the run folder or the given checkpoints.

    Returns the suite's result with `layers` (linear probe of every untuned layer), `weights` (what is known about the
    start), command, commit, versions and the configuration. Raises UserError when the tokens would not fit into memory.
    """
    fill_sizes(config.backbone.name, config.data)
    device = choose_device(config.run.device)
    encoder, info, first = untuned(config.backbone, device)
    settings = dataclasses.replace(settings_of(config, encoder), seed=config.run.seed)
    sets = labelled_pair(config)
    _check_memory(config, encoder, sets)
    candidates = [first]
    if run is not None:
        tuned = run_candidates(run, config.backbone, encoder, device)
    else:
        tuned = checkpoint_candidates(checkpoints or [], config.backbone, device)
    layers = None
    if config.probe.best_layer:
        row, layers = _best_layer_row(encoder, sets, settings, config)
        candidates += [row] if layers["best"] != encoder.depth else []
    candidates += tuned
    result = probe_suite(candidates, *sets, settings)
    if layers is not None and layers["best"] == encoder.depth:
        last = result["rows"][0]  # measured once: the last layer is the best one
        result["rows"].insert(1, {**last, "name": row.name, "note": row.note})
    remarks = []
    if layers is not None:
        remarks.append(f"untuned layers: {layers['best']} is the best by linear probe, of blocks 1 to {encoder.depth}")
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
        "config": dataclasses.asdict(config),
    }


def result_lines(result: dict[str, Any]) -> list[str]:
    """A result for a console: table, remarks, and what has to be said about the weights."""
    return [line for line in (text_table(result), *result["remarks"], result["weights"]["note"]) if line]
