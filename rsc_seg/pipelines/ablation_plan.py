"""From configuration files to the runs of a comparison: what each changes, and what it is compared with."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsc_seg.config import RscvConfig, load_config
from rsc_seg.errors import UserError, suggestion
from rsc_seg.pipelines.objectives import OBJECTIVES
from rsc_seg.viz.report import slug

_KEYS = ("base", "with", "reference", "runs")


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: `config` differs from that of the row `reference` in the options `changed` alone.

    `sources`: the file that it comes from and its preset. The row of the reference itself changes nothing.
    """

    name: str
    config: RscvConfig
    reference: str
    changed: dict[str, Any]
    sources: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with this row."""
        return self.name == self.reference

    @property
    def what(self) -> str:
        """The changed options as one types them."""
        return typed_options(self.changed)

    def with_seed(self, seed: int) -> RscvConfig:
        """A configuration of its own for one training seed."""
        config = load_config(RscvConfig, base=dataclasses.asdict(self.config))
        config.run.seed = seed
        return config


@dataclass(frozen=True)
class _File:
    """A file of a comparison: options that all of its runs share, and those of each run."""

    path: Path
    preset: Optional[Path]
    shared: dict[str, Any]
    reference: Optional[str]
    runs: dict[str, dict[str, Any]]


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value).replace(" ", "")


def typed_options(options: dict[str, Any]) -> str:
    """Options by full key as `key=value ...`."""
    return " ".join(f"{key}={_typed(value)}" for key, value in options.items())


def flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options by their full keys."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file.")
    try:
        loaded = OmegaConf.load(path)
        content = OmegaConf.to_container(loaded, resolve=False) if isinstance(loaded, DictConfig) else None
    except (OmegaConfBaseException, ValueError, OSError) as e:
        raise UserError(f"{path}: not readable ({str(e).splitlines()[0]}).") from e
    except Exception as e:  # the YAML reader's own errors share no base class that we may import
        raise UserError(f"{path}: not readable as YAML: {str(e).splitlines()[0]}") from e
    if not isinstance(content, dict):
        raise UserError(f"{path}: a config file holds options (distill: ...) or runs, this one does not.")
    return {str(key): value for key, value in content.items()}


def _section(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: '{key}' is {value!r}; it must hold options, such as distill.loss: frobenius.")
    return {str(k): v for k, v in value.items()}


def _open(path: Path, preset: Optional[Path]) -> _File:
    """A comparison's file, or a plain configuration as a file of one run; `preset` takes the place of its own."""
    content = _read(path)
    if "runs" not in content:
        if preset is None:
            return _File(path, None, {}, path.stem, {path.stem: flat(content)})
        return _File(path, preset, {}, None, {path.stem: flat(content)})
    for key in content:
        if key not in _KEYS:
            raise UserError(
                f"{path}: '{key}' is none of {', '.join(_KEYS)}, which a file with runs has.{suggestion(key, _KEYS)}"
            )
    own = content.get("base")
    if own is None and preset is None:
        raise UserError(f"{path}: names no preset to start from (base: FILE); add it or give --base.")
    runs = {
        name: flat(_section({name: options}, name, path)) for name, options in _section(content, "runs", path).items()
    }
    found = preset or Path(os.path.normpath(path.parent / str(own)))
    return _File(path, found, flat(_section(content, "with", path)), content.get("reference"), runs)


def _load(file: _File, options: dict[str, Any], overrides: Sequence[str], run: str) -> RscvConfig:
    try:
        return load_config(RscvConfig, file.preset, list(overrides), named={**file.shared, **options})
    except UserError as e:
        raise UserError(f"{file.path}, {run}: {e}") from e


def _same(a: RscvConfig, b: RscvConfig) -> bool:
    return dataclasses.asdict(a) == dataclasses.asdict(b)


def differences(config: RscvConfig, other: RscvConfig) -> dict[str, Any]:
    """The options of `config` that `other` has otherwise, by full key."""
    theirs = flat(dataclasses.asdict(other))
    return {key: value for key, value in flat(dataclasses.asdict(config)).items() if theirs[key] != value}


def _reference(file: _File, config: RscvConfig, known: Iterable[Variant]) -> Variant:
    """The row that a file's runs are compared with: one that is there already, when it has the same options."""
    for variant in known:
        if variant.is_reference and _same(variant.config, config):
            return variant
    assert file.preset is not None  # a plain configuration is its own reference
    name = file.reference or "-".join([file.preset.stem, *map(str, file.shared.values())])
    return Variant(name, config, name, {}, (str(file.path), str(file.preset)))


def plan_runs(paths: Sequence[Path], *, base: Optional[Path] = None, overrides: Sequence[str] = ()) -> list[Variant]:
    """The rows of a comparison in their order, each reference in front of the rows that are compared with it.

    A file with `runs` names a preset (`base`, from its own folder), options of all its runs (`with`), a name for the
    preset's own row (`reference`) and the options of each run. Any other file is one run; the first such one is the
    reference of the others. With the argument `base` every file's options are put on that preset. Raises UserError for
    files or options that do not exist, two runs of one name, and a run whose options change nothing.
    """
    found: list[Variant] = []
    plain: Optional[Variant] = None
    for path in paths:
        file = _open(path, base)
        if file.preset is None:
            row = _plain_row(file, path.stem, overrides, plain)
            plain, rows = plain or row, [row]
        else:
            reference = _reference(file, _load(file, {}, overrides, "its preset"), found)
            rows = [] if reference in found else [reference]
            rows += [_variant(file, name, options, overrides, reference) for name, options in file.runs.items()]
        for row in rows:
            if any(slug(row.name) == slug(other.name) for other in found):
                raise UserError(f"{path}: a run '{row.name}' is there already; give each run a name of its own.")
            found.append(row)
    return found


def _plain_row(file: _File, name: str, overrides: Sequence[str], first: Optional[Variant]) -> Variant:
    config = _load(file, file.runs[name], overrides, name)
    if first is None:
        return Variant(name, config, name, {}, (str(file.path),))
    return Variant(name, config, first.name, differences(config, first.config), (str(file.path),))


def _variant(file: _File, name: str, options: dict[str, Any], overrides: Sequence[str], reference: Variant) -> Variant:
    config = _load(file, options, overrides, f"run '{name}'")
    changed = differences(config, reference.config)
    idle = [key for key in options if not any(k == key or k.startswith(f"{key}.") for k in changed)]
    if idle:
        raise UserError(
            f"{file.path}, run '{name}': {idle[0]}={_typed(options[idle[0]])} is what '{reference.name}' has, too, so "
            "this run would change nothing; take another preset, or leave out the key=value that sets it."
        )
    return Variant(name, config, reference.name, changed, (str(file.path), str(file.preset)))


def refiner_key(config: RscvConfig) -> Optional[str]:
    """What stage 1 depends on, as text; None for a run that trains no Refiner, or trains it along with the student."""
    objective = OBJECTIVES.get(config.objective)
    trains = objective is not None and objective.has_refiner
    if config.objective == "rscv":
        trains = config.distill.target == "refiner"
    if not trains or config.distill.end_to_end or config.distill.refiner is not None:
        return None
    run, labels = config.run, None
    if objective is not None and objective.kind == "regiontext":
        labels = config.rla  # the images are those with a labelled box
    data = dataclasses.replace(config.data, workers=0)
    parts = [config.backbone, data, config.crops, config.refiner, config.refine]
    text = [repr(part) for part in parts]
    return "\n".join([*text, repr((run.seed, run.precision, run.devices, run.nodes, labels))])
