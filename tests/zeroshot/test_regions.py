"""Region classification: against a slow second implementation, streamed, stopped and resumed."""

import dataclasses
import json
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.zeroshot import regions
from rsc_seg.zeroshot.panoptic_regions import PanopticRegions, open_panoptic_regions
from rsc_seg.zeroshot.region_counts import RegionCounts
from rsc_seg.zeroshot.regions import RegionOptions, label_ranks, picture_regions, region_accuracy, region_features
from tests.zeroshot.sample import PICTURES, drawn_segments, write_set
from tests.zeroshot.slow import GRID, SIDE, slow_places, slow_scores

OPTIONS = RegionOptions((SIDE, SIDE), antialias=False)


def as_dict(counts: RegionCounts) -> dict[str, Any]:
    return counts.to_json()


@pytest.mark.parametrize("antialias", [False, True])
def test_every_number_a_second_time_slowly(
    encoder: DenseEncoder, embeddings: Tensor, tmp_path: Path, antialias: bool
) -> None:
    write_set(tmp_path / "four", {number: drawn_segments(number) for number in (0, 1, 3, 4)})
    four = open_panoptic_regions("coco", str(tmp_path / "four"), "val")
    ours = region_accuracy(encoder, embeddings, four, dataclasses.replace(OPTIONS, antialias=antialias)).summary()
    slow = slow_scores(slow_places(tmp_path / "four", encoder, embeddings.double().numpy(), antialias))
    assert ours.keys() == slow.keys()
    for kind, entry in slow.items():
        assert ours[kind] == pytest.approx(entry, abs=1e-9), kind
    assert (
        ours["boxes"]["top1"] > 10 and ours["boxes"]["top5"] > 30
    )  # far from chance, so that the comparison says much
    assert (ours["thing_masks"]["empty"] > 0) == (not antialias)


def test_regions_of_a_picture(source: PanopticRegions) -> None:
    found = picture_regions(source, 4, OPTIONS, (GRID, GRID))
    assert len(found.labels) == 100 and found.left_out == {"small": 0, "large": 0, "beyond": 30, "no_pixels": 0}
    width, height = PICTURES[4]
    first = source.segments[4][0]
    x, y, w, h = first.box
    longest = max(width, height)
    if first.thing:
        torch.testing.assert_close(found.boxes[0], torch.tensor([x, y, x + w, y + h]) / longest)
    assert found.frame.shape == (3, SIDE, SIDE)
    assert bool((found.frame[:, round(height / longest * SIDE) :] == 0).all())
    assert not found.masks[:, 7:].any()  # 260 x 200 pixels: rows from 6.15 tokens on are padding
    stuff = next(k for k, segment in enumerate(source.segments[4][:100]) if not segment.thing)
    side = (found.boxes[stuff, 2:] - found.boxes[stuff, :2]) * longest
    torch.testing.assert_close(side, torch.tensor([19.0, 19.0]))  # 20 pixels: the last one is not included


def test_area_limits_leave_segments_out(source: PanopticRegions) -> None:
    usual = picture_regions(source, 0, OPTIONS, (GRID, GRID))
    assert usual.left_out["small"] >= 1 and usual.left_out["large"] == 1
    wide = dataclasses.replace(OPTIONS, min_area=0, max_area=1e9)
    everything = picture_regions(source, 0, wide, (GRID, GRID))
    assert everything.left_out == dict.fromkeys(everything.left_out, 0)
    assert len(everything.labels) == len(source.segments[0])
    one = picture_regions(source, 0, dataclasses.replace(OPTIONS, per_image=1, min_area=0), (GRID, GRID))
    assert len(one.labels) == 1 and one.left_out["beyond"] == len(source.segments[0]) - 1


def test_mask_rules_differ_in_masks_alone(source: PanopticRegions) -> None:
    plain, smooth = (
        picture_regions(source, 0, dataclasses.replace(OPTIONS, antialias=a), (GRID, GRID)) for a in (False, True)
    )
    assert torch.equal(plain.boxes, smooth.boxes) and torch.equal(plain.labels, smooth.labels)
    assert smooth.masks.sum() > plain.masks.sum()


def test_ranks_of_equal_and_empty() -> None:
    embeddings = torch.eye(3)[[0, 1, 1, 2]]
    features = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.1, 0.9, 0.2], [0.0, 0.0, 0.0]])
    assert label_ranks(features, embeddings, torch.tensor([1, 2, 0, 0])).tolist() == [0, 1, 3, 4]
    blank, many = torch.zeros(133, 3), torch.ones(133, 3)
    ranks = label_ranks(blank, many, torch.arange(133), empty_masks="official")
    first = torch.zeros(133).topk(5).indices
    assert ranks[first].tolist() == [0, 1, 2, 3, 4] and int((ranks == 133).sum()) == 128
    official = label_ranks(features, embeddings, torch.tensor([1, 2, 0, 0]), empty_masks="official")
    assert official.tolist()[:3] == [0, 1, 3] and official[3] < 4  # all four classes are among the first five


