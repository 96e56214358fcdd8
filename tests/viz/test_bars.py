"""Bar charts: widths, what is not known, what they tell a screen reader."""

import re
from xml.etree import ElementTree

import pytest

from rsc_seg.errors import UserError
from rsc_seg.viz.bars import Bars, bar_chart

GROUPS = ["cat", "wall & roof"]


def rectangles(svg: str) -> list[tuple[str, float, float]]:
    """Series, left edge and width of every bar (not the legend's)."""
    found = []
    for item in ElementTree.fromstring(svg).iter("rect"):
        if item.get("height") == "10.0" and item.get("width") != "22.0":
            found.append((item.attrib["class"], float(item.attrib["x"]), float(item.attrib["width"])))
    return found


def test_widths_are_proportional_and_what_is_unknown_has_no_bar() -> None:
    series = [Bars("a", [40.0, 20.0]), Bars("b", [None, 30.0])]
    svg = bar_chart("IoU", GROUPS, series, x_label="percent")
    bars = rectangles(svg)
    assert [kind for kind, _, _ in bars] == ["area s0", "area s0", "area s1"]
    widths = [width for _, _, width in bars]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.11) and widths[2] == pytest.approx(1.5 * widths[1], abs=0.11)
    assert "cat: a 40, b not known; wall &amp; roof: a 20, b 30" in svg and svg.count("–") == 1


def test_negative_numbers_go_left_of_zero() -> None:
    svg = bar_chart("change", GROUPS, [Bars("a", [-10.0, 10.0])], x_label="points")
    (_, left, width), (_, right, _) = rectangles(svg)
    assert left + width == pytest.approx(right, abs=0.11) and ">−10.0<" in svg
    assert not re.search(r'class="label"[^>]*>a<', svg)  # one series: the heading names it


def test_bad_charts_are_refused() -> None:
    with pytest.raises(UserError, match="series 'a': 1 values, 2 groups"):
        bar_chart("t", GROUPS, [Bars("a", [1.0])], x_label="x")
    with pytest.raises(UserError, match="no finite value"):
        bar_chart("t", GROUPS, [Bars("a", [None, float("nan")])], x_label="x")
    with pytest.raises(UserError, match="7 series, 6 can be told apart"):
        bar_chart("t", GROUPS, [Bars(str(k), [1.0, 2.0]) for k in range(7)], x_label="x")
