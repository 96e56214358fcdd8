"""What a comparison of runs is made of: runs, what was measured in them, and under which protocol."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from rsc_seg.errors import UserError
from rsc_seg.viz.charts import Series
from rsc_seg.viz.parts import Cell, Column


@dataclass(frozen=True)
class Entry:
    """One measured encoder or model: its numbers by column, and by class in percent where those are known."""

    name: str
    numbers: Mapping[str, Cell]
    note: str = ""
    classes: Sequence[Optional[float]] = ()


@dataclass(frozen=True)
class Measured:
    """One kind of measure on one set, of one run.

    `family` names the kind, `protocol` all that two of a family must share to stand in one table, by readable names.
    `class_title` says what the numbers of classes are. `lines` are curves by heading, each with what its x axis is.
    `several`: all entries but the first are results (checkpoints of one evaluation), else only the last is.
    """

    family: str
    title: str
    columns: Sequence[Column]
    entries: Sequence[Entry]
    protocol: Mapping[str, Any]
    about: str = ""
    class_names: Sequence[str] = ()
    class_title: str = ""
    lines: Mapping[tuple[str, str], Sequence[Series]] = field(default_factory=dict)
    several: bool = False

    def is_result(self, place: int) -> bool:
        """Whether an entry is what its run comes to, not where it started or passed by."""
        last = place == len(self.entries) - 1
        return last or (self.several and place > 0)


@dataclass(frozen=True)
class Made:
    """Which command made a file, at which commit."""

    what: str
    command: str
    commit: str


@dataclass
class Run:
    """A folder with the name that the page gives it, and everything that was read there."""

    name: str
    folder: Path
    measures: list[Measured] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # flat, by option
    made: list[Made] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)  # sentences to be shown with the numbers
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # raw, by file name


def run_names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many folders above as tell them apart. UserError for a folder that is named twice."""
    parts = [folder.absolute().parts for folder in folders]
    twice = [path for path, count in Counter(parts).items() if count > 1]
    if twice:
        raise UserError(f"{Path(*twice[0])}: named twice; name every run once.")
    names = ["/".join(path[-1:]) for path in parts]
    for length in range(2, max(map(len, parts), default=1) + 1):
        count = Counter(names)
        names = [
            name if count[name] == 1 else "/".join(path[-length:]) for name, path in zip(names, parts, strict=True)
        ]
    return names


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Options by their dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def cells(numbers: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Cell]:
    """The numbers of `keys`, null for what is not known."""
    return {key: Cell(numbers.get(key)) for key in keys}


def weights_sentence(weights: Mapping[str, Any]) -> str:
    """Whose weights an encoder has, and what has to be said about them."""
    sentence = str(weights.get("note") or f"Weights: {weights.get('source', 'unknown')}.")
    return f"{weights.get('backbone', 'unknown encoder')}: {sentence}"


def weights_note(weights: Mapping[str, Any]) -> str:
    """Backbone and origin of the weights, short."""
    return f"{weights.get('backbone', 'unknown encoder')}, {weights.get('source', 'unknown weights')}"
