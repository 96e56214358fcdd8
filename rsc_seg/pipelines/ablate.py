"""Many runs one after another on one machine, each measured, and one table of them all."""

import dataclasses
import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.config import RscvConfig, to_yaml
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.pipelines.ablation_measure import MeasureOptions, Measurer, evaluation_of
from rsc_seg.pipelines.ablation_plan import Variant, refiner_key
from rsc_seg.pipelines.ablation_table import Failure, Measured, comparison, write_comparison
from rsc_seg.pipelines.folder import open_run_folder, read_config
from rsc_seg.pipelines.results import read_probe, read_run
from rsc_seg.pipelines.rscv import run_rscv
from rsc_seg.pipelines.rscv_check import check_config
from rsc_seg.probe.suite import save_json
from rsc_seg.viz.report import slug

_log = logging.getLogger(__name__)
STUDENT = "student.safetensors"


@dataclass
class _Comparison:
    """What all runs of a comparison share, and what has come out so far."""

    folder: Path
    seeds: int
    options: MeasureOptions
    measurers: dict[str, Measurer]
    rows: dict[str, Measured]
    refiners: dict[str, Path] = field(default_factory=dict)  # of stage 1, by all that it depends on
    failures: list[Failure] = field(default_factory=list)

    def place(self, variant: Variant, seed: int) -> Path:
        """The run folder of a row and a training seed."""
        return self.folder / slug(variant.name) / f"seed{seed}"


def _finished(folder: Path, config: RscvConfig) -> bool:
    """Whether `folder` holds this run's student; UserError when it holds a run of other options."""
    if not (folder / "config.yaml").is_file():
        return False
    open_run_folder(folder, config, resume=True)
    return (folder / STUDENT).is_file() and (not config.distill.control or (folder / "control.safetensors").is_file())


def _train_apart(config: RscvConfig, folder: Path) -> None:
    """A run of several processes in a process of its own, as Lightning starts the others as copies of the command."""
    given = folder.parent / f"{folder.name}.yaml"
    text = to_yaml(config)
    atomic_write(given, lambda path: path.write_text(text, encoding="utf-8"))
    command = [sys.executable, "-m", "rsc_seg.cli.rscv_finetune", "--config", str(given), "--output-dir", str(folder)]
    done = subprocess.run([*command, "--resume"], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"its processes ended with exit code {done.returncode}; their messages stand above.")


def _prepared(work: _Comparison, variant: Variant, seed: int) -> tuple[RscvConfig, Optional[str]]:
    """The configuration of one run, with a Refiner that an equal stage 1 has left; and the key of its own stage 1."""
    config, folder = variant.with_seed(seed), work.place(variant, seed)
    config.cache.dir = config.cache.dir or str(work.folder / "cache")
    check_config(config, "all")
    key = refiner_key(config)
    if key is None:
        return config, None
    if (folder / "config.yaml").is_file():  # as it was begun
        config.distill.refiner = read_config(folder).distill.refiner
    elif key in work.refiners:
        config.distill.refiner = str(work.refiners[key])
    return config, key


def _train(work: _Comparison, variant: Variant, seed: int) -> Path:
    config, key = _prepared(work, variant, seed)
    folder = work.place(variant, seed)
    if not _finished(folder, config):
        if config.run.devices * config.run.nodes > 1:
            _train_apart(config, folder)
        else:
            run_rscv(config, folder, resume=(folder / "config.yaml").is_file())
    made = folder / "refiner.safetensors"
    if key is not None and made.is_file():
        work.refiners.setdefault(key, made)
    return folder


def _measured_before(folder: Path, measurer: Measurer) -> Optional[dict[str, Any]]:
    """The run's probe.json when it holds this measure; None when it must be measured."""
    if not (folder / "probe.json").is_file():
        return None
    found, wanted = read_probe(folder), _measure_facts(measurer)
    same = found.get("measure") == json.loads(json.dumps(wanted))
    return found if same else None


def _measure_facts(measurer: Measurer) -> dict[str, Any]:
    config = dataclasses.asdict(measurer.config)
    return {
        **{key: config[key] for key in ("data", "probe")},
        "regions": measurer.classes if measurer.with_regions else None,
    }


def _one(work: _Comparison, variant: Variant, seed: int) -> None:
    """Trains and measures one run, as far as that is not done yet."""
    measurer, place = work.measurers[variant.reference], work.place(variant, seed)
    if _measured_before(place, measurer) is None:
        measurer.untuned()  # what cannot be measured shall be said before hours of training
    folder = _train(work, variant, seed)
    result = _measured_before(folder, measurer)
    if result is None:
        made = measurer.measure(folder / STUDENT, variant.name, variant.config.backbone, seed)
        save_json({**made, "measure": _measure_facts(measurer)}, folder / "probe.json")
        result = read_probe(folder)
    row = work.rows[variant.name]
    row.seeds.append(seed)
    row.results.append(result)
    row.records.append(read_run(folder))


def _try_one(work: _Comparison, variant: Variant, seed: int) -> None:
    try:
        _one(work, variant, seed)
    except UserError as e:
        error = str(e)
    except Exception as e:  # memory of a device, a full disk, a bug: the other runs go on
        _log.exception("%s, seed %d", variant.name, seed)
        error = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    else:
        return
    _log.error("%s, seed %d failed: %s", variant.name, seed, error)
    work.failures.append(Failure(variant.name, seed, error))


def _begin(variants: Sequence[Variant], folder: Path, seeds: int, options: MeasureOptions) -> _Comparison:
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --output-dir is a file; name a folder.")
    measurers = {v.name: Measurer(evaluation_of(v.config, options), options) for v in variants if v.is_reference}
    return _Comparison(folder, seeds, options, measurers, {v.name: Measured(v) for v in variants})


def run_ablation(variants: Sequence[Variant], folder: Path, *, seeds: int, options: MeasureOptions) -> dict[str, Any]:
    """Trains and measures every row with `seeds` training seeds, the first seed of all rows first.

    Runs lie in `folder`/<row>/seed<N>. What is finished is kept, what was stopped goes on exactly, what failed is tried
    again by the next call; rows whose stage 1 would be equal share its Refiner. A failing run does not end the others.
    The table (ablation.json, ablation.md, report.html) is written after every run; returns the content of the JSON.
    Raises UserError before the first run for what cannot be measured.
    """
    work = _begin(variants, folder, seeds, options)
    plan = [(variant, step) for step in range(seeds) for variant in variants]
    began, result = time.monotonic(), {}
    for number, (variant, step) in enumerate(plan, 1):
        seed = variant.config.run.seed + step
        _log.info("run %d of %d: %s, seed %d %s", number, len(plan), variant.name, seed, variant.what)
        _try_one(work, variant, seed)
        result = comparison(list(work.rows.values()), work.failures, seeds)
        write_comparison(folder, result)
        _log.info("%d of %d done in %.0f s", number, len(plan), time.monotonic() - began)
    return result


def failure_line(result: dict[str, Any]) -> Optional[str]:
    """One line that names the failed runs; None when there are none."""
    failed = result["failed"]
    if not failed:
        return None
    named = "; ".join(f"{f['name']}, seed {f['seed']}: {f['error'].rstrip('.')}" for f in failed)
    done = sum(len(row["seeds"]) for table in result["tables"] for row in table["rows"])
    return f"{len(failed)} of {len(failed) + done} runs failed: {named}. The same command tries them again."
