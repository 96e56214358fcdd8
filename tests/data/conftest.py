"""Pictures for the tests of the training data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of 160 x 120 pixels: red is the column, green the row, blue tells them apart."""
    y, x = np.mgrid[:120, :160]
    for i in range(5):
        Image.fromarray(np.stack([x, y, np.full_like(x, 40 * i)], axis=-1).astype(np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path
