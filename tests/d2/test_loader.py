"""The stream of training batches and the pass over a test set."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import build
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from PIL import Image

from rsc_seg.d2 import loader as loaders
from rsc_seg.d2.loader import train_loader
from rsc_seg.data.seg_task import open_task_set
from rsc_seg.data.segsets import segset
from rsc_seg.errors import UserError
from tests.d2.sets import fields, open_both, options, write_set

Batches = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def steps(root: Path, count: int, start: int = 0, **changes: Any) -> Batches:
    data = options(root, **changes)
    return list(itertools.islice(train_loader(open_both(data)[0], data, batch_size=3, seed=7, start=start), count))


def equal(first: Batches, second: Batches) -> bool:
    same = [
        a["file_name"] == b["file_name"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["sem_seg"], b["sem_seg"])
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    return bool(same) and all(same)


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    for module in (comm, build):
        monkeypatch.setattr(module, "get_world_size", lambda: world)


def test_the_stream_is_detectron2s_a_permutation_for_each_pass(root: Path) -> None:
    batches = steps(root, 7)  # 3 passes over 7 images
    names = [Path(name).stem for batch in fields(batches, "file_name") for name in batch]
    stream = itertools.islice(TrainingSampler(7, seed=7), 21)
    assert names == [f"train{i}" for i in stream]
    assert all(sorted(names[k : k + 7]) == [f"train{i}" for i in range(7)] for k in (0, 7, 14))
    assert names[:7] != names[7:14]


def test_two_passes_show_other_views(root: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for sample in itertools.chain.from_iterable(steps(root, 7)):
        seen.setdefault(sample["file_name"], []).append(sample["image"])
    assert all(len(views) == 3 and not torch.equal(views[0], views[1]) for views in seen.values())


def test_going_on_from_a_step_gives_the_batches_of_a_run_that_never_stopped(root: Path) -> None:
    assert equal(steps(root, 6)[4:], steps(root, 2, start=4))


def test_workers_change_nothing(root: Path) -> None:
    alone = steps(root, 5, start=1)
    assert equal(alone, steps(root, 5, start=1, workers=1)) and equal(alone, steps(root, 5, start=1, workers=2))


def test_two_processes_share_the_batches_of_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = options(root)
    task = open_both(data)[0]
    whole = list(itertools.islice(train_loader(task, data, batch_size=4, seed=7, start=1), 3))
    shares: list[Batches] = []
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        shares.append(list(itertools.islice(train_loader(task, data, batch_size=4, seed=7, start=1), 3)))
    woven = [[s for pair in zip(a, b, strict=True) for s in pair] for a, b in zip(*shares, strict=True)]
    assert equal(whole, woven)
    with pytest.raises(UserError, match="solver.batch_size=3: must be a multiple of the number of processes, 2"):
        train_loader(task, data, batch_size=3, seed=7, start=0)


def test_the_global_random_state_is_left_alone(root: Path) -> None:
    data = options(root)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    steps(root, 2)
    list(loaders.test_loader(open_both(data)[1], data))
    assert torch.equal(before, torch.get_rng_state())


def test_limits_keep_the_first_images(root: Path) -> None:
    names = {name for batch in fields(steps(root, 4, limit=2), "file_name") for name in batch}
    assert {Path(name).stem for name in names} == {"train0", "train1"}
    data = options(root, test_limit=3)
    found = fields(list(loaders.test_loader(open_both(data)[1], data)), "file_name")
    assert [[Path(name).stem for name in batch] for batch in found] == [["val0"], ["val1"], ["val2"]]
    with pytest.raises(UserError, match="data.limit=0: must be 1 or more"):
        steps(root, 1, limit=0)
    with pytest.raises(UserError, match="data.test_limit=-1: must be 1 or more"):
        loaders.test_loader(open_both(data)[1], options(root, test_limit=-1))


def test_each_process_tests_its_share_in_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, shares = options(root), []
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        found = fields(list(loaders.test_loader(open_both(data)[1], data, batch_size=2)), "file_name")
        shares.append([[Path(name).stem for name in batch] for batch in found])
    assert shares == [[["val0", "val1"], ["val2"]], [["val3", "val4"]]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_error_that_names_it(workers: int, tmp_path: Path) -> None:
    write_set(tmp_path, train=2, val=2)
    data = options(tmp_path, workers=workers)
    train, test = open_both(data)
    for path in (train.pairs()[1][0], test.pairs()[1][0]):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^\S+/train1.jpg: not readable as an image: no known image format\.$"):
        list(itertools.islice(train_loader(train, data, batch_size=1, seed=0), 2))
    with pytest.raises(UserError, match=r"^\S+/val1.jpg: not readable as an image: no known image format\.$"):
        list(loaders.test_loader(test, data))


def test_missing_pairs_and_workers_below_zero_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, train=2, val=1)
    data = options(tmp_path)
    train, test = open_both(data)
    train.pairs()[0][0].unlink()
    with pytest.raises(UserError, match=r"train0.jpg: no such image; 1 of 2 labels"):
        train_loader(train, data, batch_size=1, seed=0)
    test.pairs()[0][1].unlink()
    with pytest.raises(UserError, match=r"no prepared labels of Embedded scenes \(val\) .* --subset"):
        loaders.test_loader(test, data)
    with pytest.raises(UserError, match="data.workers=-1"):
        train_loader(train, options(tmp_path, workers=-1), batch_size=1, seed=0)


def test_sixteen_bit_labels_come_through(tmp_path: Path) -> None:
    found = segset("ade20k_847_val")
    base = tmp_path / found.bases[0]
    for folder in (found.images[0], found.labels):
        (base / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(base / found.images[0] / "a.jpg")
    values = torch.full((6, 8), 846, dtype=torch.uint16)
    values[0] = 65535
    Image.fromarray(values.numpy()).save(base / found.labels / "a.tif")
    data = options(tmp_path, classes=[], test=["ade20k_847_val"])
    task = open_task_set(data.test[0], data, training=False)
    sample = next(iter(loaders.test_loader(task, data)))[0]
    assert task.ignore == 65535 and sample["sem_seg"].unique().tolist() == [846, 65535]
