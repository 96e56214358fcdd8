"""Webdataset shards as an image source with random access.

The shards are plain tar files: their headers are read once, and an image is then one seek and one read. The order and
number of images and an exact resume follow from that, which a stream of samples cannot give; so the standard library's
`tarfile` suffices and the webdataset package is not needed.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from rsc_seg.data.source import ImageSource
from rsc_seg.data.storage import IMAGE_SUFFIXES, ImageError, first_line
from rsc_seg.errors import UserError

_BRACE = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `a-{x,y}.tar` to the names they stand for; braces may come more than once, not nested."""
    found = _BRACE.search(pattern)
    if found is None:
        return [pattern]
    body = found.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        first, last = span.groups()
        options = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        options = body.split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + option + rest for option in options for rest in expand_braces(tail)]


def names_shards(root: Optional[str]) -> bool:
    """Whether `root` is a tar file, a brace pattern of them, or a folder that holds some."""
    if root is None:
        return False
    return root.endswith(".tar") or (Path(root).is_dir() and any(Path(root).glob("*.tar")))


def find_shards(root: Optional[str]) -> list[Path]:
    """Shards of a folder (sorted) or of a brace pattern (in its order).

    Raises UserError when one is missing or there is none.
    """
    if root is None:
        raise UserError(
            "data.root is not set: give a folder of shards or a pattern such as '/data/cc3m-{000..331}.tar'."
        )
    if re.match(r"(pipe:|[a-z0-9]+://)", root):
        raise UserError(f"data.root={root}: only local shards can be read; download them and give their folder.")
    path = Path(root).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            raise UserError(f"{path}: no shards (data.kind=webdataset); looked for *.tar (not compressed).")
        return shards
    shards = [Path(p).expanduser() for p in expand_braces(root)]
    missing = [p for p in shards if not p.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such shard (data.root={root}; {len(missing)} of {len(shards)} are missing).")
    return shards


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # A sample's key ends at the first dot of the file name: `7.jpg` is its image, `7.mask.png` is not.
                key, dot, extension = member.name.rpartition("/")[2].partition(".")
                if not (member.isfile() and key and dot + extension.lower() in IMAGE_SUFFIXES):
                    continue
                if member.offset_data + member.size > size:
                    raise UserError(f"{shard}: truncated shard: '{member.name}' ends behind the end of the file.")
                yield member.name, member.offset_data, member.size
            end = tar.offset
        with shard.open("rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a broken header for the end; the end is zeros
                raise UserError(f"{shard}: broken shard: no readable member at byte {end} of {size}.")
    except (tarfile.TarError, OSError, EOFError) as e:
        raise UserError(f"{shard}: not readable as an uncompressed tar file (data.root): {first_line(e)}.") from e


class ShardImages(ImageSource):
    """Images inside tar files, by (shard, offset, length). The name of an image is `shard.tar/member`."""

    def __init__(self, shards: list[Path], index: list[tuple[int, str, int, int]]) -> None:
        self.shards = shards
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        shard, member, _, _ = self.index[i]
        return f"{self.shards[shard].name}/{member}"

    def where(self, i: int) -> str:
        shard, member, _, _ = self.index[i]
        return f"{self.shards[shard]}/{member}"

    def read(self, i: int) -> bytes:
        shard, _, offset, length = self.index[i]
        try:
            with self.shards[shard].open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as e:
            raise ImageError(f"{self.where(i)}: cannot be read: {e.strerror or e}.") from e


def open_shards(root: Optional[str], enough: Optional[int] = None) -> ShardImages:
    """The images of all shards, or the first `enough` of them without reading further headers.

    Order: shards as `find_shards` gives them, members as they lie.
    Raises UserError for missing or broken shards, or when they hold no images.
    """
    shards = find_shards(root)
    index: list[tuple[int, str, int, int]] = []
    for number, shard in enumerate(shards):
        for name, offset, length in _members(shard):
            index.append((number, name, offset, length))
            if enough is not None and len(index) >= enough:
                return ShardImages(shards, index)
    if not index:
        looked = " ".join(IMAGE_SUFFIXES)
        raise UserError(f"{root}: no images in {len(shards)} shards; looked for members ending in {looked}.")
    return ShardImages(shards, index)
