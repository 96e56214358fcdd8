"""Batches from caches equal batches from pictures; caches are keyed by all that they depend on."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from rsc_seg.config import DistillStageConfig, OptimConfig, RscvConfig, load_config
from rsc_seg.data.images import open_images
from rsc_seg.data.storage import ImageError
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.stream import RscvData, frozen_copy
from rsc_seg.training.batch import Batch
from tests.training.helpers import (
    distill_task,
    furthest,
    refiner_task,
    tiny_encoder,
    tiny_refiner,
    values,
    write_pictures,
)

OPTIM = OptimConfig(batch_size=2)
TOTAL = 5


def make(folder: Path, *changes: str, encoder: DenseEncoder | None = None) -> RscvData:
    """The data of a run over the pictures in folder/pictures."""
    pictures = folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures, 5)
    given = [f"data.root={pictures}", "data.kind=folder", "data.workers=0", "data.image_size=[56,84]"]
    given += ["crops.size=[28,28]", "crops.per_image=2", "crops.bank=6", "distill.boxes=3", "refiner.hidden=32"]
    config = load_config(RscvConfig, None, [*given, *changes])
    source = open_images("folder", str(pictures), "train")
    fabric = Fabric(accelerator="cpu", devices=1)
    return RscvData(config, source, encoder or tiny_encoder(), fabric, folder / "run")


def stage_1(data: RscvData, start: int = 0) -> list[Batch]:
    return list(data.refine_batches(tiny_refiner(data.encoder), OPTIM, TOTAL)(start))


def stage_2(data: RscvData, *, with_refiner: bool = True, **more: Any) -> list[Batch]:
    refiner = tiny_refiner(data.encoder, noise=0.1) if with_refiner else None
    task = distill_task(data.encoder, refiner, data.config.distill)
    return list(data.distill_batches(task, OPTIM, TOTAL, **more)(0))


def folders(data: RscvData) -> set[str]:
    return {p.name for p in data.root.iterdir()} if data.root.exists() else set()


def assert_same_images(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b) == TOTAL
    for x, y in zip(a, b, strict=True):
        assert x.names == y.names and torch.equal(x.boxes, y.boxes)


def test_stage_1_from_caches_equals_stage_1_from_pictures(tmp_path: Path) -> None:
    cached, plain = make(tmp_path, "cache.mode=on"), make(tmp_path, "cache.mode=off")
    a, b = stage_1(cached), stage_1(plain)
    assert_same_images(a, b)
    assert a[0].images is None and a[0].crops is None and b[0].early is None and b[0].crop_tokens is None
    assert len(folders(cached)) == 2
    task = refiner_task(cached.encoder)
    for x, y in zip(a, b, strict=True):
        assert float(task(x)["loss"].detach()) == pytest.approx(float(task(y)["loss"].detach()), abs=1e-5)


def test_stage_2_from_caches_equals_stage_2_from_pictures(tmp_path: Path) -> None:
    for with_refiner in (True, False):
        cached, plain = make(tmp_path, "cache.mode=on"), make(tmp_path, "cache.mode=off")
        a, b = (stage_2(data, with_refiner=with_refiner) for data in (cached, plain))
        assert_same_images(a, b)
        refiner = tiny_refiner(cached.encoder, noise=0.1) if with_refiner else None
        task = distill_task(cached.encoder, refiner)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.pictures, y.pictures) and x.region_tokens is not None and y.region_tokens is None
            assert x.region_tokens.shape == (6, 4, 64)
            assert float(task(x)["loss"].detach()) == pytest.approx(float(task(y)["loss"].detach()), abs=1e-5)
    assert len(folders(cached)) == 2  # the Refiner's targets and the teacher's


def test_without_a_bank_only_the_early_features_are_cached(tmp_path: Path) -> None:
    cached = make(tmp_path, "cache.mode=on", "crops.bank=0")
    plain = make(tmp_path, "cache.mode=off", "crops.bank=0")
    a, b = stage_1(cached), stage_1(plain)
    assert_same_images(a, b)
    assert {name.split("-")[0] for name in folders(cached)} == {"early"}
    assert a[0].crops is not None and a[0].crop_tokens is None and a[0].images is None
    task = refiner_task(cached.encoder)
    for x, y in zip(a, b, strict=True):
        assert float(task(x)["loss"].detach()) == pytest.approx(float(task(y)["loss"].detach()), abs=1e-5)
    assert all(x.early is not None and x.region_tokens is None for x in stage_2(cached))
    assert {name.split("-")[0] for name in folders(cached)} == {"early"}


@pytest.mark.parametrize("mode", ["on", "off"])
def test_batches_from_a_step_on_are_the_tail_of_all(tmp_path: Path, mode: str) -> None:
    data = make(tmp_path, f"cache.mode={mode}")
    whole, tail = stage_1(data), stage_1(data, start=3)
    assert [b.names for b in tail] == [b.names for b in whole[3:]]
    assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(tail, whole[3:], strict=True))


@pytest.mark.parametrize("bank", [0, 6])
def test_unreadable_image_is_replaced_alike_with_and_without_caches(tmp_path: Path, bank: int) -> None:
    write_pictures(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / "02.png").write_bytes(b"not a picture")
    cached, plain = (make(tmp_path, f"cache.mode={m}", f"crops.bank={bank}") for m in ("on", "off"))
    a, b = stage_1(cached), stage_1(plain)
    assert_same_images(a, b)
    assert "02.png" not in {name for batch in a for name in batch.names}
    task = refiner_task(cached.encoder)
    for x, y in zip(a, b, strict=True):
        assert float(task(x)["loss"].detach()) == pytest.approx(float(task(y)["loss"].detach()), abs=1e-5)
    second = stage_2(cached), stage_2(plain)
    assert_same_images(*second)


def test_unreadable_image_is_fatal_by_option(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 5)
    (tmp_path / "pictures" / "02.png").write_bytes(b"not a picture")
    for mode in ("on", "off"):
        with pytest.raises(ImageError, match=r"02\.png"):
            stage_1(make(tmp_path, f"cache.mode={mode}", "data.on_error=fatal"))
    assert not list((tmp_path / "run" / "cache").glob("*"))


def test_half_precision_is_near_and_keeps_boxes(tmp_path: Path) -> None:
    half, plain = make(tmp_path, "cache.mode=on", "cache.dtype=float16"), make(tmp_path, "cache.mode=off")
    a, b = stage_1(half), stage_1(plain)
    assert_same_images(a, b)
    task = refiner_task(half.encoder)
    assert float(task(a[0])["loss"].detach()) == pytest.approx(float(task(b[0])["loss"].detach()), abs=1e-2)


def test_caches_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stage_1(make(tmp_path, "cache.mode=on"))

    def never(self: DenseEncoder, *args: Any, **more: Any) -> None:
        raise AssertionError("features are cached")

    monkeypatch.setattr(DenseEncoder, "embed", never)
    again = stage_1(make(tmp_path, "cache.mode=on", "data.workers=2", "run.log_every=3"))
    assert_same_images(first, again)


def other_weights() -> DenseEncoder:
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.trunk.blocks[0].norm1.bias[0] += 1e-4
    return encoder


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ((), 0),
        (("crops.size=[14,14]",), 1),
        (("crops.ratio=[0.3,0.6]",), 1),
        (("crops.positions=shared",), 1),
        (("run.seed=1",), 1),
        (("data.image_size=[84,84]",), 2),
        (("data.fit=squash",), 2),
        (("cache.dtype=float16",), 2),
        (("run.precision=bf16-mixed",), 2),
    ],
)
def test_caches_follow_the_configuration(tmp_path: Path, changes: tuple[str, ...], new: int) -> None:
    def fill(data: RscvData) -> set[str]:
        data.early_cache(tiny_refiner(data.encoder))
        data.crop_cache()
        return folders(data)

    before = fill(make(tmp_path, "cache.mode=on"))
    assert len(before) == 2
    assert len(fill(make(tmp_path, "cache.mode=on", *changes)) - before) == new


def test_caches_follow_weights_and_pictures(tmp_path: Path) -> None:
    def fill(data: RscvData) -> set[str]:
        data.early_cache(tiny_refiner(data.encoder))
        data.region_cache(distill_task(data.encoder))
        return folders(data)

    before = fill(make(tmp_path, "cache.mode=on"))
    tuned = fill(make(tmp_path, "cache.mode=on", encoder=other_weights()))
    assert len(before) == 2 and len(tuned) == 4
    Image.new("RGB", (90, 60), "red").save(tmp_path / "pictures" / "03.png")
    assert len(fill(make(tmp_path, "cache.mode=on"))) == 6
    write_pictures(tmp_path / "pictures", 6)
    assert len(fill(make(tmp_path, "cache.mode=on"))) == 8


def test_region_cache_follows_the_refiner(tmp_path: Path) -> None:
    data = make(tmp_path, "cache.mode=on")
    for noise in (0.0, 0.1, 0.1):
        data.region_cache(distill_task(data.encoder, tiny_refiner(data.encoder, noise=noise)))
    assert len(folders(data)) == 2


@pytest.mark.parametrize(
    "changes", [("cache.mode=auto", "data.hflip=true"), ("cache.mode=auto", "cache.max_gb=1e-6"), ("cache.mode=off",)]
)
def test_no_cache_where_none_belongs(tmp_path: Path, changes: tuple[str, ...]) -> None:
    data = make(tmp_path, *changes)
    first, second = stage_1(data), stage_2(data)
    assert folders(data) == set()
    assert first[0].images is not None and second[0].region_tokens is None


@pytest.mark.parametrize("kind", ["local", "global", "both"])
def test_cached_targets_of_every_kind_give_the_same_loss(tmp_path: Path, kind: str) -> None:
    losses = []
    for mode in ("on", "off"):
        data = make(tmp_path, f"cache.mode={mode}", f"distill.regions={kind}")
        refiner = tiny_refiner(data.encoder, noise=0.1)
        task = distill_task(data.encoder, refiner, data.config.distill)
        batch = next(data.distill_batches(task, data.config.distill.optim, 2)(0))
        assert (batch.whole_tokens is not None) == (mode == "on" and kind != "local")
        losses.append(float(task(batch)["loss"].detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_no_targets_are_cached_that_change(tmp_path: Path) -> None:
    data = make(tmp_path, "cache.mode=on")
    assert data.region_cache(distill_task(data.encoder, None, DistillStageConfig(end_to_end=True))) is None
    swapped = make(tmp_path, "cache.mode=on", "refine.align.direction=l2g")
    assert all(b.images is not None and b.crops is not None for b in stage_1(swapped))
    assert folders(data) == set()


def test_end_to_end_batches_hold_what_both_stages_need(tmp_path: Path) -> None:
    data = make(tmp_path, "cache.mode=off", "distill.end_to_end=true")
    batch = stage_2(data, with_crops=True)[0]
    assert batch.crops is not None and batch.images is not None
    assert batch.crops.shape[:2] == batch.boxes.shape[:2]


def test_full_disk_while_caching_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = make(tmp_path, "cache.mode=on", f"cache.dir={tmp_path / 'file'}")
    with pytest.raises(UserError, match="feature cache not written"):
        stage_1(data)


def test_unknown_choices_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cache\.mode=often"):
        make(tmp_path, "cache.mode=often")
    with pytest.raises(UserError, match=r"cache\.dtype=bf16"):
        make(tmp_path, "cache.dtype=bf16")


def test_too_large_a_cache_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rsc_seg.pipelines.stream"):
        make(tmp_path, "cache.max_gb=1e-6").early_cache(tiny_refiner(tiny_encoder()))
    assert "cache.max_gb=1e-06" in caplog.text


@pytest.mark.parametrize(("change", "named"), [("data.hflip=true", r"data\.hflip"), ("run.nodes=2", r"run\.nodes=2")])
def test_cache_that_cannot_be_had_is_refused(tmp_path: Path, change: str, named: str) -> None:
    with pytest.raises(UserError, match=rf"cache\.mode=on: .*{named}"):
        make(tmp_path, "cache.mode=on", change)
    assert make(tmp_path, "cache.mode=auto", change).early_cache(tiny_refiner(tiny_encoder())) is None


def test_pictures_are_read_once_for_all_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path, "cache.mode=on")
    calls, fingerprint = [], data.source.fingerprint
    monkeypatch.setattr(data.source, "fingerprint", lambda: calls.append(1) or fingerprint())
    stage_1(data)
    stage_2(data)
    assert len(calls) == 1 and len(folders(data)) == 3


def test_batches_say_where_the_padding_is(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 5, size=(60, 120))
    for mode in ("on", "off"):
        data = make(tmp_path, f"cache.mode={mode}", "distill.regions=global")
        for batch in stage_2(data):
            assert batch.valid is not None and batch.valid.tolist() == [[0, 0, 84, 42]] * 2
        losses = [
            float(
                distill_task(data.encoder, tiny_refiner(data.encoder, noise=0.1), data.config.distill)(b)[
                    "loss"
                ].detach()
            )
            for b in stage_2(data)
        ]
        if mode == "on":
            cached = losses
    assert cached == pytest.approx(losses, abs=1e-5)


def test_frozen_copy_is_independent() -> None:
    encoder = tiny_encoder()
    copy = frozen_copy(encoder)
    assert furthest(values(encoder), values(copy)) == 0
    with torch.no_grad():
        copy.trunk.pos_embed.add_(1)
    assert furthest(values(encoder), values(copy)) == 1
    assert not any(p.requires_grad for p in copy.parameters()) and not copy.training


def test_streams_are_lazy(tmp_path: Path) -> None:
    data = make(tmp_path, "cache.mode=off")
    batches: Iterator[Batch] = data.refine_batches(tiny_refiner(data.encoder), OPTIM, 10**6)(0)
    assert len(list(islice(batches, 2))) == 2
