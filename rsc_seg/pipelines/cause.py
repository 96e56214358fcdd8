"""CAUSE in one call: for every encoder and seed tokens, codebook, head, probes and scores; each stage is kept."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.cause.official import CauseFiles, load_cause
from rsc_seg.cause.scores import HEADLINE, SegmentationScores, over_seeds, write_class_csv
from rsc_seg.cause.stages import whole_patches
from rsc_seg.config import CauseConfig, EvalCauseConfig, to_yaml
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write, sha256_of
from rsc_seg.pipelines.candidates import Candidate, open_candidates
from rsc_seg.pipelines.cause_check import RESULT, check_folder, check_labels
from rsc_seg.pipelines.cause_encoder import EncoderRun, Measured, Trained
from rsc_seg.pipelines.cause_plan import Plan, make_plan, resolved
from rsc_seg.pipelines.cause_report import build_cause_report
from rsc_seg.pipelines.cause_stages import StageResult
from rsc_seg.pipelines.cause_text import protocol_lines
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.probe.suite import save_json
from rsc_seg.training.cache import cache_key

_log = logging.getLogger(__name__)


def default_folder(config: EvalCauseConfig, *, given: bool = False) -> Path:
    """runs/cause_<backbone>_<dataset>_<head>_<preset>_<probe gradient>[_full]; of `given` CAUSE weights
    runs/cause_<backbone>_<dataset>_given-weights[_full]."""
    cause = config.cause
    how = ["given-weights"] if given else [cause.head, cause.preset, cause.probe_grad]
    parts = ["cause", config.backbone.name, config.data.dataset, *how, *(["full"] if config.score.full_image else [])]
    return Path("runs") / "_".join(parts)


def _measure(plan: Plan, candidate: Candidate, run: EncoderRun) -> Measured:
    """Trains and scores every seed of one encoder."""
    found = Measured(candidate, run.views.val)
    for seed in plan.seeds:
        trained, stages = run.train(dataclasses.replace(plan.options, seed=seed))
        _score(run, trained, found, seed, stages)
    return found


def _score(
    run: EncoderRun, trained: Trained, found: Measured, seed: Optional[int], stages: dict[str, StageResult]
) -> None:
    evaluation, file = run.score(trained, seed)
    found.shown = evaluation if not found.seeds else found.shown
    found.seeds.append(seed)
    found.scores.append(evaluation.scores())
    found.stages.append({**stages, "scores": file})


def _seed_entry(seed: Optional[int], scores: dict[str, SegmentationScores], stages: dict[str, StageResult]) -> Any:
    rows = {}
    for row, found in scores.items():
        rows[row] = {key: 100 * getattr(found, key) for key in HEADLINE}
        if found.matching is not None:
            rows[row] |= {"matching": found.matching, "dead_clusters": list(found.dead_clusters)}
    files = {stage: {"file": result.path.name, **result.facts} for stage, result in stages.items()}
    return {"seed": seed, "scores": rows, "stages": files}


def _row(measured: Measured, first: Optional[dict[str, Any]]) -> dict[str, Any]:
    """One encoder's numbers in percent: mean and spread over seeds, change from the first encoder, every seed."""
    summary = {row: over_seeds([s[row] for s in measured.scores]) for row in measured.scores[0]}
    delta = None
    if first is not None:
        means = {row: {key: summary[row][key]["mean"] - first[row][key]["mean"] for key in HEADLINE} for row in summary}
        delta = means
    entries = zip(measured.seeds, measured.scores, measured.stages, strict=True)
    return {
        "name": measured.candidate.name,
        "note": measured.candidate.note,
        "weights": dataclasses.asdict(measured.candidate.info),
        "scores": summary,
        "delta": delta,
        "seeds": [_seed_entry(*entry) for entry in entries],
    }


def _class_rows(measured: Sequence[Measured]) -> dict[str, SegmentationScores]:
    """Scores by `encoder / seed / row`, for the CSV file."""
    found = {}
    for m in measured:
        for seed, scores in zip(m.seeds, m.scores, strict=True):
            for row, values in scores.items():
                found[" / ".join([m.candidate.name, *([] if seed is None else [f"seed {seed}"]), row])] = values
    return found


