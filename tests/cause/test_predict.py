"""Predictions against the plain formulas, windows, and the whole pass with and without flip and CRF."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.crf import CrfPool, crf_image
from rsc_seg.cause.labels import OpenedSet, open_cause_set
from rsc_seg.cause.predict import (
    CrfTag,
    EvalImages,
    Segmenter,
    cluster_argmax,
    cluster_cosines,
    evaluate,
    flip_average,
    upsample,
)
from rsc_seg.cause.tokens import LiveTokens, open_tokens
from rsc_seg.cause.views import Views, full_views, train_views, val_views
from rsc_seg.data.transforms import normalize
from rsc_seg.errors import UserError
from tests.cause.trees import plain_tree, slow_when_first
from tests.training.helpers import tiny_encoder

CHANNELS = 6


@pytest.fixture
def opened(tmp_path: Path) -> OpenedSet:
    return open_cause_set("plain", str(plain_tree(tmp_path, 5, (40, 60))), "val")


def segmenter(side: int = 2) -> Segmenter:
    g = torch.Generator().manual_seed(0)
    head, linear = torch.randn(CHANNELS, 64, generator=g), torch.randn(3, CHANNELS, 1, 1, generator=g)

    def features(tokens: Tensor) -> Tensor:
        return (tokens @ head.T).transpose(1, 2).unflatten(2, (side, side))

    return Segmenter(features, torch.randn(3, CHANNELS, generator=g), lambda f: F.conv2d(f, linear))


def images_of(views: Views, flipped: Views | None = None) -> EvalImages:
    encoder = tiny_encoder()
    mirrored = None if flipped is None else LiveTokens(encoder, flipped)
    return EvalImages(views, LiveTokens(encoder, views), mirrored, encoder.mean, encoder.std)


def test_dot_products_first_give_the_same_argmax() -> None:
    g = torch.Generator().manual_seed(1)
    features, centroids = torch.randn(2, 90, 5, 7, generator=g), torch.randn(27, 90, generator=g)
    # the official order: all channels to the size of the labels, then the cosine
    full = F.interpolate(features, size=(41, 50), mode="bilinear", align_corners=False)
    cosines = torch.stack([F.cosine_similarity(full, c[None, :, None, None], dim=1) for c in centroids], 1)
    torch.testing.assert_close(cluster_cosines(features, centroids, (41, 50)), cosines, atol=1e-5, rtol=1e-5)
    assert torch.equal(cluster_argmax(features, centroids, (41, 50)), cosines.argmax(1))


def test_the_flip_average_turns_back() -> None:
    f = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(flip_average(f, f.flip(-1)), f)
    assert flip_average(f, torch.zeros_like(f)).tolist() == (f / 2).tolist()


def test_plain_and_flip_rows_count_what_the_formulas_say(opened: OpenedSet) -> None:
    plain, flipped = val_views(opened, 28), val_views(opened, 28, flipped=True)
    images, model = images_of(plain, flipped), segmenter()
    found = evaluate(model, images, batch_size=2, keep=[1, 4])
    assert list(found.counts) == ["cluster", "linear", "cluster flip", "linear flip"]
    expected = {row: torch.zeros(3, 3, dtype=torch.int64) for row in found.counts}
    for i in range(5):
        f = model.features(images.tokens.tokens([i]))
        assert images.flipped is not None and model.linear is not None
        both = (f + model.features(images.flipped.tokens([i])).flip(-1)) / 2
        labels = plain.labels(i)
        for flip, maps in (("", f), (" flip", both)):
            full = F.normalize(upsample(maps, (28, 28)), dim=1)
            cluster = torch.einsum("bchw,tc->bthw", full, F.normalize(model.centroids, dim=1))[0].argmax(0).numpy()
            linear = model.linear(upsample(maps, (28, 28)))[0].argmax(0).numpy()
            for row, names in ((f"cluster{flip}", cluster), (f"linear{flip}", linear)):
                for t, k in zip(labels[labels != 255], names[labels != 255], strict=True):
                    expected[row][t, k] += 1
                if i in (1, 4):
                    assert np.array_equal(found.kept[row][i], names)
    for row, counts in expected.items():
        assert torch.equal(found.counts[row], counts), row
    assert set(found.kept["cluster"]) == {1, 4}
    scores = found.scores()
    assert scores["linear"].matching is None and sorted(scores["cluster flip"].matching or []) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_crf_row_gets_the_softmax_and_the_picture(opened: OpenedSet, workers: int) -> None:
    views, flipped = val_views(opened, 28), val_views(opened, 28, flipped=True)
    images, model = images_of(views, flipped), segmenter()
    with CrfPool[CrfTag](workers, work=slow_when_first) as pool:  # the argmax in place of the CRF
        found = evaluate(model, images, crf=pool, batch_size=2, keep=[0])
    assert list(found.counts) == ["cluster", "linear", "cluster flip", "linear flip", "cluster flip crf"]
    assert torch.equal(found.counts["cluster flip crf"], found.counts["cluster flip"])
    assert np.array_equal(found.kept["cluster flip crf"][0], found.kept["cluster flip"][0])
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watching(probabilities: np.ndarray, image: np.ndarray, settings: object) -> np.ndarray:
        seen.append((probabilities, image))
        return probabilities.argmax(0).astype(np.uint8)

    with CrfPool[CrfTag](0, work=watching) as pool:
        alone = evaluate(model, images_of(views), crf=pool)
    assert list(alone.counts) == ["cluster", "linear", "cluster crf"]
    f = model.features(images.tokens.tokens([3]))
    expected = (3 * cluster_cosines(f, model.centroids, (28, 28))).softmax(1)[0]
    np.testing.assert_allclose(seen[3][0], expected.numpy(), atol=1e-5)
    picture = torch.from_numpy(views.pixels(3).copy()).permute(2, 0, 1) / 255
    bgr = crf_image(normalize(picture, images.mean, images.std).numpy(), images.mean, images.std)
    assert np.array_equal(seen[3][1], bgr) and np.abs(bgr[..., ::-1].astype(int) - views.pixels(3)).max() <= 1


def test_windows_are_averaged_where_they_overlap(opened: OpenedSet) -> None:
    views = full_views(opened, 28)
    images, model = images_of(views), segmenter()
    found = evaluate(model, images, keep=[2])
    canvas = views.canvases[2]
    assert (canvas.height, canvas.width, len(canvas.parts)) == (28, 42, 2)
    total, weight = torch.zeros(3, 28, 42), torch.zeros(42)
    for view, left, _ in canvas.parts:
        total[:, :, left : left + 28] += cluster_cosines(
            model.features(images.tokens.tokens([view])), model.centroids, (28, 28)
        )[0]
        weight[left : left + 28] += 1
    assert weight.tolist() == [1.0] * 14 + [2.0] * 14 + [1.0] * 14
    assert np.array_equal(found.kept["cluster"][2], (total / weight).argmax(0).numpy())
    labelled = sum(int((views.canvas_labels(c) != 255).sum()) for c in views.canvases)
    assert int(found.counts["cluster"].sum()) == int(found.counts["linear"].sum()) == labelled


def test_the_batch_size_and_a_cache_change_nothing(opened: OpenedSet, tmp_path: Path) -> None:
    views, model, encoder = val_views(opened, 28), segmenter(), tiny_encoder()
    cached = EvalImages(views, open_tokens(encoder, views, tmp_path / "cache", dtype="float32"))
    first = evaluate(model, images_of(views), batch_size=1).counts
    for other in (evaluate(model, images_of(views), batch_size=4).counts, evaluate(model, cached).counts):
        assert all(torch.equal(first[row], other[row]) for row in first)


def test_what_does_not_fit(opened: OpenedSet) -> None:
    views, model = val_views(opened, 28), segmenter()
    with pytest.raises(UserError, match="has 4 centroids, but a set of one's own has 3 classes"):
        evaluate(Segmenter(model.features, torch.ones(4, CHANNELS)), images_of(views))
    with pytest.raises(UserError, match="training crops cannot be scored"):
        evaluate(model, images_of(train_views(opened, 28)))
    with pytest.raises(UserError, match=r"tokens of mirrored views: 10 views, but the protocol has 5"):
        evaluate(model, images_of(views, full_views(opened, 28, flipped=True)))
