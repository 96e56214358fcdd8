import numpy as np
import pytest
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.maskclip_maps import SIDE, Classes, Named, maskclip_groups, shown_size

NAMES = ["sky", "grass", "cow", "boat"]
PALETTE = [(0, 0, 255), (0, 200, 0), (200, 100, 0), (255, 0, 255)]


def shot() -> Named:
    image = Image.new("RGB", (120, 60), (128, 128, 128))
    width, height = shown_size(image)
    first = np.zeros((height, width), np.int64)
    first[height // 2 :] = 1
    second = first.copy()
    second[:, : width // 4] = 2
    return Named("field.jpg", image, {"before": first, "after": second})


def test_overlays_share_colours_and_the_legend_has_each_encoders_share() -> None:
    group = maskclip_groups([shot()], Classes(NAMES, PALETTE, alpha=1.0), "By one template.")[0]
    picture, before, after = group.rows[0]
    assert picture.image.size == before.image.size == (SIDE, SIDE // 2)
    assert before.image.getpixel((600, 20)) == after.image.getpixel((600, 20)) == PALETTE[0]
    assert after.image.getpixel((30, 20)) == PALETTE[2]
    assert before.note == "" and after.note == "75.0 % of the pixels as the first"
    assert group.rows[1][0].alt == (
        "Legend of field.jpg: 0 sky 50.0 % | 37.5 %; 1 grass 50.0 % | 37.5 %; 2 cow – | 25.0 %"
    )
    assert "By one template." in group.about and "same colour and number" in group.about


def test_a_background_stays_clear() -> None:
    group = maskclip_groups([shot()], Classes(NAMES, PALETTE, clear=[0], alpha=1.0), "")[0]
    assert group.rows[0][1].image.getpixel((600, 20)) == (128, 128, 128)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(UserError, match="4 classes and 3 colours"):
        maskclip_groups([shot()], Classes(NAMES, PALETTE[:3]), "")
    wrong = shot()
    wrong.labels = {**wrong.labels, "third": np.zeros((3, 4), np.int64)}
    with pytest.raises(UserError, match="field.jpg: labels of all encoders"):
        maskclip_groups([wrong], Classes(NAMES, PALETTE), "")
