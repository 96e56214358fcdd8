"""Boxes, crops and samples for training."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from rsc_seg.config import CropConfig, DataConfig
from rsc_seg.data.crops import CropDataset, sample_boxes
from rsc_seg.data.images import open_images
from rsc_seg.data.sampler import StepLoader, keyed_rng
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
DATA = DataConfig(kind="folder", image_size=[56, 84])
CROPS = CropConfig(size=[28, 28], per_image=3)


def dataset(folder: Path, stage: str = "refine", seed: int = 0, data: DataConfig = DATA, crops: CropConfig = CROPS):
    source = open_images("folder", str(folder), "train")
    return CropDataset(source, data, crops, seed=seed, mean=MEAN, std=STD, patch_size=14, stage=stage)


def raw(x: torch.Tensor) -> torch.Tensor:
    """Back from normalised values to 0..255."""
    return (x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


@pytest.mark.parametrize("mode", ["shared", "per_axis", "area"])
def test_boxes_keep_their_ratio_and_stay_inside(mode):
    boxes = sample_boxes(keyed_rng(0), 4000, ratio=(0.3, 0.7), mode=mode, valid=(300.0, 150.0))
    assert boxes.shape == (4000, 4) and boxes.dtype == torch.float32
    assert (boxes >= 0).all() and (boxes[:, 2] <= 300).all() and (boxes[:, 3] <= 150).all()
    rx, ry = (boxes[:, 2] - boxes[:, 0]) / 300, (boxes[:, 3] - boxes[:, 1]) / 150
    drawn = rx * ry if mode == "area" else rx
    assert drawn.min() > 0.2999 and drawn.max() < 0.7001
    assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.std() - 0.4 / 12**0.5) < 0.005
    assert ((rx - ry).abs() < 1e-5).all() == (mode != "per_axis")
    place = boxes[:, 0] / (300 - 300 * rx)
    assert abs(place.mean() - 0.5) < 0.015 and abs(place.std() - 1 / 12**0.5) < 0.01


def test_more_boxes_begin_with_the_same():
    few = sample_boxes(keyed_rng(7), 2, ratio=(0.3, 0.7), valid=(100.0, 100.0))
    assert torch.equal(few, sample_boxes(keyed_rng(7), 9, ratio=(0.3, 0.7), valid=(100.0, 100.0))[:2])
    whole = sample_boxes(keyed_rng(7), 3, ratio=(1.0, 1.0), valid=(97.0, 55.0))
    assert torch.equal(whole, torch.tensor([[0.0, 0, 97, 55]]).expand(3, 4))


def test_a_sample(folder):
    sample = dataset(folder).sample(0, 2)
    assert sample["image"].shape == (3, 56, 84) and sample["crops"].shape == (3, 3, 28, 28)
    assert sample["boxes"].shape == (3, 4) and sample["bank_ids"].tolist() == [-1, -1, -1]
    assert sample["valid"].tolist() == [0, 0, 75, 56]
    assert (sample["name"], sample["index"], sample["epoch"], sample["skipped"]) == ("2.png", 2, 0, [])
    padding = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.allclose(sample["image"][:, :, 75:], padding.view(3, 1, 1).expand(3, 56, 9))
    assert (sample["boxes"][:, 2] <= 75).all()


def test_crops_show_what_lies_at_the_boxes(folder):
    sample = dataset(folder).sample(0, 2)
    for (x0, y0, x1, y1), crop in zip(sample["boxes"].tolist(), raw(sample["crops"]), strict=True):
        columns = x0 + (torch.arange(28) + 0.5) / 28 * (x1 - x0)
        rows = y0 + (torch.arange(28) + 0.5) / 28 * (y1 - y0)
        assert abs(crop[0, 14] + 0.5 - columns * 160 / 75).max() < 1  # red is the original column
        assert abs(crop[1, :, 14] + 0.5 - rows * 120 / 56).max() < 1
        assert abs(crop[2] - 80).max() < 0.5


def test_samples_depend_on_seed_epoch_and_image_alone(folder):
    first, second = dataset(folder), dataset(folder)
    for epoch, index in ((0, 1), (3, 1), (0, 4)):
        second.sample(5, 0)
        assert torch.equal(first.sample(epoch, index)["boxes"], second.sample(epoch, index)["boxes"])
    boxes = [first.sample(e, i)["boxes"] for e, i in ((0, 1), (1, 1), (0, 2))]
    boxes.append(dataset(folder, seed=1).sample(0, 1)["boxes"])
    assert len({tuple(b.flatten().tolist()) for b in boxes}) == 4
    assert torch.equal(dataset(folder, "distill").sample(0, 1)["boxes"], boxes[0])
    assert "crops" not in dataset(folder, "distill").sample(0, 1)
    assert "crops" in dataset(folder, "all").sample(0, 1)


def test_a_bank_is_drawn_once(folder):
    crops = dataclasses.replace(CROPS, bank=5)
    data = dataset(folder, crops=crops)
    seen: dict[int, list[float]] = {}
    for epoch in range(12):
        sample = data.sample(epoch, 1)
        slots = sample["bank_ids"].tolist()
        assert len(set(slots)) == 3
        for slot, box in zip(slots, sample["boxes"].tolist(), strict=True):
            assert seen.setdefault(slot, box) == box
    assert sorted(seen) == [0, 1, 2, 3, 4] and len({tuple(b) for b in seen.values()}) == 5
    assert data.sample(0, 2)["boxes"].tolist()[0] not in seen.values()


def test_a_flip_mirrors_the_picture_before_boxes_are_drawn(folder):
    plain, mirrored = dataset(folder), dataset(folder, data=dataclasses.replace(DATA, hflip=True))
    flips = 0
    for epoch in range(40):
        a, b = plain.sample(epoch, 3), mirrored.sample(epoch, 3)
        assert torch.equal(a["boxes"], b["boxes"])
        if torch.equal(a["image"], b["image"]):
            assert torch.equal(a["crops"], b["crops"])
            continue
        flips += 1
        assert torch.allclose(a["image"][:, :, :75].flip(2), b["image"][:, :, :75], atol=0.02)
        x0, _, x1, _ = b["boxes"][0].tolist()
        columns = 160 - (x0 + (torch.arange(28) + 0.5) / 28 * (x1 - x0)) * 160 / 75
        assert abs(raw(b["crops"])[0, 0, 14] + 0.5 - columns).max() < 1
    assert 10 < flips < 30


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_give_way_to_the_next(folder, workers, caplog):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 90)).save(folder / "3.png")
    data = dataset(folder)
    with caplog.at_level(logging.WARNING):
        batches = list(StepLoader(data, range(6), batch_size=5, seed=0, workers=workers))
    for batch in batches:
        assert sorted(batch["name"]) == ["0.png", "1.png", "4.png", "4.png", "4.png"]
        assert [f"{i}.png" for i in batch["index"]] == batch["name"]
    assert sorted(data.skipped) == ["2.png", "3.png"]
    assert "2.png: not readable as an image: " in data.skipped["2.png"]
    assert "3.png: the image is 9 x 90 pixels, smaller than a patch (14 x 14)" in data.skipped["3.png"]
    assert len([r for r in caplog.records if "skipped and replaced" in r.getMessage()]) == 2
    fatal = dataset(folder, data=dataclasses.replace(DATA, on_error="fatal"))
    with pytest.raises(ImageError, match=r"[23]\.png: (not readable|the image is)"):
        list(StepLoader(fatal, range(1), batch_size=5, seed=0, workers=workers))


def test_no_readable_image_is_an_error(folder):
    for path in folder.iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"none of the 5 images is readable; the first: .*3\.png"):
        dataset(folder).sample(0, 3)


def test_batches_are_equal_for_any_workers_ranks_and_resumption(folder):
    def run(steps: range, workers: int = 0, **more: int) -> list[dict]:
        data = dataset(folder, crops=dataclasses.replace(CROPS, bank=4), data=dataclasses.replace(DATA, hflip=True))
        return list(StepLoader(data, steps, batch_size=more.pop("batch_size", 4), seed=2, workers=workers, **more))

    straight = run(range(5))
    for other in (run(range(5), workers=2), run(range(3)) + run(range(3, 5), workers=1)):
        for a, b in zip(straight, other, strict=True):
            for key in ("image", "boxes", "crops", "bank_ids", "valid", "index", "epoch"):
                assert torch.equal(a[key], b[key])
    halves = [run(range(5), batch_size=2, world=2, rank=r) for r in (0, 1)]
    for a, b, whole in zip(*halves, straight, strict=True):
        assert torch.equal(torch.cat([a["crops"], b["crops"]]), whole["crops"])


def with_proposals(folder: Path, tmp: Path, boxes: dict[int, list[list[float]]]) -> DataConfig:
    rows = [{"image_id": i, "bbox": box} for i, many in boxes.items() for box in many]
    path = tmp / "boxes.json"
    path.write_text(json.dumps(rows))
    return dataclasses.replace(DATA, proposals=str(path))


def test_proposals_come_first_and_random_boxes_fill_up(folder, tmp_path_factory, caplog):
    tmp = tmp_path_factory.mktemp("proposals")
    given = [[16 * k, 8 * k, 32, 24] for k in range(1, 6)]
    config = with_proposals(folder, tmp, {0: given, 1: given[:1]})
    data = dataset(folder, data=config)
    assert data.without_proposals == 3 and "no box for 3 of 5 images" in caplog.text
    scale = torch.tensor([75 / 160, 56 / 120] * 2)
    allowed = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in given]) * scale
    seen = set()
    for epoch in range(10):
        for box in data.sample(epoch, 0)["boxes"]:
            match = (allowed - box).abs().amax(1) < 1e-4
            assert match.sum() == 1
            seen.add(int(match.nonzero()))
        filled = data.sample(epoch, 1)["boxes"]
        assert torch.allclose(filled[0], allowed[0], atol=1e-4)
        assert torch.equal(filled[1:], dataset(folder).sample(epoch, 1)["boxes"][1:])
        assert torch.equal(data.sample(epoch, 2)["boxes"], dataset(folder).sample(epoch, 2)["boxes"])
    assert seen == {0, 1, 2, 3, 4}


def test_proposals_follow_the_flip_and_are_clipped(folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("proposals")
    config = dataclasses.replace(with_proposals(folder, tmp, {0: [[-1.5, 30, 41.5, 91]]}), hflip=True)
    data = dataset(folder, data=config)
    boxes = {tuple(round(v, 2) for v in data.sample(e, 0)["boxes"][0].tolist()) for e in range(20)}
    assert boxes == {(0, 14, 18.75, 56), (56.25, 14, 75, 56)}


def test_proposals_outside_their_image_are_refused(folder, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("proposals")
    for box in ([-20, 30, 60, 60], [100, 30, 63, 60], [10, 90, 20, 33], [500, 500, 20, 20]):
        config = with_proposals(folder, tmp, {0: [box, [0, 0, 160, 120]]})
        with pytest.raises(
            UserError, match=r"boxes\.json, image '0\.png' \(data\.proposals\): box \[.*\] .* lies outside"
        ):
            dataset(folder, data=config).sample(0, 0)


def test_proposals_of_other_images_are_refused(folder, tmp_path_factory):
    config = with_proposals(folder, tmp_path_factory.mktemp("proposals"), {77: [[1, 1, 20, 20]]})
    with pytest.raises(UserError, match=r"no box for any of the 5 images.* '0\.png'.*for 1 other images"):
        dataset(folder, data=config)


@pytest.mark.parametrize(
    ("data", "crops", "message"),
    [
        ({"image_size": [56, 80]}, {}, r"data\.image_size=\[56, 80\]: .*patch size 14"),
        ({"image_size": [56]}, {}, r"data\.image_size=\[56\]"),
        ({}, {"size": [7, 14]}, r"crops\.size=\[7, 14\]"),
        ({}, {"ratio": [0.7, 0.3]}, r"crops\.ratio=\[0\.7, 0\.3\]"),
        ({}, {"ratio": [0.0, 0.3]}, r"crops\.ratio"),
        ({}, {"ratio_mode": "axis"}, r"crops\.ratio_mode=axis"),
        ({}, {"per_image": 0}, r"crops\.per_image=0"),
        ({}, {"bank": 2}, r"crops\.bank=2: must be 0, or at least crops\.per_image=3"),
        ({"fit": "padd"}, {}, r"data\.fit=padd.*Did you mean 'pad'"),
        ({"on_error": "ignore"}, {}, r"data\.on_error=ignore"),
    ],
)
def test_options_that_do_not_fit(folder, data, crops, message):
    with pytest.raises(UserError, match=message):
        dataset(folder, data=dataclasses.replace(DATA, **data), crops=dataclasses.replace(CROPS, **crops))
