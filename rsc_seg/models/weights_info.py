"""What belongs to a set of weights besides the numbers, and the sidecar file that keeps it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY, BackboneRow
from rsc_seg.ops.position import POSITION_RULES

LAST_BLOCKS = ("full", "value", "catseg")
_TYPES: Mapping[str, type] = {"depth": int, "training": dict, "mean": list, "std": list}
Triple = tuple[float, float, float]
# Published configs round to three digits; the means of ImageNet and CLIP differ by more
TOLERANCE = 6e-4


def triple(value: Any) -> Optional[Triple]:
    """Three numbers as floats; None for anything else."""
    if not isinstance(value, Sequence) or len(value) != 3:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        return None
    return float(value[0]), float(value[1]), float(value[2])


def other_normalisation(
    mean: Optional[Triple], std: Optional[Triple], row: BackboneRow
) -> Optional[tuple[str, Triple, Triple]]:
    """`mean` or `std`, the value held and that of `row`, where they differ by more than published configs round.

    None where they agree or nothing is said.
    """
    for key, held, known in (("mean", mean, row.mean), ("std", std, row.std)):
        if held is not None and not all(abs(a - b) < TOLERANCE for a, b in zip(held, known, strict=True)):
            return key, held, known
    return None


@dataclass(frozen=True)
class WeightsInfo:
    """Origin and properties of one state dict; everything in it can be written as JSON."""

    backbone: str  # a name of rsc_seg.models.registry
    depth: int  # blocks that the state dict holds
    activation: str
    position_rule: str
    last_block: str
    source: str  # official | demo | none | file name and the beginning of its SHA-256
    licence: str
    mean: Triple  # of the images' normalisation, for values from 0 to 1
    std: Triple
    note: str = ""  # a sentence to be shown wherever numbers of these weights stand
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)  # data, commit, command, alpha, seed

    def to_json(self) -> str:
        """The sidecar's text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "sidecar") -> "WeightsInfo":
        """Reads a sidecar's text; UserError that begins with `where` when it is not one.

        Sidecars from before `mean` and `std` were kept take those of their backbone.
        """
        advice = "remove or rename it when it does not belong to the weights of the same name."
        try:
            values = json.loads(text)
        except ValueError as e:
            raise UserError(f"{where}: not readable as JSON ({e}); {advice}") from e
        row = REGISTRY.get(str(values.get("backbone"))) if isinstance(values, dict) else None
        if row is not None:
            values = {"mean": list(row.mean), "std": list(row.std), **values}
        known = {f.name: f for f in dataclasses.fields(cls)}
        needed = [name for name in known if name not in ("note", "training")]
        if not isinstance(values, dict) or any(name not in values for name in needed):
            absent = ", ".join(n for n in needed if not isinstance(values, dict) or n not in values)
            raise UserError(f"{where}: not a sidecar of weights, it lacks {absent}; {advice}")
        for name, value in values.items():
            wanted = _TYPES.get(name, str)
            if name in known and (not isinstance(value, wanted) or isinstance(value, bool)):
                raise UserError(f"{where}: '{name}' is {value!r}, a {wanted.__name__} is needed; {advice}")
        kept = {name: value for name, value in values.items() if name in known}
        for name in ("mean", "std"):
            kept[name] = triple(values[name])
            if kept[name] is None:
                raise UserError(f"{where}: '{name}' is {values[name]!r}, three numbers are needed.")
        return cls(**kept)


def sidecar_path(path: Path) -> Path:
    """`X.json` beside `X.safetensors`."""
    return path.with_suffix(".json")


def info_of_row(row: BackboneRow, *, depth: int, source: str, licence: str, note: str = "") -> WeightsInfo:
    """Properties of `row`'s official weights, for weights that say nothing else about themselves."""
    return WeightsInfo(
        backbone=row.name,
        depth=depth,
        activation=row.activation,
        position_rule=row.position_rule,
        last_block=row.last_block,
        source=source,
        licence=licence,
        mean=row.mean,
        std=row.std,
        note=note,
    )


def _check_row(info: WeightsInfo, row: BackboneRow, path: Path) -> None:
    if info.backbone != row.name:
        raise UserError(
            f"{path}: weights of backbone '{info.backbone}', not of '{row.name}': use --backbone {info.backbone}."
        )
    if info.activation != row.activation:
        raise UserError(
            f"{path}: these weights were trained with activation '{info.activation}', backbone '{row.name}' runs "
            f"'{row.activation}': choose the backbone that they belong to."
        )
    other = other_normalisation(info.mean, info.std, row)
    if other is not None:
        key, held, known = other
        raise UserError(
            f"{path}: these weights were trained on images normalised with {key} {list(held)}, backbone "
            f"'{row.name}' takes {list(known)}: choose the backbone that they belong to."
        )


def stored_info(path: Path) -> WeightsInfo | None:
    """What the sidecar of the weights file `path` says, not judged; None without one.

    Raises UserError for a sidecar that cannot be read.
    """
    beside = sidecar_path(path)
    if beside == path or not beside.is_file():
        return None
    try:
        text = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{beside}: the sidecar of {path.name} cannot be read ({e}).") from e
    return WeightsInfo.from_json(text, where=str(beside))


def read_sidecar(path: Path, row: BackboneRow) -> WeightsInfo | None:
    """The sidecar of the weights file `path`, or None without one.

    Raises UserError when it was written for another backbone, activation or normalisation than `row`'s, or names an
    unknown rule.
    """
    beside, info = sidecar_path(path), stored_info(path)
    if info is None:
        return None
    _check_row(info, row, path)
    for key, value, known in (
        ("position_rule", info.position_rule, POSITION_RULES),
        ("last_block", info.last_block, LAST_BLOCKS),
    ):
        if value not in known:
            raise UserError(f"{beside}: {key} is '{value}', must be one of {', '.join(known)}.")
    if not 1 <= info.depth <= row.depth:
        raise UserError(f"{beside}: depth is {info.depth}, backbone '{row.name}' has 1 to {row.depth} blocks.")
    return info
