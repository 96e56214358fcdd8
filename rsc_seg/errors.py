"""The one error that a user's input may raise."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Input that cannot be used: the message names the file, key or shape and says what to do.

    The command line prints the message as one line and exits with code 2; anything else is a bug and keeps its
    traceback.
    """


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `known`, or the empty string when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
