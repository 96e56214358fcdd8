"""Stage 2's batches with the regions of region-language alignment, from pictures and from webdataset shards."""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from rsc_seg.cache_dir import cache_dir
from rsc_seg.config import BackboneConfig, OptimConfig, RscvConfig, load_config
from rsc_seg.data.images import open_images
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.stream import RscvData, frozen_copy
from rsc_seg.training.batch import Batch
from rsc_seg.training.fit import FitOptions, fit
from rsc_seg.training.log import RunLog
from rsc_seg.training.optim import total_steps
from rsc_seg.training.rla import RlaTask
from tests.training.helpers import (
    distill_task,
    furthest,
    groups,
    optim,
    refiner_task,
    tiny_encoder,
    tiny_refiner,
    values,
    write_pictures,
)

OPTIM = OptimConfig(batch_size=2)
TOTAL = 5
IMAGES = 7


def shards(root: Path, bad: tuple[int, ...] = ()) -> Path:
    """Seven pictures with captions in two tar files, as CC3M lies there; those in `bad` are damaged."""
    pictures = write_pictures(root / "pictures", IMAGES)
    (root / "shards").mkdir()
    for shard, numbers in enumerate((range(4), range(4, IMAGES))):
        with tarfile.open(root / "shards" / f"cc3m-{shard:04d}.tar", "w") as tar:
            for i in numbers:
                image = (pictures / f"{i:02d}.png").read_bytes()
                members = {f"{i:09d}.png": image[: len(image) // 2] if i in bad else image}
                members |= {f"{i:09d}.txt": b"a caption", f"{i:09d}.json": b"{}"}
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root / "shards"


def make(root: Path, *changes: str, folder: Path | None = None, encoder: DenseEncoder | None = None) -> RscvData:
    """The data of an SC-CLIPSelf run over shards or pictures."""
    given = [f"data.root={root}", "data.workers=0", "data.image_size=[56,84]", "objective=sc-clipself"]
    given += ["backbone.name=dinov2_tiny14", "crops.size=[28,28]", "crops.per_image=2", "distill.boxes=3"]
    given += ["rla.per_image=5", "rla.crop_size=[28,28]", "cache.mode=off", "refiner.hidden=32"]
    config = load_config(RscvConfig, None, [*given, *changes])
    source = open_images("auto", str(root), "train")
    fabric = Fabric(accelerator="cpu", devices=1)
    return RscvData(config, source, encoder or tiny_encoder(), fabric, folder or root.parent / "run")


def batches(data: RscvData, start: int = 0, total: int = TOTAL, **more: Any) -> list[Batch]:
    task = distill_task(data.encoder, None, data.config.distill)
    return list(data.distill_batches(task, OPTIM, total, **more)(start))


def tensors(batch: Batch) -> list[torch.Tensor]:
    regions = batch.regions
    assert regions is not None and regions.crops is not None
    return [batch.pictures, batch.boxes, regions.boxes, regions.valid, regions.crops]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert [x.names for x in a] == [y.names for y in b]
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(tensors(x), tensors(y), strict=True))


def test_batches_of_shards_hold_regions_of_grids(tmp_path: Path) -> None:
    found = batches(make(shards(tmp_path)))
    assert len(found) == TOTAL
    for batch in found:
        assert batch.names[0].startswith("cc3m-000") and batch.boxes.shape == (2, 3, 4)
        regions = batch.regions
        assert regions is not None and regions.nouns is None and regions.crops is not None
        assert regions.boxes.shape == (2, 5, 4) and regions.crops.shape == (2, 5, 3, 28, 28)
        assert regions.valid.any(dim=1).all() and regions.crops[regions.valid].std() > 0.1


def test_shards_and_pictures_give_the_same_batches(tmp_path: Path) -> None:
    a, b = batches(make(shards(tmp_path))), batches(make(tmp_path / "pictures"))
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(s, t) for s, t in zip(tensors(x), tensors(y), strict=True))


@pytest.mark.parametrize("changes", [(), ("data.workers=2",), ("data.hflip=true",)])
def test_shards_from_a_step_on_are_the_tail_of_all(tmp_path: Path, changes: tuple[str, ...]) -> None:
    data = make(shards(tmp_path), *changes)
    assert_equal(batches(data)[3:], batches(data, start=3))


