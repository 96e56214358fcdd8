"""What a split's download must hold, and which files are to be made of it."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsc_seg.data import prepare_convert as convert
from rsc_seg.data import vocab
from rsc_seg.data.coco import read_json
from rsc_seg.data.prepare_convert import Convert, Item
from rsc_seg.data.segsets import SegSet, label_stems
from rsc_seg.data.storage import first_line
from rsc_seg.errors import UserError

_VOC = "host.robots.ox.ac.uk/pascal/VOC"
WHERE = {
    "ade20k_150": "ADEChallengeData2016.zip of the MIT Scene Parsing Benchmark (sceneparsing.csail.mit.edu)",
    "ade20k_847": "release 2021_17_01 of ADE20K, on request (groups.csail.mit.edu/vision/datasets/ADE20K)",
    "pascal_context_59": f"VOCtrainval_03-May-2010.tar of PASCAL VOC 2010 ({_VOC}/voc2010), and trainval_merged.json "
    "of PASCAL in Detail (codalabuser.blob.core.windows.net/public/trainval_merged.json)",
    "pascal_context_459": f"VOCtrainval_03-May-2010.tar of PASCAL VOC 2010 ({_VOC}/voc2010), and trainval.tar.gz "
    "of PASCAL-Context (roozbehm.info/pascal-context)",
    "voc_20": f"VOCtrainval_11-May-2012.tar of PASCAL VOC 2012 ({_VOC}/voc2012)",
    "coco_stuff_171": "train2017.zip, val2017.zip (cocodataset.org, Download) and stuffthingmaps_trainval2017.zip "
    "(github.com/nightrome/cocostuff)",
    "coco_panoptic": "train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip (cocodataset.org, Download)",
    "cityscapes": "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (cityscapes-dataset.com, registration)",
}
WHERE["voc_20b"] = WHERE["voc_20"]


class MissingSource(UserError):
    """A split of which the download, or a part of it, is not there."""


@dataclass(frozen=True)
class Recipe:
    """What is to be done for one split: output folders below `base`, items with outputs in them, their conversion."""

    segset: SegSet
    base: Path
    folders: tuple[Path, ...]
    items: list[Item]
    convert: Convert

    @property
    def title(self) -> str:
        """The set and its split."""
        return f"{self.segset.title} {self.segset.split}"


def missing(segset: SegSet, what: Path | str) -> MissingSource:
    """The error for a part of a download that is not there, with where to get it."""
    return MissingSource(
        f"{what}: not there, but {segset.title} ({segset.split}) needs it: get {WHERE[segset.prepared_by]} "
        "and unpack it; see docs/datasets.md."
    )


def _images(segset: SegSet, root: Path) -> Path:
    folder = segset.image_folder(root)
    if folder is None:
        raise missing(segset, segset.base(root) / segset.images[0])
    return folder


def _raw(segset: SegSet, root: Path) -> Path:
    raw = segset.raw_labels(root)
    if raw is None:
        raise missing(segset, segset.base(root) / segset.raw[0])
    return raw


def _same_names(images: list[str], labels: list[str], image_at: Path, label_at: Path) -> None:
    """Raises UserError unless both lists hold the same names."""
    lonely_images, lonely_labels = sorted(set(images) - set(labels)), sorted(set(labels) - set(images))
    if lonely_images:
        raise UserError(
            f"{label_at}: no labels for '{lonely_images[0]}'; {len(lonely_images)} of {len(images)} images lack them."
        )
    if lonely_labels:
        raise UserError(
            f"{image_at}: no image for '{lonely_labels[0]}'; {len(lonely_labels)} of {len(labels)} labels lack theirs."
        )


def _all_of_folder(convert: Convert, raw_end: str = ".png") -> Callable[[SegSet, Path], Recipe]:
    def plan(segset: SegSet, root: Path) -> Recipe:
        images, raw, base = _images(segset, root), _raw(segset, root), segset.base(root)
        names = list(label_stems(images, segset.image_end))
        _same_names(names, list(label_stems(raw, raw_end)), images, raw)
        out = Path(segset.labels)
        items = [
            Item(images / (n + segset.image_end), raw / (n + raw_end), (out / (n + segset.label_end),)) for n in names
        ]
        return Recipe(segset, base, (out,), items, convert)

    return plan


def _listed(segset: SegSet, root: Path, names: list[str], raw_end: str, convert: Convert, subset: bool) -> Recipe:
    """A recipe of the images that a list names; with `subset` only of those that have labels."""
    images, raw, out = _images(segset, root), _raw(segset, root), Path(segset.labels)
    have = set(label_stems(raw, raw_end))
    kept = [n for n in names if n in have] if subset else names
    _same_names(kept, [n for n in kept if n in have], images, raw)
    present = set(label_stems(images, segset.image_end))
    _same_names([n for n in kept if n in present], kept, images, raw)
    items = [Item(images / (n + segset.image_end), raw / (n + raw_end), (out / (n + segset.label_end),)) for n in kept]
    return Recipe(segset, segset.base(root), (out,), items, convert)


def read_lines(path: Path, segset: SegSet) -> list[str]:
    """First words of the lines of a list of images; raises MissingSource or UserError."""
    if not path.is_file():
        raise missing(segset, path)
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: this list of images cannot be read ({first_line(e)}).") from e
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise UserError(f"{path}: names the image '{twice}' twice; take the list of the download.")
    return names


def _voc(background: int) -> Callable[[SegSet, Path, bool], Recipe]:
    def plan(segset: SegSet, root: Path, subset: bool) -> Recipe:
        names = read_lines(segset.base(root) / "ImageSets" / "Segmentation" / f"{segset.split}.txt", segset)
        return _listed(segset, root, names, ".png", convert.voc(background), subset)

    return plan


def _context_459(segset: SegSet, root: Path, subset: bool) -> Recipe:
    own = segset.base(root) / "pascalcontext_val.txt"
    names = read_lines(own, segset) if own.is_file() else list(vocab.pascal_context_val())
    return _listed(segset, root, names, ".mat", convert.ContextMat(), subset)


def _context_59(segset: SegSet, root: Path) -> Recipe:
    path, images, out = _raw(segset, root), _images(segset, root), Path(segset.labels)
    document = read_json(path, "masks of PASCAL-Context")
    try:
        files = {i["image_id"]: str(i["file_name"]) for i in document["images"] if i["phase"] == segset.split}
        masks: dict[Any, list[tuple[int, Any]]] = {key: [] for key in files}
        for a in document["annos_segmentation"]:
            if a["image_id"] in masks:
                masks[a["image_id"]].append((int(a["category_id"]), a["segmentation"]))
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"{path}: not trainval_merged.json of PASCAL in Detail: needs images (image_id, file_name, phase) and "
            f"annos_segmentation (image_id, category_id, segmentation) ({e!r})."
        ) from e
    del document
    empty = [files[key] for key, found in masks.items() if not found]
    if empty:
        raise UserError(
            f"{path}: {len(empty)} of {len(files)} images have no masks (first: {empty[0]}); download it anew."
        )
    present = {name + segset.image_end for name in label_stems(images, segset.image_end)}
    _same_names([f for f in files.values() if f in present], list(files.values()), images, path)
    items = [
        Item(images / f, path, (out / (f.removesuffix(segset.image_end) + segset.label_end),), masks[key])
        for key, f in sorted(files.items(), key=lambda pair: pair[1])
    ]
    return Recipe(segset, segset.base(root), (out,), items, convert.ContextMasks())


class _PlainPickle(pickle.Unpickler):
    """Arrays and built-in containers only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of numpy's arrays; raises UnpicklingError for any other."""
        if module.partition(".")[0] in ("numpy", "_codecs") and name in _ARRAY_PARTS:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)  # files of numpy 1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, of which an index of ADE20K has no need")


