"""The embedded set: labelled scenes composed from packaged photographs and drawn things, in public sets' layouts."""

from rsc_seg.data.scenes.classes import CLASS_TABLE, SCENE_CLASSES, SCENE_PALETTE, SceneClass
from rsc_seg.data.scenes.compose import Scene, SceneObject, compose_scene, scene_seed
from rsc_seg.data.scenes.store import (
    LAYOUT_NAMES,
    SceneSet,
    ensure_scenes,
    layout_root,
    read_manifest,
    verify_scenes,
    write_scenes,
)

__all__ = [
    "CLASS_TABLE",
    "LAYOUT_NAMES",
    "SCENE_CLASSES",
    "SCENE_PALETTE",
    "Scene",
    "SceneClass",
    "SceneObject",
    "SceneSet",
    "compose_scene",
    "ensure_scenes",
    "layout_root",
    "read_manifest",
    "scene_seed",
    "verify_scenes",
    "write_scenes",
]
