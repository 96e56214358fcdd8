"""Label maps in the report: colours, key, alt texts."""

import numpy as np
import pytest
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.parts import Report
from rsc_seg.viz.report import render
from rsc_seg.viz.segmentation import VOID, Look, Segmented, label_picture, right_share, segmentation_groups

CLASSES, PALETTE = ["road", "sky", "car"], [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
LABELS = np.array([[0, 0, 1, 255], [0, 0, 1, 1]], np.uint8)


def shot(predicted: np.ndarray) -> Segmented:
    return Segmented("street", Image.new("RGB", (4, 2)), LABELS, {"untuned": predicted})


def test_every_class_has_its_colour_and_void_is_grey() -> None:
    picture = np.asarray(label_picture(LABELS, PALETTE))
    assert picture[0].tolist() == [[10, 20, 30], [10, 20, 30], [40, 50, 60], list(VOID)]


def test_right_pixels_are_counted_among_labelled_ones() -> None:
    assert right_share(LABELS, np.zeros_like(LABELS), 3) == pytest.approx(4 / 7)
    assert right_share(np.full_like(LABELS, 255), LABELS, 3) is None


def test_key_holds_what_occurs_and_strips_have_words() -> None:
    key, strip = segmentation_groups([shot(np.full_like(LABELS, 1))], CLASSES, PALETTE)
    assert [f.label for row in key.rows for f in row] == ["road", "sky", "not scored"]
    image, labels, predicted = strip.rows[0]
    assert labels.alt == "Labels of street: road, sky" and not image.tokens
    assert predicted.note == "42.9 % right" and predicted.alt == "Prediction of untuned for street: sky; 42.9 % right"
    page = render(Report("title", figures=[key, strip]))
    assert page.count("<img") == 6 and 'alt=""' not in page


def test_many_classes_in_an_alt_text_are_cut_short() -> None:
    names = [f"c{k}" for k in range(8)]
    predicted = np.arange(8, dtype=np.uint8).reshape(2, 4)
    groups = segmentation_groups([shot(predicted)], names, [(k, k, k) for k in range(8)])
    assert "c0, c1, c2, c3, c4 and 3 more" in groups[1].rows[0][2].alt
    assert [len(row) for row in groups[0].rows] == [6, 3]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="3 classes and 2 colours"):
        segmentation_groups([], CLASSES, PALETTE[:2])
    with pytest.raises(UserError, match="street: prediction untuned"):
        segmentation_groups([shot(np.zeros((3, 3), np.uint8))], CLASSES, PALETTE)
    assert segmentation_groups([], CLASSES, PALETTE) == []


def test_maps_over_the_photograph_are_photographs() -> None:
    labels = np.kron(LABELS, np.ones((40, 40), np.uint8))
    given = Segmented("street", Image.new("RGB", (640, 320), (100, 100, 100)), labels, {"trained": labels})
    key, strip = segmentation_groups([given], CLASSES, PALETTE, Look("Pictures: street", 0.5))
    image, shown, predicted = strip.rows[0]
    assert not shown.tokens and shown.image.size == (160, 80)  # at the size of the map
    assert shown.image.getpixel((20, 40)) == (55, 60, 65) and predicted.note == "100.0 % right"
    assert {key.section, strip.section} == {"Pictures: street"} and "over the photograph" in strip.about
    assert "over the photograph" not in segmentation_groups([given], CLASSES, PALETTE)[1].about
    assert '<img class=tokens src="data:image/jpeg' not in render(Report("title", figures=[strip]))


def test_a_key_of_many_classes_holds_the_largest() -> None:
    names, palette = [f"c{k}" for k in range(300)], [(k % 256, 0, 0) for k in range(300)]
    labels = np.arange(300, dtype=np.uint16).reshape(15, 20)
    labels[0, :5] = 299
    labels[1] = 65535
    given = Segmented("a", Image.new("RGB", (20, 15)), labels, {})
    key = segmentation_groups([given], names, palette, Look(most=2))[0]
    assert [f.label for row in key.rows for f in row] == ["c5", "c299", "not scored"]
    assert key.caption == "The 2 classes with the most pixels; 273 more occur."
    assert len([f for row in segmentation_groups([given], names, palette)[0].rows for f in row]) == 276