def test_an_epoch_of_shards_counts_by_samples(tmp_path: Path) -> None:
    data = make(shards(tmp_path))
    steps = total_steps(OptimConfig(batch_size=2, epochs=4), len(data.source), 1)
    assert steps == 4 * (IMAGES // 2)
    seen = [Counter(name for b in batches(data, 3 * e, 3 * e + 3) for name in b.names) for e in range(4)]
    assert all(max(epoch.values()) == 1 and sum(epoch.values()) == 6 for epoch in seen)  # the seventh has no partner
    assert len(set().union(*seen)) == IMAGES


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_of_shards_are_counted_and_named(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = make(shards(tmp_path, bad=(1, 5)), f"data.workers={workers}")
    with caplog.at_level(logging.WARNING):
        found = batches(data, total=9)
    names = {name for b in found for name in b.names}
    assert names == {f"cc3m-000{int(i > 3)}.tar/{i:09d}.png" for i in (0, 2, 3, 4, 6)}
    skipped = {name for b in found for name, _ in b.skipped}
    assert skipped == {"cc3m-0000.tar/000000001.png", "cc3m-0001.tar/000000005.png"}
    logged = [r.getMessage() for r in caplog.records if "skipped and replaced" in r.getMessage()]
    assert len(logged) == 2 and "(2 so far)" in logged[1]
    assert any("cc3m-0001.tar/000000005.png: not readable as an image" in line for line in logged)


def test_a_run_on_shards_resumes_exactly(tmp_path: Path) -> None:
    """CLIPSelf with grid boxes: a run broken off at its fourth step equals an unbroken one, over two epochs."""
    root = shards(tmp_path, bad=(2,))

    def run(folder: Path, until: int | None = None, resume: bool = False) -> dict[str, torch.Tensor]:
        encoder, _ = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        given = ["objective=clipself", "backbone.name=clip_tiny16", "data.image_size=[48,64]", "crops.size=[32,32]"]
        data = make(root, *given, "rla.crop_size=[32,32]", folder=folder, encoder=encoder)
        torch.manual_seed(until or 99)  # no step may depend on the global state
        task = RlaTask(frozen_copy(encoder), encoder, data.config.rla, "clipself")
        config = optim(lr=1e-3)
        options = FitOptions("distill", 7, config, log_every=1, save_every=3, resume=resume)
        whole = data.distill_batches(None, config, 7)

        def stream(start: int) -> Iterator[Batch]:
            for i, batch in enumerate(whole(start)):
                if i == until:
                    raise KeyboardInterrupt
                yield batch

        kept = {"groups": groups(task, config), "options": options, "folder": folder, "log": RunLog(folder)}
        fit(data.fabric, task, batches=stream, **kept)
        return values(task.student)

    straight = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", until=4)
    assert furthest(run(tmp_path / "b", resume=True), straight) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(7))


def test_stage_1_and_controls_have_no_regions(tmp_path: Path) -> None:
    data = make(write_pictures(tmp_path / "pictures", 5))
    refiner = refiner_task(data.encoder).refiner
    assert all(b.regions is None for b in data.refine_batches(refiner, OPTIM, 2)(0))
    assert all(b.regions is None for b in batches(data, with_regions=False))
    plain = make(tmp_path / "pictures", "objective=rscv")
    assert all(b.regions is None for b in batches(plain))
    own, same = batches(plain), batches(data)  # RLA leaves the distillation's own boxes alone
    assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(own, same, strict=True))


def test_end_to_end_batches_have_both_crops_and_regions(tmp_path: Path) -> None:
    data = make(write_pictures(tmp_path / "pictures", 5))
    batch = batches(data, with_crops=True)[0]
    assert batch.crops is not None and batch.crops.shape == (2, 2, 3, 28, 28)
    assert batch.regions is not None and batch.regions.crops is not None


def test_without_a_crop_size_the_crops_have_the_encoders_native_one(tmp_path: Path) -> None:
    data = make(write_pictures(tmp_path / "pictures", 5), "rla.crop_size=[]", "rla.per_image=1")
    regions = batches(data, total=1)[0].regions
    assert regions is not None and regions.crops is not None and regions.crops.shape[-2:] == (518, 518)


def names_in(data: RscvData) -> set[str]:
    return {p.name.split("-")[0] for p in data.root.iterdir()} if data.root.exists() else set()