def _load_given(plan: Plan, candidate: Candidate, files: CauseFiles) -> tuple[Plan, Trained]:
    """CAUSE weights that were trained elsewhere, checked against encoder, set and options, and the plan with their
    head."""
    side = whole_patches(plan.options.test_resolution, candidate.encoder.patch_size)
    model, probe = load_cause(files, candidate.encoder.grid(side, side))
    classes = len(plan.sets.val.data.classes)
    if len(probe.cluster_probe) != classes:
        raise UserError(
            f"{files.cluster}: {len(probe.cluster_probe)} clusters do not fit the {classes} classes of "
            f"{plan.sets.val.rule.title}; give files that were trained on this set."
        )
    if model.codes.shape[1] != candidate.encoder.out_dim:
        raise UserError(
            f"{files.segment}: made for tokens of width {model.codes.shape[1]}, those of {candidate.encoder.name} have "
            f"{candidate.encoder.out_dim}; name the encoder that it was trained on (--backbone)."
        )
    cause = plan.config.cause
    if cause.head not in (model.kind, CauseConfig().head):
        raise UserError(
            f"{files.segment}: a CAUSE-{model.kind.upper()} file, but cause.head={cause.head}; leave the head out, "
            "given weights say what they are."
        )
    _log.info("%s: a CAUSE-%s file", files.segment, model.kind.upper())
    idle = [item for item in plan.changed if not item.startswith("cause.test_resolution=")]
    if idle:
        _log.warning("given CAUSE weights: nothing is trained, so these options do nothing: %s", ", ".join(idle))
    config = dataclasses.replace(plan.config, cause=dataclasses.replace(cause, head=model.kind))
    key = cache_key(files=[sha256_of(path) for path in _paths(files)])
    return dataclasses.replace(plan, config=config), Trained(model.to(plan.device), probe.to(plan.device), key)


def _measure_given(plan: Plan, candidate: Candidate, trained: Trained) -> Measured:
    """Scores given weights."""
    run = EncoderRun(plan, candidate.encoder, candidate.name, plan.config.cause.head)
    found = Measured(candidate, run.views.val)
    _score(run, trained, found, None, {})
    return found


def _paths(files: CauseFiles) -> list[Path]:
    return [path for path in (files.segment, files.cluster, files.codebook) if path is not None]


def _result(
    plan: Plan, measured: Sequence[Measured], checkpoints: Sequence[Path], given: Optional[CauseFiles]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for m in measured:
        rows.append(_row(m, rows[0]["scores"] if rows else None))
    config, val = plan.config, plan.sets.val
    train = plan.sets.train
    return {
        "rows": rows,
        "protocol": protocol_lines(plan, measured[0].candidate.encoder, _paths(given) if given else []),
        "recipe": dataclasses.asdict(plan.options) if given is None else None,
        "changed": list(plan.changed),
        "checkpoints": [str(path) for path in checkpoints],
        "cause_weights": [str(path) for path in _paths(given)] if given else None,
        "crf": plan.crf,
        "dataset": val.rule.title,
        "classes": val.data.classes,
        "val_images": len(val.data),
        "train_images": None if train is None else len(train.data),
        "image_lists": {"train": None if train is None else train.images, "val": val.images},
        "data": config.data.root or config.data.dataset,
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }


def _check_given(config: EvalCauseConfig, checkpoints: Sequence[Path], given: Optional[CauseFiles]) -> None:
    """Raises UserError for options that given CAUSE weights rule out."""
    if given is None:
        return
    if checkpoints:
        raise UserError("--cause-weights belong to one encoder: name it by --weights, without --checkpoint.")
    if config.cause.seeds != 1:
        raise UserError(
            f"cause.seeds={config.cause.seeds}: --cause-weights are scored as they are, once; give --seeds 1 or none."
        )


def run_cause(
    config: EvalCauseConfig,
    folder: Path,
    *,
    checkpoints: Sequence[Path] = (),
    cause_weights: Optional[CauseFiles] = None,
) -> tuple[dict[str, Any], Path]:
    """Trains (or reads `cause_weights`) and scores; the untuned encoder first.

    Writes cause.json, classes.csv, config.yaml (the resolved one) and report.html into `folder` at the end, and stages
    into the cache on the way; returns the result and the page's path. Everything that a user can get wrong raises
    UserError before the first token is computed, where it can be known by then; a call that fails leaves an older
    result as it was.
    """
    _check_given(config, checkpoints, cause_weights)
    config = resolved(config)
    check_folder(folder, config, checkpoints, None if cause_weights is None else _paths(cause_weights))
    plan = make_plan(config, folder, trained=cause_weights is None)
    candidates = open_candidates(config.backbone, checkpoints, plan.device)
    if cause_weights is None:
        # what does not fit is said before hours go into the first encoder
        runs = [EncoderRun(plan, c.encoder, c.name, config.cause.head) for c in candidates]
        check_labels(plan)
        measured = [_measure(plan, candidate, run) for candidate, run in zip(candidates, runs, strict=True)]
    else:
        plan, trained = _load_given(plan, candidates[0], cause_weights)
        check_labels(plan)
        measured = [_measure_given(plan, candidates[0], trained)]
    result = _result(plan, measured, checkpoints, cause_weights)
    page = build_cause_report(folder / "report.html", plan, result, measured)
    text = to_yaml(plan.config)
    atomic_write(folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8"))
    write_class_csv(folder / "classes.csv", plan.sets.val.data.classes, _class_rows(measured))
    save_json(result, folder / RESULT)
    return result, page
