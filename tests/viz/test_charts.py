import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from rsc_seg.errors import UserError
from rsc_seg.viz.charts import Sample, Series, histogram, line_chart
from rsc_seg.viz.ticks import nice_ticks, number

HOSTILE = "<script>alert('x')</script> & \"q\""


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def lines_of(svg: str) -> list[str]:
    return [e.attrib["d"] for e in parse(svg).iter("path") if e.attrib["class"].startswith("series")]


@pytest.mark.parametrize(
    "svg",
    [
        line_chart(HOSTILE, [Series(HOSTILE, [0, 1], [1, 2]), Series("b", [0, 1], [2, 1])], y_label=HOSTILE),
        histogram(HOSTILE, [Sample(HOSTILE, [1, 2, 3]), Sample("b", [1, 2])], x_label=HOSTILE),
    ],
)
def test_charts_are_escaped_and_described(svg: str) -> None:
    root = parse(svg)
    assert root.attrib["role"] == "img"
    labels = root.attrib["aria-labelledby"].split()
    title, description = root.find("title"), root.find("desc")
    assert title is not None and description is not None
    assert [title.attrib["id"], description.attrib["id"]] == labels
    assert title.text == HOSTILE and HOSTILE in (description.text or "")
    assert "<script" not in svg


def test_ids_of_two_charts_differ() -> None:
    ids = [parse(line_chart("t", [Series("a", [0, 1], [1, 2])])).attrib["aria-labelledby"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_line_starts_and_ends_at_its_values() -> None:
    path = lines_of(line_chart("t", [Series("a", [0, 10], [0.0, 4.0])]))[0]
    assert path.startswith("M46.0 ") and "L368.0 " in path
    start, end = (float(part.split()[1]) for part in path[1:].split("L"))
    assert start - end == pytest.approx(190.0, abs=0.2)


def test_series_differ_without_color() -> None:
    svg = line_chart("t", [Series(str(k), [0, 1], [k, k]) for k in range(4)])
    dashes = [e.attrib["stroke-dasharray"] for e in parse(svg).iter("path")]
    assert len(set(dashes)) == 4
    assert {"0", "1", "2", "3"} <= {e.text for e in parse(svg).iter("text")}


def test_a_gap_breaks_the_line_and_long_runs_are_thinned() -> None:
    assert lines_of(line_chart("t", [Series("a", [0, 1, 2, 3, 4], [1, 1, math.nan, 1, 1])]))[0].count("M") == 2
    noise = np.random.default_rng(0).standard_normal(50_000)
    svg = line_chart("t", [Series("a", range(50_000), noise)], smooth=100)
    assert len(svg) < 60_000
    assert 'class="raw' in svg


def test_log_axis_leaves_out_zero() -> None:
    path = lines_of(line_chart("t", [Series("a", [0, 1, 2], [0.0, 1.0, 1000.0])], log_y=True))[0]
    assert path.count("L") == 1
    with pytest.raises(UserError, match="no finite positive value"):
        line_chart("t", [Series("a", [0], [0.0])], log_y=True)


def test_unequal_lengths_are_named() -> None:
    with pytest.raises(UserError, match="series 'a': 2 x values and 1 y values"):
        line_chart("t", [Series("a", [0, 1], [1])])
    with pytest.raises(UserError, match="no finite value"):
        line_chart("t", [])


def test_histograms_share_bins_and_state_the_outlier() -> None:
    values = np.concatenate([np.full(99, 40.0), [500.0]])
    svg = histogram("norms", [Sample("before", values), Sample("after", np.full(10, 40.0))], x_label="norm", bins=10)
    shapes = [e.attrib["points"].split() for e in parse(svg).iter("polygon")]
    assert [p.split(",")[0] for p in shapes[0]] == [p.split(",")[0] for p in shapes[1]]
    description = parse(svg).find("desc")
    assert description is not None and "before: 100 values, median 40, largest 500" in (description.text or "")
    assert 'class="area' in histogram("norms", [Sample("a", values)], x_label="norm", log_y=True)
    with pytest.raises(UserError, match="no finite value"):
        histogram("t", [Sample("a", [])], x_label="norm")


def test_ticks_are_round_and_enclose() -> None:
    assert nice_ticks(0.0, 1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(3.0, 97.0)[0] <= 3.0 and nice_ticks(3.0, 97.0)[-1] >= 97.0
    assert nice_ticks(0.0, 2e-5)[-1] == pytest.approx(2e-5)
    assert len(nice_ticks(5.0, 5.0)) > 1


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1200, "1200"), (2e-5, "2e-5"), (1.5e-4, "1.5e-4"), (123456, "1.2e5")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
