"""Files below one root: a folder, or a zip file read in place."""

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Optional

from rsc_seg.errors import UserError, suggestion

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageError(UserError):
    """One image that cannot be used; the message names the file and the reason."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line without its full stop."""
    text = str(error).splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def is_image(name: str) -> bool:
    """Whether the ending says image (any case) and the file is not a hidden one such as macOS's `._x.jpg`."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts


class Storage(ABC):
    """Files below one root, by posix paths relative to it."""

    root: Path

    @abstractmethod
    def files(self, under: str = "") -> list[str]:
        """All files in the folder `under`, at any depth, sorted."""

    @abstractmethod
    def children(self, under: str = "") -> list[str]:
        """Names directly in the folder `under`, sorted; empty when there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Bytes of a file; raises ImageError."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is such a file or folder."""

    def where(self, name: str) -> str:
        """Full place of a file, for messages."""
        return str(self.root / name)

    def images(self, under: str = "") -> list[str]:
        """All image files in the folder `under`, at any depth, sorted."""
        return [f for f in self.files(under) if is_image(f)]


class FolderStorage(Storage):
    """Files on disk; symbolic links are followed, each real folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, under: str = "") -> list[str]:
        seen: set[str] = set()
        found = []
        for folder, inner, names in os.walk(self.root / under, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            relative = Path(folder).relative_to(self.root)
            found += [(relative / n).as_posix() for n in names]
        return sorted(found)

    def children(self, under: str = "") -> list[str]:
        folder = self.root / under
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as e:
            raise ImageError(f"{self.where(name)}: cannot be read: {e.strerror or e}.") from e

    def has(self, name: str) -> bool:
        return (self.root / name).exists()


class ZipStorage(Storage):
    """Members of a zip file, read in place; each process opens the file for itself, so data workers may use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._handle: Optional[zipfile.ZipFile] = None
        self._pid = -1
        try:
            self._names = sorted(n for n in self._zip().namelist() if not n.endswith("/"))
        except (zipfile.BadZipFile, OSError) as e:
            raise UserError(f"{root}: not readable as a zip file (data.root): {first_line(e)}.") from e
        parents = {p.as_posix() for n in self._names for p in PurePosixPath(n).parents}
        self._known = parents | set(self._names)

    def _zip(self) -> zipfile.ZipFile:
        if self._handle is None or self._pid != os.getpid():  # a forked worker must not share a file position
            self._handle, self._pid = zipfile.ZipFile(self.root), os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}

    def files(self, under: str = "") -> list[str]:
        prefix = under.rstrip("/") + "/" if under else ""
        return [n for n in self._names if n.startswith(prefix)]

    def children(self, under: str = "") -> list[str]:
        start = len(under.rstrip("/")) + 1 if under else 0
        return sorted({n[start:].split("/", 1)[0] for n in self.files(under)})

    def read(self, name: str) -> bytes:
        try:
            return self._zip().read(name)
        except Exception as e:  # bad CRC, broken deflate stream, missing member, password: each has its own type
            raise ImageError(f"{self.where(name)}: cannot be read: {first_line(e)}.") from e

    def has(self, name: str) -> bool:
        return name.rstrip("/") in self._known


def open_storage(root: Optional[str | Path]) -> Storage:
    """A folder or a zip file; raises UserError when `root` is null or not there."""
    if root is None:
        raise UserError("data.root is not set: give a folder or zip (data.root=/path/to/images), or data.kind=scenes.")
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (data.root).")
    return FolderStorage(path) if path.is_dir() else ZipStorage(path)


def missing_split(place: object, split: str, known: Iterable[str]) -> UserError:
    """The error for a split that does not exist, with those that do."""
    names = list(known)
    have = f"there are: {', '.join(names)}" if names else "no split was found there at all"
    return UserError(f"{place}: no split '{split}' (data.split); {have}.{suggestion(split, names)}")
