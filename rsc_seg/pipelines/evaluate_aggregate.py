"""Context aggregation for several encoders: the gain over the number of contexts, and pictures of the noise."""

import csv
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsc_seg.config import EvaluateConfig, require_choice
from rsc_seg.config_zeroshot import EvaluateAggregateConfig
from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.pipelines.aggregate_pictures import save_noise
from rsc_seg.pipelines.candidates import Candidate, encoder_candidate, open_candidates
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.measure_folder import (
    IDLE,
    aligned,
    cell,
    check_folder,
    closing_lines,
    difference,
    encoder_facts,
    provenance,
    write_result,
)
from rsc_seg.pipelines.probe import labelled_pair, settings_of
from rsc_seg.probe.features import LabelCache
from rsc_seg.probe.memory import TokenBudget, check_memory
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.probe.suite import check_sets
from rsc_seg.training.cache import cache_key, encoder_digest
from rsc_seg.zeroshot.aggregate import AggregateOptions
from rsc_seg.zeroshot.aggregate_store import MEASURES, Subject, TokenStore, distances, fill_store, scores_at

_log = logging.getLogger(__name__)
RESULT = "aggregate.json"
TITLES = {
    "linear_miou": "LP mIoU",
    "kmeans_miou": "k-means mIoU",
    "affinity_ap": "affinity AP",
    "affinity_ap_beyond_6": "AP beyond 6",
}
_IDLE = (
    *IDLE,
    *(f"data.{key}" for key in ("split", "hflip", "on_error", "proposals")),
    *(f"probe.{key}" for key in ("best_layer", "coupling_pairs")),
    *(f"aggregate.{key}" for key in ("pictures", "batch_size", "max_gb")),
)


def default_folder(config: EvaluateAggregateConfig) -> Path:
    """runs/aggregate_<backbone>."""
    return Path("runs") / f"aggregate_{config.backbone.name}"


def aggregate_options(config: EvaluateAggregateConfig) -> AggregateOptions:
    """The options of the averages; sizes must be filled in."""
    options = config.aggregate
    (height, width), (high, wide) = config.data.image_size, options.canvas
    return AggregateOptions(
        target=(height, width),
        canvas=(high, wide),
        numbers=tuple(options.numbers),
        contexts=options.contexts,
        seed=config.run.seed,
        precision=config.run.precision,
        dtype=options.dtype,
        batch_size=options.batch_size,
        workers=config.data.workers,
    )


def resolved(config: EvaluateAggregateConfig) -> EvaluateAggregateConfig:
    """The configuration with its sizes filled in; raises UserError for what does not go together."""
    row, options = find_backbone(config.backbone.name), config.aggregate
    config.data.image_size = config.data.image_size or [row.crop_side] * 2
    fill_sizes(row.name, config.data)
    options.canvas = options.canvas or [2 * side for side in config.data.image_size]
    if len(options.canvas) != 2:
        raise UserError(f"aggregate.canvas={options.canvas}: give [height,width] in pixels.")
    if config.data.fit != "squash":
        raise UserError(f"data.fit={config.data.fit}: targets are squashed, as in the quick measure; leave it out.")
    if not options.measures:
        raise UserError(f"aggregate.measures=[]: name at least one of {', '.join(MEASURES)}.")
    for measure in options.measures:
        require_choice("aggregate.measures", measure, MEASURES)
    if options.pictures < 0:
        raise UserError(f"aggregate.pictures={options.pictures}: must be 0 or more.")
    return config


