"""Context aggregation against a slow second implementation on four pictures; draws, store, scores, what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rsc_seg.data.segmentation import LabelledSet, open_labelled
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.probe.affinity import affinity_probe
from rsc_seg.probe.features import LabelCache, LabelledTokens, extract_tokens
from rsc_seg.probe.kmeans import kmeans_probe
from rsc_seg.probe.linear import linear_probe
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.zeroshot import aggregate_store
from rsc_seg.zeroshot.aggregate import AggregateOptions, aggregated, canvases, draw_contexts, target_frame
from rsc_seg.zeroshot.aggregate_store import Subject, TokenStore, distances, fill_store, scores_at
from tests.zeroshot.slow_context import encoded, slow_contexts, slow_mean, squashed, unit, write_pictures

OPTIONS = AggregateOptions((32, 48), (64, 80), numbers=(0, 1, 3), seed=5, batch_size=2)
NAMES = [f"train/images/{i:02d}.png" for i in range(4)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_pictures(tmp_path_factory.mktemp("aggregate") / "set")
    return write_pictures(root, split="train", first=4)


@pytest.fixture(scope="module")
def sets(root: Path) -> tuple[LabelledSet, LabelledSet]:
    return open_labelled("plain", str(root), "train"), open_labelled("plain", str(root), "val")


def settings(encoder: DenseEncoder) -> ProbeSettings:
    return ProbeSettings(
        image_size=OPTIONS.target,
        mean=encoder.mean,
        std=encoder.std,
        score_scale=1.0,
        linear_seeds=1,
        linear_epochs=2,
        linear_steps=20,
        kmeans_seeds=1,
    )


def store_in(folder: Path, encoder: DenseEncoder, options: AggregateOptions = OPTIONS) -> TokenStore:
    return TokenStore(folder, 4, (2, 3), encoder.out_dim, options)


def slow_maps(encoder: DenseEncoder, root: Path, split: str) -> list[list[np.ndarray]]:
    """For every picture and each of the numbers (0, 1, 3) the features (h, w, E)."""
    found = []
    for i in range(4):
        name = f"{split}/images/{i:02d}.png"
        target = squashed(root / name, OPTIONS.target)
        draws = slow_contexts(OPTIONS.seed, name, 3, NAMES, (3, 3))
        contexts = [(squashed(root / NAMES[c], OPTIONS.canvas), row, column) for c, row, column in draws]
        means = [slow_mean(lambda x: encoded(encoder, x), target, contexts[:n], 16) for n in (1, 3)]
        found.append([encoded(encoder, target), *means])
    return found


def test_equals_the_slow_one(
    encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], root: Path, tmp_path: Path
) -> None:
    train, val = (store_in(tmp_path / split, encoder) for split in ("train", "val"))
    subject = Subject("untuned", encoder.dense, encoder)
    for data, store in zip(sets, (train, val), strict=True):
        fill_store(subject, data, sets[0], store, OPTIONS)
    slow = {split: slow_maps(encoder, root, split) for split in ("train", "val")}
    for split, store in (("train", train), ("val", val)):
        for i in range(4):
            for place in range(3):
                wanted = slow[split][i][place].reshape(6, -1)
                np.testing.assert_allclose(store.tokens(i, place).numpy(), wanted, rtol=0, atol=2e-5)
    tokens = np.array(slow["val"]).reshape(4, 3, 6, -1)
    length = np.linalg.norm(tokens[:, 2], axis=-1).mean()
    gaps = [np.linalg.norm(tokens[:, place] - tokens[:, 2], axis=-1).mean() / length for place in range(3)]
    assert distances(val) == pytest.approx(gaps, rel=1e-3, abs=1e-9) and gaps[0] > gaps[1] > gaps[2] == 0
    labels = (LabelCache(sets[0], 1.0), LabelCache(sets[1], 1.0))
    for place in range(3):
        found = scores_at(
            train, val, place, labels=labels, settings=settings(encoder), measures=aggregate_store.MEASURES
        )
        both = [
            LabelledTokens(dataclasses.replace(s.features(0), tokens=_stacked(slow[split], place)), cache.at((2, 3)))
            for split, s, cache in zip(("train", "val"), (train, val), labels, strict=True)
        ]
        assert found["linear_miou"] == pytest.approx(linear_probe(*both, settings(encoder))["miou"]["mean"], abs=0.1)
        assert found["kmeans_miou"] == pytest.approx(kmeans_probe(*both, 5, settings(encoder))["miou"]["mean"], abs=0.1)
        assert found["affinity_ap"] == pytest.approx(affinity_probe(both[1])["ap"]["all"], abs=0.05)
        assert found["affinity_ap"] == pytest.approx(_slow_affinity(root, slow["val"], place), abs=0.05)


def _slow_affinity(root: Path, maps: list[list[np.ndarray]], place: int) -> float:
    """AP in percent: tokens whose cell one class fills by more than half, ranked within their picture."""
    by_class: dict[int, list[float]] = {}
    for i, own in enumerate(maps):
        labels = np.asarray(Image.open(root / "val" / "labels" / f"{i:02d}.png"))
        height, width = labels.shape
        tokens, names = unit(own[place]).reshape(6, -1), []
        for cell in range(6):
            pixels = [
                labels[y, x]
                for y in range(height)
                for x in range(width)
                if int((y + 0.5) * 2 / height) * 3 + int((x + 0.5) * 3 / width) == cell
            ]
            filled = [t for t in range(5) if pixels.count(t) > len(pixels) / 2]
            names.append(filled[0] if filled else None)
        known = [k for k in range(6) if names[k] is not None]
        for query in known:
            order = sorted((k for k in known if k != query), key=lambda k: -float(tokens[query] @ tokens[k]))
            right = [names[k] == names[query] for k in order]
            if any(right) and not all(right):
                precision = [sum(right[: r + 1]) / (r + 1) for r in range(len(right)) if right[r]]
                by_class.setdefault(names[query], []).append(float(np.mean(precision)))
    return 100 * float(np.mean([np.mean(values) for values in by_class.values()]))


def _stacked(maps: list[list[np.ndarray]], place: int) -> Tensor:
    return torch.from_numpy(np.stack([m[place].reshape(6, -1) for m in maps])).float()


def test_alone_is_the_quick_measure(
    encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, numbers=(0,))
    store = store_in(tmp_path, encoder, options)
    fill_store(Subject("untuned", encoder.dense, encoder), sets[1], sets[0], store, options)
    quick = extract_tokens(encoder.dense, sets[1], settings(encoder))
    torch.testing.assert_close(store.features(0).tokens, quick.tokens)
    labels = (LabelCache(sets[0], 1.0), LabelCache(sets[1], 1.0))
    measures = ["linear", "affinity"]
    found = scores_at(None, store, 0, labels=labels, settings=settings(encoder), measures=measures)
    assert set(found) == {"affinity_ap", "affinity_ap_beyond_6"} and found["affinity_ap_beyond_6"] is None


def test_draws(sets: tuple[LabelledSet, LabelledSet]) -> None:
    train = sets[0]
    many = draw_contexts(NAMES[1], 60, train, OPTIONS, 16)
    assert many[:7] == draw_contexts(NAMES[1], 7, train, OPTIONS, 16)
    assert [tuple(draw) for draw in many] == slow_contexts(5, NAMES[1], 60, NAMES, (3, 3))
    assert {draw.context for draw in many} == {0, 2, 3}  # never itself
    assert {(draw.row, draw.column) for draw in many} == {(r, c) for r in range(3) for c in range(3)}
    other = draw_contexts(NAMES[1], 60, train, dataclasses.replace(OPTIONS, seed=6), 16)
    assert other != many != draw_contexts(NAMES[2], 60, train, OPTIONS, 16)
    blank = draw_contexts(NAMES[1], 60, train, dataclasses.replace(OPTIONS, contexts="blank"), 16)
    assert {draw.context for draw in blank} == {None}


def test_the_target_is_pasted_as_it_is(encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet]) -> None:
    frame = target_frame(sets[1], 0, encoder, OPTIONS.target)
    draws = draw_contexts("x", 4, sets[0], OPTIONS, 16)
    for workers in (0, 2):
        made = canvases(frame, draws, sets[0], dataclasses.replace(OPTIONS, workers=workers), encoder)
        for canvas, draw in zip(made, draws, strict=True):
            top, left = 16 * draw.row, 16 * draw.column
            assert torch.equal(canvas[:, top : top + 32, left : left + 48], frame)
            context = target_frame(sets[0], draw.context or 0, encoder, OPTIONS.canvas)
            canvas[:, top : top + 32, left : left + 48] = context[:, top : top + 32, left : left + 48]
            assert torch.equal(canvas, context)
    options = dataclasses.replace(OPTIONS, contexts="blank")
    (canvas,) = canvases(torch.ones(3, 32, 48), draw_contexts("x", 1, sets[0], options, 16), sets[0], options, encoder)
    assert int(canvas.sum()) == 3 * 32 * 48


def test_features_without_context_stay(encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet]) -> None:
    frame = target_frame(sets[1], 0, encoder, OPTIONS.target)
    draws = draw_contexts("x", 3, sets[0], OPTIONS, 16)
    maps = aggregated(lambda x: F.avg_pool2d(x, 16), frame, draws, contexts=sets[0], options=OPTIONS, encoder=encoder)
    assert maps.shape == (3, 3, 2, 3)
    torch.testing.assert_close(maps, maps[:1].expand_as(maps))


def test_a_stopped_store_goes_on(
    encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store = (store_in(tmp_path / name, encoder) for name in ("whole", "part"))
    subject, seen = Subject("untuned", encoder.dense, encoder), []
    fill_store(subject, sets[1], sets[0], whole, OPTIONS)
    real = aggregate_store.aggregated

    def counted(*args: Any, **options: Any) -> Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        return real(*args, **options)

    monkeypatch.setattr(aggregate_store, "aggregated", counted)
    with pytest.raises(KeyboardInterrupt):
        fill_store(subject, sets[1], sets[0], store, OPTIONS)
    assert [store.has(i) for i in range(4)] == [True, True, False, False]
    with pytest.raises(UserError, match="000002.npy: not there; run the same command again"):
        store.tokens(2, 0)
    store.path(0).write_bytes(store.path(0).read_bytes()[:200])  # damaged
    seen[:] = [0] * 3
    fill_store(subject, sets[1], sets[0], store, OPTIONS)
    assert len(seen) == 6  # the damaged one and the two that lacked
    for place in range(3):
        assert torch.equal(store.features(place).tokens, whole.features(place).tokens)
    assert store.gigabytes() == pytest.approx(sum(p.stat().st_size - 128 for p in store.folder.iterdir()) / 1e9)


def test_half_precision_on_disk(encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, dtype="float16", precision="bf16-mixed")
    half, full = store_in(tmp_path / "half", encoder, options), store_in(tmp_path / "full", encoder)
    for store, given in ((half, options), (full, OPTIONS)):
        fill_store(Subject("untuned", encoder.dense, encoder), sets[1], sets[0], store, given)
    assert half.gigabytes() == full.gigabytes() / 2
    torch.testing.assert_close(half.features(2).tokens, full.features(2).tokens, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"canvas": (16, 80)}, "aggregate.canvas=16x80: smaller than the target, data.image_size=32x48"),
        ({"canvas": (64, 90)}, "multiples of 16"),
        ({"numbers": ()}, "aggregate.numbers="),
        ({"numbers": (2, 1)}, "must be numbers of contexts in ascending order"),
        ({"numbers": (-1, 1)}, "ascending"),
        ({"contexts": "noise"}, "aggregate.contexts=noise"),
        ({"dtype": "int8"}, "aggregate.dtype=int8"),
        ({"precision": "8"}, "run.precision=8"),
        ({"batch_size": 0}, "aggregate.batch_size=0"),
    ],
)
def test_options_that_cannot_be_used(change: dict[str, object], said: str, encoder: DenseEncoder) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(OPTIONS, **change).check(encoder)  # type: ignore[arg-type]


def test_what_cannot_be_measured(
    encoder: DenseEncoder, sets: tuple[LabelledSet, LabelledSet], root: Path, tmp_path: Path
) -> None:
    alone = open_labelled("plain", str(root), "train", limit=1)
    with pytest.raises(UserError, match="1 picture to be a context of 'x': two or more are needed"):
        draw_contexts("x", 1, alone, OPTIONS, 16)
    broken = Subject("broken", lambda x: encoder.dense(x) * torch.inf, encoder)
    with pytest.raises(UserError, match="broken: features are not finite on val/images/00.png"):
        fill_store(broken, sets[1], sets[0], store_in(tmp_path, encoder), OPTIONS)
