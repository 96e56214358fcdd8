"""Our sets in detectron2's catalogues, under the names that the official code gives them."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from rsc_seg.d2.loader import records_of
from rsc_seg.data import vocab
from rsc_seg.data.seg_task import BACKGROUND, TaskSet
from rsc_seg.data.segmentation import RGB, distinct_palette
from rsc_seg.data.segsets import SEGSETS, SegSet

Records = list[dict[str, str]]


def _records(segset: SegSet, root: Path) -> Records:
    return [{"file_name": str(image), "sem_seg_file_name": str(labels)} for image, labels in segset.pairs(root)]


def _put(name: str, load: Callable[[], Records], segset: SegSet, root: Path, classes: dict[str, object]) -> None:
    """Registers a set, in the place of one of that name: detectron2 brings some along, at another root."""
    facts: dict[str, object] = {}
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    if name in MetadataCatalog.list():
        facts = {k: v for k, v in MetadataCatalog.get(name).as_dict().items() if k != "name"}
        MetadataCatalog.remove(name)
    images = str(segset.image_folder(root) or segset.base(root) / segset.images[0])
    labels = str(segset.label_folder(root))
    keys = ("image_dir", "gt_dir") if segset.evaluator == "cityscapes_sem_seg" else ("image_root", "sem_seg_root")
    facts |= {**dict(zip(keys, (images, labels), strict=True)), "evaluator_type": segset.evaluator, **classes}
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**facts)


def _classes(names: Sequence[str], palette: Sequence[RGB], ignore: int) -> dict[str, object]:
    return {"stuff_classes": list(names), "stuff_colors": [list(c) for c in palette], "ignore_label": ignore}


def _scored_names(segset: SegSet) -> list[str]:
    names = segset.class_names()
    return names if len(names) == segset.label_count else [*names[: segset.label_count - 1], BACKGROUND]


def register_all(root: Path) -> list[str]:
    """Registers all downloadable sets below `root`, as they are on disk; returns their names in the catalogue.

    Nothing is read before `DatasetCatalog.get(name)`, which then lists `file_name` and `sem_seg_file_name` like
    `load_sem_seg`, and raises UserError for a set that is not prepared. A set of that name is replaced.
    """
    for segset in SEGSETS:
        classes = _classes(_scored_names(segset), distinct_palette(segset.label_count), segset.ignore_label)
        if segset.vocabulary == "coco_stuff_171":
            # detectron2 counts COCO's categories from 1, label files from 0
            ids = vocab.load(segset.vocabulary).ids
            classes["stuff_dataset_id_to_contiguous_id"] = {k + 1: i for i, k in enumerate(ids)}
        _put(segset.catalog, partial(_records, segset, root), segset, root, classes)
    return [segset.catalog for segset in SEGSETS]


def register(task: TaskSet) -> str:
    """Registers a set with the classes of a run; returns its name in the catalogue.

    That is the official name where all classes keep their names. Otherwise a digest of the classes follows it, and
    label files hold other values than the classes that `stuff_classes` names: read them by `task.labels`.
    """
    official = list(task.class_names) == _scored_names(task.segset)
    digest = hashlib.sha256(repr((task.class_names, task.table.tolist())).encode()).hexdigest()[:8]
    name = task.segset.catalog if official else f"{task.segset.catalog}_{digest}"
    ignore = task.segset.ignore_label if official else task.ignore
    classes = _classes(task.class_names, task.palette, ignore)
    _put(name, partial(records_of, task), task.segset, task.root, classes)
    return name
