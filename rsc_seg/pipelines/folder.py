"""The run folder: what was asked for, by which code, and where everything of a run lies."""

import dataclasses
import json
import logging
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rsc_seg.config import RscvConfig, load_config, to_yaml
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write

_log = logging.getLogger(__name__)
_PACKAGES = ("rsc-seg", "torch", "torchvision", "timm", "lightning-fabric", "xformers", "numpy", "pillow")
_FREE = ("run", "cache", "probe")  # sections that may differ when a run is resumed


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
    """The command as typed, with the script's path shortened to what a checkout has."""
    script = Path(sys.argv[0])
    return " ".join([f"{script.parent.name}/{script.name}" if script.suffix == ".py" else script.name, *sys.argv[1:]])


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
    """runs/rscv_<backbone>."""
    return Path("runs") / f"rscv_{config.backbone.name}"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(f"{prefix}{key} ({a} -> {b})")
    return keys


def _check_same(folder: Path, config: RscvConfig) -> None:
    old = dataclasses.asdict(load_config(RscvConfig, folder / "config.yaml"))
    new = dataclasses.asdict(config)
    for key in _FREE:
        old.pop(key), new.pop(key)
    old["seed"], new["seed"] = load_config(RscvConfig, folder / "config.yaml").run.seed, config.run.seed
    changed = _differences(old, new)
    if changed:
        raise UserError(
            f"{folder}: --resume with another configuration: {', '.join(changed[:4])}; "
            "restore it or choose another --output-dir."
        )


def open_run_folder(folder: Path, config: RscvConfig, *, resume: bool) -> None:
    """Makes the run folder with config.yaml, or checks that a resumed run is the same run.

    Raises UserError when the folder holds a run and `resume` is not asked for, or when the configuration differs.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --output-dir is a file; name a folder.")
    present = (folder / "config.yaml").is_file()
    if present and not resume:
        raise UserError(
            f"{folder}: holds a run already; add --resume to go on with it, or choose another --output-dir."
        )
    if present:
        _check_same(folder, config)
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: --output-dir holds other files; choose an empty or new folder.")
    text = to_yaml(config)
    atomic_write(folder / "config.yaml", lambda p: p.write_text(text, encoding="utf-8") and None)


def update_json(path: Path, values: dict[str, Any]) -> None:
    """Adds or replaces top-level entries of a JSON file, written as a whole."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(old | values, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda p: p.write_text(text, encoding="utf-8") and None)


def record_run(folder: Path, config: RscvConfig, **facts: Any) -> None:
    """run.json: command, commit, seed, versions, and the facts given."""
    base = {"command": command_line(), "commit": git_commit(), "seed": config.run.seed, "environment": environment()}
    update_json(folder / "run.json", base | facts)


def read_config(folder: Path) -> RscvConfig:
    """The configuration of a run folder; UserError when there is none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml).")
    return load_config(RscvConfig, folder / "config.yaml")


def config_yaml(folder: Path) -> str:
    """config.yaml as text."""
    return OmegaConf.to_yaml(OmegaConf.load(folder / "config.yaml"))
