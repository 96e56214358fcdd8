"""Numbers on the page: a real minus, and none before a zero."""

from rsc_seg.viz.parts import Cell, Column, Report, Row, Table
from rsc_seg.viz.report import render


def test_what_rounds_to_zero_has_no_sign() -> None:
    rows = [
        Row("a", {"x": Cell(50.04), "y": -0.04}, reference=True),
        Row("b", {"x": Cell(50.0), "y": -1.26}),
    ]
    page = render(Report("t", "s", tables=[Table("T", [Column("x", "x"), Column("y", "y")], rows)]))
    assert ">+0.0<" in page and "<td>0.0</td>" in page and ">−1.2<" in page and "−1.3" in page
    assert "−0.0" not in page and "-0.0" not in page
