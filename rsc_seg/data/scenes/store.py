"""Scenes on disk: written once, whole or not at all, and found again by their manifest."""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rsc_seg.cache_dir import cache_dir
from rsc_seg.data.scenes.compose import (
    DEFAULT_SIZE,
    SEEDS_PER_SPLIT,
    SPLITS,
    Scene,
    check_size,
    compose_scene,
    scene_seed,
)
from rsc_seg.data.scenes.write_coco import CocoWriter
from rsc_seg.data.scenes.write_masks import AdeWriter, CityscapesWriter, PlainWriter
from rsc_seg.errors import UserError, suggestion

log = logging.getLogger(__name__)

VERSION = 1  # of the drawing and of the layouts: a change makes other scenes, so old folders no longer fit
MANIFEST = "scenes.json"
LAYOUT_NAMES = ("plain", "coco", "cocostuff", "ade20k", "cityscapes")
_OWN_FOLDER = {"plain": "plain", "coco": "coco", "cocostuff": "coco", "ade20k": "ade20k", "cityscapes": "cityscapes"}


@dataclass(frozen=True)
class SceneSet:
    """What to write: numbers of scenes, (width, height) and layouts of `LAYOUT_NAMES`."""

    seed: int = 0
    train: int = 96
    val: int = 48
    size: tuple[int, int] = DEFAULT_SIZE
    layouts: tuple[str, ...] = ("plain",)

    def check(self) -> None:
        """Raises UserError naming the option that cannot be used."""
        check_size(self.size)
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must be 0 or more.")
        for name, count in (("train", self.train), ("val", self.val)):
            if not 1 <= count <= SEEDS_PER_SPLIT // 2:
                raise UserError(f"{name} {count}: must be from 1 to {SEEDS_PER_SPLIT // 2} scenes.")
        if not self.layouts:
            raise UserError(f"layouts: name at least one of {', '.join(LAYOUT_NAMES)}.")
        for name in self.layouts:
            if name not in LAYOUT_NAMES:
                known = ", ".join(LAYOUT_NAMES)
                raise UserError(f"layout '{name}': must be one of {known}.{suggestion(name, LAYOUT_NAMES)}")

    def manifest(self) -> dict[str, Any]:
        """The settings as the manifest holds them."""
        layouts = [name for name in LAYOUT_NAMES if name in self.layouts]
        return {"version": VERSION, **asdict(self), "size": list(self.size), "layouts": layouts}

    def folder_name(self) -> str:
        """A name that tells sets apart in the cache."""
        text = json.dumps(self.manifest(), sort_keys=True)
        return f"v{VERSION}_seed{self.seed}_{self.train}+{self.val}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Writer(Protocol):
    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> None: ...

    def finish(self) -> None: ...


def _writers(root: Path, layouts: tuple[str, ...]) -> list[_Writer]:
    found: list[_Writer] = []
    if "plain" in layouts:
        found.append(PlainWriter(root / "plain"))
    if "coco" in layouts or "cocostuff" in layouts:
        found.append(CocoWriter(root / "coco", coco="coco" in layouts, stuff="cocostuff" in layouts))
    if "ade20k" in layouts:
        found.append(AdeWriter(root / "ade20k"))
    if "cityscapes" in layouts:
        found.append(CityscapesWriter(root / "cityscapes"))
    return found


def _digest(root: Path) -> dict[str, Any]:
    """Number and bytes of all files but the manifest, and the sha256 of their names and sha256 sums."""
    total, size, count = hashlib.sha256(), 0, 0
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST):
        data = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(data).hexdigest()}\n".encode())
        size, count = size + len(data), count + 1
    return {"files": count, "bytes": size, "sha256": total.hexdigest()}


