"""Scenes on disk as PNG label maps: our plain layout, ADE20K-150 and Cityscapes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rsc_seg.data import vocab
from rsc_seg.data.scenes.classes import CLASS_INDEX, CLASS_TABLE, SCENE_CLASSES, SCENE_PALETTE, VOID
from rsc_seg.data.scenes.compose import Scene
from rsc_seg.data.scenes.outlines import mask_polygons


def _table(values: list[int], void: int) -> np.ndarray:
    table = np.full(256, void, np.uint8)
    table[: len(values)] = values
    return table


class PlainWriter:
    """`{train,val}/images/*.jpg`, `{train,val}/labels/*.png` (0..T-1, 255 void) and `classes.json`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for split in ("train", "val"):
            for kind in ("images", "labels", "instances"):
                (root / split / kind).mkdir(parents=True)

    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write one scene."""
        stem = f"{index:06d}"
        (self.root / split / "images" / f"{stem}.jpg").write_bytes(jpeg)
        Image.fromarray(scene.semantic).save(self.root / split / "labels" / f"{stem}.png")
        Image.fromarray(scene.instances.astype(np.uint16)).save(self.root / split / "instances" / f"{stem}.png")

    def finish(self) -> None:
        """Write the class list."""
        document = {
            "names": list(SCENE_CLASSES),
            "palette": [list(c) for c in SCENE_PALETTE],
            "things": [c.name for c in CLASS_TABLE if c.thing],
            "ignore_index": VOID,
        }
        (self.root / "classes.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


class AdeWriter:
    """`ADEChallengeData2016/{images,annotations}/{training,validation}` and `objectInfo150.txt`; 0 is other."""

    _FOLDERS = {"train": "training", "val": "validation"}

    def __init__(self, root: Path) -> None:
        self.root = root / "ADEChallengeData2016"
        self.pixels = np.zeros(256, np.int64)
        self.pictures = {split: np.zeros(256, np.int64) for split in self._FOLDERS}
        for folder in self._FOLDERS.values():
            (self.root / "images" / folder).mkdir(parents=True)
            (self.root / "annotations" / folder).mkdir(parents=True)

    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write one scene."""
        stem, folder = f"ADE_{split}_{index + 1:08d}", self._FOLDERS[split]
        labels = _table([c.ade20k for c in CLASS_TABLE], 0)[scene.semantic]
        count = np.bincount(labels.ravel(), minlength=256)
        self.pixels += count
        self.pictures[split] += count > 0
        (self.root / "images" / folder / f"{stem}.jpg").write_bytes(jpeg)
        Image.fromarray(labels).save(self.root / "annotations" / folder / f"{stem}.png")

    def finish(self) -> None:
        """Write the class list in the official columns, with the pixel shares and picture counts of these scenes."""
        rows = ["Idx\tRatio\tTrain\tVal\tName"]
        share = self.pixels / max(int(self.pixels.sum()), 1)
        for c in vocab.load("ade20k_150").classes:
            names = ", ".join([c.name, *c.extra["synonyms"]])
            rows.append(
                f"{c.id}\t{share[c.id]:.4f}\t{self.pictures['train'][c.id]}\t{self.pictures['val'][c.id]}\t{names}"
            )
        (self.root / "objectInfo150.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


class CityscapesWriter:
    """`leftImg8bit/` and `gtFine/` with labelIds, instanceIds, color and polygons; classes it lacks are `unlabeled`."""

    _CITIES = {"train": "composed", "val": "arranged"}

    def __init__(self, root: Path) -> None:
        self.root = root
        labels = vocab.load("cityscapes")
        known = [labels.by_id(c.cityscapes) for c in CLASS_TABLE]
        self.names = [c.name for c in known]
        self.label_ids = _table([c.id for c in known], 0)
        self.colors = np.zeros((256, 3), np.uint8)
        for c in labels.classes:
            if c.id >= 0:
                self.colors[c.id] = c.extra["color"]
        self.counted = {c.id for c in labels.classes if c.extra["has_instances"]}
        for split, city in self._CITIES.items():
            (root / "leftImg8bit" / split / city).mkdir(parents=True)
            (root / "gtFine" / split / city).mkdir(parents=True)

    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> None:
        """Write one scene."""
        city = self._CITIES[split]
        stem = f"{city}_{index:06d}_000019"
        scene.image.save(self.root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        labels = self.label_ids[scene.semantic]
        start = str(self.root / "gtFine" / split / city / f"{stem}_gtFine_")
        Image.fromarray(labels).save(start + "labelIds.png")
        Image.fromarray(self._instance_ids(scene, labels)).save(start + "instanceIds.png")
        Image.fromarray(self.colors[labels]).save(start + "color.png")
        Path(start + "polygons.json").write_text(json.dumps(self._polygons(scene)), encoding="utf-8")

    def _instance_ids(self, scene: Scene, labels: np.ndarray) -> np.ndarray:
        """labelId, or labelId * 1000 + k for the k-th thing (from 0) of a class with instances."""
        ids = labels.astype(np.uint16)
        seen: dict[int, int] = {}
        for thing in scene.objects:
            label = int(self.label_ids[CLASS_INDEX[thing.name]])
            if label in self.counted:
                ids[scene.instances == thing.instance] = label * 1000 + seen.get(label, 0)
                seen[label] = seen.get(label, 0) + 1
        return ids

    def _polygons(self, scene: Scene) -> dict[str, object]:
        objects = []
        for k in np.unique(scene.semantic):
            if k != VOID and self.label_ids[k] > 0 and not CLASS_TABLE[k].thing:
                objects += self._objects(int(k), scene.semantic == k)
        for thing in scene.objects:
            k = CLASS_INDEX[thing.name]
            if self.label_ids[k] > 0:
                objects += self._objects(k, scene.instances == thing.instance)
        return {"imgHeight": scene.image.height, "imgWidth": scene.image.width, "objects": objects}

    def _objects(self, k: int, mask: np.ndarray) -> list[dict[str, object]]:
        flat = mask_polygons(mask)
        return [{"label": self.names[k], "polygon": np.reshape(p, (-1, 2)).astype(int).tolist()} for p in flat]

    def finish(self) -> None:
        """Cityscapes has no list of its files: nothing is left to write."""
