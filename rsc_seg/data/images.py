"""Opens images for training: folders, zip files, COCO, CamVid's layout, webdataset shards and the embedded set."""

from collections.abc import Callable
from pathlib import Path
from typing import Optional

from rsc_seg.config import require_choice
from rsc_seg.data.coco import coco_images, coco_splits, find_coco_images
from rsc_seg.data.photos import photo_paths
from rsc_seg.data.segmentation import camvid_images, labelled_kind, open_labelled
from rsc_seg.data.source import ImageSource, SelectedImages, StoredImages, thinned
from rsc_seg.data.storage import IMAGE_SUFFIXES, FolderStorage, ImageError, Storage, ZipStorage, open_storage
from rsc_seg.data.webdata import names_shards, open_shards
from rsc_seg.errors import UserError

__all__ = ["KINDS", "ImageError", "ImageSource", "PackagedPhotographs", "open_images"]

Opener = Callable[[Optional[str], str, Optional[int]], ImageSource]


class PackagedPhotographs(ImageSource):
    """The photographs that come inside installed packages, as `photographs/<name>`."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = sorted(files.items())

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return f"photographs/{self.files[i][0]}"

    def where(self, i: int) -> str:
        return str(self.files[i][1])

    def read(self, i: int) -> bytes:
        return self.files[i][1].read_bytes()


def _all_images(storage: Storage) -> StoredImages:
    files = storage.images()
    if not files:
        looked = " ".join(IMAGE_SUFFIXES)
        raise UserError(f"{storage.root}: no images (data.root); looked at any depth for {looked} in any case.")
    return StoredImages(storage, files)


def _open_folder(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    storage = open_storage(root)
    if not isinstance(storage, FolderStorage):
        raise UserError(f"{root}: not a folder (data.kind=folder); for a zip file use data.kind=zip.")
    return _all_images(storage)


def _open_zip(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    storage = open_storage(root)
    if not isinstance(storage, ZipStorage):
        raise UserError(f"{root}: not a zip file (data.kind=zip); for a folder use data.kind=folder.")
    return _all_images(storage)


def _open_coco(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    return coco_images(open_storage(root), split)


def _open_camvid(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    return camvid_images(open_storage(root), split)


def _open_webdataset(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    return open_shards(root, enough)


def _open_scenes(root: Optional[str], split: str, enough: Optional[int]) -> ImageSource:
    scenes = open_labelled("scenes", root, split)
    if split != "train":
        return scenes
    photographs = PackagedPhotographs(photo_paths())
    return SelectedImages([(s, i) for s in (photographs, scenes) for i in range(len(s))])


def _labelled_opener(kind: str) -> Opener:
    return lambda root, split, enough: open_labelled(kind, root, split)


_OPENERS: dict[str, Opener] = {
    "folder": _open_folder,
    "zip": _open_zip,
    "coco": _open_coco,
    "camvid": _open_camvid,
    "webdataset": _open_webdataset,
    "scenes": _open_scenes,
    **{kind: _labelled_opener(kind) for kind in ("ade20k", "cocostuff", "cityscapes")},
}
KINDS = ("auto", *_OPENERS)


def _guess_kind(root: Optional[str], split: str) -> str:
    if names_shards(root):
        return "webdataset"
    storage = open_storage(root)
    if find_coco_images(storage, split) or coco_splits(storage):
        return "coco"
    labelled = labelled_kind(storage)  # a labelled set taken for a folder would give its label files as images
    if labelled in ("camvid", "plain"):
        return "camvid"
    if labelled in _OPENERS:
        return labelled
    return "zip" if isinstance(storage, ZipStorage) else "folder"


def open_images(kind: str, root: Optional[str], split: str, limit: Optional[int] = None, every: int = 1) -> ImageSource:
    """The images of a data set; docs/data.md shows the layouts.

    `every` keeps each n-th image and `limit` the first so many of those. `auto` tells the kind from what lies at
    `root`. `split` means nothing to folder, zip and webdataset. `scenes` is the embedded set: composed scenes, and for
    `train` the packaged photographs in front of them.
    Raises UserError for an unknown kind, a root that is not set or not there, a missing split, or no images.
    """
    require_choice("data.kind", kind, KINDS)
    thinned(0, limit, every)
    enough = None if limit is None else limit * every
    source = _OPENERS[_guess_kind(root, split) if kind == "auto" else kind](root, split, enough)
    kept = thinned(len(source), limit, every)
    return source if len(kept) == len(source) else SelectedImages([(source, i) for i in kept])
