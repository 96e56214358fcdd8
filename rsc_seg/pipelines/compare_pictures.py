"""Pictures of a comparison: maps of several students on equal pictures, predictions side by side, stored figures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rsc_seg.config import EvaluateConfig, load_config
from rsc_seg.data.segmentation import distinct_palette
from rsc_seg.errors import UserError
from rsc_seg.pipelines.candidates import checkpoint_candidate, untuned
from rsc_seg.pipelines.catseg_folder import EvaluationStore, row_key
from rsc_seg.pipelines.compare_groups import Group
from rsc_seg.pipelines.compare_parts import Run
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.pictures import figure_groups
from rsc_seg.pipelines.report_pictures import choose_pictures
from rsc_seg.probe.suite import ProbeRow
from rsc_seg.viz.parts import Figure, FigureGroup
from rsc_seg.viz.segmentation import Look, Segmented, segmentation_groups

_log = logging.getLogger(__name__)
STUDENT = "student.safetensors"
STORED = "Stored figures"
_MOST_STORED = 4  # figures of one run
_MOST_PREDICTED = 4  # pictures of one set
_ALPHA, _MOST_KEYS = 0.6, 40
_SKIPPED = {"tensorboard", "cache", "checkpoints", "evaluation", "tokens", "counts", "wandb"}


def _measured_students(runs: Sequence[Run], reference: Run) -> tuple[list[Run], list[str]]:
    """The runs whose students see pictures as that of the first does, and why others are left out."""
    able = [run for run in runs if "probe.json" in run.results and (run.folder / STUDENT).is_file()]
    if not able:
        return [], []
    first = reference if reference in able else able[0]
    known: Mapping[str, Any] = first.results["probe.json"]["weights"]
    kept, notes = [first], []
    for run in able:
        weights = run.results["probe.json"]["weights"]
        if run is first:
            continue
        if (weights.get("backbone"), weights.get("depth")) == (known.get("backbone"), known.get("depth")):
            kept.append(run)
        else:
            notes.append(f"No maps of {run.name}: {weights.get('backbone')} beside {known.get('backbone')}.")
    return kept, notes


def _without_maps(runs: Sequence[Run]) -> list[str]:
    """A sentence on the measured runs that have no student of their own, such as evaluations."""
    names = [run.name for run in runs if run.measures and not (run.folder / STUDENT).is_file()]
    if not names:
        return []
    return [f"No maps of {', '.join(names)}: maps are of runs that keep their student, evaluations have none."]


def _maps(runs: Sequence[Run], count: int, device_name: str) -> tuple[list[FigureGroup], dict[str, str]]:
    first = runs[0]
    measured = first.results["probe.json"]
    if "config" not in measured:
        raise UserError(f"{first.folder / 'probe.json'} does not say with which options it was measured.")
    config = load_config(EvaluateConfig, base=measured["config"])
    device = choose_device(device_name)
    encoder, _, start = untuned(config.backbone, device)
    rows: list[ProbeRow] = [start]
    for run in runs:
        rows.append(checkpoint_candidate(run.folder / STUDENT, run.name, config.backbone, device))
    chosen = choose_pictures(first.folder, config, encoder)
    with torch.no_grad():
        groups = figure_groups(chosen.pictures[:count], rows, kinds=("affinity", "pca", "norms"), queries=1)
    return groups, {section: f"Of {first.name}: {text}" for section, text in chosen.outros(_sections(groups)).items()}


def _sections(groups: Sequence[FigureGroup]) -> list[str]:
    return list(dict.fromkeys(group.section for group in groups))


def student_maps(
    runs: Sequence[Run], reference: Run, count: int, device: str
) -> tuple[list[FigureGroup], dict[str, str], list[str]]:
    """Maps of the untuned encoder and of each run's student, made anew so that one colour scale holds for all.

    Returns groups, a text below each section, and sentences on what is not shown: data or weights that are no longer
    where the run had them leave the page without maps, not without numbers.
    """
    if count < 1:
        return [], {}, []
    able, notes = _measured_students(runs, reference)
    notes = [*notes, *_without_maps(runs)]
    if not able:
        return [], {}, notes
    try:
        groups, outros = _maps(able, count, device)
    except UserError as e:
        _log.warning("no maps: %s", e)
        return [], {}, [*notes, f"No maps of the students: {e}"]
    return groups, outros, notes


def _set_key(result: Mapping[str, Any], title: str) -> tuple[str, Any] | None:
    """The last row of a Cat-Seg result that was evaluated on the set of this title: the set's key, the row's step."""
    for row in reversed(result["rows"]):
        for key, held in row["sets"].items():
            if held["title"] == title:
                return key, row["step"]
    return None


def predictions(groups: Sequence[Group]) -> list[FigureGroup]:
    """What Cat-Seg's runs predict on the same pictures, side by side, where the runs have kept them."""
    found: list[FigureGroup] = []
    for group in groups:
        if group.family != "catseg":
            continue
        names = [str(name) for name in group.protocol["classes"]]
        shots: dict[str, Segmented] = {}
        for run, _ in group.members:
            place = _set_key(run.results["catseg.json"], str(group.protocol["set"]))
            if place is None or not (run.folder / "evaluation").is_dir():
                continue
            for one in EvaluationStore(run.folder, "").shown(row_key(place[1]), place[0]):
                shot = shots.setdefault(one.name, Segmented(one.name, one.image, one.labels, {}))
                if one.predicted.shape == shot.labels.shape:
                    shot.predictions = {**shot.predictions, run.name: one.predicted}
        most = max((len(shot.predictions) for shot in shots.values()), default=0)
        kept = [shot for shot in shots.values() if len(shot.predictions) == most][:_MOST_PREDICTED]
        if kept:
            look = Look(f"Predictions: {group.protocol['set']}", _ALPHA, _MOST_KEYS)
            found += segmentation_groups(kept, names, distinct_palette(len(names)), look)
    return found


def _stored_files(folder: Path) -> list[Path]:
    """PNG files of this project in a run folder or one folder below."""
    return [
        path
        for path in sorted([*folder.glob("*.png"), *folder.glob("*/*.png")])
        if path.parent == folder or path.parent.name not in _SKIPPED
    ]


def _figure(path: Path) -> Figure | None:
    try:
        with Image.open(path) as image:
            text = {key: str(value) for key, value in getattr(image, "text", {}).items()}
            if text.get("Software") != "rsc-seg":
                return None
            picture = image.convert("RGB")
    except (OSError, ValueError) as e:
        _log.warning("%s: not shown (%s)", path, e)
        return None
    title = text.get("Title", path.stem)
    made = text.get("Command")
    note = f"{path.parent.name}/{path.name}" + (f", made by: {made}" if made else "")
    return Figure(picture, text.get("Description", "").replace("\n", "; ") or title, title, note, tokens=False, span=2)


def stored_figures(runs: Sequence[Run]) -> list[FigureGroup]:
    """Figures that commands have left in the runs' folders, a group a run; each has colours of its own."""
    groups = []
    for run in runs:
        found: list[Figure] = []
        for path in _stored_files(run.folder):
            figure = _figure(path) if len(found) < _MOST_STORED else None
            found += [] if figure is None else [figure]
        if found:
            about = "As the runs have them: every figure has a colour scale of its own, so colours do not compare."
            groups.append(FigureGroup(run.name, [[figure] for figure in found], about=about, section=STORED))
    return groups
