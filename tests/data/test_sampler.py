"""Order of images: a function of the step alone, equal for any number of processes and workers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from rsc_seg.data.sampler import StepLoader, collate, keyed_rng, step_indices
from rsc_seg.errors import UserError


class Numbers:
    """Samples that say which they are; image 3 stands for a replaced one, image 50 cannot be used."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.noted: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return self.n

    def sample(self, epoch: int, index: int) -> dict[str, Any]:
        if index == 50:
            raise UserError("50.jpg: broken.")
        skipped = [("3.jpg", "unreadable")] if index == 3 else []
        value = torch.tensor([epoch, index], dtype=torch.float32)
        return {"image": value, "index": index, "name": f"{index}.jpg", "skipped": skipped}

    def note_skipped(self, skipped: list[tuple[str, str]]) -> None:
        self.noted += skipped


def test_keyed_rng_depends_on_every_part_of_the_key():
    assert np.array_equal(keyed_rng("a", 1, 2).random(4), keyed_rng("a", 1, 2).random(4))
    draws = [keyed_rng(*key).random() for key in (("a", 1, 2), ("a", 2, 1), ("a", 12), ("b", 1, 2), ("a", 1, 2, 0))]
    assert len(set(draws)) == 5
    assert keyed_rng("fixed", 0).random() == pytest.approx(0.4446501120652454, abs=1e-15)


def test_an_epoch_shows_every_image_once_and_drops_the_rest():
    n, batch = 23, 5
    epochs = [
        [p for s in range(4 * e, 4 * e + 4) for p in step_indices(s, n=n, batch_size=batch, seed=1)] for e in (0, 1)
    ]
    for number, pairs in enumerate(epochs):
        assert {e for e, _ in pairs} == {number}
        assert len({i for _, i in pairs}) == 20
    assert [i for _, i in epochs[0]] != [i for _, i in epochs[1]]
    assert step_indices(0, n=n, batch_size=batch, seed=1) != step_indices(0, n=n, batch_size=batch, seed=2)


@pytest.mark.parametrize("n", [5, 40])
def test_two_processes_see_the_batches_of_one(n):
    for step in range(12):
        one = step_indices(step, n=n, batch_size=8, seed=0)
        two = [p for rank in (0, 1) for p in step_indices(step, n=n, batch_size=4, world=2, rank=rank, seed=0)]
        assert one == two and len(one) == 8


def test_fewer_images_than_a_batch_follow_each_other():
    pairs = [p for s in range(6) for p in step_indices(s, n=3, batch_size=4, seed=0)]
    assert len(set(pairs)) == 24  # never the same image under the same epoch
    assert Counter(e for e, _ in pairs) == Counter({e: 3 for e in range(8)})
    with pytest.raises(UserError, match="the data set is empty"):
        step_indices(0, n=0, batch_size=4, seed=0)


def loaded(workers: int, steps: range, **more: int) -> list[dict[str, Any]]:
    return list(StepLoader(Numbers(20), steps, batch_size=4, seed=3, workers=workers, **more))


def test_workers_resume_and_ranks_change_nothing():
    straight = loaded(0, range(12))
    assert [b["image"].tolist() for b in straight] == [
        [[float(e), float(i)] for e, i in step_indices(s, n=20, batch_size=4, seed=3)] for s in range(12)
    ]
    for other in (loaded(2, range(12)), loaded(0, range(7)) + loaded(2, range(7, 12))):
        for a, b in zip(straight, other, strict=True):
            assert torch.equal(a["image"], b["image"]) and a["name"] == b["name"]
    left = list(StepLoader(Numbers(20), range(4), batch_size=2, seed=3, world=2, rank=0))
    right = list(StepLoader(Numbers(20), range(4), batch_size=2, seed=3, world=2, rank=1))
    for a, b, whole in zip(left, right, straight, strict=False):
        assert torch.equal(torch.cat([a["image"], b["image"]]), whole["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_replaced_images_reach_the_main_process(workers):
    source = Numbers(20)
    loader = StepLoader(source, range(10), batch_size=4, seed=0, workers=workers)
    assert len(loader) == 10 and len(list(loader)) == 10
    assert source.noted == [("3.jpg", "unreadable")] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_keeps_its_one_line(workers):
    with pytest.raises(UserError) as caught:
        list(StepLoader(Numbers(60), range(15), batch_size=4, seed=0, workers=workers))
    assert str(caught.value) == "50.jpg: broken."


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded(0, range(3))
    assert torch.equal(before, torch.get_rng_state())


def test_collate():
    batch = collate([Numbers(9).sample(0, 1), Numbers(9).sample(0, 3)])
    assert batch["image"].shape == (2, 2) and batch["index"].tolist() == [1, 3]
    assert batch["name"] == ["1.jpg", "3.jpg"] and batch["skipped"] == [("3.jpg", "unreadable")]


def test_impossible_numbers():
    with pytest.raises(UserError, match=r"data\.workers=-1"):
        StepLoader(Numbers(5), range(1), batch_size=4, seed=0, workers=-1)
