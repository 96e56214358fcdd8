import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.drawing import SHAPES, Bar, Drawing, Frame, Mark, Nested, Photo, Words, painted, written
from rsc_seg.viz.gallery import Shot, affinity_groups
from rsc_seg.viz.parts import Figure, FigureGroup
from rsc_seg.viz.png import save_groups
from rsc_seg.viz.report import data_uri

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*items: object) -> Drawing:
    return Drawing(60, 40, items)  # type: ignore[arg-type]


def test_pictures_lie_where_the_drawing_says_and_tokens_stay_sharp() -> None:
    tile = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    pixels = np.asarray(painted(drawn(Photo(10, 5, 20, 10, tile, tokens=True), Frame(0, 0, 60, 40, (0, 0, 0)))))
    assert (pixels[5:15, 10:20] == (255, 0, 0)).all() and (pixels[5:15, 20:30] == (0, 0, 255)).all()
    assert (pixels[16:39, 1:59] == 255).all()
    assert (pixels[0] == 0).all() and (pixels[:, -1] == 0).all()


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_mark_covers_about_its_circle_and_its_middle(shape: str) -> None:
    pixels = np.asarray(painted(drawn(Mark(30, 20, 8, (10, 20, 30), shape)))).astype(int)
    assert (pixels[20, 30] == (10, 20, 30)).all()
    area = (pixels.sum(2) < 400).sum()
    assert 0.5 * np.pi * 64 < area < 1.3 * np.pi * 64
    assert (pixels[:4] == 255).all() and (pixels[:, :12] == 255).all()


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(UserError, match="mark=blob"):
        painted(drawn(Mark(1, 1, 1, (0, 0, 0), "blob")))


def test_the_svg_holds_letters_shapes_and_the_same_colours_as_the_scale() -> None:
    inner = Drawing(10, 10, [Mark(5, 5, 2, (1, 2, 3), "circle"), Mark(5, 5, 2, (1, 2, 3), "square")])
    parts = (Words(2, 2, "a < b & c", 12), Bar(0, 30, 40, 5, "norm"), Nested(40, 0, 20, 20, inner, "dots"))
    root = ET.fromstring(written(drawn(*parts), "T <1>", "what is seen", "cmd --x 'y'").encode())
    assert [e.text for e in root.iter(f"{SVG}text")] == ["a < b & c"]
    assert len(list(root.iter(f"{SVG}circle"))) == len(list(root.iter(f"{SVG}polygon"))) == 1
    stops = [e.get("stop-color") for e in root.iter(f"{SVG}stop")]
    assert len(stops) == 17 and len(set(stops)) == 17
    assert root.findtext(f"{SVG}title") == "T <1>" and root.findtext(f"{SVG}metadata") == "cmd --x 'y'"
    nested = next(e for e in root.iter(f"{SVG}svg") if e is not root)
    assert nested.get("viewBox") == "0 0 10 10" and nested.findtext(f"{SVG}title") == "dots"


def test_both_formats_of_a_group_say_the_same_and_load_nothing(shots: list[Shot], tmp_path: Path) -> None:
    groups = affinity_groups(shots, 1)
    paths = save_groups(groups, tmp_path, "tool --a b", ("png", "svg"))
    stems = ["affinity-maps-photo-0", "affinity-maps-photo-10"]
    assert [p.name for p in paths] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    text = paths[1].read_text(encoding="utf-8")
    root = ET.fromstring(text.encode())
    with Image.open(paths[0]) as image:
        assert (float(root.get("width") or 0), float(root.get("height") or 0)) == image.size
    words = " ".join(e.text or "" for e in root.iter(f"{SVG}text"))
    assert "Made by: tool --a b" in words and "one scale holds for all encoders" in words and "query 1" in words
    links = [e.get("href") or "" for e in root.iter(f"{SVG}image")]
    assert len(links) == 3 and all(link.startswith("data:image/") for link in links)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_drawn_figure_is_stored_without_loss(tmp_path: Path) -> None:
    drawing = drawn(Mark(30, 20, 8, (10, 20, 30)))
    figure = Figure(painted(drawing), "a dot", tokens=False, drawing=drawing)
    assert data_uri(figure).startswith("data:image/png")
    (svg,) = save_groups([FigureGroup("Dots", [[figure]], section="Dots")], tmp_path, "c", ("svg",))
    assert "<circle" in svg.read_text() and "<image" not in svg.read_text()
