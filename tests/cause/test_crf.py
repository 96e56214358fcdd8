"""The dense CRF and its pool; the pool is tested with work of its own, so the package need not be there."""

import importlib
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from rsc_seg.cause.crf import CrfPool, CrfSettings, crf_available, crf_image, crf_labels, crf_wanted, dense_crf
from rsc_seg.errors import UserError
from tests.cause.trees import dying, failing, slow_when_first

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def half_and_half() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (2,24,32) and a picture of two halves; in the left one a pixel is taken for the other half."""
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = 220
    left = np.full((24, 32), 0.8, np.float32)
    left[:, 16:] = 0.2
    left[12, 5] = 0.3
    return np.stack([left, 1 - left]), image


def test_the_crf_heals_a_pixel_or_names_the_extra() -> None:
    probabilities, image = half_and_half()
    if not crf_available():
        with pytest.raises(UserError, match=r"install rsc-seg\[crf\], or switch it off"):
            dense_crf(probabilities, image)
        return
    q = dense_crf(probabilities, image)
    assert q.shape == (2, 24, 32) and q.dtype == np.float32
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-4)
    assert probabilities[:, 12, 5].argmax() == 1
    expected = np.zeros((24, 32), np.uint8)
    expected[:, 16:] = 1
    assert np.array_equal(crf_labels(probabilities, image, CrfSettings()), expected)
    without = CrfSettings(gaussian_weight=0.0, bilateral_weight=0.0)
    np.testing.assert_allclose(dense_crf(probabilities, image, without), probabilities, atol=1e-5)


def test_settings_where_the_package_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name.startswith("pydensecrf"):
            raise ModuleNotFoundError("No module named 'pydensecrf'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with caplog.at_level(logging.WARNING, logger="rsc_seg"):
        assert crf_wanted("auto") is False
    assert [r.message for r in caplog.records] == [
        "no CRF: pydensecrf2 is not installed (rsc-seg[crf]); only the rows without it are made"
    ]
    assert crf_wanted("off") is False and not crf_available()
    with pytest.raises(UserError, match=r"pydensecrf2: install rsc-seg\[crf\].*No module named"):
        crf_wanted("on")
    with pytest.raises(UserError, match="crf=maybe: must be one of auto, on, off"):
        crf_wanted("maybe")


def test_the_picture_is_bgr_and_cut_off() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in IMAGENET)
    normalized = (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - mean) / std
    found = crf_image(normalized, *IMAGENET)
    loss = pixels[..., ::-1].astype(int) - found
    assert found.flags.c_contiguous and set(np.unique(loss)) <= {0, 1}  # cut off: never above, at most one below
    half = (np.full((3, 1, 1), 100.9 / 255, np.float32) - mean) / std
    assert crf_image(half, *IMAGENET).reshape(-1).tolist() == [100, 100, 100]


def test_workers_do_without_torch() -> None:
    code = "import sys, rsc_seg.cause.crf; raise SystemExit('torch' in sys.modules or 'pydensecrf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def items(count: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(i, rng.random((3, 4, 5)).astype(np.float32), np.full((4, 5, 3), i % 2, np.uint8)) for i in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_few_are_held(workers: int) -> None:
    done, outstanding = [], 0
    with CrfPool[int](workers, work=slow_when_first) as pool:
        for i, p, image in items(6):  # odd ones are slow: even ones overtake them
            done += pool.put(i, p, image)
            outstanding = max(outstanding, i + 1 - len(done))
        done += pool.rest()
        assert pool.rest() == []
    assert [tag for tag, _ in done] == list(range(6))
    assert outstanding <= 2 * workers
    for (_, found), (_, p, _) in zip(done, items(6), strict=True):
        assert np.array_equal(found, p.argmax(0))


def test_a_failure_ends_the_pool_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="no CRF for"), CrfPool[int](1, work=failing) as pool:
        for i, p, image in items(3):
            pool.put(i, p, image)
        pool.rest()
    with pytest.raises(UserError, match=r"ended unexpectedly with code 9.*fewer CRF workers or crf=off"):  # noqa: SIM117
        with CrfPool[int](1, work=dying) as pool:
            for i, p, image in items(4):
                pool.put(i, p, image)
            pool.rest()
    with pytest.raises(UserError, match="crf workers -1"):
        CrfPool[int](-1)
    assert time.perf_counter() - start < 60
