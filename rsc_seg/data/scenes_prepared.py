"""The embedded scenes in ADE20K's layout, prepared for Cat-Seg: made once in the cache, whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image

from rsc_seg.cache_dir import cache_dir
from rsc_seg.data.prepare_run import prepare_split
from rsc_seg.data.prepare_sources import make_recipe
from rsc_seg.data.segmentation import read_ids
from rsc_seg.data.segsets import SCENE_SETS, SegSet
from rsc_seg.errors import UserError

_MARKER = "prepared.json"  # written last: number and bytes of all files


def _extent(folder: Path) -> dict[str, int]:
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != _MARKER]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _MARKER).read_text(encoding="utf-8")) == _extent(folder))
    except (OSError, ValueError):
        return False


def _write_split(plain: Path, root: Path, segset: SegSet, ids: np.ndarray) -> None:
    """Images as they are and labels as ADE20K's ids, under the names that the layout `ade20k` gives them."""
    images, labels = (root / segset.bases[0] / place[0] for place in (segset.images, segset.raw))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for source in sorted((plain / segset.split / "images").glob("*.jpg")):
        stem = f"ADE_{segset.split}_{int(source.stem) + 1:08d}"
        shutil.copyfile(source, images / f"{stem}.jpg")
        values = plain / segset.split / "labels" / f"{source.stem}.png"
        Image.fromarray(ids[read_ids(values.read_bytes(), str(values))]).save(labels / f"{stem}.png")


def prepared_scenes(plain: Optional[Path] = None) -> Path:
    """A folder with ADEChallengeData2016/ for the sets `scenes_train` and `scenes_val`, ready to be read.

    Made of the scenes in the plain layout (`ensure_scenes()`, which composes them when they are not there; another set
    by `plain`) and kept in the cache; a damaged one is made anew. Raises UserError when the system refuses to write.
    """
    from rsc_seg.data import scenes  # composes pictures: needs the packages of the extra `demo`

    plain = scenes.ensure_scenes() if plain is None else plain
    folder = cache_dir() / "scenes_ade20k" / plain.parent.name
    if _is_whole(folder):
        return folder
    ids = np.zeros(256, np.uint8)  # 0 is other
    ids[: len(scenes.CLASS_TABLE)] = [c.ade20k for c in scenes.CLASS_TABLE]
    part: Optional[Path] = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for segset in SCENE_SETS:
            _write_split(plain, part, segset, ids)
            prepare_split(make_recipe(segset, part, subset=True))
        (part / _MARKER).write_text(json.dumps(_extent(part)), encoding="utf-8")
        if not _is_whole(folder):  # another process may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            _move(part, folder)
    except OSError as e:
        raise UserError(f"{folder}: the prepared scenes were not written ({e.strerror or e}); free space.") from e
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _move(part: Path, folder: Path) -> None:
    part.chmod(0o755)
    try:
        os.replace(part, folder)
    except OSError:
        if not _is_whole(folder):
            raise


def scenes_root(root: Optional[Path]) -> Path:
    """Where the scenes are read from: the cache, or `root` or its folder `ade20k`, whichever has the layout."""
    if root is None:
        return prepared_scenes()
    inner = root / "ade20k"
    return inner if (inner / SCENE_SETS[0].bases[0]).is_dir() else root