@dataclass(frozen=True)
class _Plan:
    """What is the same for every encoder."""

    config: EvaluateAggregateConfig
    options: AggregateOptions
    sets: tuple[LabelledSet, LabelledSet]
    labels: tuple[LabelCache, LabelCache]
    settings: ProbeSettings
    device: torch.device
    sources: tuple[str, str]
    folder: Path

    def stores(self, candidate: Candidate) -> tuple[TokenStore, TokenStore]:
        """Where an encoder's tokens of both sets lie."""
        encoder = candidate.encoder
        key = cache_key(
            encoder=encoder_digest(encoder),
            sources=list(self.sources),
            options=self.options.what_counts(),
            device=self.device.type,
        )
        grid = encoder.grid(*self.options.target)
        train, val = (
            TokenStore(self.folder / "tokens" / key / split, len(data), grid, encoder.out_dim, self.options)
            for split, data in zip(("train", "val"), self.sets, strict=True)
        )
        return train, val


def _plan(config: EvaluateAggregateConfig, first: Candidate, device: torch.device, folder: Path) -> _Plan:
    probe = EvaluateConfig(config.backbone, config.data, config.probe, config.run)
    sets = labelled_pair(probe)
    check_sets(*sets)
    options, encoder = aggregate_options(config), first.encoder
    options.check(encoder)
    if options.contexts == "images" and len(sets[0]) < 2:
        raise UserError(f"{len(sets[0])} training picture: contexts need two or more (probe.train_every, data.limit).")
    height, width = encoder.grid(*options.target)
    budget = TokenBudget(height * width, encoder.out_dim, len(sets[0].classes), 0)
    every = {"train_every": config.probe.train_every, "val_every": config.probe.val_every}
    check_memory(budget, len(sets[0]), len(sets[1]), **every)
    settings = dataclasses.replace(settings_of(probe, encoder), seed=config.run.seed)
    _log.info("%d training, %d validation pictures: reading all bytes once", len(sets[0]), len(sets[1]))
    scale = settings.score_scale
    return _Plan(
        config,
        options,
        sets,
        (LabelCache(sets[0], scale), LabelCache(sets[1], scale)),
        settings,
        device,
        (sets[0].fingerprint(), sets[1].fingerprint()),
        folder,
    )


def _needs_training(plan: _Plan) -> bool:
    return any(measure != "affinity" for measure in plan.config.aggregate.measures)


def _check_disk(plan: _Plan, stores: tuple[TokenStore, TokenStore]) -> None:
    needed = stores[1].gigabytes() + (stores[0].gigabytes() if _needs_training(plan) else 0)
    if needed > plan.config.aggregate.max_gb:
        raise UserError(
            f"the averaged tokens of one encoder take {needed:.1f} GB on disk, more than aggregate.max_gb="
            f"{plan.config.aggregate.max_gb:g}; thin the pictures (data.limit, probe.train_every), take fewer "
            "aggregate.numbers or aggregate.dtype=float16, or raise it."
        )


def _measure(plan: _Plan, candidate: Candidate) -> dict[str, Any]:
    row = encoder_candidate(candidate.name, candidate.encoder, plan.device)
    train, val = plan.stores(candidate)
    wanted = [(train, plan.sets[0])] if _needs_training(plan) else []
    for store, data in [*wanted, (val, plan.sets[1])]:
        subject = Subject(f"{candidate.name}, {store.folder.name}", row.feature_fn, candidate.encoder)
        fill_store(subject, data, plan.sets[0], store, plan.options)
    lengths = distances(val)
    found: list[dict[str, Any]] = []
    for place, number in enumerate(plan.options.numbers):
        scores = scores_at(
            train if wanted else None,
            val,
            place,
            labels=plan.labels,
            settings=plan.settings,
            measures=plan.config.aggregate.measures,
        )
        start = found[0]["scores"] if found else scores
        gain = {key: difference(value, start[key]) for key, value in scores.items()}
        found.append({"contexts": number, "scores": scores, "gain": gain, "distance": lengths[place]})
        _log.info("%s: %d contexts measured", candidate.name, number)
    return {"numbers": found}


