"""COCO on disk: images, instances, panoptic segments and COCO-Stuff's pixel maps in one root, as officially."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsc_seg.data import vocab
from rsc_seg.data.scenes.classes import CLASS_TABLE, VOID
from rsc_seg.data.scenes.compose import Scene
from rsc_seg.data.scenes.outlines import mask_polygons

_FIRST_IMAGE = {"train": 1, "val": 500_001}  # image ids are unique over both splits
_LICENCE = {"id": 1, "name": "see docs/embedded_set.md", "url": ""}


def _box(mask: np.ndarray) -> list[int]:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)]


def _categories(things_only: bool) -> list[dict[str, Any]]:
    found = []
    for c in vocab.load("coco_panoptic_133").classes:
        row: dict[str, Any] = {"id": c.id, "name": c.name, "supercategory": c.extra["supercategory"]}
        if not things_only:
            row |= {"isthing": int(c.extra["isthing"]), "color": c.extra["color"]}
        if c.extra["isthing"] or not things_only:
            found.append(row)
    return found


def panoptic_segments(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(H,W) segment ids and their `segments_info`: one segment for each thing and for each stuff class; void is 0."""
    ids = np.zeros(scene.semantic.shape, np.int64)
    segments = []
    present = [k for k in np.unique(scene.semantic) if k != VOID and not CLASS_TABLE[k].thing]
    masks = [(CLASS_TABLE[k].coco_panoptic * 1000, scene.semantic == k) for k in present]
    for thing in scene.objects:
        mask = scene.instances == thing.instance
        category = CLASS_TABLE[int(scene.semantic[mask][0])].coco_panoptic
        masks.append((category * 1000 + thing.instance, mask))
    for segment, mask in masks:
        ids[mask] = segment
        segments.append(
            {
                "id": segment,
                "category_id": segment // 1000,
                "area": int(mask.sum()),
                "bbox": _box(mask),
                "iscrowd": 0,
            }
        )
    return ids, segments


class CocoWriter:
    """Writes `{train,val}2017/*.jpg` with `annotations/` (`coco`) and `stuffthingmaps/` (`stuff`)."""

    def __init__(self, root: Path, *, coco: bool, stuff: bool) -> None:
        self.root, self.coco, self.stuff = root, coco, stuff
        self.images: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self.instances: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        self.panoptic: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
        for split in ("train2017", "val2017"):
            (root / split).mkdir(parents=True)
            if coco:
                (root / "annotations" / f"panoptic_{split}").mkdir(parents=True)
            if stuff:
                (root / "stuffthingmaps" / split).mkdir(parents=True)

    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write one scene."""
        number = _FIRST_IMAGE[split] + index
        stem, folder = f"{number:012d}", f"{split}2017"
        (self.root / folder / f"{stem}.jpg").write_bytes(jpeg)
        width, height = scene.image.size
        record = {"id": number, "file_name": f"{stem}.jpg", "width": width, "height": height, "license": 1}
        self.images[split].append(record)
        if self.coco:
            self._add_instances(split, number, scene)
            self._add_panoptic(split, number, scene)
        if self.stuff:
            table = np.full(256, 255, np.uint8)
            table[: len(CLASS_TABLE)] = [c.coco_stuff for c in CLASS_TABLE]
            Image.fromarray(table[scene.semantic]).save(self.root / "stuffthingmaps" / folder / f"{stem}.png")

    def _add_instances(self, split: str, number: int, scene: Scene) -> None:
        for thing in scene.objects:
            mask = scene.instances == thing.instance
            self.instances[split].append(
                {
                    "id": number * 1000 + thing.instance,
                    "image_id": number,
                    "category_id": CLASS_TABLE[int(scene.semantic[mask][0])].coco_panoptic,
                    "segmentation": mask_polygons(mask),
                    "area": float(thing.area),
                    "bbox": [float(v) for v in thing.bbox],
                    "iscrowd": 0,
                }
            )

    def _add_panoptic(self, split: str, number: int, scene: Scene) -> None:
        ids, segments = panoptic_segments(scene)
        file = f"{number:012d}.png"
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(self.root / "annotations" / f"panoptic_{split}2017" / file)
        self.panoptic[split].append({"image_id": number, "file_name": file, "segments_info": segments})

    def finish(self) -> None:
        """Write the JSON files."""
        if not self.coco:
            return
        info = {"description": "scenes composed by rsc_seg", "version": "1", "year": 2017}
        for split in ("train", "val"):
            head = {"info": info, "licenses": [_LICENCE], "images": self.images[split]}
            for kind, rows in (("instances", self.instances[split]), ("panoptic", self.panoptic[split])):
                document = head | {"annotations": rows, "categories": _categories(kind == "instances")}
                path = self.root / "annotations" / f"{kind}_{split}2017.json"
                path.write_text(json.dumps(document), encoding="utf-8")
