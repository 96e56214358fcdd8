"""What an unfinished or finished measure knows so far, on disk under the key of all that it depends on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Optional, TypeVar

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write

T = TypeVar("T")
_FORMAT = 1


def bounded(parse: Callable[[Any], T], size: Callable[[T], int], most: Optional[int]) -> Callable[[Any], T]:
    """`parse` that refuses a state of a `size` below 0 or above `most`; null: no upper bound."""

    def checked(value: Any) -> T:
        state = parse(value)
        held = size(state)
        if held < 0 or (most is not None and held > most):
            raise ValueError(f"it counts {held} where there are {most}")
        return state

    return checked


class StateFile(Generic[T]):
    """One JSON file; `dump` makes what JSON can hold of a state, `parse` a state of that.

    `parse` raises ValueError, KeyError or TypeError for what is no state.
    """

    def __init__(self, folder: Path, key: str, *, parse: Callable[[Any], T], dump: Callable[[T], Any]) -> None:
        self.path, self.key = folder / f"{key}.json", key
        self._parse, self._dump = parse, dump

    def read(self) -> Optional[T]:
        """The state so far, None when there is none; raises UserError for a file that is damaged."""
        if not self.path.is_file():
            return None
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
            if (value["format"], value["key"]) != (_FORMAT, self.key):
                raise ValueError("it was written for something else")
            return self._parse(value["counts"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.path}: not readable as counts so far ({e!r}); remove it to begin anew.") from e

    def write(self, state: T) -> None:
        """Replaces the file as a whole."""
        text = json.dumps({"format": _FORMAT, "key": self.key, "counts": self._dump(state)})
        atomic_write(self.path, lambda path: path.write_text(text, encoding="utf-8"))
