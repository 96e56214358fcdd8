import base64
import io
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.charts import Sample, Series, histogram, line_chart
from rsc_seg.viz.coupling import CouplingExample
from rsc_seg.viz.gallery import Shot, affinity_groups, coupling_groups, norm_group, pca_group
from rsc_seg.viz.parts import Cell, Chart, Column, Figure, FigureGroup, Report, Row, Table
from rsc_seg.viz.report import data_uri, render, write_report
from rsc_seg.viz.style import COLORS

HOSTILE = "</title><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Open elements must close in order; keeps tags, attributes and the text outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def full(shots: list[Shot], coupling_example: CouplingExample) -> Report:
    columns = [
        Column("lp", "linear probe", "mIoU %", better="higher"),
        Column("cr", "coupling", digits=2, better="one"),
    ]
    rows = [
        Row("untuned", {"lp": Cell(44.9, 0.2), "cr": 1.16}, reference=True),
        Row("control", {"lp": Cell(45.2, 0.3), "cr": None}, note="same steps, other target"),
        Row("student", {"lp": Cell(48.0, 0.3), "cr": 1.07}),
    ]
    return Report(
        title="A run",
        subtitle="seed 0",
        provenance="Third-party weights.",
        summary=["It went up."],
        limits=["It does not show more."],
        tables=[Table("Street scenes", columns, rows, "± over 3 seeds.")],
        charts=[
            Chart("Loss", line_chart("Loss", [Series("loss", [0, 1], [2, 1])])),
            Chart("Probe", histogram("Probe", [Sample("untuned", [44.9])], x_label="mIoU"), section="Results"),
        ],
        figures=[*affinity_groups(shots, 1), pca_group(shots), norm_group(shots), *coupling_groups([coupling_example])],
        config_yaml="run:\n  seed: 0\n",
        command="rscv-finetune --backbone tiny",
        environment={"commit": "abc", "torch": "2"},
    )


def test_the_page_is_well_formed_small_and_complete(full: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", full)
    page = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 1_500_000
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    headings = re.findall(r"<h2 id=[^>]*>([^<]*)</h2>", path.read_text(encoding="utf-8"))
    expected = ["Summary", "Results", "Training curves", "Affinity maps", "Joint PCA", "Token norms", "Coupling"]
    assert headings == [*expected, "How to repeat this"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for a in page.all("a")]
    assert targets and set(targets) <= set(ids)
    assert len(page.all("h1")) == 1
    assert (
        "rscv-finetune --backbone tiny" in page.text and "seed: 0" in page.text and "Third-party weights." in page.text
    )


def test_every_picture_has_an_alt_text_and_lies_in_the_page(full: Report) -> None:
    images = Page(render(full)).all("img")
    assert len(images) == sum(len(row) for group in full.figures for row in group.rows)
    assert all(attrs["alt"] and str(attrs["src"]).startswith("data:image/") for attrs in images)
    full.figures[0].rows[0][0].alt = " "
    with pytest.raises(UserError, match="alt text"):
        render(full)


def test_nothing_is_loaded_from_elsewhere(full: Report) -> None:
    text = render(full)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    page = Page(text)
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_hostile_names_stay_text(shots: list[Shot]) -> None:
    shots[0].name = HOSTILE
    shots[0].maps = {HOSTILE: shots[0].maps["before"]}
    table = Table(
        HOSTILE, [Column("a", HOSTILE, HOSTILE)], [Row(HOSTILE, {"a": Cell(1.0, text=HOSTILE)}, HOSTILE)], HOSTILE
    )
    chart = Chart(HOSTILE, line_chart(HOSTILE, [Series(HOSTILE, [0], [1])]), HOSTILE, section=HOSTILE)
    groups = [*affinity_groups(shots[:1], 1), norm_group(shots[:1])]
    report = Report(
        HOSTILE, HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], [table], [chart], groups,
        {"Results": HOSTILE}, config_yaml=HOSTILE, command=HOSTILE, environment={HOSTILE: HOSTILE},
    )  # fmt: skip
    page = Page(render(report))
    assert all(str(attrs.get("src")).startswith("data:") and "onerror" not in attrs for attrs in page.all("img"))
    assert len(page.all("title")) == 2 and page.text.count("onerror=alert(1)") > 15


def test_empty_sections_are_left_out() -> None:
    text = render(Report("Bare"))
    page = Page(text)
    assert "<h2" not in text and page.all("table") == [] and page.all("aside") == []


def test_a_difference_inside_the_spread_is_marked(full: Report) -> None:
    text = re.sub(r"<[^>]+>", " ", render(full))
    assert "≈ +0.3" in text and "≈ +3.1" not in text and "+3.1" in text
    assert "−0.09" in text
    assert "control: same steps, other target" in text


def test_the_best_row_is_not_singled_out(full: Report) -> None:
    rows = re.findall(r"<tr.*?</tr>", render(full), re.S)
    assert [("class=" in row.split(">")[0]) for row in rows] == [False, True, False, False]
    assert not re.search(r"<(b|strong|em)\b", render(full))


def test_the_color_bar_names_the_ends(full: Report) -> None:
    text = render(full)
    scale = full.figures[0].scale
    assert scale is not None and text.count('class="scale"') == 4
    assert f"<span>{scale.low:.3g}</span>".replace("-", "−") in text


def test_maps_keep_their_colors_and_photographs_are_bounded() -> None:
    rng = np.random.default_rng(0)
    few = np.repeat(np.repeat(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), 10, 0), 10, 1)
    many = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for array in (few, many):
        head, data = data_uri(Figure(Image.fromarray(array), "a")).split(",")
        assert head == "data:image/png;base64"
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) == array).all()
    large = Image.fromarray(rng.integers(0, 255, (1500, 2000, 3), dtype=np.uint8))
    head, data = data_uri(Figure(large, "a", tokens=False)).split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (560, 420)
    assert large.size == (2000, 1500)


def test_a_large_page_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    group = FigureGroup("g", [[Figure(Image.fromarray(noise), "noise")]])
    with caplog.at_level(logging.WARNING):
        write_report(tmp_path / "r.html", Report("Large", figures=[group]))
    assert "fewer pictures" in caplog.text


def test_a_failed_write_keeps_the_old_page(full: Report, tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", Report("Old"))
    full.figures[0].rows[0][0].alt = ""
    with pytest.raises(UserError):
        write_report(path, full)
    assert "Old" in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="not written"):
        write_report(tmp_path, Report("A folder stands there"))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def relative_luminance(color: str) -> float:
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_stand_out_in_both_themes(theme: int) -> None:
    for name, pair in COLORS.items():
        if name in ("paper", "panel", "rule"):
            continue
        for ground in ("paper", "panel"):
            light, dark = sorted(
                (relative_luminance(pair[theme]), relative_luminance(COLORS[ground][theme])), reverse=True
            )
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{name} on {ground}"
