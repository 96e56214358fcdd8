"""Boxes on a picture."""

import numpy as np
from PIL import Image

from rsc_seg.viz.boxes import boxes_picture


def test_outlines_lie_on_the_boxes_and_the_first_on_top() -> None:
    plain = Image.new("RGB", (320, 200))
    drawn = np.asarray(boxes_picture(plain, [(10, 20, 110, 120), (10, 20, 200, 120)], ["", ""], least=320))
    assert drawn.shape == (200, 320, 3)
    first = boxes_picture(plain, [(10, 20, 110, 120)], [""], least=320).getpixel((10, 60))
    assert tuple(drawn[60, 10]) == tuple(drawn[60, 109]) == first and tuple(drawn[60, 199]) not in (first, (0, 0, 0))
    assert not drawn[60, 60].any() and not drawn[10, 60].any()
    ys, xs = np.nonzero(drawn.any(axis=2))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (10, 199, 20, 119)


def test_small_pictures_grow_and_captions_stay_inside() -> None:
    drawn = boxes_picture(Image.new("RGB", (64, 32)), [(60, 30, 64, 32)], ["a long caption"], least=640)
    assert drawn.size == (640, 320)
    assert np.asarray(drawn)[290:, 500:].any()
