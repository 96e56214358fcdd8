"""Everything of the paper that the data at hand allow, one measure after another; what is finished is kept."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from rsc_seg.cache_dir import cache_dir
from rsc_seg.errors import UserError
from rsc_seg.files import sha256_of
from rsc_seg.pipelines.benchmark_plan import Job, NotRun, Setup, make_plan
from rsc_seg.pipelines.benchmark_rows import (
    FAILED,
    BenchmarkRow,
    in_paper_order,
    rows_not_run,
    rows_of_result,
    rows_without_measure,
)
from rsc_seg.pipelines.benchmark_table import JSON, write_benchmark
from rsc_seg.pipelines.cause import run_cause
from rsc_seg.pipelines.compare_parts import weights_sentence
from rsc_seg.pipelines.compare_read import read_object
from rsc_seg.pipelines.evaluate_coupling import run_coupling
from rsc_seg.pipelines.evaluate_maskclip import run_maskclip
from rsc_seg.pipelines.evaluate_regions import run_regions
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.probe.suite import save_json

_log = logging.getLogger(__name__)
STATE = "benchmark_job.json"  # beside a measure's result: what it was made of
LAYOUTS = ("coco", "cocostuff", "ade20k", "cityscapes")
_SCENES = (12, 6, (240, 180))  # training and validation scenes, width and height
# where and how fast: no number depends on it
_FREE = ("device", "workers", "crf_workers", "save_every", "class_chunk", "window_batch", "max_gb", "dir")


@dataclass(frozen=True)
class Finished:
    """A measure and its result; `kept`: from an earlier call."""

    job: Job
    folder: Path
    result: Mapping[str, Any]
    kept: bool


def scenes_root() -> Path:
    """A few embedded scenes in the layouts of public sets, composed in the cache when they are not there."""
    from rsc_seg.data.scenes import SceneSet, read_manifest, write_scenes

    train, val, size = _SCENES
    wanted = SceneSet(train=train, val=val, size=size, layouts=LAYOUTS)
    folder = cache_dir() / "scenes" / wanted.folder_name()
    if read_manifest(folder) is None:
        if folder.exists():
            raise UserError(f"{folder}: its scenes are not whole; remove the folder, it is made again.")
        write_scenes(folder, wanted)
    return folder


def default_folder(setup: Setup) -> Path:
    """runs/benchmark_<backbone>, with _scenes behind it for the embedded scenes."""
    return Path("runs") / f"benchmark_{setup.backbone}{'_scenes' if setup.scenes else ''}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _files(paths: Sequence[Path]) -> list[list[str]]:
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint.")
    return [[str(path), sha256_of(path)] for path in paths]


def _without_free(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_free(inner) for key, inner in value.items() if key not in _FREE}


def _key(job: Job, setup: Setup, files: Mapping[str, Any]) -> str:
    """What a result is made of; a result of another key is made again."""
    own = files if job.measure == "coupling" else {"checkpoints": files["checkpoints"]}
    return _digest({"config": _without_free(dataclasses.asdict(job.config)), "files": own})


def _folder(job: Job, out: Path, files: Mapping[str, Any]) -> Path:
    """Where a measure works. Scores of CAUSE belong to one list of checkpoints: each list has a folder of its own."""
    if job.measure != "cause":
        return out / job.key
    return out / job.key / (_digest(files["checkpoints"])[:8] if files["checkpoints"] else "untuned")


def _run_job(job: Job, folder: Path, setup: Setup) -> Mapping[str, Any]:
    if job.measure == "coupling":
        return run_coupling(job.config, folder, checkpoints=setup.checkpoints, refiners=setup.refiners)
    if job.measure == "cause":
        # tokens and stages of an encoder serve every list of checkpoints that it stands in
        cache = dataclasses.replace(job.config.cache, dir=job.config.cache.dir or str(folder.parent / "cache"))
        return run_cause(dataclasses.replace(job.config, cache=cache), folder, checkpoints=setup.checkpoints)[0]
    runners: dict[str, Callable[..., dict[str, Any]]] = {"regions": run_regions, "maskclip": run_maskclip}
    return runners[job.measure](job.config, folder, checkpoints=setup.checkpoints)


def _kept(folder: Path, measure: str, key: str) -> Optional[Mapping[str, Any]]:
    """The result of an earlier call with equal options and files; None where there is none, or it is damaged."""
    state, result = folder / STATE, folder / f"{measure}.json"
    if not state.is_file() or not result.is_file():
        return None
    try:
        return read_object(result) if read_object(state).get("key") == key else None
    except UserError as e:
        _log.warning("%s; measuring again", e)
        return None


def _measure(job: Job, out: Path, setup: Setup, files: Mapping[str, Any]) -> Finished:
    folder, key = _folder(job, out, files), _key(job, setup, files)
    held = _kept(folder, job.measure, key)
    if held is not None:
        _log.info("%s: finished before, kept (%s)", job.key, folder)
        return Finished(job, folder, held, kept=True)
    start = time.perf_counter()
    result = _run_job(job, folder, setup)
    seconds = round(time.perf_counter() - start, 1)
    save_json({"key": key, "seconds": seconds, "seconds_of": "the last call"}, folder / STATE)
    return Finished(job, folder, result, kept=False)


def _failure(job: Job, error: Exception) -> NotRun:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return NotRun(job.key, job.measure, job.title, " ".join(reason.split()), job.set)


def _rows(
    finished: Sequence[Finished], missing: Sequence[NotRun], failed: Sequence[NotRun], asked: Sequence[str]
) -> list[BenchmarkRow]:
    rows = [row for one in finished for row in rows_of_result(one.job, one.result)]
    rows += rows_not_run(failed, FAILED)
    rows += [row for row in rows_not_run(missing) if row.table not in {r.table for r in rows}]
    return in_paper_order([*rows, *rows_without_measure(rows, asked)])


def _record(setup: Setup, finished: Sequence[Finished], failed: Sequence[NotRun], out: Path) -> dict[str, Any]:
    jobs = [
        {
            "key": one.job.key,
            "folder": str(one.folder.relative_to(out)),
            "state": "kept from an earlier call" if one.kept else "measured",
            "command": one.result["command"],
            "commit": one.result["commit"],
        }
        for one in finished
    ]
    jobs += [{"key": item.key, "folder": item.key, "state": f"failed: {item.reason}"} for item in failed]
    weights = [weights_sentence(row["weights"]) for one in finished for row in one.result["rows"]]
    return {
        "backbone": setup.backbone,
        "data": "embedded scenes" if setup.scenes else str(setup.root),
        "jobs": jobs,
        "weights": list(dict.fromkeys(weights)),
        "command": command_line(),
        "commit": git_commit(),
        "environment": environment(),
    }


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: --output-dir is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / JSON).is_file() and not any(out.glob(f"**/{STATE}")):
        raise UserError(f"{out}: --output-dir holds other files; choose an empty or new folder.")


def run_benchmark(setup: Setup, out: Path) -> tuple[list[BenchmarkRow], list[str]]:
    """Runs every measure that the data and the encoder allow, and writes benchmark.json, benchmark.md and report.html.

    A measure that was finished with equal options and checkpoints is kept; one that fails is named and the others go
    on. Files are written after every measure. Returns the rows and a sentence for each failure. Raises UserError for
    what is wrong with the whole call.
    """
    _check_out(out)
    if setup.scenes:
        setup = dataclasses.replace(setup, root=scenes_root())
    files = {"checkpoints": _files(setup.checkpoints), "refiners": _files(setup.refiners)}
    jobs, missing = make_plan(setup)
    for item in missing:
        _log.info("not run: %s: %s", item.key, item.reason)
    asked = list(dict.fromkeys([*(job.measure for job in jobs), *(item.measure for item in missing)]))
    finished: list[Finished] = []
    failed: list[NotRun] = []
    rows: list[BenchmarkRow] = []
    for number, job in enumerate(jobs, start=1):
        _log.info("%d of %d: %s", number, len(jobs), job.title)
        try:
            one = _measure(job, out, setup, files)
            rows_of_result(job, one.result)  # a result that cannot be read is a failure of this measure alone
            finished.append(one)
        except Exception as e:  # whatever ends one measure must not end hours of others
            failed.append(_failure(job, e))
            _log.error("%s failed: %s", job.key, failed[-1].reason, exc_info=not isinstance(e, UserError))
        rows = _rows(finished, missing, failed, asked)
        write_benchmark(out, _record(setup, finished, failed, out), rows)
    return rows, [f"{item.key}: {item.reason}" for item in failed]
