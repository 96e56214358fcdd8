"""The sets on which Cat-Seg trains and is evaluated, as plain data: folders after preparation, class names, ids.

Names of catalogues, folders, class names and counts are those of the official implementation of CAT-Seg and of
detectron2. `rsc_seg.data.prepare_run` makes what these descriptors point to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rsc_seg.data import vocab
from rsc_seg.data.prompts import vocabulary_names
from rsc_seg.data.storage import FolderStorage
from rsc_seg.errors import UserError, suggestion


@dataclass(frozen=True)
class SegSet:
    """One split of one set.

    `name` is ours, `prepared_by` what tools/prepare_data.py calls the set, `catalog` what detectron2's catalogue does.
    Folders are relative to `base(root)`, the first of `bases` that has the split; of `images` and `raw` the first that
    exists counts. `raw` is the download (folder or file), `labels` the folder that the preparation makes, in which
    values are 0..label_count-1 and `ignore_label`. An image and its labels share their path but for `image_end` and
    `label_end`. `counts` are the sizes that the complete split may have (pairs, before labels without any class are
    left out). `evaluation` is the column of Cat-Seg's table, `evaluator` detectron2's kind. `subset`: the split is
    smaller than the official one of `prepared_by`, and is prepared as such. `listed`: a list chooses the split's images
    from a folder of more; elsewhere the folder of images is the split.
    """

    name: str
    prepared_by: str
    catalog: str
    title: str
    split: str
    bases: tuple[str, ...]
    images: tuple[str, ...]
    raw: tuple[str, ...]
    labels: str
    vocabulary: str
    label_count: int
    counts: tuple[int, ...]
    ignore_label: int = 255
    image_end: str = ".jpg"
    label_end: str = ".png"
    evaluation: Optional[str] = None
    evaluator: str = "sem_seg"
    subset: bool = False
    listed: bool = False

    def base(self, root: Path) -> Path:
        """The folder of the set below `root`: the first of `bases` with raw or prepared labels, else the first."""
        for base in self.bases:
            if any((root / base / place).exists() for place in (*self.raw, self.labels)):
                return root / base
        return root / self.bases[0]

    def image_folder(self, root: Path) -> Optional[Path]:
        """The folder of images, None when there is none."""
        own = self.base(root)
        bases = [own, *(root / base for base in self.bases if root / base != own)]
        return next((base / place for base in bases for place in self.images if (base / place).is_dir()), None)

    def raw_labels(self, root: Path) -> Optional[Path]:
        """The downloaded labels, None when there are none."""
        base = self.base(root)
        return next((base / place for place in self.raw if (base / place).exists()), None)

    def label_folder(self, root: Path) -> Path:
        """The folder of prepared labels, whether it is there or not."""
        return self.base(root) / self.labels

    def class_names(self) -> list[str]:
        """Names that Cat-Seg gives its text encoder, in the order of the labels.

        voc_20b has 59 of them for 21 labels: predictions from 20 on count as background. A name may be several
        synonyms joined by ", ", of which Cat-Seg's template takes the first.
        """
        found = vocab.load(self.vocabulary)
        if self.vocabulary == "ade20k_847":
            return vocabulary_names(found)
        if self.vocabulary == "coco_panoptic_133":
            return ["things", *(c.name for c in found.classes if not c.extra["isthing"])]
        if self.vocabulary == "ade20k_150":
            return [_CATSEG_ADE_NAMES.get(name, name) for name in found.names]
        return found.names

    def pairs(self, root: Path) -> list[tuple[Path, Path]]:
        """Images and their prepared labels, sorted; of a `listed` split the labels decide which images belong to it.

        Raises UserError when the set is not prepared, an image is missing, or, unless it is `listed`, labels of one.
        """
        folder, images = self.label_folder(root), self.image_folder(root)
        hint = f"run tools/prepare_data.py {self.prepared_by} --root {root}" + (" --subset" if self.subset else "")
        stems = list(label_stems(folder, self.label_end)) if folder.is_dir() else []
        if not stems:
            raise UserError(f"{folder}: no prepared labels of {self.title} ({self.split}) there; {hint}.")
        if images is None:
            raise UserError(f"{self.base(root) / self.images[0]}: no images of {self.title} ({self.split}); {hint}.")
        have = set(label_stems(images, self.image_end))
        missing = [stem for stem in stems if stem not in have]
        if missing:
            first = images / (missing[0] + self.image_end)
            raise UserError(f"{first}: no such image; {len(missing)} of {len(stems)} labels in {folder} have none.")
        lonely = [] if self.listed else sorted(have - set(stems))
        if lonely:
            first = folder / (lonely[0] + self.label_end)
            raise UserError(
                f"{first}: no such labels; {len(lonely)} of {len(have)} images in {images} have none; {hint}."
            )
        return [(images / (s + self.image_end), folder / (s + self.label_end)) for s in stems]

    def part(self, images: int) -> str:
        """What is to be said of scores on so many images; empty where they are the whole official split."""
        if not self.counts or images >= min(self.counts):
            return ""
        return f"{images} of {self.counts[0]} images: a part of the set; scores compare with no published ones"


# the one name where Cat-Seg takes another synonym than the first
_CATSEG_ADE_NAMES = {"television": "television receiver"}


def label_stems(folder: Path, end: str) -> Iterator[str]:
    """Paths below `folder` without the ending `end`, sorted; other endings and hidden files are left out."""
    for file in FolderStorage(folder).files():
        if file.endswith(end) and not any(part.startswith(".") for part in file.split("/")):
            yield file.removesuffix(end)


def _ade20k_150(split: str, folder: str, count: int, catalog: str) -> SegSet:
    return SegSet(
        name=f"ade20k_150_{split}",
        prepared_by="ade20k_150",
        catalog=catalog,
        title="ADE20K-150",
        split=split,
        bases=("ADEChallengeData2016",),
        images=(f"images/{folder}",),
        raw=(f"annotations/{folder}",),
        labels=f"annotations_detectron2/{folder}",
        vocabulary="ade20k_150",
        label_count=150,
        counts=(count,),
        evaluation="A-150" if split == "val" else None,
    )


def _coco_stuff(split: str, count: int, catalog: str) -> SegSet:
    folder = f"{split}2017"
    return SegSet(
        name=f"coco_stuff_171_{split}",
        prepared_by="coco_stuff_171",
        catalog=catalog,
        title="COCO-Stuff 171",
        split=split,
        bases=("coco-stuff", "coco"),
        images=(f"images/{folder}", folder),
        raw=(f"annotations/{folder}", f"stuffthingmaps/{folder}"),
        labels=f"annotations_detectron2/{folder}",
        vocabulary="coco_stuff_171",
        label_count=171,
        counts=(count,),
    )


def _coco_panoptic(split: str, count: int) -> SegSet:
    folder = f"panoptic_{split}2017"
    return SegSet(
        name=f"coco_panoptic_{split}",
        prepared_by="coco_panoptic",
        catalog=f"coco_2017_{split}_panoptic_stuffonly",
        title="COCO panoptic",
        split=split,
        bases=("coco",),
        images=(f"{split}2017",),
        raw=(folder, f"annotations/{folder}", f"annotations/{folder}.zip"),
        labels=f"panoptic_stuff_{split}2017",
        vocabulary="coco_panoptic_133",
        label_count=54,
        counts=(count,),
    )


def _cityscapes(split: str, count: int) -> SegSet:
    return SegSet(
        name=f"cityscapes_{split}",
        prepared_by="cityscapes",
        catalog=f"cityscapes_fine_sem_seg_{split}",
        title="Cityscapes",
        split=split,
        bases=("cityscapes",),
        images=(f"leftImg8bit/{split}",),
        raw=(f"gtFine/{split}",),
        labels=f"gtFine/{split}",
        vocabulary="cityscapes_19",
        label_count=19,
        counts=(count,),
        image_end="_leftImg8bit.png",
        label_end="_gtFine_labelTrainIds.png",
        evaluator="cityscapes_sem_seg",
    )


_ADE_FULL = SegSet(
    name="ade20k_847_val",
    prepared_by="ade20k_847",
    catalog="ade20k_full_sem_seg_freq_val_all",
    title="ADE20K-847",
    split="val",
    bases=("ADE20K_2021_17_01",),
    images=("images_detectron2/validation",),
    raw=("images/ADE/validation",),
    labels="annotations_detectron2/validation",
    vocabulary="ade20k_847",
    label_count=847,
    counts=(2000,),
    ignore_label=65535,
    label_end=".tif",
    evaluation="A-847",
)
_CONTEXT_59 = SegSet(
    name="pascal_context_59_val",
    prepared_by="pascal_context_59",
    catalog="context_59_test_sem_seg",
    title="PASCAL-Context 59",
    split="val",
    bases=("VOCdevkit/VOC2010",),
    images=("JPEGImages",),
    raw=("trainval_merged.json",),
    labels="annotations_detectron2/pc59_val",
    vocabulary="pascal_context_59",
    label_count=59,
    counts=(5104, 5105),
    evaluation="PC-59",
    listed=True,
)
_CONTEXT_459 = SegSet(
    name="pascal_context_459_val",
    prepared_by="pascal_context_459",
    catalog="context_459_test_sem_seg",
    title="PASCAL-Context 459",
    split="val",
    bases=("VOCdevkit/VOC2010",),
    images=("JPEGImages",),
    raw=("trainval",),
    labels="annotations_detectron2/pc459_val",
    vocabulary="pascal_context_459",
    label_count=459,
    counts=(5104,),
    ignore_label=459,
    label_end=".tif",
    evaluation="PC-459",
    listed=True,
)


def _voc(name: str, catalog: str, labels: str, label_count: int, evaluator: str) -> SegSet:
    return SegSet(
        name=f"{name}_val",
        prepared_by=name,
        catalog=catalog,
        title="PASCAL VOC 20" + name.removeprefix("voc_20"),
        split="val",
        bases=("VOCdevkit/VOC2012",),
        images=("JPEGImages",),
        raw=("SegmentationClassAug", "SegmentationClass"),
        labels=labels,
        vocabulary=name,
        label_count=label_count,
        counts=(1449,),
        evaluation="PAS-20" + name.removeprefix("voc_20"),
        evaluator=evaluator,
        listed=True,
    )


SEGSETS = (
    _ade20k_150("train", "training", 20210, "ade20k_150_train_sem_seg"),
    _ade20k_150("val", "validation", 2000, "ade20k_150_test_sem_seg"),
    _ADE_FULL,
    _CONTEXT_59,
    _CONTEXT_459,
    _voc("voc_20", "voc_2012_test_sem_seg", "annotations_detectron2/val", 20, "sem_seg"),
    _voc("voc_20b", "voc_2012_test_background_sem_seg", "annotations_detectron2_bg/val", 21, "sem_seg_background"),
    _coco_stuff("train", 118287, "coco_2017_train_stuff_all_sem_seg"),
    _coco_stuff("val", 5000, "coco_2017_test_stuff_all_sem_seg"),
    _coco_panoptic("train", 118287),
    _coco_panoptic("val", 5000),
    _cityscapes("train", 2975),
    _cityscapes("val", 500),
)


def _scenes(split: str, folder: str) -> SegSet:
    return SegSet(
        name=f"scenes_{split}",
        prepared_by="ade20k_150",
        catalog=f"scenes_{split}_sem_seg",
        title="Embedded scenes",
        split=split,
        bases=("ADEChallengeData2016",),
        images=(f"images/{folder}",),
        raw=(f"annotations/{folder}",),
        labels=f"annotations_detectron2/{folder}",
        vocabulary="ade20k_150",
        label_count=150,
        counts=(),
        subset=True,
    )


SCENE_SETS = (_scenes("train", "training"), _scenes("val", "validation"))  # composed, not downloaded
PREPARED_SETS = tuple(dict.fromkeys(s.prepared_by for s in SEGSETS))


def segset(name: str) -> SegSet:
    """The descriptor called `name`, as ours or as detectron2's catalogue has it. Raises UserError for another name."""
    for found in (*SEGSETS, *SCENE_SETS):
        if name in (found.name, found.catalog):
            return found
    known = [s.name for s in (*SEGSETS, *SCENE_SETS)]
    raise UserError(f"set '{name}': must be one of {', '.join(known)}.{suggestion(name, known)}")


def splits_of(prepared_by: str) -> list[SegSet]:
    """All splits of one set of tools/prepare_data.py; any case, and - for _. Raises UserError for an unknown set."""
    name = prepared_by.lower().replace("-", "_")
    found = [s for s in SEGSETS if s.prepared_by == name]
    if not found:
        known = ", ".join(PREPARED_SETS)
        raise UserError(f"set '{prepared_by}': must be one of {known}.{suggestion(name, PREPARED_SETS)}")
    return found
