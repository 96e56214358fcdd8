"""Segmented pictures to look at: colours, outlines, legend, label files."""

import io

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.segmentation import distinct_palette
from rsc_seg.errors import UserError
from rsc_seg.viz.fonts import built_in, fitted, font_for, printable, wrapped
from rsc_seg.viz.legend import LegendEntry, draw_legend
from rsc_seg.viz.overlay import (
    VOID,
    blended,
    borders,
    brought_to,
    class_shares,
    innermost,
    label_file_picture,
    label_picture,
    labels_at,
    overlay_picture,
    percent,
)

PALETTE = [(200, 0, 0), (0, 100, 0), (0, 0, 250)]
LABELS = np.array([[0, 0, 1, 1], [0, 2, 1, 1]])


def grey(width: int = 4, height: int = 2) -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100))


def quarters(side: int = 64) -> np.ndarray:
    """Four squares of the classes 0 to 3."""
    return np.kron(np.array([[0, 1], [2, 3]]), np.ones((side // 2, side // 2), int))


def reread(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG")
    found = Image.open(file)
    found.load()
    return found


def test_colours_are_mixed_with_the_photograph() -> None:
    mixed = np.asarray(blended(grey(), LABELS, PALETTE, 0.5))
    assert mixed[0, 0].tolist() == [150, 50, 50] and mixed[1, 1].tolist() == [50, 50, 175]
    assert np.array_equal(np.asarray(blended(grey(), LABELS, PALETTE, 0.0)), np.asarray(grey()))
    assert np.array_equal(np.asarray(blended(grey(), LABELS, PALETTE, 1.0)), np.asarray(label_picture(LABELS, PALETTE)))
    clear = np.asarray(blended(grey(), LABELS, PALETTE, 0.5, clear=[1]))
    assert clear[0, 3].tolist() == [100, 100, 100] and clear[0, 0].tolist() == [150, 50, 50]


@pytest.mark.parametrize("void", [3, 255, 65535])
def test_what_has_no_colour_is_grey(void: int) -> None:
    labels = np.array([[0, void]], np.uint16)
    assert np.asarray(label_picture(labels, PALETTE))[0, 1].tolist() == list(VOID)
    assert np.asarray(blended(grey(2, 1), labels, PALETTE, 1.0))[0, 1].tolist() == list(VOID)


def test_borders_lie_between_regions() -> None:
    assert borders(LABELS).tolist() == [[False, True, False, False], [True, True, False, False]]
    assert not borders(np.zeros((5, 5), int)).any()


def test_label_files_hold_the_labels_and_open_in_colour() -> None:
    found = reread(label_file_picture(LABELS, PALETTE))
    assert found.mode == "P" and np.array_equal(np.asarray(found), LABELS)
    assert np.asarray(found.convert("RGB"))[1, 1].tolist() == [0, 0, 250]
    full = np.arange(255)[None]
    assert np.array_equal(np.asarray(reread(label_file_picture(full, distinct_palette(255)))), full)
    wide = np.array([[0, 255, 256, 846]])
    found = reread(label_file_picture(wide, distinct_palette(847)))
    assert found.mode.startswith("I;16") and np.array_equal(np.asarray(found), wide)
    with pytest.raises(UserError, match="-1 to 2"):
        label_file_picture(np.array([[-1, 2]]), PALETTE)


def test_numbers_stand_inside_their_region() -> None:
    for side in (64, 1000):
        labels = quarters(side)
        for label in range(4):
            place = innermost(labels, label)
            assert place is not None and labels[int(place.y), int(place.x)] == label
            assert place.room == pytest.approx(side / 4, rel=0.1)
    assert innermost(labels, 9) is None


def test_small_pictures_grow_in_whole_pixels_and_large_ones_shrink() -> None:
    assert brought_to((8, 8)) == (384, 384) and brought_to((500, 4)) == (500, 4)
    assert brought_to((1, 300)) == (2, 600) and brought_to((8192, 2)) == (2048, 1)
    labels = np.random.default_rng(0).integers(0, 9, (3, 4))
    assert np.array_equal(labels_at(labels, (8, 6)), np.kron(labels, np.ones((2, 2), int)))
    assert np.array_equal(labels_at(labels, (4, 3)), labels)


def test_shares_in_words() -> None:
    assert class_shares(LABELS, 3) == [0.375, 0.5, 0.125]
    assert class_shares(np.array([[0, 255]], np.uint8), 2) == [0.5, 0.0]
    assert [percent(s) for s in (0.0, 0.0004, 0.0006, 0.5, 1.0)] == ["0.0 %", "< 0.1 %", "0.1 %", "50.0 %", "100.0 %"]


@pytest.mark.parametrize("size", [(8, 8), (400, 300), (300, 400), (60, 400), (3000, 20), (20, 3000), (1, 1)])
def test_every_size_has_a_legend_below_or_beside(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (size[1], size[0]))
    found = overlay_picture(Image.new("RGB", size), labels, ["cat", "grass", "sky"], PALETTE)
    shown = brought_to(size)
    if size[1] > 1.25 * size[0]:
        assert found.width > shown[0] + 100 and found.height >= shown[1]
        part = found.crop((shown[0], 0, found.width, found.height))
    else:
        assert found.width >= shown[0] and found.height > shown[1] + 40
        part = found.crop((0, shown[1], found.width, found.height))
    colours = {tuple(c) for c in np.asarray(part).reshape(-1, 3).tolist()}
    assert {PALETTE[int(k)] for k in np.unique(labels)} <= colours
    assert max(found.size) < 4000


def test_thirty_classes_are_named_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def keep(entries: list[LegendEntry], remarks: list[str], **sizes: int | None) -> Image.Image:
        seen["names"], seen["remarks"] = [f"{e.number} {e.name} {e.share}" for e in entries], remarks
        return draw_legend(entries, remarks, size=14, width=400, height=None)

    monkeypatch.setattr("rsc_seg.viz.overlay.draw_legend", keep)
    labels = np.minimum(np.arange(1600).reshape(40, 40) // 36, 43)
    labels[:2] = 7
    overlay_picture(grey(40, 40), labels, [f"c{k}" for k in range(50)], distinct_palette(50), notes=["A note."])
    assert len(seen["names"]) == 30 and seen["names"][0] == "7 c7 7.2 %"
    assert seen["remarks"][0] == "and 12 more classes, together 26.5 %" and seen["remarks"][2] == "A note."
    assert seen["remarks"][1] == "Without a pixel: c0, c1, c44, c45, c46, c47, c48, c49"


def test_background_keeps_the_photograph() -> None:
    labels = quarters(400)
    labels[labels == 3] = 1
    found = overlay_picture(grey(400, 400), labels, ["a", "b", "c"], PALETTE, clear=[1])
    assert found.getpixel((360, 40)) == (100, 100, 100)
    assert found.getpixel((40, 40)) == (150, 50, 50)


def test_texts_fit_whatever_their_letters() -> None:
    font = built_in(16)
    assert font.getlength(fitted("a" * 400, 100, font)) <= 100
    lines = wrapped("one two three four five six seven " + "x" * 300, 90, font, 2)
    assert len(lines) == 2 and all(font.getlength(line) <= 90 for line in lines) and lines[1].endswith("…")
    assert printable("a−b", font) == "a-b"
    other = font_for(["Straße"], 16)
    assert printable("Straße", other) in ("Straße", "Stra?e")
    assert printable("\U0001f9ff\uffff", font) == "??"
    entry = LegendEntry(123456, "x" * 500, None, "1.0 %")
    legend = draw_legend([entry], ["word " * 500], size=14, width=100, height=None)
    assert legend.width < 400 and legend.height < 300


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="2 classes and 3 colours"):
        overlay_picture(grey(), LABELS, ["a", "b"], PALETTE)
    with pytest.raises(UserError, match=r"5x5 pixels and labels of \(2, 4\)"):
        overlay_picture(grey(5, 5), LABELS, ["a", "b", "c"], PALETTE)
    with pytest.raises(UserError, match="sizes differ"):
        blended(grey(5, 5), LABELS, PALETTE, 0.5)
