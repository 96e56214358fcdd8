"""The classes of the composed scenes and their ids in each public format."""

from dataclasses import dataclass

RGB = tuple[int, int, int]
VOID = 255


@dataclass(frozen=True)
class SceneClass:
    """One class; `thing` classes have instances.

    Ids: COCO panoptic `category_id`, COCO-Stuff pixel value (0..181), ADE20K pixel value (1..150) and Cityscapes
    labelId, where 0 means that the set has no such class (`unlabeled`).
    """

    name: str
    thing: bool
    color: RGB
    coco_panoptic: int
    coco_stuff: int
    ade20k: int
    cityscapes: int


CLASS_TABLE: tuple[SceneClass, ...] = (
    SceneClass("sky", False, (120, 180, 235), 187, 156, 3, 23),
    SceneClass("building", False, (150, 80, 70), 197, 95, 2, 11),
    SceneClass("wall", False, (205, 170, 125), 199, 172, 1, 12),
    SceneClass("tree", False, (20, 105, 45), 184, 168, 5, 21),
    SceneClass("grass", False, (120, 200, 80), 193, 123, 10, 22),
    SceneClass("road", False, (110, 105, 125), 149, 148, 7, 7),
    SceneClass("water", False, (30, 80, 185), 178, 177, 22, 0),
    SceneClass("flower", False, (240, 90, 190), 119, 118, 67, 0),
    SceneClass("person", True, (225, 30, 60), 1, 0, 13, 24),
    SceneClass("car", True, (0, 15, 140), 3, 2, 21, 26),
    SceneClass("motorcycle", True, (110, 40, 200), 4, 3, 117, 32),
    SceneClass("boat", True, (0, 200, 200), 9, 8, 77, 0),
    SceneClass("cat", True, (250, 160, 30), 17, 16, 127, 0),
    SceneClass("ball", True, (250, 240, 40), 37, 36, 120, 0),
)
SCENE_CLASSES: tuple[str, ...] = tuple(c.name for c in CLASS_TABLE)
SCENE_PALETTE: tuple[RGB, ...] = tuple(c.color for c in CLASS_TABLE)
CLASS_INDEX: dict[str, int] = {name: i for i, name in enumerate(SCENE_CLASSES)}