_ARRAY_PARTS = ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "encode")


def read_ade_index(path: Path) -> list[str]:
    """Paths, from the root that holds ADE20K_2021_17_01/ on, of all images in index_ade20k.pkl.

    Raises UserError for a file that is no such index, or that holds anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            index = _PlainPickle(file, encoding="latin1").load()
        return [f"{folder}/{name}" for folder, name in zip(index["folder"], index["filename"], strict=True)]
    except Exception as e:  # a broken pickle fails in many ways
        raise UserError(
            f"{path}: not the index of ADE20K 2021_17_01 (lists 'folder' and 'filename'): {first_line(e)}; "
            "take it from the download, or remove it to go by the files that are there."
        ) from e


def _ade20k_847(segset: SegSet, root: Path, subset: bool) -> Recipe:
    base, raw = segset.base(root), _raw(segset, root)
    index = base / "index_ade20k.pkl"
    start = f"{base.name}/{segset.raw[0]}/"
    found = {name: raw / (name + ".jpg") for name in label_stems(raw, ".jpg")}
    if index.is_file() and not subset:
        listed = [p.removeprefix(start).removesuffix(".jpg") for p in read_ade_index(index) if p.startswith(start)]
        absent = [name for name in listed if name not in found]
        if absent:
            raise UserError(
                f"{raw / absent[0]}.jpg: not there, but {index} names it; {len(absent)} of {len(listed)} images are "
                "missing: complete the download."
            )
    _same_names(list(found), [n.removesuffix("_seg") for n in label_stems(raw, "_seg.png")], raw, raw)
    folders = (Path(segset.images[0]), Path(segset.labels))
    items = [
        Item(
            image,
            image.with_name(image.stem + "_seg.png"),
            (folders[0] / (image.stem + segset.image_end), folders[1] / (image.stem + segset.label_end)),
        )
        for _, image in sorted(found.items())
    ]
    return Recipe(segset, base, folders, items, convert.AdeFull())


def _coco_panoptic(segset: SegSet, root: Path) -> Recipe:
    base, raw, images = segset.base(root), _raw(segset, root), _images(segset, root)
    path = base / "annotations" / f"panoptic_{segset.split}2017.json"
    if not path.is_file():
        raise missing(segset, path)
    document = read_json(path, "panoptic annotations")
    try:
        segments = {
            str(a["file_name"]): {int(s["id"]): int(s["category_id"]) for s in a["segments_info"]}
            for a in document["annotations"]
        }
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not COCO panoptic annotations: needs annotations with segments_info ({e!r}).") from e
    stems = [name.removesuffix(".png") for name in sorted(segments)]
    have = list(label_stems(images, segset.image_end))
    _same_names(have, stems, images, path)
    final = Path(segset.raw[0])
    copied = () if raw == base / final else (final,)  # detectron2 reads the panoptic PNGs there and nowhere else
    folders = (*copied, Path(segset.labels))
    items = [
        Item(
            images / (s + segset.image_end),
            raw / f"{s}.png",
            tuple(folder / f"{s}.png" for folder in folders),
            segments[f"{s}.png"],
        )
        for s in stems
    ]
    return Recipe(segset, base, folders, items, convert.PanopticStuff(raw))


def _whole(plan: Callable[[SegSet, Path], Recipe]) -> Callable[[SegSet, Path, bool], Recipe]:
    return lambda segset, root, subset: plan(segset, root)


def make_recipe(segset: SegSet, root: Path, subset: bool = False) -> Recipe:
    """What preparing a split takes.

    With `subset` the split may be smaller than the official one. Raises MissingSource for a download that is not there,
    and UserError for one that is incomplete, of another size than the official split, or unreadable.
    """
    plans: dict[str, Callable[[SegSet, Path, bool], Recipe]] = {
        "ade20k_150": _whole(_all_of_folder(convert.ade20k_150())),
        "ade20k_847": _ade20k_847,
        "pascal_context_59": _whole(_context_59),
        "pascal_context_459": _context_459,
        "voc_20": _voc(convert.IGNORE),
        "voc_20b": _voc(20),
        "coco_stuff_171": _whole(_all_of_folder(convert.coco_stuff_171())),
        "coco_panoptic": _whole(_coco_panoptic),
        "cityscapes": _whole(_all_of_folder(convert.cityscapes(), "_gtFine_labelIds.png")),
    }
    if not root.is_dir():
        raise UserError(f"{root}: no such folder (--root); give the one above {segset.bases[0]}/.")
    inside = next((base for base in segset.bases if root.resolve().name in Path(base).parts), None)
    if inside is not None and not segset.base(root).exists():
        raise UserError(f"{root}: --root is the folder above {inside}/, not that folder itself.")
    recipe = plans[segset.prepared_by](segset, root, subset)
    if not recipe.items:
        raise missing(segset, segset.raw_labels(root) or segset.base(root))
    if len(recipe.items) not in segset.counts and not subset:
        raise UserError(
            f"{segset.base(root)}: {recipe.title} has {len(recipe.items)} images, but the official split has "
            f"{segset.counts[0]}; complete the download, or say --subset when that is meant."
        )
    return recipe
