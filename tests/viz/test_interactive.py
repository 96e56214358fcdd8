from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsc_seg.errors import UserError
from rsc_seg.viz.interactive import Explorable, Explorer, pack, render_explorer, write_explorer
from tests.viz.click_affinity import expected, held
from tests.viz.conftest import smooth_map, smooth_picture
from tests.viz.test_report import Page

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&$title"
EXPLORER = Explorer(
    "Affinities", "two pictures", "Random weights.", "visualize.py page a.jpg --x 'y'", {"commit": "abc"}
)


def pictures(width: int = 24, name: str = "photo") -> list[Explorable]:
    return [
        Explorable(
            f"{name} {s}", smooth_picture(s), {"before": smooth_map(s, width), "after": smooth_map(s + 1, width)}
        )
        for s in (0, 10)
    ]


def cosines(features: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(features.flatten(1).T, dim=1)
    return unit @ unit.T


@pytest.mark.parametrize(("width", "components"), [(24, 384), (200, 64)])
def test_packed_affinities_are_as_far_off_as_they_say(width: int, components: int) -> None:
    features = smooth_map(0, width)
    packed = pack(features, components)
    assert packed.values.dtype == np.int8 and packed.values.shape == (108, min(width, components))
    assert np.abs(packed.values).max(axis=1).min() == 127
    tokens = torch.from_numpy(packed.values.astype(np.float32) * packed.scales[:, None])
    assert torch.allclose(tokens.norm(dim=1), torch.ones(108), atol=1e-5)
    error = (tokens @ tokens.T - cosines(features)).abs()
    assert packed.largest == pytest.approx(float(error.max()), abs=1e-6) and packed.largest < 0.02
    assert packed.mean == pytest.approx(float(error.mean()), abs=1e-6) and packed.mean < 0.004


def test_an_outlier_channel_does_not_coarsen_the_rest() -> None:
    features = torch.randn(64, 9, 12, generator=torch.Generator().manual_seed(0))
    features[5] += 40.0
    unit = F.normalize(features.flatten(1).T, dim=1)
    plain = (unit / unit.abs().amax(1, keepdim=True) * 127).round()
    error = (F.normalize(plain, dim=1) @ F.normalize(plain, dim=1).T - unit @ unit.T).abs().mean()
    assert pack(features).mean < float(error) / 2


def test_what_cannot_be_packed_is_refused() -> None:
    features = smooth_map(0)
    with pytest.raises(UserError, match="--components 0"):
        pack(features, 0)
    features[:, 2, 3] = 0
    with pytest.raises(UserError, match="zero or not finite"):
        pack(features)


def test_the_page_holds_the_features_of_every_picture_and_encoder(tmp_path: Path) -> None:
    shown = pictures()
    path = write_explorer(tmp_path / "page.html", shown, EXPLORER)
    data = held(path)
    assert data["encoders"] == ["before", "after"] and data["grid"] == [9, 12] and data["width"] == 24
    for number, picture in enumerate(shown):
        for found, features in zip(expected(data, number, 31), picture.maps.values(), strict=True):
            assert np.abs(found - cosines(features)[31].numpy()).max() < 0.01
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    worst = max(pack(m).largest for p in shown for m in p.maps.values())
    assert f"by at most {worst:.4f}" in page.text and "visualize.py page a.jpg --x 'y'" in page.text
    assert "$" not in text.replace("$title", "").split("<script>")[0].split("</style>")[1]


def test_the_page_loads_nothing_and_takes_no_orders_from_names() -> None:
    hostile = pictures(name=HOSTILE)
    text = render_explorer(hostile, Explorer(HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    page = Page(text)
    assert [a for a in page.all("img")] == [] and len(page.all("script")) == 3
    assert page.all("meta")[2]["content"] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    assert all(attrs.get("src") is None for attrs in page.all("script"))
    lacking = text.replace("http://www.w3.org", "")
    assert "http:" not in lacking and "https:" not in lacking
    assert page.text.count("onerror=alert(1)") == 5  # title, heading, subtitle, provenance, command


def test_maps_that_do_not_fit_are_refused() -> None:
    one, two = pictures()
    with pytest.raises(UserError, match="same encoders"):
        render_explorer([one, Explorable("x", two.image, {"before": two.maps["before"]})], EXPLORER)
    with pytest.raises(UserError, match="one token grid"):
        render_explorer(
            [Explorable("x", one.image, {"before": torch.rand(24, 4, 4), "after": torch.rand(24, 5, 4)})], EXPLORER
        )
    with pytest.raises(UserError, match="needs a picture"):
        render_explorer([], EXPLORER)


def test_every_control_of_the_page_is_one_that_the_script_knows() -> None:
    folder = Path(__file__).parents[2] / "rsc_seg" / "viz"
    script = (folder / "interactive.js").read_text(encoding="utf-8")
    page = Page((folder / "interactive.html").read_text(encoding="utf-8"))
    names = {attrs["id"] for _, attrs in page.tags if "id" in attrs} - {"theme"}
    assert {name for name in names if f"'{name}'" not in script} == set()
    steps = {attrs["data-step"] for attrs in page.all("button") if "data-step" in attrs}
    assert steps == {"left", "right", "up", "down"}
    assert all(attrs.get("aria-label") for attrs in page.all("button") if "data-step" in attrs)
