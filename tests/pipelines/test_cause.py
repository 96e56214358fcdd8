"""The checked plan of a CAUSE run, what is cached, how the CRF is wired in, and the words of a result."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsc_seg.cause.crf import CrfPool
from rsc_seg.cause.stages import CauseOptions, cause_options
from rsc_seg.config import BackboneConfig, EvalCauseConfig, load_config
from rsc_seg.data.photos import PHOTOS
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines import cause_encoder
from rsc_seg.pipelines.cause import default_folder, run_cause
from rsc_seg.pipelines.cause_encoder import EncoderRun
from rsc_seg.pipelines.cause_plan import HYPER_PARAMETERS, cached_views, encoder_views, make_plan, recipe, resolved
from rsc_seg.pipelines.cause_text import headline_row, ordered, result_lines, signed
from rsc_seg.pipelines.page_parts import picture_credits
from tests.cause.trees import plain_tree


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("data") / "set", count=5, size=(60, 90))


@pytest.fixture(scope="module")
def encoder() -> DenseEncoder:
    return build_backbone(BackboneConfig("dinov2_tiny14", "none"))[0]


def config(data: Path, *more: str) -> EvalCauseConfig:
    """A tiny run."""
    flags = ["backbone.name=dinov2_tiny14", "backbone.weights=none", "run.device=cpu", "score.crf=off"]
    flags += ["data.dataset=plain", f"data.root={data}", "cause.head=mlp", "cause.codes=16", "cause.projection=16"]
    flags += ["cause.reduced=8", "cause.batch_size=4", "cause.positive=0.0", "cause.negative=-0.01"]
    flags += [f"cause.{step}_resolution=112" for step in ("codebook", "head", "test")]
    return load_config(EvalCauseConfig, None, [*flags, *more])


def test_every_hyper_parameter_of_the_recipe_is_an_option() -> None:
    of_the_run = {"head", "classes", "seed"}
    assert set(HYPER_PARAMETERS) == {f.name for f in dataclasses.fields(CauseOptions)} - of_the_run


def test_a_recipe_is_the_preset_and_what_is_named(data: Path) -> None:
    plain = load_config(EvalCauseConfig, None, ["data.dataset=cityscapes"])
    options, changed = recipe(plain, classes=27)
    assert options == cause_options("released-4gpu", "cityscapes", "tr", classes=27) and changed == ()
    named = load_config(
        EvalCauseConfig, None, ["cause.lr=0.004", "cause.head_clip=0", "cause.probe_epochs=7", "run.seed=5"]
    )
    options, changed = recipe(named, classes=27)
    assert (options.lr, options.head_clip, options.probe_clip, options.probe_epochs) == (4e-3, None, 1.0, 7)
    assert options.seed == 5
    assert changed == ("cause.probe_epochs=7", "cause.head_clip=0")  # the rate is the preset's own


@pytest.mark.parametrize(
    "item",
    ["cause.share=0", "cause.share=1.1", "cause.ema=-0.1", "cause.positive=2", "cause.bank=0", "cause.head_clip=.inf"]
    + ["cause.lr=.inf", "cause.weight_decay=.inf", "cause.lr=.nan", "cause.temperature=-.inf", "cause.probe_clip=.nan"],
)
def test_values_out_of_range_are_named(item: str) -> None:
    with pytest.raises(UserError, match="cause.") as error:
        recipe(load_config(EvalCauseConfig, None, [item]), classes=27)
    assert item.split("=")[0] in str(error.value)


@pytest.mark.parametrize(
    "item",
    ["run.precision=bf16-mixed", "run.devices=2", "run.nodes=2", "run.strategy=ddp", "run.wandb=true"]
    + ["run.deterministic=true", "run.log_every=1", "run.save_every=5", "cache.max_gb=-1", "cache.max_gb=.nan"],
)
def test_options_that_would_be_ignored_are_refused(item: str) -> None:
    with pytest.raises(UserError, match=item.partition("=")[0].replace(".", r"\.")) as error:
        resolved(load_config(EvalCauseConfig, None, [item]))
    assert "\n" not in str(error.value)
    resolved(load_config(EvalCauseConfig, None, ["run.devices=1", "run.seed=4", "run.device=cpu"]))


def test_the_resolved_configuration_gives_the_same_recipe() -> None:
    start = load_config(EvalCauseConfig, None, ["cause.head=mlp", "data.dataset=pascalvoc", "cause.lr=0.002"])
    assert recipe(resolved(start), classes=21) == recipe(start, classes=21)


def test_views_follow_the_recipe_and_the_patch(data: Path, encoder: DenseEncoder, tmp_path: Path) -> None:
    flags = ["cause.codebook_resolution=320", "cause.test_resolution=320", "cause.head_resolution=224"]
    plan = make_plan(config(data, *flags), tmp_path)
    views = encoder_views(plan, encoder, "mlp")
    assert views.codebook is not None and views.head is not None
    assert [v.resolution for v in (views.codebook, views.head, views.val)] == [322, 224, 322]
    assert (len(views.codebook), len(views.val), views.flipped) == (25, 5, None)
    with pytest.raises(UserError, match="CAUSE-TR is scored at the resolution"):
        encoder_views(plan, encoder, "tr")
    assert plan.shown() == [0, 1, 3, 4]


def test_what_is_kept_on_disk(data: Path, encoder: DenseEncoder, tmp_path: Path) -> None:
    def kept(*flags: str) -> list[str]:
        plan = make_plan(config(data, "score.flip=true", *flags), tmp_path)
        views = encoder_views(plan, encoder, "mlp")
        chosen = cached_views(plan, encoder, views)
        return [name for name, v in views.distinct().items() if v in chosen]

    scored = ["validation views", "mirrored validation views"]
    assert kept() == ["training crops", *scored]
    assert kept("cache.mode=off") == [] and kept("cache.max_gb=1e-9") == []
    assert kept("cache.mode=on", "cache.max_gb=1e-9") == ["training crops", *scored]
    assert kept("cache.max_gb=0.0004") == scored


def test_another_checkpoint_or_other_images_share_no_file(data: Path, encoder: DenseEncoder, tmp_path: Path) -> None:
    other = build_backbone(BackboneConfig("dinov2_tiny14", "none"))[0]
    for p in other.parameters():
        p.data.mul_(1.01)
    whole, fewer = make_plan(config(data), tmp_path), make_plan(config(data, "data.limit=4"), tmp_path)
    runs = [EncoderRun(whole, encoder, "a", "mlp"), EncoderRun(whole, other, "b", "mlp")]
    runs.append(EncoderRun(fewer, encoder, "c", "mlp"))
    files = {run.codebook(run.plan.options).path for run in runs}
    assert len(files) == 3
    assert EncoderRun(whole, encoder, "again", "mlp").codebook(whole.options).path in files


def _most_likely(probabilities: np.ndarray, image: np.ndarray, settings: Any) -> np.ndarray:
    assert image.shape == (112, 112, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    return probabilities.argmax(0).astype(np.uint8)


def with_crf(monkeypatch: pytest.MonkeyPatch, work: Callable[..., np.ndarray]) -> None:
    """A CRF inside this process that does `work`, whether or not the package is there."""
    monkeypatch.setattr("rsc_seg.pipelines.cause_plan.crf_wanted", lambda mode: mode != "off")
    monkeypatch.setattr(cause_encoder, "CrfPool", lambda workers: partial(CrfPool, work=work)(0))


def test_the_row_with_crf(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_crf(monkeypatch, _most_likely)
    result, page = run_cause(
        config(data, "score.crf=on", "score.flip=true", f"cache.dir={tmp_path / 'c'}"), tmp_path / "a"
    )
    scores = result["rows"][0]["seeds"][0]["scores"]
    assert ordered(scores) == ["cluster", "cluster flip", "cluster flip crf", "linear", "linear flip"]
    # a CRF that changes nothing gives the numbers of the row that it was given
    assert scores["cluster flip crf"]["pacc"] == pytest.approx(scores["cluster flip"]["pacc"], abs=0.05)
    assert "Clusters, flip + CRF" in page.read_text() and headline_row(scores) == "cluster flip crf"
    assert "CRF: pydensecrf2 with the official parameters" in result["protocol"][0]

    again, _ = run_cause(config(data, "score.flip=true", f"cache.dir={tmp_path / 'c'}"), tmp_path / "b")
    stages = [r["rows"][0]["seeds"][0]["stages"] for r in (result, again)]
    assert stages[0]["probes"] == stages[1]["probes"] and stages[0]["scores"] != stages[1]["scores"]
    assert "cluster flip crf" not in again["rows"][0]["scores"]


def test_crf_on_needs_its_package(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("rsc_seg.cause.crf.importlib.import_module", absent)
    with pytest.raises(UserError, match=r"rsc-seg\[crf\]"):
        make_plan(config(data, "score.crf=on"), tmp_path)
    plan = make_plan(config(data, "score.crf=auto"), tmp_path)
    assert not plan.crf
    result, _ = run_cause(config(data, "score.crf=auto", "data.limit=2"), tmp_path)
    assert "no CRF rows: pydensecrf2 is not installed" in result["protocol"][0]
    assert any("no CRF rows" in line for line in result_lines(result))


def test_embedded_scenes_name_their_makers() -> None:
    assert picture_credits("cityscapes") == ""
    text = picture_credits("scenes")
    assert all(f"{name} by {photo.credit}" in text for name, photo in PHOTOS.items())


def test_folder_says_what_was_asked_for() -> None:
    first = load_config(EvalCauseConfig, None, ["backbone.name=clip_vitb16", "score.full_image=true"])
    assert default_folder(first) == Path("runs/cause_clip_vitb16_cityscapes_tr_released-4gpu_detached_full")


def test_zero_has_no_sign() -> None:
    assert [signed(x) for x in (-0.04, 0.04, -0.06, 1.25)] == ["+0.0", "+0.0", "-0.1", "+1.2"]
