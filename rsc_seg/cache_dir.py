"""Where downloaded and converted files are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `RSC_SEG_CACHE`, else `XDG_CACHE_HOME/rsc_seg`, else `~/.cache/rsc_seg`; not created here."""
    own = os.environ.get("RSC_SEG_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rsc_seg"