def read_manifest(root: Path) -> dict[str, Any] | None:
    """The manifest of a complete folder of scenes; None when there is none or when files are missing or cut off."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        files = [p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST]
        whole = len(files) == manifest["files"] and sum(p.stat().st_size for p in files) == manifest["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None


def verify_scenes(root: Path) -> bool:
    """Whether every byte is as it was written."""
    manifest = read_manifest(root)
    return manifest is not None and _digest(root)["sha256"] == manifest["sha256"]


def _fits(manifest: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return manifest is not None and all(manifest.get(k) == v for k, v in wanted.items())


def write_scenes(root: Path, wanted: SceneSet) -> Path:
    """Compose and write the set into `root`, which must not exist or be empty; returns `root`.

    Everything goes into a hidden folder beside it first, so that an interrupted or failed run leaves `root` as it was.
    Raises UserError when `root` holds something else or cannot be written.
    """
    wanted.check()
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: exists and is not an empty folder; choose another one or remove it.")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as e:
        raise UserError(f"{root}: cannot be written: {e.strerror or e}.") from e
    try:
        _write_all(part, wanted)
        part.chmod(0o755)
        _move(part, root, wanted)
    except OSError as e:
        raise UserError(f"{root}: writing the scenes failed: {e.strerror or e}; nothing was left there.") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _write_all(root: Path, wanted: SceneSet) -> None:
    writers = _writers(root, wanted.layouts)
    log.info("Composing %d + %d scenes of %d x %d pixels.", wanted.train, wanted.val, *wanted.size)
    for split, count in zip(SPLITS, (wanted.train, wanted.val), strict=True):
        for index in range(count):
            scene = compose_scene(scene_seed(wanted.seed, split, index), wanted.size, split)
            data = io.BytesIO()
            scene.image.save(data, "JPEG", quality=95, subsampling=0)
            for writer in writers:
                writer.add(split, index, scene, data.getvalue())
    for writer in writers:
        writer.finish()
    manifest = wanted.manifest() | _digest(root)
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _move(part: Path, root: Path, wanted: SceneSet) -> None:
    try:
        os.replace(part, root)  # an empty folder is replaced, a full one is not
    except OSError:
        if not _fits(read_manifest(root), wanted.manifest()):  # another process may have been faster with the same set
            raise


def ensure_scenes(
    root: Path | str | None = None,
    seed: int | None = None,
    train: int | None = None,
    val: int | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """The embedded set in the plain layout: a folder with `classes.json`, `train/` and `val/`, composed when not there.

    None means the default of `SceneSet`, or whatever a given `root` holds. Without `root` the set lies in the cache
    folder, one folder for each setting, and a damaged one is written anew. A given `root` is used as it is when it
    holds complete scenes of the settings that are given, or (none given) a `classes.json` of the plain layout; when it
    is missing or empty, scenes are written there; anything else raises UserError.
    """
    given = {k: v for k, v in (("seed", seed), ("train", train), ("val", val), ("size", size)) if v is not None}
    wanted = SceneSet(**given)  # type: ignore[arg-type]
    wanted.check()
    if root is None:
        folder = cache_dir() / "scenes" / wanted.folder_name()
        if not _fits(read_manifest(folder), wanted.manifest()):
            shutil.rmtree(folder, ignore_errors=True)
            write_scenes(folder, wanted)
        return folder / "plain"
    folder = Path(root)
    manifest = read_manifest(folder)
    if _fits(manifest, {"version": VERSION} | {k: v for k, v in wanted.manifest().items() if k in given}):
        if not (folder / "plain").is_dir():
            raise UserError(f"{folder}: holds scenes without the layout plain; make them with --layouts plain,...")
        return folder / "plain"
    if not given and (folder / "classes.json").is_file():
        return folder
    if (folder / MANIFEST).exists():
        raise UserError(
            f"{folder}: its scenes are incomplete or of other settings; choose another folder or remove it."
        )
    return write_scenes(folder, wanted) / "plain"


def layout_root(root: Path, layout: str) -> Path:
    """The folder below `root` that a loader of this layout takes as its data root."""
    return root / _OWN_FOLDER[layout]
