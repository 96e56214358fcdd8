"""Files of a preparation: encoded arrays, a staging folder beside the final one, and cheap checks of either."""

import io
import os
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from rsc_seg.data.source import image_size, open_encoded, strict_decoding
from rsc_seg.data.storage import FolderStorage, ImageError
from rsc_seg.errors import UserError

_STRIP_OFFSETS, _STRIP_BYTES = 273, 279  # TIFF tags


def encode(array: np.ndarray, kind: str) -> bytes:
    """(H,W) or (H,W,3) array as the bytes of a PNG, TIFF or JPEG (PIL's own quality, 75) file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    return FolderStorage(path.parent).read(path.name)


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) from a file's header, as stored; raises ImageError that names it."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # decoders report a broken header by many types; the second reading says which in one line
        return open_encoded(_read(path), str(path)).size


def require_size(shape: tuple[int, ...], labels: Path | str, image: Path, turned: bool = True) -> None:
    """Raises UserError when labels of this (H,W) shape are not of the image as stored or, if `turned`, upright."""
    wanted = (shape[1], shape[0])
    size = stored_size(image)
    if wanted != size and not (turned and wanted == image_size(_read(image), str(image))):
        raise UserError(
            f"{labels}: labels are {wanted[0]} x {wanted[1]} pixels (width x height), but the image {image} is "
            f"{size[0]} x {size[1]}; download both anew."
        )


def whole_size(path: Path) -> Optional[tuple[int, int]]:
    """(width, height) of an image file that is complete by its header and its end, else None. Reads no pixels."""
    try:
        with Image.open(path) as image, open(path, "rb") as file:
            size = os.path.getsize(path)
            file.seek(max(0, size - 12))
            tail = file.read()
            if image.format == "PNG":
                return image.size if tail[4:8] == b"IEND" else None
            if image.format == "JPEG":
                return image.size if tail.endswith(b"\xff\xd9") else None
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            ends = [o + n for o, n in zip(tags[_STRIP_OFFSETS], tags[_STRIP_BYTES], strict=True)]
            return image.size if max(ends) <= size else None
    except Exception:  # whatever is wrong with it: it is not a file to keep
        return None


def read_values(path: Path) -> np.ndarray:
    """(H,W) integers of a one-channel image, palette indices as stored; raises ImageError for anything else."""
    image = open_encoded(_read(path), str(path))
    with strict_decoding(str(path)):
        values = np.asarray(image)
    if values.ndim != 2:
        raise ImageError(
            f"{path}: a picture of {values.shape[2]} channels, but labels have one; is it a colour preview?"
        )
    return values.astype(np.int64)


def read_pixels(path: Path) -> np.ndarray:
    """(H,W,3) uint8 pixels as stored: an EXIF orientation is not applied. Raises ImageError for an unreadable file."""
    image = open_encoded(_read(path), str(path))
    with strict_decoding(str(path)):
        return np.asarray(image.convert("RGB"))


def staging_folder(folder: Path) -> Path:
    """Where files of `folder` wait until all are there: a hidden folder beside it, found again by a later run."""
    return folder.parent / f".{folder.name}.partial"


def store(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; missing folders are made. Raises UserError when the system refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: not written ({e.strerror or e}); what is converted is kept: free space and run the command again."
        ) from e


def publish(folder: Path) -> None:
    """Moves what is staged for `folder` there: the whole folder at once, or file by file when it exists already.

    Everything is on disk before the first name changes. Raises UserError when the system refuses.
    """
    staged = staging_folder(folder)
    try:
        if not staged.is_dir():
            return
        for orphan in staged.rglob(".*.tmp"):  # of a run that was killed while it wrote
            orphan.unlink()
        os.sync()
        if not folder.exists():
            os.replace(staged, folder)
            return
        for path in sorted(p for p in staged.rglob("*") if p.is_file()):
            target = folder / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        for inner in sorted(staged.rglob("*"), reverse=True):
            inner.rmdir()
        staged.rmdir()
    except OSError as e:
        raise UserError(f"{folder}: not completed ({e.strerror or e}); run the command again.") from e