def test_a_batch_gives_the_features_of_single_pictures(encoder: DenseEncoder, source: PanopticRegions) -> None:
    pictures = [picture_regions(source, i, OPTIONS, (GRID, GRID)) for i in range(3)]
    singles = [region_features(encoder, [picture]) for picture in pictures]
    for k, together in enumerate(region_features(encoder, pictures)):
        alone = [features[k] for features in singles]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 2), (4, 0), (4, 3)])
def test_batches_and_workers_change_no_count(
    encoder: DenseEncoder, embeddings: Tensor, source: PanopticRegions, batch_size: int, workers: int
) -> None:
    single = region_accuracy(encoder, embeddings, source, OPTIONS)
    options = dataclasses.replace(OPTIONS, batch_size=batch_size, workers=workers)
    assert as_dict(region_accuracy(encoder, embeddings, source, options).counts) == as_dict(single.counts)


def test_embeddings_of_any_length_count_alike(
    encoder: DenseEncoder, embeddings: Tensor, source: PanopticRegions
) -> None:
    long = region_accuracy(encoder, 7 * embeddings, source, OPTIONS)
    assert as_dict(long.counts) == as_dict(region_accuracy(encoder, embeddings, source, OPTIONS).counts)


class Stopped(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, picture: int) -> list[int]:
    """`picture_regions` that fails at this picture; the list gets the numbers of the pictures that were asked for."""
    asked: list[int] = []
    whole = picture_regions

    def failing(source: PanopticRegions, i: int, **rest: Any) -> regions.PictureRegions:
        asked.append(i)
        if i == picture:
            raise Stopped
        return whole(source, i, **rest)

    monkeypatch.setattr(regions, "picture_regions", failing)
    return asked


