"""The run folder: what was asked for, by which code, and where everything of a run lies."""

import dataclasses
import json
import logging
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from rsc_seg.config import RscvConfig, RunConfig, load_config, to_yaml
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write

_log = logging.getLogger(__name__)
Counts = Callable[[Any], dict[str, Any]]
_PACKAGES = (
    *("rsc-seg", "torch", "torchvision", "timm", "open_clip_torch", "detectron2"),
    *("lightning-fabric", "xformers", "numpy", "pillow"),
)
_MADE = ("config.yaml", "run.json", "metrics.jsonl", "tensorboard", "wandb", "cache", "checkpoints")


class HasRun(Protocol):
    """The configuration of any command that trains."""

    run: RunConfig


def git_commit() -> str:
    """The checkout's commit, with `+changes` when files differ from it; `unknown` outside a checkout."""
    root = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if dirty.strip() else "")


def command_line() -> str:
    """The command as a shell takes it, with the script's path shortened to what a checkout has."""
    script = Path(sys.argv[0])
    return shlex.join([f"{script.parent.name}/{script.name}" if script.suffix == ".py" else script.name, *sys.argv[1:]])


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def default_folder(config: RscvConfig) -> Path:
    """runs/<objective>_<backbone>."""
    return Path("runs") / f"{config.objective}_{config.backbone.name}"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key} ({a} -> {b})")
    return keys


def what_counts(config: RscvConfig) -> dict[str, Any]:
    """The options that results of rscv_finetune.py depend on."""
    found = dataclasses.asdict(config)
    for key in ("cache", "probe"):
        del found[key]
    del found["data"]["workers"], found["backbone"]["gradient_checkpointing"]
    run = config.run
    found["run"] = {"seed": run.seed, "precision": run.precision, "deterministic": run.deterministic}
    found["run"]["devices*nodes"] = run.devices * run.nodes
    return found


def _check_same(folder: Path, config: HasRun, counts: Counts, *, second_stage: bool) -> None:
    old, new = counts(load_config(type(config), folder / "config.yaml")), counts(config)
    if second_stage:
        del old["distill"], new["distill"]
    changed = ", ".join(_differences(old, new)[:4])
    if changed and second_stage:
        raise UserError(
            f"{folder}: stage 1 was trained with another configuration: {changed}; for --stage distill only distill.* "
            "may change; restore the rest or choose another --output-dir."
        )
    if changed:
        raise UserError(
            f"{folder}: --resume with another configuration: {changed}; restore it or choose another --output-dir."
        )


def awaits_second_stage(folder: Path) -> bool:
    """Whether stage 1 has finished here and stage 2 has not begun."""
    begun = [folder / "checkpoints" / stage for stage in ("distill", "control", "end_to_end")]
    begun += [folder / f"{name}.safetensors" for name in ("student", "control")]
    return (folder / "refiner.safetensors").is_file() and not any(path.exists() for path in begun)


def open_run_folder(
    folder: Path, config: HasRun, *, resume: bool, second_stage: bool = False, counts: Counts = what_counts
) -> bool:
    """Makes the run folder with config.yaml, or checks that a resumed run is the same run; True when it was made.

    `counts` gives the options in which the same run may not differ. `second_stage`: stage 1's folder is taken over for
    stage 2, whose options then replace those in config.yaml.
    Raises UserError when the folder holds a run and neither is asked for, or when the configuration differs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --output-dir is a file; name a folder.")
    present = (folder / "config.yaml").is_file()
    if present and not resume and not second_stage:
        raise UserError(
            f"{folder}: holds a run already; add --resume to go on with it, or choose another --output-dir."
        )
    if present:
        _check_same(folder, config, counts, second_stage=second_stage)
        if second_stage:
            _write_config(folder, config)
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: --output-dir holds other files; choose an empty or new folder.")
    _write_config(folder, config)
    return True


def _write_config(folder: Path, config: HasRun) -> None:
    text = to_yaml(config)
    atomic_write(folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8") and None)


def take_back(folder: Path, *, whole: bool, made: Sequence[str] = _MADE) -> None:
    """Removes what a run that `open_run_folder` has just made left here, unless training began: steps in the log, a
    checkpoint or weights.

    `whole`: the folder itself was made, too, and goes when nothing else lies in it. `made`: names of what such runs
    leave.
    """
    log = folder / "metrics.jsonl"
    if log.is_file() and log.stat().st_size:
        return
    if any(folder.glob("*.safetensors")) or any(folder.glob("checkpoints/*/*.pt")):
        return
    for name in made:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if whole and not any(folder.iterdir()):
        folder.rmdir()


def update_json(path: Path, values: dict[str, Any]) -> None:
    """Adds or replaces top-level entries of a JSON file, written as a whole."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(old | values, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda p: p.write_text(text, encoding="utf-8") and None)


def record_run(folder: Path, config: HasRun, **facts: Any) -> None:
    """run.json: command, commit, seed, versions, and the facts given.

    A run that goes on keeps its first command and commit; the later ones stand in `resumed`.
    """
    path = folder / "run.json"
    now = {"command": command_line(), "commit": git_commit(), "environment": environment()}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "command" in before:
        update_json(path, {"resumed": [*before.get("resumed", []), now]} | facts)
    else:
        update_json(path, now | {"seed": config.run.seed} | facts)


def commands_of(folder: Path) -> dict[str, Any]:
    """The command and commit that began the run, and those that went on with it, from run.json."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    first = {key: run[key] for key in ("command", "commit")}
    later = [{key: entry[key] for key in first} for entry in run.get("resumed", [])]
    return first | ({"resumed": later} if later else {})


def read_config(folder: Path) -> RscvConfig:
    """The configuration of a run folder; UserError when there is none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml).")
    return load_config(RscvConfig, folder / "config.yaml")


def config_yaml(folder: Path) -> str:
    """config.yaml as text."""
    return OmegaConf.to_yaml(OmegaConf.load(folder / "config.yaml"))
