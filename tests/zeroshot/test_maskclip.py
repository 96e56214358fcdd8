"""MaskCLIP against a slow second implementation on four pictures; windows, resuming, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rsc_seg.config import BackboneConfig, DataConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.evaluate_maskclip import summary
from rsc_seg.zeroshot.class_sets import LayoutSet, open_class_set
from rsc_seg.zeroshot.maskclip import MaskclipCounts, MaskclipOptions, maskclip_counts, segment
from rsc_seg.zeroshot.windows import best_classes, check_windows, fitted_size, stitched, view_layout
from tests.zeroshot.slow_context import SIZES, slow_labels, slow_scores, write_pictures

CLASSES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("maskclip") / "set", CLASSES)


@pytest.fixture
def source(root: Path) -> LayoutSet:
    found = open_class_set(DataConfig(kind="plain", root=str(root), split="val"), None, None)
    assert isinstance(found, LayoutSet)
    return found


@pytest.fixture(scope="module")
def names(encoder: DenseEncoder) -> Tensor:
    """Embeddings near tokens of this encoder, so that all classes are answers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        tokens = encoder.dense(3 * torch.randn(1, 3, 64, 64, generator=generator))[0].flatten(1).T
    return 7 * tokens[torch.randperm(len(tokens), generator=generator)[:CLASSES]]


