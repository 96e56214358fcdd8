import time

import numpy as np
import pytest

from rsc_seg.data.scenes import CLASS_TABLE, SCENE_CLASSES, Scene, compose_scene, scene_seed
from rsc_seg.data.scenes.canvas import Canvas
from rsc_seg.data.scenes.compose import LEAST_AREA
from rsc_seg.data.scenes.sprite import Sprite
from rsc_seg.data.scenes.textures import _CROPS
from rsc_seg.errors import UserError

COUNT = 24


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    size = 240, 180
    return {s: [compose_scene(scene_seed(0, s, i), size, s) for i in range(COUNT)] for s in ("train", "val")}


def test_labels_are_complete_and_agree(scenes: dict[str, list[Scene]]) -> None:
    thing = np.zeros(256, bool)
    thing[: len(CLASS_TABLE)] = [c.thing for c in CLASS_TABLE]
    for scene in scenes["train"] + scenes["val"]:
        assert scene.image.mode == "RGB" and scene.image.size == (240, 180)
        assert scene.semantic.shape == scene.instances.shape == (180, 240)
        assert scene.semantic.dtype == np.uint8 and scene.instances.dtype == np.int32
        assert set(np.unique(scene.semantic)) <= {*range(len(SCENE_CLASSES)), 255}
        assert (thing[scene.semantic] == (scene.instances > 0)).all()
        numbers = [o.instance for o in scene.objects]
        assert numbers == list(range(1, len(numbers) + 1)) == [n for n in np.unique(scene.instances).tolist() if n > 0]


def test_objects_describe_their_visible_pixels(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["train"]:
        for o in scene.objects:
            mask = scene.instances == o.instance
            rows, cols = np.nonzero(mask)
            assert o.area == mask.sum() >= LEAST_AREA
            assert list(o.bbox) == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert {SCENE_CLASSES[k] for k in np.unique(scene.semantic[mask])} == {o.name}


def test_scenes_are_varied(scenes: dict[str, list[Scene]]) -> None:
    for split in ("train", "val"):
        assert len({s.layout for s in scenes[split]}) == 5
        labels = np.stack([s.semantic for s in scenes[split]])
        pictures = [(labels == k).any((1, 2)).sum() for k in range(len(SCENE_CLASSES))]
        assert min(pictures) >= 2, dict(zip(SCENE_CLASSES, pictures, strict=True))
        assert max((labels == k).mean() for k in range(len(SCENE_CLASSES))) < 0.4
        assert (labels == 255).mean() < 0.05
        assert np.mean([len(s.objects) for s in scenes[split]]) > 2.5


def test_classes_overlap_in_colour(scenes: dict[str, list[Scene]]) -> None:
    """Naming a pixel by the nearest mean colour of a class fails for most pixels."""
    rgb = np.concatenate([np.asarray(s.image, np.float32).reshape(-1, 3) for s in scenes["train"]])
    labels = np.concatenate([s.semantic.ravel() for s in scenes["train"]])
    means = np.stack([rgb[labels == k].mean(0) for k in range(len(SCENE_CLASSES))])
    test = np.concatenate([np.asarray(s.image, np.float32).reshape(-1, 3)[::37] for s in scenes["val"]])
    truth = np.concatenate([s.semantic.ravel()[::37] for s in scenes["val"]])
    guess = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guess == truth)[truth < 255].mean() < 0.4


def test_same_seed_same_scene_and_other_seeds_differ() -> None:
    a, b = compose_scene(7, (160, 120)), compose_scene(7, (160, 120))
    assert a.image.tobytes() == b.image.tobytes() and (a.instances == b.instances).all() and a.objects == b.objects
    assert compose_scene(8, (160, 120)).image.tobytes() != a.image.tobytes()
    assert compose_scene(7, (160, 120), "val").image.tobytes() != a.image.tobytes()


def test_seeds_of_splits_are_disjoint() -> None:
    seeds = [scene_seed(s, split, i) for s in range(3) for split in ("train", "val") for i in (0, 1, 999_999)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(UserError, match="at most"):
        scene_seed(0, "train", 1_000_000)


def test_textures_of_the_splits_share_no_pixel() -> None:
    for kind in {k for k, _ in _CROPS}:
        for photo, (x0, y0, x1, y1) in _CROPS[kind, "train"]:
            for other, (u0, v0, u1, v1) in _CROPS[kind, "val"]:
                assert photo != other or min(x1, u1) <= max(x0, u0) or min(y1, v1) <= max(y0, v0)


def test_painting_order_decides_and_half_covered_pixels_count() -> None:
    rng = np.random.default_rng(0)
    canvas = Canvas.empty(rng, "train", height=20, width=30, horizon=5, eye=2)
    canvas.fill(np.ones((20, 30), bool), np.zeros(3, np.float32), "grass")
    alpha = np.ones((6, 8), np.float32)
    alpha[0], alpha[1] = 0.49, 0.5
    canvas.paste(Sprite(np.ones((6, 8, 3), np.float32), alpha), 10, 15, "cat", shadow=0.5)
    canvas.paste(Sprite(np.full((4, 4, 3), 0.5, np.float32), np.ones((4, 4), np.float32)), 14, 15, "car")
    canvas.paste(Sprite(np.full((3, 3, 3), 0.5, np.float32), np.ones((3, 3), np.float32)), 8, 15, None)
    cat, car = canvas.instances == 1, canvas.instances == 2
    assert car.sum() == 16 and cat.sum() == 8 * 5 - 2 * 4 - 9
    assert not cat[9].any() and cat[10].any() and (canvas.semantic == 255).sum() == 9
    assert np.allclose(canvas.rgb[9, 8], 0.49, atol=0.01)


@pytest.mark.parametrize("size", [(64, 64), (333, 77), (96, 260)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(6):
        scene = compose_scene(seed, size)
        assert scene.image.size == size and scene.semantic.shape == size[::-1]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="size 32x480"):
        compose_scene(0, (32, 480))
    with pytest.raises(UserError, match="split 'test': must be one of train, val"):
        compose_scene(0, split="test")


def test_fast() -> None:
    compose_scene(0)
    start = time.process_time()
    for seed in range(5):
        compose_scene(seed)
    assert (time.process_time() - start) / 5 < 0.6  # 0.15 s on one idle core