def test_the_distillation_can_take_the_regions_boxes_and_then_caches_no_targets(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 5)
    shared = ["cache.mode=on", "crops.bank=4", "distill.boxes_from=rla"]
    data = make(root, *shared)
    for batch in batches(data):
        assert batch.regions is not None and batch.region_tokens is None and batch.boxes.shape == (2, 3, 4)
        for boxes, own, valid in zip(batch.boxes, batch.regions.boxes, batch.regions.valid, strict=True):
            kept = own[valid]
            assert torch.allclose(boxes, kept[torch.arange(3) % len(kept)], atol=0.5)
    assert names_in(data) == set()
    whole = make(root, *shared, "distill.regions=global", folder=tmp_path / "whole")
    assert all(b.whole_tokens is not None for b in batches(whole)) and names_in(whole) == {"regions"}
    own = make(root, "cache.mode=on", "crops.bank=4", folder=tmp_path / "own")
    assert all(b.region_tokens is not None for b in batches(own))


def test_targets_that_train_along_are_not_cached(tmp_path: Path) -> None:
    data = make(write_pictures(tmp_path / "pictures", 5), "cache.mode=on", "crops.bank=4", "distill.loss=densecl")
    task = distill_task(data.encoder, tiny_refiner(data.encoder))
    task.config = data.config.distill
    assert data.region_cache(task) is None and names_in(data) == set()


def labels(path: Path, boxes: dict[str, int]) -> str:
    images = [{"id": i, "file_name": name} for i, name in enumerate(boxes)]
    rows = [{"image_id": i, "bbox": [5, 5, 30, 20], "category_id": noun} for i, noun in enumerate(boxes.values())]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return str(path)


def test_regiontext_trains_on_labelled_images_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = labels(tmp_path / "labels.json", {"000000001.png": 4, "000000006.png": 79, "other.png": 0})
    root = shards(tmp_path)
    with caplog.at_level(logging.WARNING):
        data = make(root, "objective=r-sc-regiontext", f"rla.pseudo_labels={file}")
    assert "labels.json: no box for 5 of 7 images: left out." in caplog.text and len(data.source) == 2
    for batch in batches(data):
        regions = batch.regions
        assert regions is not None and regions.crops is None and regions.nouns is not None
        assert sorted(batch.names) == ["cc3m-0000.tar/000000001.png", "cc3m-0001.tar/000000006.png"]
        assert sorted(regions.nouns[:, 0].tolist()) == [4, 79] and regions.valid.sum(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"01.png": 80}, r"category id 80 is beyond the 80 nouns of COCO's things"),
        ({"other.png": 0}, r"no box for any of the 5 images, for example '00\.png' \(rla\.pseudo_labels\)"),
    ],
)
def test_bad_labels_are_refused_before_any_step(tmp_path: Path, boxes: dict[str, int], message: str) -> None:
    root = write_pictures(tmp_path / "pictures", 5)
    with pytest.raises(UserError, match=message):
        make(root, "objective=regiontext", f"rla.pseudo_labels={labels(tmp_path / 'labels.json', boxes)}")


def test_labels_are_made_where_none_are_given(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pictures", 5)
    nouns = tmp_path / "nouns.txt"
    nouns.write_text("cat\ndog\nthe sky\n")
    encoder, _ = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    given = ["objective=regiontext", "backbone.name=clip_tiny16", "backbone.weights=none", "data.image_size=[48,64]"]
    given += ["crops.size=[32,32]", "rla.crop_size=[32,32]", f"rla.nouns={nouns}"]
    data = make(root, *given, encoder=encoder)
    made = list((cache_dir() / "pseudo_labels").glob("*.json"))
    assert len(made) == 1 and len(data.source) == 5
    batch = next(data.distill_batches(None, OPTIM, 1)(0))
    assert batch.regions is not None and batch.regions.nouns is not None
    assert set(batch.regions.nouns[batch.regions.valid].tolist()) <= {0, 1, 2}
    before = made[0].stat().st_mtime_ns
    make(root, *given, "run.log_every=3", encoder=encoder)
    assert [p.stat().st_mtime_ns for p in (cache_dir() / "pseudo_labels").glob("*.json")] == [before]
    make(root, *given, "rla.boxes=random", encoder=encoder)
    assert len(list((cache_dir() / "pseudo_labels").glob("*.json"))) == 2
