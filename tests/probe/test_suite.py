"""The whole quick measure on a set in memory, its tables and its file."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.probe.layers import best_layer
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.probe.suite import ProbeRow, probe_suite, save_json
from rsc_seg.probe.table import table_cells, text_table
from tests.probe.sets import SETTINGS, BlockImages, colour_tokens, grey_tokens

FAST = dataclasses.replace(SETTINGS, linear_steps=150)


def norms(images: Tensor) -> Tensor:
    return colour_tokens(images).norm(dim=1)


@pytest.fixture(scope="module")
def result() -> dict:
    rows = [ProbeRow("colours", colour_tokens, "knows all", norm_fn=norms), ProbeRow("grey", grey_tokens)]
    return probe_suite(rows, BlockImages(8, 0), BlockImages(9, 1), FAST)


def test_rows_carry_every_metric(result: dict) -> None:
    colours, grey = result["rows"]
    assert colours["linear"]["pacc"]["mean"] > 90
    assert [entry["k"] for entry in colours["kmeans"]] == [3, 5]
    assert colours["affinity"]["ap"]["all"] == pytest.approx(100)
    assert colours["coupling"]["median"] == pytest.approx(1.0, abs=1e-5)
    assert sum(colours["norms"]["counts"]) == 9 * 24
    assert grey["norms"] is None
    assert grey["linear"]["pacc"]["mean"] < 50
    assert (colours["grid"], colours["dim"]) == ([4, 6], 3)
    assert (result["train_images"], result["val_images"]) == (8, 9)


def test_deltas_refer_to_the_first_row(result: dict) -> None:
    colours, grey = result["rows"]
    for key, value in grey["delta"].items():
        if value is not None:
            assert value == pytest.approx(grey["headline"][key] - colours["headline"][key])
    assert colours["delta"]["linear_miou"] == 0.0
    assert grey["delta"]["linear_miou"] < -50


def test_what_the_images_do_not_define_is_null_and_a_dash(result: dict) -> None:
    assert result["rows"][0]["headline"]["affinity_ap_beyond_6"] is None
    header, rows = table_cells(result)
    assert rows[0][header.index("AP beyond 6")] == "-"


def test_two_runs_are_equal(result: dict) -> None:
    again = probe_suite([ProbeRow("colours", colour_tokens)], BlockImages(8, 0), BlockImages(9, 1), FAST)
    assert again["rows"][0]["headline"] == result["rows"][0]["headline"]


def test_tables_hold_names_deltas_and_notes(result: dict) -> None:
    text = text_table(result)
    header, first, second = (text.splitlines()[i] for i in (0, 2, 3))
    assert header.split()[:3] == ["row", "LP", "mIoU"]
    assert first.startswith("colours [1]")
    assert f"({result['rows'][1]['delta']['linear_miou']:+.1f})" in second
    assert "(" not in first
    assert "[1] colours: knows all" in text
    assert "8 training and 9 validation images at 32x48" in text


def test_file_is_whole_json(result: dict, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "probe.json"
    save_json(result, path)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert [p.name for p in path.parent.iterdir()] == ["probe.json"]


def test_best_layer_is_the_one_that_knows_the_classes() -> None:
    asked = []

    def layers(images: Tensor) -> list[Tensor]:
        asked.append(len(images))
        return [grey_tokens(images), colour_tokens(images), torch.zeros_like(grey_tokens(images))]

    found = best_layer(layers, BlockImages(8, 0), BlockImages(4, 1), FAST, layers=[2, 5, 9], max_train_images=4)
    assert found["best"] == 5
    assert [entry["layer"] for entry in found["layers"]] == [2, 5, 9]
    assert found["train_images"] == 4
    assert sum(asked) == 4 + 4
    assert "validation" in found["note"]


def test_layers_must_be_named_one_by_one() -> None:
    with pytest.raises(UserError, match="1 layers came back, but 2 were named"):
        best_layer(lambda x: [colour_tokens(x)], BlockImages(2), BlockImages(2), FAST, layers=[1, 2])


def test_unusable_input_is_named() -> None:
    row = ProbeRow("a", colour_tokens)
    with pytest.raises(UserError, match="distinct names"):
        probe_suite([row, row], BlockImages(2), BlockImages(2), FAST)
    with pytest.raises(UserError, match="differ in classes"):
        probe_suite([row], BlockImages(2), BlockImages(2, classes=2), FAST)
    with pytest.raises(UserError, match="validation set holds no image"):
        probe_suite([row], BlockImages(2), BlockImages(0), FAST)


def test_settings_are_checked_and_choose_k() -> None:
    assert ProbeSettings().clusters(11) == [11, 27]
    assert ProbeSettings().clusters(27) == [27, 54]
    assert ProbeSettings(kmeans_k=(9, 4, 9)).clusters(11) == [4, 9]
    for bad in ({"linear_seeds": 0}, {"score_scale": 0.0}, {"kmeans_k": (1,)}, {"coupling_pairs": 0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            ProbeSettings(**bad)