def test_a_stopped_run_goes_on_with_equal_numbers(
    encoder: DenseEncoder,
    embeddings: Tensor,
    source: PanopticRegions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = dataclasses.replace(OPTIONS, save_every=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            region_accuracy(encoder, embeddings, source, options, state=tmp_path)
    (record,) = tmp_path.iterdir()
    assert json.loads(record.read_text())["counts"]["pictures"] == 4
    asked = stop_at(monkeypatch, -1)
    with caplog.at_level(logging.INFO, "rsc_seg"):
        resumed = region_accuracy(encoder, embeddings, source, options, state=tmp_path)
    assert asked == [4, 5] and "4 of 6 pictures are in" in caplog.text
    whole = region_accuracy(encoder, embeddings, source, options)
    assert as_dict(resumed.counts) == as_dict(whole.counts)
    asked.clear()
    again = region_accuracy(encoder, embeddings, source, options, state=tmp_path)
    assert asked == [] and as_dict(again.counts) == as_dict(whole.counts)


def test_a_record_serves_only_what_it_was_made_of(
    encoder: DenseEncoder, embeddings: Tensor, sample: Path, tmp_path: Path
) -> None:
    two = open_panoptic_regions("coco", str(sample), "val", 2)
    other, _ = build_backbone(BackboneConfig(name="clip_tiny16", weights="none", last_block="full"))

    def records(model: DenseEncoder, vectors: Tensor, source: PanopticRegions, **changes: Any) -> int:
        region_accuracy(model, vectors, source, dataclasses.replace(OPTIONS, **changes), state=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert records(encoder, embeddings, two) == 1
    assert records(encoder, embeddings, two, workers=2, save_every=1) == 1  # these change no number
    assert records(other, embeddings, two) == 2
    assert records(encoder, embeddings.flip(0), two) == 3
    assert records(encoder, embeddings, two, antialias=True) == 4
    assert records(encoder, embeddings, open_panoptic_regions("coco", str(sample), "val", 1)) == 5


def test_a_damaged_record_is_named(
    encoder: DenseEncoder, embeddings: Tensor, source: PanopticRegions, tmp_path: Path
) -> None:
    region_accuracy(encoder, embeddings, source, OPTIONS, state=tmp_path)
    (record,) = tmp_path.iterdir()
    record.write_text(record.read_text()[:50])
    with pytest.raises(UserError, match=f"{record}: not readable as counts so far .* remove it"):
        region_accuracy(encoder, embeddings, source, OPTIONS, state=tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_not_kept(
    encoder: DenseEncoder,
    embeddings: Tensor,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    source = open_panoptic_regions("coco", str(sample), "val", 1)
    for files in (source.images, source.maps):
        files.files = files.files * 30
    source.segments = source.segments * 30
    made: list[weakref.ref[regions.PictureRegions]] = []
    most = 0
    whole = picture_regions

    def tracked(source: PanopticRegions, i: int, **rest: Any) -> regions.PictureRegions:
        nonlocal most
        found = whole(source, i, **rest)
        made.append(weakref.ref(found))
        most = max(most, sum(ref() is not None for ref in made))
        return found

    monkeypatch.setattr(regions, "picture_regions", tracked)
    options = dataclasses.replace(OPTIONS, workers=workers, batch_size=2)
    assert region_accuracy(encoder, embeddings, source, options).counts.pictures == 30
    assert most <= 2 * workers + 1 + 2 * options.batch_size


def test_bad_input(encoder: DenseEncoder, embeddings: Tensor, source: PanopticRegions) -> None:
    with pytest.raises(
        UserError, match=r"\(12, 32\): panoptic_val2017.json has 133 classes .* so \(133, 32\) is needed"
    ):
        region_accuracy(encoder, embeddings[:12], source, OPTIONS)
    dino, _ = build_backbone(BackboneConfig(name="dinov2_tiny14", weights="none"))
    with pytest.raises(UserError, match="dinov2_tiny14 has no text beside it"):
        region_accuracy(dino, embeddings, source, OPTIONS)
    with pytest.raises(UserError, match="needs multiples of 16"):
        region_accuracy(encoder, embeddings, source, dataclasses.replace(OPTIONS, image_size=(120, 120)))
    for change, said in (
        ({"batch_size": 0}, "regions.batch_size=0: must be 1 or more"),
        ({"min_area": 9.0, "max_area": 8.0}, "regions.min_area=9, regions.max_area=8"),
    ):
        with pytest.raises(UserError, match=said):
            region_accuracy(encoder, embeddings, source, dataclasses.replace(OPTIONS, **change))


def test_features_that_are_not_finite_are_refused(embeddings: Tensor, source: PanopticRegions) -> None:
    broken, _ = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    with torch.no_grad():
        broken.trunk.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="clip_tiny16: features are not finite on val2017/000000000001.png"):
        region_accuracy(broken, embeddings, source, OPTIONS)


def test_segments_without_pixels_are_counted_and_named_once(
    encoder: DenseEncoder, embeddings: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = drawn_segments(0)
    thing = {"category_id": 1, "bbox": [0, 0, 50, 50], "area": 1, "iscrowd": 0}
    drawn.info += [thing | {"id": 900 + k} for k in range(8)]
    write_set(tmp_path / "set", {0: drawn})
    source = open_panoptic_regions("coco", str(tmp_path / "set"), "val")
    found = region_accuracy(encoder, embeddings, source, OPTIONS)
    assert found.counts.left_out["no_pixels"] == 8
    assert sum("has no pixel" in line for line in caplog.messages) == 5
    assert "val2017/000000000001.png: segment 900 has no pixel" in caplog.text
    with pytest.raises(
        UserError, match=r"000000000001.png: segment 900 has no pixel here though .*panoptic_val2017.json"
    ):
        region_accuracy(encoder, embeddings, source, dataclasses.replace(OPTIONS, skip_no_pixels=False))


def test_boxes_outside_the_picture_are_counted_and_named_once(
    encoder: DenseEncoder, embeddings: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = drawn_segments(0)
    things = [k for k, info in enumerate(drawn.info) if info["category_id"] <= 90][:7]
    for k in things:
        drawn.info[k]["bbox"] = [5000, 10, 50, 50]
    write_set(tmp_path / "set", {0: drawn})
    source = open_panoptic_regions("coco", str(tmp_path / "set"), "val")
    found = region_accuracy(encoder, embeddings, source, OPTIONS).counts.by_class
    assert int(found["outside_boxes"].sum()) == len(things) > 0
    assert sum("lies outside the picture" in line for line in caplog.messages) == min(len(things), 5)


def test_a_record_of_more_pictures_than_there_are_is_refused(
    encoder: DenseEncoder, embeddings: Tensor, source: PanopticRegions, tmp_path: Path
) -> None:
    region_accuracy(encoder, embeddings, source, OPTIONS, state=tmp_path)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    record["counts"]["pictures"] = len(source) + 1
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"{path}: not readable as counts so far"):
        region_accuracy(encoder, embeddings, source, OPTIONS, state=tmp_path)
