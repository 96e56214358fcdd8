"""Embeddings of nouns: by the text tower or from a file, and what is no such file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.models.noun_embeddings import noun_text, read_noun_embeddings
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text import TextTower, text_shape

SENTENCES = [[["a photo of a cat."], ["a small cat."]], [["a photo of a dog."], ["a small dog."]]]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(text_shape(find_backbone("clip_tiny16"))).eval().requires_grad_(False)


def written(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_by_the_tower_the_mean_over_templates_of_unit_vectors(tower: TextTower) -> None:
    text = noun_text(tower, SENTENCES, cached=False)
    assert len(text) == 2 and text.embeddings.shape == (2, 32) and not text.embeddings.requires_grad
    for row, templates in zip(text.embeddings, SENTENCES, strict=True):
        each = tower.encode(tower.tokenize([cell[0] for cell in templates]))
        mean = torch.nn.functional.normalize(each, dim=1).mean(dim=0)
        torch.testing.assert_close(row, mean / mean.norm())
    assert text.scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_from_a_file_in_its_order_as_unit_vectors(tower: TextTower, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 32))
    for dtype in (np.float64, np.float32, np.float16):
        text = noun_text(tower, SENTENCES, file=written(tmp_path / "nouns.npy", rows.astype(dtype)))
        assert text.embeddings.dtype == torch.float32
        exact = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
        torch.testing.assert_close(text.embeddings, exact, atol=1e-3 if dtype is np.float16 else 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((3, 32)), "holds 3 x 32 numbers, but there are 2 nouns"),
        (np.ones(32), "holds 32 numbers, but there are 2 nouns"),
        (np.array(1.0), "holds 1 numbers, but there are 2 nouns"),
        (np.ones((2, 31)), "rows of width 31, .* has 32"),
        (np.stack([np.ones(32), np.zeros(32)]), "row 1 .from 0. is not finite or has no length"),
        (np.stack([np.full(32, np.nan), np.ones(32)]), "row 0 .from 0. is not finite"),
        (np.array([["a", "b"]]), "no .npy file of numbers"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    path = written(tmp_path / "nouns.npy", array)
    with pytest.raises(UserError, match=reason) as error:
        read_noun_embeddings(path, nouns=2, width=32)
    assert str(path) in str(error.value) and "rla.noun" in str(error.value)


def test_no_array_at_all(tmp_path: Path) -> None:
    text, archive, pickled = tmp_path / "text.npy", tmp_path / "two.npz", tmp_path / "objects.npy"
    text.write_text("a photo of a cat")
    np.savez(archive, a=np.ones(2), b=np.ones(2))
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for path in (text, archive, pickled):
        with pytest.raises(UserError, match="no .npy file of numbers"):
            read_noun_embeddings(path, nouns=2, width=32)
    with pytest.raises(UserError, match="no such file"):
        read_noun_embeddings(tmp_path / "none.npy", nouns=2, width=32)
