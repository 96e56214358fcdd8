"""A fixed sequence of images, and the decoding that all sources share."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from rsc_seg.data.storage import ImageError, Storage, first_line
from rsc_seg.errors import UserError

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageSource(ABC):
    """A fixed sequence of images."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of image `i`: its path inside the source, unique and the same on every machine."""

    @abstractmethod
    def where(self, i: int) -> str:
        """Full place of image `i`, for messages."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded bytes of image `i`; raises ImageError."""

    def fingerprint(self) -> str:
        """A hash of all names and encoded bytes, for whatever is kept about these images."""
        digest = hashlib.sha256()
        for i in range(len(self)):
            digest.update(self.name(i).encode())
            try:
                digest.update(hashlib.sha256(self.read(i)).digest())
            except ImageError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def load(self, i: int) -> Image.Image:
        """Image `i` upright and in RGB; raises ImageError that names the file."""
        return decode_image(self.read(i), self.where(i))

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of the upright image `i`, from its header; raises ImageError."""
        return image_size(self.read(i), self.where(i))


def open_encoded(data: bytes, where: str) -> Image.Image:
    """PIL image of encoded bytes, pixels not yet decoded; raises ImageError with `where`."""
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as e:
        reason = "the file is empty" if not data else "no known image format"
        raise ImageError(f"{where}: not readable as an image: {reason}.") from e
    except Exception as e:  # decoders report a broken header by many types: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"{where}: not readable as an image: {first_line(e)}.") from e


@contextmanager
def strict_decoding(where: str) -> Iterator[None]:
    """Any failure inside is an ImageError; so is a truncated file, even when another library told PIL to accept it."""
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    except Exception as e:  # see open_encoded
        raise ImageError(f"{where}: not readable as an image: {first_line(e)}.") from e
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # malformed EXIF beside sound pixels: the picture is taken as it lies
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion clips at 255 instead of scaling
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_image(data: bytes, where: str) -> Image.Image:
    """Bytes of a file to an upright RGB image.

    EXIF orientation is applied, grey, palette and CMYK become RGB, alpha is dropped, 16-bit grey is scaled to 8 bit.
    Raises ImageError with `where`, for a truncated file too.
    """
    image = open_encoded(data, where)
    with strict_decoding(where):
        image.load()
        orientation = _orientation(image)  # after load(): PNG may hold its EXIF behind the pixels
        rgb = _to_rgb(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height of the upright image without decoding its pixels; raises ImageError with `where`."""
    image = open_encoded(data, where)
    return (image.height, image.width) if _orientation(image) >= 5 else (image.width, image.height)


class StoredImages(ImageSource):
    """Named files of a storage."""

    def __init__(self, storage: Storage, files: list[str]) -> None:
        self.storage = storage
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return self.files[i]

    def where(self, i: int) -> str:
        return self.storage.where(self.files[i])

    def read(self, i: int) -> bytes:
        return self.storage.read(self.files[i])


class SelectedImages(ImageSource):
    """Some images of one or more sources, in a given order: pairs (source, index)."""

    def __init__(self, picks: list[tuple[ImageSource, int]]) -> None:
        self.picks = picks

    def __len__(self) -> int:
        return len(self.picks)

    def name(self, i: int) -> str:
        source, j = self.picks[i]
        return source.name(j)

    def where(self, i: int) -> str:
        source, j = self.picks[i]
        return source.where(j)

    def read(self, i: int) -> bytes:
        source, j = self.picks[i]
        return source.read(j)


def load_image_file(path: Path) -> Image.Image:
    """One picture from a file, upright and in RGB; raises ImageError that names it."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ImageError(f"{path}: cannot be read ({e.strerror or e}).") from e
    return decode_image(data, str(path))


def thinned(count: int, limit: Optional[int], every: int) -> range:
    """Indices that `every` (each n-th) and then `limit` (the first so many) leave of `count`.

    Raises UserError for values below 1.
    """
    if every < 1:
        raise UserError(f"data.every={every}: must be 1 or more.")
    if limit is not None and limit < 1:
        raise UserError(f"data.limit={limit}: must be 1 or more, or null for all.")
    kept = range(0, count, every)
    return kept if limit is None else kept[:limit]
