"""Class vectors from pictures equal means that were taken one crop after another."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.zeroshot.panoptic_regions import PanopticRegions
from rsc_seg.zeroshot.prototypes import prototype_vectors
from tests.zeroshot.sample import tight_box

SIDE = 64


def one_crop(encoder: DenseEncoder, image: Image.Image, box: list[float]) -> np.ndarray:
    """The unit [CLS] of a box x, y, width, height, letterboxed by hand."""
    left, top, right, bottom = round(box[0]), round(box[1]), round(box[0] + box[2]), round(box[1] + box[3])
    cut = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
    scale = SIDE / max(cut.size)
    small = cut.resize((max(1, round(cut.width * scale)), max(1, round(cut.height * scale))), Image.Resampling.BICUBIC)
    frame = Image.new("RGB", (SIDE, SIDE))
    frame.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    pixels = (np.asarray(frame, np.float32) / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    with torch.no_grad():
        cls = encoder.cls(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0].numpy()
    return np.asarray(cls / np.linalg.norm(cls))


def test_prototypes_are_means_of_unit_cls(
    source: PanopticRegions, encoder: DenseEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = prototype_vectors(encoder, source, crop_size=[SIDE, SIDE]).numpy()
    wanted = np.zeros_like(found)
    for i in range(len(source)):
        image, ids = source.load(i)
        for segment in source.segments[i]:
            mask = ids == segment.id
            box = list(segment.box) if segment.thing else tight_box(mask) if mask.any() else [0.0, 0.0, 0.0, 0.0]
            if min(box[2:]) >= 1:
                wanted[segment.label] += one_crop(encoder, image, box)
    present = np.linalg.norm(wanted, axis=1) > 0
    wanted[present] /= np.linalg.norm(wanted[present], axis=1, keepdims=True)
    assert 0 < present.sum() < len(found) and np.abs(found - wanted).max() < 1e-4
    assert "no region of" in caplog.text and np.abs(found[~present]).max() == 0


def test_pictures_are_read_from_the_split_alone(source: PanopticRegions, encoder: DenseEncoder, tmp_path: Path) -> None:
    a = prototype_vectors(encoder, source, crop_size=[SIDE, SIDE])
    b = prototype_vectors(encoder, source, crop_size=[SIDE, SIDE])
    assert torch.equal(a, b) and not list(tmp_path.iterdir())
