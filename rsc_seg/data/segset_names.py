"""Class names of one's own: a vocabulary file, checked before anything else is done with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsc_seg.errors import UserError


def check_names(names: Sequence[object], where: str) -> list[str]:
    """Names with single blanks inside and none around; raises UserError, naming `where` and the place, for a bad list.

    Refused are: no name at all, something that is no text, an empty name, and two names that are equal but for case and
    blanks (the text encoder reads both alike).
    """
    if not names:
        raise UserError(f"{where}: no class name there; give at least one.")
    seen: dict[str, int] = {}
    clean: list[str] = []
    for place, name in enumerate(names, 1):
        if not isinstance(name, str):
            raise UserError(f"{where}: class {place} is {name!r}, which is no text; names must be texts.")
        clean.append(" ".join(name.split()))
        if not clean[-1]:
            raise UserError(f"{where}: class {place} has an empty name; give it one or remove it.")
        first = seen.setdefault(clean[-1].lower(), place)
        if first != place:
            raise UserError(f"{where}: classes {first} and {place} are both '{clean[-1]}'; names must differ.")
    return clean


def _names_in(document: Any, path: Path) -> Sequence[object]:
    if isinstance(document, dict):
        document = document.get("classes", document.get("names"))
        if isinstance(document, list):
            document = [row.get("name") if isinstance(row, dict) else row for row in document]
    if not isinstance(document, list):
        raise UserError(
            f'{path}: not a list of class names; expected ["cat", "grass", ...], or {{"classes": [{{"name": ...}}]}}.'
        )
    return document


def read_class_names(path: Path) -> list[str]:
    """Class names of a file: Cat-Seg's JSON list, an object with `classes` or `names`, or text with one name a line.

    Empty lines at the end of a text file are no names. Raises UserError for a file that is unreadable or that
    `check_names` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: class names cannot be read ({reason}).") from e
    if path.suffix.lower() != ".json":
        return check_names(text.rstrip().splitlines(), str(path))
    try:
        document = json.loads(text)
    except ValueError as e:
        raise UserError(f"{path}: not valid JSON (class names): {e}.") from e
    return check_names(_names_in(document, path), str(path))
