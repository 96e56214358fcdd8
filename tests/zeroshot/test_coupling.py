"""The coupling ratio against a slow second implementation on four pictures; medians, resuming, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.data.images import open_images
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import fit_image
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.probe.coupling import coupling_probe, sample_pairs
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.zeroshot.coupling import BINS, CouplingCounts, CouplingOptions, Subject, coupling_counts, inside
from tests.zeroshot.slow_context import encoded, slow_ratios, write_pictures

SIDES = (48, 64)
OPTIONS = CouplingOptions(SIDES, fit="pad", seed=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    root = write_pictures(tmp_path_factory.mktemp("coupling") / "set")
    return open_images("folder", str(root / "val" / "images"), "val")


def subject(encoder: DenseEncoder) -> Subject:
    return Subject("untuned", encoder.dense, encoder.dense, "digest")


def padded(images: ImageSource, i: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture at one scale with zeros right and below, and which tokens have their centre in it."""
    image = images.load(i)
    scale = min(SIDES[0] / image.height, SIDES[1] / image.width)
    width, height = round(image.width * scale), round(image.height * scale)
    frame = np.zeros((*SIDES, 3), np.float32)
    frame[:height, :width] = np.asarray(image.resize((width, height), 3), np.float32) / 255  # 3: bicubic
    use = [[16 * y + 8 < height and 16 * x + 8 < width for x in range(SIDES[1] // 16)] for y in range(SIDES[0] // 16)]
    return frame, np.array(use)


@pytest.mark.parametrize("padding", ["exclude", "include"])
def test_equals_the_slow_one(padding: str, encoder: DenseEncoder, images: ImageSource) -> None:
    options = CouplingOptions(SIDES, fit="pad", padding=padding, seed=4, floor=0.5)
    counts = coupling_counts(subject(encoder), images, options, encoder)
    above: list[float] = []
    below: list[float] = []
    tokens = []
    for row, (a, b) in zip(counts.rows, sample_pairs(len(images), 2, 4), strict=True):
        (left, use_a), (right, use_b) = padded(images, a), padded(images, b)
        uses = (use_a, use_b) if padding == "exclude" else (np.ones_like(use_a), np.ones_like(use_b))
        joint = encoded(encoder, np.concatenate([left, right], axis=1))
        one, two = slow_ratios((encoded(encoder, left), encoded(encoder, right)), joint, uses)
        ratio = np.array(one) / np.array(two)
        assert (row["a"], row["b"], row["tokens"]) == (images.name(a), images.name(b), uses[0].sum())
        assert row["mean_of_ratios"] == pytest.approx(ratio.mean(), rel=1e-5)
        assert row["median"] == pytest.approx(np.median(ratio), rel=1e-5)
        assert row["ratio_of_means"] == pytest.approx(np.mean(one) / np.mean(two), rel=1e-5)
        above, below, tokens = above + one, below + two, [*tokens, len(one)]
    ratio, kept = np.array(above) / np.array(below), np.array(below) >= 0.5
    found = counts.summary()
    assert kept.sum() > 0 and found["below_floor"] == pytest.approx(1 - kept.mean())
    assert found["stable_mean"] == pytest.approx(ratio[kept].mean(), rel=1e-5)
    assert found["mean_of_ratios"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert found["ratio_of_means"] == pytest.approx(np.mean(above) / np.mean(below), rel=1e-5)
    assert found["median"] == pytest.approx(np.median(ratio), abs=2.4e-5 * (1 + np.median(ratio) ** 2))
    assert (found["mean_joint"], found["mean_alone"]) == pytest.approx((np.mean(above), np.mean(below)), rel=1e-5)
    assert (found["pairs"], found["tokens"]) == (2, sum(tokens))
    both = [row["median"] for row in counts.rows]
    assert found["over_pairs"]["median"] == {
        "mean": pytest.approx(np.mean(both)),
        "standard_error": pytest.approx(np.std(both, ddof=1) / 2**0.5),
    }


def test_equals_the_quick_measure(encoder: DenseEncoder, images: ImageSource) -> None:
    settings = ProbeSettings(image_size=SIDES, mean=encoder.mean, std=encoder.std, coupling_pairs=2, seed=1)
    quick = coupling_probe(encoder.dense, encoder.dense, images, settings)
    found = coupling_counts(subject(encoder), images, CouplingOptions(SIDES, seed=1), encoder).summary()
    for key in ("mean_of_ratios", "ratio_of_means", "mean_joint", "mean_alone"):
        assert found[key] == pytest.approx(quick[key], rel=1e-6)
    assert found["median"] == pytest.approx(quick["median"], abs=5e-5)


def colours(x: Tensor) -> Tensor:
    """Tokens that see nothing but their own patch."""
    return F.avg_pool2d(x, 16)


def test_features_without_context_give_one(encoder: DenseEncoder, images: ImageSource) -> None:
    found = coupling_counts(Subject("colours", colours, colours, "c"), images, OPTIONS, encoder).summary()
    assert found["stable_mean"] == pytest.approx(1) and found["median"] == pytest.approx(1, abs=3e-5)
    assert found["mean_joint"] == pytest.approx(found["mean_alone"])


def test_median_of_many_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    counts, ratios = CouplingCounts(), []
    for size in (3, 50, 7, 40):
        above = torch.rand(size, generator=generator)
        below = torch.rand(size, generator=generator) - 0.2
        counts.add(("a", "b"), above, below, 0.1)
        ratios.append(above.double() / below.double())
    pooled = torch.cat(ratios).numpy()
    assert len(pooled) == 100 and counts.median() == pytest.approx(np.median(pooled), rel=1e-4)
    assert CouplingCounts.from_json(counts.to_json()).to_json() == counts.to_json()
    assert CouplingCounts().summary()["median"] is None and int(counts.histogram.sum()) == 100
    with pytest.raises(ValueError, match="ranges"):
        CouplingCounts.from_json({**counts.to_json(), "bins": BINS + 1})


def test_a_pair_without_a_finite_number() -> None:
    counts = CouplingCounts()
    counts.add(("a", "b"), torch.ones(2), torch.tensor([0.0, -0.5]), 0.1)
    counts.add(("c", "d"), torch.ones(2), torch.ones(2), 0.1)
    assert counts.rows[0]["mean_of_ratios"] is None and counts.rows[0]["stable_mean"] is None
    found = counts.summary()
    assert found["mean_of_ratios"] is None and found["stable_mean"] == 1 and found["below_floor"] == 0.5
    assert found["over_pairs"]["stable_mean"] == {"mean": 1, "standard_error": None}


class Stops(ImageSource):
    """Breaks off at the third picture that is read."""

    def __init__(self, images: ImageSource) -> None:
        self.images, self.left = images, 2

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        return self.images.name(i)

    def where(self, i: int) -> str:
        return self.images.where(i)

    def read(self, i: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.images.read(i)


def test_a_stopped_measure_goes_on(encoder: DenseEncoder, images: ImageSource, tmp_path: Path) -> None:
    options = CouplingOptions(SIDES, save_every=1, workers=1)
    whole = coupling_counts(subject(encoder), images, options, encoder)
    with pytest.raises(KeyboardInterrupt):
        slow = CouplingOptions(SIDES, save_every=1)
        coupling_counts(subject(encoder), Stops(images), slow, encoder, state=tmp_path)
    (record,) = tmp_path.iterdir()
    assert '"tokens"' in record.read_text()
    again = coupling_counts(subject(encoder), images, options, encoder, state=tmp_path)
    assert again.to_json() == whole.to_json() and len(list(tmp_path.iterdir())) == 1
    coupling_counts(subject(encoder), images, CouplingOptions(SIDES, floor=0.2), encoder, state=tmp_path)
    coupling_counts(subject(encoder), images, options, encoder, state=tmp_path, source="others")
    assert len(list(tmp_path.iterdir())) == 3


def test_tokens_in_the_padding(images: ImageSource) -> None:
    geometry = fit_image(images.load(1), SIDES)[1]  # 64 high, 40 wide: 30 of 64 columns are picture
    assert inside(geometry, (3, 4), 16).tolist() == [True, True, False, False] * 3


def test_what_cannot_be_measured(encoder: DenseEncoder, images: ImageSource) -> None:
    for key, value, said in (
        ("fit", "stretch", "data.fit=stretch"),
        ("padding", "maybe", "coupling.padding=maybe"),
        ("pairs", 0, "coupling.pairs=0: must be 1 or more"),
        ("floor", 0.0, "coupling.floor=0: must be above 0"),
        ("precision", "64", "run.precision=64"),
    ):
        with pytest.raises(UserError, match=said):
            coupling_counts(subject(encoder), images, CouplingOptions(**{"image_size": SIDES, key: value}), encoder)
    narrow = Subject("narrow", encoder.dense, lambda x: encoder.dense(x)[..., :-1], "n")
    with pytest.raises(UserError, match="the joined picture gave a map"):
        coupling_counts(narrow, images, OPTIONS, encoder)
    broken = Subject("broken", lambda x: encoder.dense(x) * torch.nan, encoder.dense, "b")
    with pytest.raises(UserError, match="broken: features are not finite"):
        coupling_counts(broken, images, OPTIONS, encoder)
