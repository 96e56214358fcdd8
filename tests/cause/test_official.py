"""CAUSE's own files: round trip, names, what is refused."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.official import CauseFiles, load_cause, load_codebook, load_segment, save_cause
from rsc_seg.errors import UserError
from tests.cause.tiny import CLASSES, GRID, TinySource, tiny_codes

X = TinySource(2).held


def made(kind: str) -> tuple[CauseModel, ClusterProbe]:
    torch.manual_seed(0)
    return CauseModel(kind, tiny_codes(), GRID, CLASSES, reduced=6, projection=10).eval(), ClusterProbe(CLASSES, 6)


def rewrite(path: Path, change: dict[str, Tensor | None]) -> None:
    state = {**torch.load(path, weights_only=True), **change}
    torch.save({key: value for key, value in state.items() if value is not None}, path)


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_what_was_saved_predicts_the_same(kind: str, tmp_path: Path) -> None:
    model, probe = made(kind)
    files = save_cause(tmp_path, model, probe)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"cluster_{kind}.pth", "modular.npy", f"segment_{kind}.pth"]
    assert files == CauseFiles.in_folder(tmp_path, kind)
    loaded, loaded_probe = load_cause(files, GRID)
    assert loaded.kind == kind and loaded.classes == CLASSES and not loaded.training
    assert torch.equal(loaded.features(X), model.features(X)) and torch.equal(loaded.codes, model.codes)
    assert torch.equal(loaded_probe.cluster_probe, probe.cluster_probe)
    assert not any(p.requires_grad for p in [*loaded.parameters(), *loaded_probe.parameters()])


def test_the_files_hold_what_the_official_code_reads(tmp_path: Path) -> None:
    model, probe = made("tr")
    files = save_cause(tmp_path, model, probe)
    assert set(torch.load(files.segment, weights_only=True)) == set(model.state_dict())
    assert set(torch.load(files.cluster, weights_only=True)) == {"codebook", "cluster_probe"}
    assert np.array_equal(np.load(tmp_path / "modular.npy"), tiny_codes().numpy())


def test_wrapped_names_and_a_missing_student_are_taken(tmp_path: Path) -> None:
    model, probe = made("mlp")
    files = save_cause(tmp_path, model, probe)
    kept = {k: v for k, v in model.state_dict().items() if k.startswith(("head_ema.", "linear."))}
    torch.save({f"module.{key}": value for key, value in kept.items()}, files.segment)
    loaded, _ = load_cause(CauseFiles(files.segment, files.cluster), GRID)
    assert torch.equal(loaded.features(X), model.features(X))
    assert torch.equal(loaded.state_dict()["head.f1.weight"], model.state_dict()["head_ema.f1.weight"])


def test_a_codebook_with_a_leading_axis_is_taken_and_another_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, probe = made("tr")
    files = save_cause(tmp_path, model, probe)
    np.save(tmp_path / "modular.npy", 2 * tiny_codes(4).numpy()[None])
    with caplog.at_level(logging.WARNING):
        loaded, _ = load_cause(files, GRID)
    assert torch.equal(loaded.codes, 2 * tiny_codes(4)) and "not the codebook that" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_ema.f2.0.weight": None}, "not a CAUSE-MLP file: lacks head_ema.f2.0.weight"),
        ({"linear.f.weight": None}, "lacks linear.f.weight; give CAUSE's segment_tr.pth or segment_mlp.pth"),
        ({"head_ema.f1.weight": None}, "lacks head_ema.f1.weight"),
        ({"extra": torch.zeros(1)}, "has unknown extra"),
        ({"head_ema.f1.bias": torch.zeros(7)}, "has misshapen head_ema.f1.bias"),
        ({"linear.f.bias": torch.full((CLASSES,), torch.nan)}, "values that are not finite in linear.f.bias"),
        ({"head.f1.weight": None}, "lacks head.f1.weight"),
    ],
)
def test_a_segment_file_that_does_not_fit_is_refused(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    files = save_cause(tmp_path, *made("mlp"))
    rewrite(files.segment, change)
    with pytest.raises(UserError, match=message) as error:
        load_cause(files, GRID)
    assert str(files.segment) in str(error.value) and "\n" not in str(error.value)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    files = save_cause(tmp_path, *made("mlp"))
    with pytest.raises(UserError, match="tokens are 12 wide, the codebook's 5"):
        load_segment(files.segment, torch.zeros(16, 5), GRID)
    rewrite(files.cluster, {"cluster_probe": torch.zeros(CLASSES, 7)})
    with pytest.raises(UserError, match="clusters of width 7, .* makes features of 6"):
        load_cause(files, GRID)
    rewrite(files.cluster, {"cluster_probe": torch.zeros(CLASSES + 1, 6)})
    with pytest.raises(UserError, match="5 clusters, the linear probe of .* has 4 classes"):
        load_cause(files, GRID)
    rewrite(files.cluster, {"cluster_probe": None})
    with pytest.raises(UserError, match="lacks cluster_probe"):
        load_cause(files, GRID)
    rewrite(files.cluster, {"cluster_probe": torch.zeros(CLASSES, 6), "codebook": None})
    with pytest.raises(UserError, match=r"holds no codebook; give modular\.npy as well"):
        load_cause(CauseFiles(files.segment, files.cluster), GRID)


def test_tr_is_bound_to_its_number_of_tokens(tmp_path: Path) -> None:
    files = save_cause(tmp_path, *made("tr"))
    with pytest.raises(UserError, match="made for 64 tokens an image, this run has 7x7"):
        load_cause(files, (7, 7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such codebook"),
        (b"nonsense", r"not a plain \.npy array"),
        (np.array([{"a": 1}], dtype=object), r"not a plain \.npy array"),
        (np.zeros((3, 4), dtype=np.int64), "a codebook is codes x width of floats"),
        (np.zeros(4, dtype=np.float32), "a codebook is codes x width of floats"),
        (np.full((2, 2), np.inf, dtype=np.float32), "values are not finite"),
    ],
)
def test_a_codebook_that_is_none_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "modular.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        load_codebook(path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    files = save_cause(tmp_path, *made("mlp"))
    torch.save({"model": CauseFiles}, files.segment)
    with pytest.raises(UserError, match="only tensors are read"):
        load_cause(files, GRID)


def test_a_folder_in_the_place_of_a_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "modular.npy").mkdir()
    with pytest.raises(UserError, match="not written"):
        save_cause(tmp_path, *made("mlp"))
    assert [p.name for p in tmp_path.iterdir()] == ["modular.npy"]