CASES = {
    "whole": MaskclipOptions(short_side=70),
    "windows": MaskclipOptions(short_side=50, window=32, stride=20),
    "probabilities": MaskclipOptions(short_side=50, window=48, stride=48, average="probabilities", scale=20.0),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_one(case: str, encoder: DenseEncoder, names: Tensor, source: LayoutSet, root: Path) -> None:
    options = CASES[case]
    counts = maskclip_counts(encoder, names, source, options)
    pairs = []
    for i in range(len(SIZES)):
        path = root / "val" / "images" / f"{i:02d}.png"
        found = slow_labels(
            encoder,
            names.double().numpy(),
            path,
            short=options.short_side,
            window=options.window,
            stride=options.stride,
            scale=options.scale if options.average == "probabilities" else None,
        )
        assert np.array_equal(segment(encoder, names, Image.open(path).convert("RGB"), options).numpy(), found)
        pairs.append((np.asarray(Image.open(root / "val" / "labels" / f"{i:02d}.png")), found))
    scores, slow = summary(counts), slow_scores(pairs, CLASSES)
    assert scores == {key: pytest.approx(value, abs=1e-9) for key, value in slow.items()}
    assert len(np.unique(np.concatenate([found.ravel() for _, found in pairs]))) == CLASSES
    assert slow["miou_union"] < slow["miou"] and counts.pictures == 4  # the class without labels is answered
    assert counts.pixels == [int(sum(np.sum(labels == t) for labels, _ in pairs)) for t in range(CLASSES)]


def test_chunks_and_batches_change_nothing(encoder: DenseEncoder, names: Tensor, source: LayoutSet) -> None:
    base = CASES["windows"]
    found = [
        maskclip_counts(encoder, names, source, MaskclipOptions(50, 32, 20, class_chunk=c, window_batch=b, workers=w))
        for c, b, w in ((1, 1, 0), (2, 3, 2), (32, 64, 1))
    ]
    for counts in found:
        assert torch.equal(counts.confusion.matrix, found[0].confusion.matrix)
    assert base.what_counts() == MaskclipOptions(50, 32, 20, class_chunk=1).what_counts()


def test_half_precision_is_near(encoder: DenseEncoder, names: Tensor, source: LayoutSet) -> None:
    exact = maskclip_counts(encoder, names, source, MaskclipOptions(64))
    half = maskclip_counts(encoder, names, source, MaskclipOptions(64, precision="bf16-mixed"))
    moved = (exact.confusion.matrix - half.confusion.matrix).abs().sum() / 2
    assert 0 <= moved < 0.1 * exact.confusion.matrix.sum()


class Stops(LayoutSet):
    """Breaks off at the third picture."""

    def load(self, i: int) -> tuple[Image.Image, np.ndarray]:
        if i == 2:
            raise KeyboardInterrupt
        return super().load(i)


def test_a_stopped_measure_goes_on(encoder: DenseEncoder, names: Tensor, source: LayoutSet, tmp_path: Path) -> None:
    options = MaskclipOptions(48, save_every=1)
    whole = maskclip_counts(encoder, names, source, options)
    with pytest.raises(KeyboardInterrupt):
        maskclip_counts(encoder, names, Stops(source.data, source.title), options, state=tmp_path)
    (record,) = tmp_path.iterdir()
    assert MaskclipCounts.from_json(whole.to_json()).to_json() == whole.to_json()
    again = maskclip_counts(encoder, names, source, options, state=tmp_path)
    assert again.to_json() == whole.to_json() and [*tmp_path.iterdir()] == [record]
    maskclip_counts(encoder, 2 * names, source, options, state=tmp_path)  # only directions count
    maskclip_counts(encoder, names.flip(0), source, options, state=tmp_path)
    maskclip_counts(encoder, names, source, MaskclipOptions(64), state=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    record.write_text("{}")
    with pytest.raises(UserError, match="not readable as counts so far"):
        maskclip_counts(encoder, names, source, options, state=tmp_path)


class Merged(LayoutSet):
    """Names from the third on stand for the last label."""

    def __init__(self, source: LayoutSet) -> None:
        super().__init__(source.data, "merged")
        self.classes, self.merged_from = 3, 2
        self.class_names = self.names[:3]

    def load(self, i: int) -> tuple[Image.Image, np.ndarray]:
        image, labels = super().load(i)
        return image, np.where((labels >= 2) & (labels != 255), 2, labels)


def test_several_names_of_one_label(encoder: DenseEncoder, names: Tensor, source: LayoutSet) -> None:
    apart = maskclip_counts(encoder, names, source, MaskclipOptions(48)).confusion.matrix
    merged = maskclip_counts(encoder, names, Merged(source), MaskclipOptions(48)).confusion.matrix
    rows = torch.cat([apart[:2], apart[2:].sum(0, keepdim=True)])
    assert torch.equal(merged, torch.cat([rows[:, :2], rows[:, 2:].sum(1, keepdim=True)], dim=1))


def test_layouts() -> None:
    assert fitted_size((480, 640), 448) == (448, 597) and fitted_size((640, 480), 500, 14) == (672, 504)
    assert fitted_size((10, 1000), 16, 16) == (16, 1600)
    layout = view_layout((480, 640), short_side=448, window=448, stride=224, patch=16)
    assert layout.size == (448, 597) and layout.corners == ((0, 0), (0, 149))
    layout = view_layout((100, 100), short_side=100, window=32, stride=32, patch=16)
    assert [corner[1] for corner in layout.corners[:4]] == [0, 32, 64, 68] and len(layout.corners) == 16
    covered = stitched(torch.ones(16, 2, 2, 2), layout)
    assert torch.allclose(covered, torch.ones(2, 100, 100))


def test_the_lowest_class_wins_a_tie() -> None:
    layout = view_layout((32, 32), short_side=32, window=None, stride=1, patch=16)
    for chunk in (1, 2, 8):
        assert not best_classes(torch.zeros(1, 4, 2, 2), layout, (5, 7), chunk).any()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((8, None, 1), "short_side=8: must be 16 or more"),
        ((64, 40, 1), r"window=40: must be a multiple of the patch, 16 \(nearest: 32\)"),
        ((64, 80, 1), "window=80: larger than maskclip.short_side=64"),
        ((64, 32, 33), "stride=33: must be from 1 to maskclip.window=32"),
        ((64, 32, 0), "stride=0"),
    ],
)
def test_sizes_that_cannot_be_used(sizes: Sequence[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_windows(*sizes, patch=16)


def test_what_cannot_be_measured(encoder: DenseEncoder, names: Tensor, source: LayoutSet, tmp_path: Path) -> None:
    blind, _ = build_backbone(BackboneConfig(name="dinov2_tiny14", weights="none"))
    with pytest.raises(UserError, match="dinov2_tiny14 has no text beside it"):
        maskclip_counts(blind, names, source, MaskclipOptions(48))
    with pytest.raises(UserError, match=r"embeddings of shape \(4, 32\).* has 5 classes .*\(5, 32\) is needed"):
        maskclip_counts(encoder, names[:4], source, MaskclipOptions(48))
    for key, value, said in (
        ("average", "votes", "maskclip.average=votes"),
        ("precision", "16-true", "run.precision=16-true"),
        ("class_chunk", 0, "maskclip.class_chunk=0"),
        ("scale", 0.0, "maskclip.scale=0"),
    ):
        with pytest.raises(UserError, match=said):
            maskclip_counts(encoder, names, source, MaskclipOptions(**{"short_side": 48, key: value}))
    root = write_pictures(tmp_path / "void", CLASSES, count=1)
    Image.fromarray(np.full(SIZES[0], 255, np.uint8)).save(root / "val" / "labels" / "00.png")
    void = open_class_set(DataConfig(kind="plain", root=str(root), split="val"), None, None)
    with pytest.raises(UserError, match="none of its 1 label maps holds a labelled pixel"):
        maskclip_counts(encoder, names, void, MaskclipOptions(48))


def test_sets_without_labels_or_with_other_vocabularies(root: Path, tmp_path: Path) -> None:
    data = DataConfig(kind="plain", root=str(root), split="val")
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\nthree\nfour\nfive\n")
    assert open_class_set(data, None, str(words)).names == ["one", "two", "three", "four", "five"]
    words.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"words.txt: 2 class names \(maskclip.vocabulary\), but .* has 5 classes"):
        open_class_set(data, None, str(words))
    with pytest.raises(UserError, match="no known layout of a labelled set"):
        open_class_set(DataConfig(root=str(root / "val" / "images"), split="val"), None, None)
    with pytest.raises(UserError, match="data.kind=folder: must be one of"):
        open_class_set(DataConfig(kind="folder", root=str(root), split="val"), None, None)
    with pytest.raises(UserError, match="no prepared labels of PASCAL-Context 59"):
        open_class_set(DataConfig(root=str(root), split="val"), "pascal_context_59_val", None)
    with pytest.raises(UserError, match="set 'pascal_context': must be one of"):
        open_class_set(DataConfig(root=str(root)), "pascal_context", None)
