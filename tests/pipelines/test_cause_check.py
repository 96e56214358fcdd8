"""What stops a CAUSE run before its work, and what such a stop leaves: nothing, and the older result as it was."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.official import CauseFiles, save_cause
from rsc_seg.config import EvalCauseConfig, load_config
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.cause import default_folder, run_cause
from rsc_seg.pipelines.cause_check import check_labels
from rsc_seg.pipelines.cause_plan import make_plan
from rsc_seg.pipelines.cause_report import picture_credits
from rsc_seg.pipelines.cause_text import dead_lines
from tests.cause.trees import blocks, plain_tree, put
from tests.pipelines.test_cause import config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("data") / "set", count=2, size=(60, 90))


def given(folder: Path, kind: str = "mlp", clusters: int = 3) -> CauseFiles:
    model = CauseModel(kind, torch.randn(16, 64), (8, 8), clusters, reduced=8, projection=16)
    return save_cause(folder, model, ClusterProbe(clusters, 8))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a pass of any encoder is an error of the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("tokens were computed")

    monkeypatch.setattr(DenseEncoder, "dense", refuse)


@pytest.mark.parametrize("split", ["val", "train"])
def test_every_label_is_looked_at_before_any_token(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_tokens(monkeypatch)
    root = plain_tree(tmp_path / "set", count=3, size=(60, 90))
    put(root / split / "labels/2.png", blocks(5, 60, 90, 3) + 7)  # the last file alone is another set's
    with pytest.raises(UserError, match=rf"{split}/labels/2\.png.*outside the class list"):
        run_cause(config(root), tmp_path / "out")
    for i in range(3):
        put(root / split / f"labels/{i}.png", np.full((60, 90), 255, np.uint8))
    with pytest.raises(UserError, match=rf"{split}/labels/0\.png: no pixel of the 3 label files of split '{split}'"):
        run_cause(config(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linear_probe_that_no_view_trained_is_not_scored(tmp_path: Path) -> None:
    root = plain_tree(tmp_path / "set", count=2, size=(60, 180))
    for i in range(2):  # one column at the edge of the image, which no square of a crop takes in
        labels = np.full((60, 180), 255, np.uint8)
        labels[:, 0] = 1
        put(root / f"train/labels/{i}.png", labels)
    with pytest.raises(UserError, match="untuned: no iteration trained the linear probe, since no pixel"):
        run_cause(config(root), tmp_path / "out")
    assert not (tmp_path / "out" / "cause.json").exists()
    assert not list((tmp_path / "out/cache/stages").glob("probes-*"))


def test_labels_are_counted_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(config(data), tmp_path)
    first = check_labels(plan)
    for split, opened in (("val", plan.sets.val), ("train", plan.sets.train)):
        assert opened is not None
        found = [np.bincount(opened.data.labels(i).ravel(), minlength=256)[:3] for i in range(2)]
        assert first[split].tolist() == np.sum(found, axis=0).tolist()
    monkeypatch.setattr("rsc_seg.pipelines.cause_check._class_pixels", None)  # not called again
    again = check_labels(make_plan(config(data), tmp_path))
    assert {key: a.tolist() for key, a in again.items()} == {key: a.tolist() for key, a in first.items()}


def test_the_resolved_configuration_is_written_everywhere(data: Path, tmp_path: Path) -> None:
    result, page = run_cause(config(data), tmp_path)
    stored = load_config(EvalCauseConfig, tmp_path / "config.yaml")
    assert (stored.cause.lr, stored.cause.ema, stored.cause.head_clip, stored.cause.codes) == (4e-3, 0.99, 0.1, 16)
    assert result["config"]["cause"]["lr"] == 4e-3 and None not in result["config"]["cause"].values()
    assert json.loads((tmp_path / "cause.json").read_text())["config"] == result["config"]
    assert "lr: 0.004" in page.read_text() and "ema: 0.99" in page.read_text()


def test_a_call_that_fails_leaves_an_older_result_as_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, files = tmp_path / "out", given(tmp_path / "weights")
    first, _ = run_cause(config(data), out, cause_weights=files)
    before = contents(out)
    assert {"config.yaml", "cause.json", "classes.csv", "report.html"} <= before.keys()
    no_tokens(monkeypatch)
    again, _ = run_cause(config(data), out, cause_weights=files)  # the same call: from the kept counts
    assert again["rows"] == first["rows"]
    before = contents(out)
    given(tmp_path / "weights", clusters=5)  # no longer the set's
    with pytest.raises(UserError, match="5 clusters do not fit"):
        run_cause(config(data), out, cause_weights=files)
    files.cluster.unlink()
    with pytest.raises(UserError, match=r"cluster_mlp\.pth"):
        run_cause(config(data), out, cause_weights=files)
    assert contents(out) == before
    with pytest.raises(UserError, match=r"cluster_mlp\.pth"):
        run_cause(config(data), tmp_path / "new", cause_weights=files)
    assert not (tmp_path / "new").exists()


def test_another_result_is_not_replaced(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, files = tmp_path / "out", given(tmp_path / "weights")
    run_cause(config(data), out, cause_weights=files)
    before = contents(out)
    no_tokens(monkeypatch)
    with pytest.raises(UserError, match="another call.*score.flip: False there, True here.*--output-dir"):
        run_cause(config(data, "score.flip=true"), out, cause_weights=files)
    with pytest.raises(UserError, match="another call.*--cause-weights.*--output-dir"):
        run_cause(config(data), out)
    with pytest.raises(UserError, match="another call.*--cause-weights.*--output-dir"):
        run_cause(config(data), out, cause_weights=given(tmp_path / "others"))
    moved = config(data, f"cache.dir={out / 'cache'}", "score.crf_workers=1")  # where the work is done is no difference
    run_cause(moved, out, cause_weights=files)
    (out / "cause.json").write_text("{}")
    with pytest.raises(UserError, match="does not say which call made it.*--output-dir"):
        run_cause(config(data), out, cause_weights=files)
    assert contents(out).keys() == before.keys()


def test_an_output_folder_that_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"file: is a file; --output-dir names a folder"):
            run_cause(config(data), folder)
    assert (tmp_path / "file").read_text() == "kept"


def test_options_that_given_weights_rule_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_tokens(monkeypatch)
    tr, mlp = given(tmp_path / "tr", "tr"), given(tmp_path / "mlp")
    with pytest.raises(UserError, match=r"segment_tr\.pth: a CAUSE-TR file, but cause\.head=mlp"):
        run_cause(config(data, "cause.head=mlp"), tmp_path / "o", cause_weights=tr)
    asked = CauseFiles(mlp.segment, mlp.cluster, mlp.codebook, "tr")
    with pytest.raises(UserError, match=r"segment_mlp\.pth: a CAUSE-MLP file, but --head tr"):
        run_cause(config(data, "cause.head=tr"), tmp_path / "o", cause_weights=asked)
    with pytest.raises(UserError, match="cause.seeds=3: --cause-weights are scored as they are, once"):
        run_cause(config(data, "cause.seeds=3"), tmp_path / "o", cause_weights=tr)
    assert not (tmp_path / "o").exists()
    with caplog.at_level(logging.WARNING, "rsc_seg"), pytest.raises(AssertionError, match="tokens were computed"):
        run_cause(config(data, "cause.head=tr", "cause.lr=0.1"), tmp_path / "o", cause_weights=tr)
    assert "these options do nothing: cause.codes=16" in caplog.text and "cause.lr=0.1" in caplog.text


def test_folders_of_different_results_have_different_names() -> None:
    def name(*flags: str, weights: bool = False) -> Path:
        return default_folder(load_config(EvalCauseConfig, None, [*flags]), given=weights)

    names = {name(), name("cause.preset=full-epoch"), name("cause.probe_grad=released"), name(weights=True)}
    names |= {name("score.full_image=true"), name("score.full_image=true", weights=True)}
    assert len(names) == 6
    assert name() == Path("runs/cause_dinov2_vitb14_cityscapes_tr_released-4gpu_detached")
    assert name(weights=True) == Path("runs/cause_dinov2_vitb14_cityscapes_given-weights")


def test_scenes_in_another_layout_name_their_makers_too(tmp_path: Path) -> None:
    (tmp_path / "cityscapes").mkdir()
    assert picture_credits("cityscapes", tmp_path / "cityscapes") == ""
    (tmp_path / "scenes.json").write_text("{}")
    for root in (tmp_path / "cityscapes", tmp_path):
        assert picture_credits("cityscapes", root) == picture_credits("scenes") != ""


def test_given_weights_have_no_seeds() -> None:
    def lines(*seeds: int | None) -> list[str]:
        scores = {"cluster": {"dead_clusters": [1]}}
        row = {"name": "a", "scores": {"cluster": {}}, "seeds": [{"seed": s, "scores": scores} for s in seeds]}
        return dead_lines({"rows": [row], "classes": ["x", "y"]})

    assert lines(None) == ["a: 1 of 2 clusters got no pixel."]
    assert lines(0, 1) == ["a: 1, 1 of 2 clusters (by seed) got no pixel."]
