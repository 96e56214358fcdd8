"""Files written as a whole or not at all."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rsc_seg.errors import UserError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_group(writers: dict[Path, Callable[[Path], object]]) -> None:
    """Writes several files under temporary names beside their places, then renames them all, in the order given.

    Each writer receives a temporary path of the same suffix and leaves a complete file there; no file is renamed before
    all are complete and on disk. Missing folders are made. Raises UserError when the system refuses (disk full, no
    permission): temporary files are then gone and older files stand as they were.
    """
    staged: dict[Path, Path] = {}
    target = next(iter(writers))
    try:
        for target, writer in writers.items():
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has this name")
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
            os.close(handle)
            staged[target] = Path(name)
            writer(staged[target])
            _fsync(staged[target])
            os.chmod(staged[target], 0o644)
        for target in list(staged):
            os.replace(staged[target], target)
            del staged[target]
        _fsync(target.parent)
    except OSError as e:
        raise UserError(
            f"{target}: not written ({e.strerror or e}); nothing was overwritten; free space or choose another place."
        ) from e
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path, writer: Callable[[Path], object]) -> None:
    """Writes one file as a whole or not at all: `writer` fills a temporary file beside it, which is then renamed.

    Raises UserError naming `path` when the system refuses; an older file of that name then stands as it was.
    """
    atomic_write_group({Path(path): writer})
