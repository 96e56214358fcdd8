"""The coupling ratio for several encoders and Refiners side by side, on the same pairs."""

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch

from rsc_seg.config_zeroshot import EvaluateCouplingConfig
from rsc_seg.data.images import open_images
from rsc_seg.files import atomic_write
from rsc_seg.models.digest import module_digest
from rsc_seg.models.refiner_file import load_refiner
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.pipelines.candidates import (
    Candidate,
    encoder_candidate,
    open_candidates,
    refiner_candidate,
    unique_names,
)
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
from rsc_seg.probe.suite import ProbeRow
from rsc_seg.training.cache import cache_key, encoder_digest
from rsc_seg.zeroshot.coupling import READINGS, CouplingCounts, CouplingOptions, Subject, coupling_counts

_log = logging.getLogger(__name__)
RESULT = "coupling.json"
TITLES = {
    "stable_mean": "stable mean",
    "median": "median",
    "ratio_of_means": "ratio of means",
    "mean_of_ratios": "mean of ratios",
    "mean_joint": "cos joint",
    "mean_alone": "cos alone",
}
_IDLE = (*IDLE, *(f"data.{key}" for key in ("hflip", "on_error", "proposals")), "coupling.save_every")
_ROW = ("tokens", *READINGS, "mean_joint", "mean_alone", "above_floor")


def default_folder(config: EvaluateCouplingConfig) -> Path:
    """runs/coupling_<backbone>."""
    return Path("runs") / f"coupling_{config.backbone.name}"


def coupling_options(config: EvaluateCouplingConfig) -> CouplingOptions:
    """The options of the measure itself."""
    height, width = config.data.image_size
    return CouplingOptions(
        image_size=(height, width),
        fit=config.data.fit,
        padding=config.coupling.padding,
        pairs=config.coupling.pairs,
        floor=config.coupling.floor,
        seed=config.run.seed,
        precision=config.run.precision,
        workers=config.data.workers,
        save_every=config.coupling.save_every,
    )


def resolved(config: EvaluateCouplingConfig) -> EvaluateCouplingConfig:
    """The configuration with its sizes filled in; raises UserError for what does not go together."""
    fill_sizes(config.backbone.name, config.data)
    coupling_options(config).check()
    return config


def _refiners(paths: Sequence[Path], untuned: Candidate, device: torch.device) -> list[tuple[Candidate, ProbeRow, str]]:
    found = []
    for path, name in zip(paths, unique_names(paths), strict=True):
        refiner = load_refiner(path, untuned.encoder)[0].to(device)
        row = refiner_candidate(untuned.encoder, refiner, device)
        digest = cache_key(encoder=encoder_digest(untuned.encoder), refiner=module_digest(refiner))
        title = f"Refiner {name}" if name != "refiner" else "Refiner"
        found.append((Candidate(title, untuned.encoder, untuned.info, row.note), row, digest))
    return found


def remarks(config: EvaluateCouplingConfig, summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before comparing the numbers."""
    height, width = config.data.image_size
    options, fit = config.coupling, config.data.fit
    padded = ""
    if fit == "pad":
        left = "left out" if options.padding == "exclude" else "taken with the others"
        padded = f", tokens of the padding {left}"
    fewer = ""
    if options.pairs is not None and summary["pairs"] < options.pairs:
        fewer = f" Fewer than coupling.pairs={options.pairs}: there are no more."
    return [
        f"{summary['pairs']} pairs of pictures at {height}x{width} (data.fit={fit}{padded}), each pair {width * 2} "
        f"wide; seed {config.run.seed}; precision {config.run.precision}. 1 is no coupling; the tokens of all pairs "
        f"together.{fewer}",
        "Mean of ratios is Eq. 15 as printed, which single denominators near zero rule; stable mean leaves out those "
        f"below {options.floor:g} (coupling.floor), {100 * summary['below_floor']:.2g} % of the first row's tokens.",
    ]


def text_table(result: Mapping[str, Any]) -> list[str]:
    """Aligned columns: an encoder in each line, its change from the first in brackets."""
    lines = [["coupling ratio", *TITLES.values()]]
    for place, row in enumerate(result["rows"]):
        changes = row["delta"] if place else {}
        lines.append([row["name"], *(cell(row["scores"][key], changes.get(key), 3) for key in TITLES)])
    return aligned(lines)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for a console."""
    return [*text_table(result), *closing_lines(result)]


def write_pair_csv(path: Path, names: Sequence[str], found: Sequence[CouplingCounts]) -> None:
    """A line for each encoder and pair with the exact readings of that pair alone."""

    def shown(value: Optional[float]) -> Any:
        return "" if value is None else value

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["encoder", "pair", "a", "b", *_ROW])
            for name, counts in zip(names, found, strict=True):
                for number, row in enumerate(counts.rows):
                    out.writerow([name, number, row["a"], row["b"], *(shown(row[key]) for key in _ROW)])

    atomic_write(path, write)


def run_coupling(
    config: EvaluateCouplingConfig, folder: Path, *, checkpoints: Sequence[Path] = (), refiners: Sequence[Path] = ()
) -> dict[str, Any]:
    """Measures the untuned encoder, every checkpoint and every Refiner of the untuned encoder on the same pairs.

    Pairs so far lie in `folder`/counts, so that the same command goes on where it was stopped. Writes coupling.json,
    pairs.csv and config.yaml at the end; returns the result. Whatever a user can get wrong raises UserError, before the
    first pair where it can be known by then.
    """
    config = resolved(config)
    check_folder(folder / RESULT, config, ("backbone", "data", "coupling"), _IDLE, run=("seed", "precision"))
    device, data = choose_device(config.run.device), config.data
    images = open_images(data.kind, data.root, data.split, data.limit, data.every)
    candidates = open_candidates(config.backbone, checkpoints, device)
    measured = [(c, encoder_candidate(c.name, c.encoder, device), encoder_digest(c.encoder)) for c in candidates]
    measured += _refiners(refiners, candidates[0], device)
    _log.info("%d pictures: reading all bytes of the set once", len(images))
    source, rows, found = images.fingerprint(), [], []
    for candidate, row, digest in measured:
        start = time.perf_counter()
        subject = Subject(candidate.name, row.feature_fn, row.pair_fn or row.feature_fn, digest)
        counts = coupling_counts(
            subject,
            images,
            coupling_options(config),
            candidates[0].encoder,
            source=source,
            state=folder / "counts",
        )
        rows.append(encoder_facts(candidate, time.perf_counter() - start) | {"scores": counts.summary()})
        found.append(counts)
    for entry in rows:
        first = rows[0]["scores"]
        entry["delta"] = {key: difference(entry["scores"][key], first[key]) for key in TITLES}
    result = {
        "data": data.root or data.kind,
        "pictures": len(images),
        "pairs": rows[0]["scores"]["pairs"],
        "units": "ratios and cosines as they are",
        "rows": rows,
        "remarks": remarks(config, rows[0]["scores"]),
        **provenance(config),
    }
    write_pair_csv(folder / "pairs.csv", [row["name"] for row in rows], found)
    write_result(folder / RESULT, result, config)
    return result
