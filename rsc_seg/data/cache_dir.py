"""The one place that says where files made once are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for converted weights and composed scenes; not created here.

    The variable RSC_SEG_CACHE names it; otherwise `$XDG_CACHE_HOME/rsc_seg`, otherwise `~/.cache/rsc_seg`.
    """
    own = os.environ.get("RSC_SEG_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rsc_seg"