def remarks(plan: _Plan) -> list[str]:
    """What a reader must know before comparing the numbers."""
    options, first = plan.options, plan.options.numbers[0]
    (height, width), (high, wide) = options.target, options.canvas
    what = "random training pictures" if options.contexts == "images" else "a blank canvas of the mean colour"
    start = "the picture alone" if first == 0 else f"{first} contexts"
    return [
        f"{len(plan.sets[0])} training and {len(plan.sets[1])} validation pictures at {height}x{width}, pasted into "
        f"{what} at {high}x{wide} at random places on the patch grid; seed {options.seed}; precision "
        f"{options.precision}.",
        f"Scores in percent; gain: over {start}. distance: mean length of the difference from the mean over "
        f"{options.numbers[-1]} contexts, over that mean's length.",
        f"{plan.settings.linear_seeds} seed of the probes with {plan.settings.linear_epochs} epochs: smaller than the "
        "quick measure's, so compare with no number of that.",
    ]


def text_table(result: Mapping[str, Any]) -> list[str]:
    """Aligned columns: a line for each encoder and number of contexts, the gain in brackets."""
    keys = [key for key in TITLES if key in result["rows"][0]["numbers"][0]["scores"]]
    lines = [["encoder, contexts", *(TITLES[key] for key in keys), "distance"]]
    for row in result["rows"]:
        for place, entry in enumerate(row["numbers"]):
            gain = entry["gain"] if place else {}
            cells = [cell(entry["scores"][key], gain.get(key)) for key in keys]
            lines.append([f"{row['name']}, {entry['contexts']}", *cells, f"{entry['distance']:.3f}"])
    return aligned(lines)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for a console."""
    return [*text_table(result), *closing_lines(result), *(f"picture: {path}" for path in result["pictures"])]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each encoder and number of contexts."""
    keys = list(rows[0]["numbers"][0]["scores"])

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["encoder", "contexts", *keys, *(f"gain of {key}" for key in keys), "distance"])
            for row in rows:
                for entry in row["numbers"]:
                    values = [entry[what][key] for what in ("scores", "gain") for key in keys]
                    shown = ["" if value is None else value for value in values]
                    out.writerow([row["name"], entry["contexts"], *shown, entry["distance"]])

    atomic_write(path, write)


def run_aggregate(config: EvaluateAggregateConfig, folder: Path, *, checkpoints: Sequence[Path] = ()) -> dict[str, Any]:
    """Measures averages over contexts for the untuned encoder and every checkpoint, with the same contexts.

    Tokens lie in `folder`/tokens, so that the same command goes on where it was stopped. Writes aggregate.json,
    aggregate.csv, config.yaml and noise/*.png at the end; returns the result. Whatever a user can get wrong raises
    UserError, before the first picture where it can be known by then.
    """
    config = resolved(config)
    sections = ("backbone", "data", "probe", "aggregate")
    check_folder(folder / RESULT, config, sections, _IDLE, run=("seed", "precision"))
    device = choose_device(config.run.device)
    candidates = open_candidates(config.backbone, checkpoints, device)
    plan = _plan(config, candidates[0], device, folder)
    _check_disk(plan, plan.stores(candidates[0]))
    rows = []
    for candidate in candidates:
        start = time.perf_counter()
        measured = _measure(plan, candidate)
        rows.append(encoder_facts(candidate, time.perf_counter() - start) | measured)
    stores = {candidate.name: plan.stores(candidate)[1] for candidate in candidates}
    pictures = save_noise(plan.sets[1], stores, plan.options, folder / "noise", config.aggregate.pictures)
    result = {
        "data": config.data.root or config.data.kind,
        "splits": [config.probe.train_split, config.probe.val_split],
        "units": "scores in percent",
        "rows": rows,
        "remarks": remarks(plan),
        "pictures": [str(path) for path in pictures],
        "settings": dataclasses.asdict(plan.settings),
        **provenance(config),
    }
    write_csv(folder / "aggregate.csv", rows)
    write_result(folder / RESULT, result, config)
    return result
