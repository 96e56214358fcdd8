"""A set as one run sees it: names, classes, labels, unseen classes, vocabulary files, embedded scenes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsc_seg.config_catseg import CatSegDataConfig
from rsc_seg.data import scenes, scenes_prepared
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.data.scenes_prepared import prepared_scenes
from rsc_seg.data.seg_task import TaskSet, open_task_set
from rsc_seg.data.segsets import SEGSETS, segset
from rsc_seg.errors import UserError
from rsc_seg.seg.model import check_names


def data_config(root: Path, **changes: Any) -> CatSegDataConfig:
    given: dict[str, Any] = {"root": str(root), "train": "voc_20_val", "test": ["voc_20_val"]}
    return CatSegDataConfig(**given | changes)


def opened(root: Path, name: str, training: bool = False, **changes: Any) -> TaskSet:
    return open_task_set(name, data_config(root, **changes), training=training)


def saved(path: Path, values: list[list[int]], kind: type = np.uint8) -> Path:
    Image.fromarray(np.array(values, kind)).save(path)
    return path


@pytest.mark.parametrize("name", [s.name for s in SEGSETS])
def test_every_set_opens_with_names_that_the_model_takes(name: str, tmp_path: Path) -> None:
    task, found = opened(tmp_path, name), segset(name)
    check_names(task.names)
    assert task.names == tuple(found.class_names()) and task.classes == found.label_count
    assert len(class_sentences(task.names, open_prompts("single"))) == len(task.names)
    assert len(task.class_names) == len(task.palette) == len(task.unseen) == task.classes and not any(task.unseen)
    assert task.ignore == (65535 if task.classes > 255 else 255)
    assert task.table[: task.classes].tolist() == list(range(task.classes))
    assert task.table[found.ignore_label] == task.ignore
    assert (task.key, task.root) == (name, tmp_path)


def test_labels_of_all_widths(tmp_path: Path) -> None:
    context = opened(tmp_path, "pascal_context_459_val")
    wide = context.labels(saved(tmp_path / "a.tif", [[0, 458, 459]], np.uint16))
    assert wide.tolist() == [[0, 458, 65535]] and wide.dtype == np.int32
    voc = opened(tmp_path, "voc_20_val")
    assert voc.labels(saved(tmp_path / "a.png", [[0, 19, 255]])).tolist() == [[0, 19, 255]]


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("voc_20_val", 20, np.uint8, r"label 20 at pixel \(1, 0\) is neither below 20 nor 255"),
        ("voc_20b_val", 21, np.uint8, r"label 21 .* neither below 21 nor 255"),
        ("pascal_context_459_val", 460, np.uint16, r"label 460 .* neither below 459 nor 459"),
        ("ade20k_847_val", 847, np.uint16, r"label 847 .* neither below 847 nor 65535"),
        ("pascal_context_59_val", 254, np.uint8, r"label 254 .* run tools/prepare_data.py pascal_context_59 again"),
    ],
)
def test_a_label_out_of_range_is_an_error_with_file_and_value(
    name: str, value: int, kind: type, message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.png", [[0, value]], kind)
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        opened(tmp_path, name).labels(path)


def test_kept_classes_are_counted_anew_and_others_are_ignored(tmp_path: Path) -> None:
    task = opened(tmp_path, "voc_20_val", classes=["cat", "aeroplane", "boat"])
    assert task.names == task.class_names == ("aeroplane", "boat", "cat") and task.classes == 3
    found = task.labels(saved(tmp_path / "a.png", [[0, 1, 3, 7, 19, 255]]))
    assert found.tolist() == [[0, 255, 1, 2, 255, 255]]
    whole = opened(tmp_path, "voc_20_val")
    assert task.palette == (whole.palette[0], whole.palette[3], whole.palette[7])


def test_few_of_847_classes_fit_into_a_byte(tmp_path: Path) -> None:
    task = opened(tmp_path, "ade20k_847_val", classes=["sky", "building"])
    assert task.names == ("building, edifice", "sky") and task.ignore == 255
    assert task.labels(saved(tmp_path / "a.tif", [[0, 1, 2, 65535]], np.uint16)).tolist() == [[255, 0, 1, 255]]
    with pytest.raises(
        UserError, match="data.classes: 'pipe' is 2 classes of ade20k_847_val: pipe, pipage, piping; pipe, tube; write"
    ):
        opened(tmp_path, "ade20k_847_val", classes=["pipe"])


def test_held_out_classes_leave_training_and_are_marked_in_evaluation(tmp_path: Path) -> None:
    given = {"classes": ["cat", "dog", "boat", "bird"], "held_out": ["dog", "bird"]}
    train = opened(tmp_path, "voc_20_val", training=True, **given)
    test = opened(tmp_path, "voc_20_val", **given)
    path = saved(tmp_path / "a.png", [[2, 3, 7, 11, 0]])
    assert train.names == ("boat", "cat") and train.labels(path).tolist() == [[255, 0, 1, 255, 255]]
    assert not any(train.unseen)
    assert test.names == ("bird", "boat", "cat", "dog") and test.labels(path).tolist() == [[0, 1, 2, 3, 255]]
    assert test.unseen == (True, False, False, True)


def test_a_test_set_of_other_names_need_not_have_the_held_out_ones(tmp_path: Path) -> None:
    other = opened(tmp_path, "pascal_context_59_val", held_out=["cat", "tvmonitor", "pottedplant"])
    assert [n for n, new in zip(other.names, other.unseen, strict=True) if new] == ["cat", "pottedplant", "tvmonitor"]
    assert not any(opened(tmp_path, "cityscapes_val", held_out=["cat"]).unseen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["cat", "aeroplan"]},
            "data.classes: 'aeroplan' is no class of voc_20_val. Did you mean 'aeroplane'",
        ),
        ({"classes": ["cat", "dog", "cat"]}, "data.classes: 'cat' stands there twice; remove one"),
        ({"held_out": ["caat"]}, "data.held_out: 'caat' is no class of voc_20_val. Did you mean 'cat'"),
        ({"held_out": ["cat"], "classes": ["dog"]}, "data.held_out: 'cat' is not among data.classes"),
    ],
)
def test_names_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    for training in (True, False):
        with pytest.raises(UserError, match=message):
            opened(tmp_path, "voc_20_val", training=training, **changes)


def test_something_must_be_left_to_train_on(tmp_path: Path) -> None:
    given = {"classes": ["cat", "dog"], "held_out": ["cat", "dog"]}
    with pytest.raises(UserError, match="data.held_out: holds out every class"):
        opened(tmp_path, "voc_20_val", training=True, **given)
    assert opened(tmp_path, "voc_20_val", **given).unseen == (True, True)


def test_sets_for_evaluation_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.train=voc_20b_val: its background has 39 names; evaluate only"):
        opened(tmp_path, "voc_20b_val", training=True)
    with pytest.raises(UserError, match="data.train=ade20k_847_val: 847 classes; training takes 255 at most"):
        opened(tmp_path, "ade20k_847_val", training=True)


def test_background_of_many_names(tmp_path: Path) -> None:
    task = opened(tmp_path, "voc_20b_val")
    assert (task.background_from, task.class_names[-2:]) == (20, ("tvmonitor", "background"))
    few = opened(tmp_path, "voc_20b_val", classes=["sky", "cat", "dog", "grass"], held_out=["dog", "sky"])
    assert few.names[:2] == ("cat", "dog") and set(few.names[2:]) == {"grass", "sky"}
    assert (few.classes, few.background_from, few.class_names) == (3, 2, ("cat", "dog", "background"))
    assert few.unseen == (False, True, False)  # one of the background's names was seen
    assert few.labels(saved(tmp_path / "a.png", [[7, 11, 20, 0, 255]])).tolist() == [[0, 1, 2, 255, 255]]
    alone = opened(tmp_path, "voc_20b_val", classes=["cat"])
    assert (alone.classes, alone.background_from, alone.class_names) == (1, None, ("cat",))
    assert alone.labels(tmp_path / "a.png").tolist() == [[0, 255, 255, 255, 255]]


def written(path: Path, names: list[str]) -> str:
    path.write_text(json.dumps(names), encoding="utf-8")
    return str(path)


def test_a_vocabulary_file_renames_the_classes_in_order(tmp_path: Path) -> None:
    names = segset("voc_20_val").class_names()
    names[0], names[7] = "airplane, jet", "kitten"
    file = written(tmp_path / "names.json", names)
    train = opened(tmp_path, "voc_20_val", training=True, vocabulary=file)
    assert train.names == tuple(names) and opened(tmp_path, "voc_20_val", vocabulary=file).names[7] == "cat"
    kept = opened(tmp_path, "voc_20_val", test_vocabulary=file, classes=["kitten", "airplane", "dog"], held_out=["cat"])
    assert kept.names == ("airplane, jet", "kitten", "dog") and kept.unseen == (False, True, False)
    with pytest.raises(UserError, match="data.classes: 'kitten' and 'cat' are the same class"):
        opened(tmp_path, "voc_20_val", test_vocabulary=file, classes=["cat", "kitten"])


def test_vocabulary_files_that_do_not_fit(tmp_path: Path) -> None:
    file = written(tmp_path / "names.json", ["cat", "dog"])
    with pytest.raises(UserError, match=rf"{file}: 2 class names \(data.vocabulary\), but voc_20_val takes 20"):
        opened(tmp_path, "voc_20_val", training=True, vocabulary=file)
    with pytest.raises(UserError, match=r"data.test_vocabulary\), but voc_20b_val takes 59"):
        opened(tmp_path, "voc_20b_val", test=["voc_20b_val"], test_vocabulary=file)
    with pytest.raises(UserError, match=r"data.test_vocabulary=.*: names the classes of one set, but data.test has 2"):
        opened(tmp_path, "voc_20_val", test=["voc_20_val", "voc_20b_val"], test_vocabulary=file)
    twice = written(tmp_path / "twice.json", ["cat", "dog", "Cat"])
    with pytest.raises(UserError, match=f"{twice}: classes 1 and 3 are both 'Cat'"):
        opened(tmp_path, "voc_20_val", training=True, vocabulary=twice)


def test_sets_and_roots_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set 'voc20': must be one of .*scenes_train.* Did you mean 'voc_20_val'"):
        opened(tmp_path, "voc20")
    with pytest.raises(UserError, match=r"data.root is not set: give the folder above VOCdevkit/VOC2012/"):
        open_task_set("voc_20_val", CatSegDataConfig(), training=False)
    with pytest.raises(UserError, match=r"nowhere: no such folder \(data.root\)"):
        opened(tmp_path / "nowhere", "scenes_val")


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = scenes.SceneSet(train=2, val=1, size=(96, 64), layouts=("plain", "ade20k"))
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set", wanted)


def files_of(root: Path, folder: str) -> dict[str, bytes]:
    base = root / "ADEChallengeData2016" / folder
    return {p.relative_to(base).as_posix(): p.read_bytes() for p in sorted(base.rglob("*")) if p.is_file()}


def test_embedded_scenes_are_those_of_the_ade20k_layout_and_prepared(composed: Path) -> None:
    made = prepared_scenes(composed / "plain")
    assert files_of(made, "images") == files_of(composed / "ade20k", "images") and len(files_of(made, "images")) == 3
    for split, folder in (("train", "training"), ("val", "validation")):
        for image, labels in segset(f"scenes_{split}").pairs(made):
            raw = Image.open(composed / "ade20k" / "ADEChallengeData2016" / "annotations" / folder / labels.name)
            # 0 (other) becomes 255, all others move down by one
            assert np.array_equal(np.asarray(Image.open(labels)), np.asarray(raw) - np.uint8(1))
            assert image.stem == labels.stem
    assert not [p for p in made.parent.iterdir() if p.name.startswith(".")]


def test_prepared_scenes_are_kept_and_made_anew_when_damaged(composed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = composed / "plain"
    made = prepared_scenes(plain)
    image, labels = segset("scenes_val").pairs(made)[0]
    with monkeypatch.context() as patch:
        patch.setattr(scenes_prepared, "make_recipe", lambda *_, **__: pytest.fail("made again"))
        assert prepared_scenes(plain) == made
    labels.write_bytes(labels.read_bytes()[:40])
    assert prepared_scenes(plain) == made and len(labels.read_bytes()) > 40
    image.unlink()
    assert prepared_scenes(plain) == made and image.is_file()
    with monkeypatch.context() as patch:
        shutil.rmtree(made)
        patch.setattr(scenes_prepared, "prepare_split", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(UserError, match=r"the prepared scenes were not written \(No space left\)"):
            prepared_scenes(plain)
    assert list(made.parent.iterdir()) == []


def test_scenes_open_from_the_cache_and_from_a_root(composed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "ensure_scenes", lambda: composed / "plain")
    names = [c.name for c in scenes.CLASS_TABLE]
    data = CatSegDataConfig(train="scenes_train", test=["scenes_val"], classes=["sky", "tree", "animal", "minibike"])
    task = open_task_set("scenes_train", data, training=True)
    assert task.names == ("sky", "tree", "minibike", "animal") and len(task.pairs()) == 2 and len(names) == 14
    image, labels = task.load(*task.pairs()[0])
    assert image.shape == (64, 96, 3) and set(np.unique(labels)) <= {0, 1, 2, 3, 255}
    data.root = str(composed)
    with pytest.raises(UserError, match=rf"prepare_data.py ade20k_150 --root {composed}/ade20k --subset"):
        open_task_set("scenes_val", data, training=False).pairs()
    data.root = str(task.root)
    assert len(open_task_set("scenes_val", data, training=False).pairs()) == 1
