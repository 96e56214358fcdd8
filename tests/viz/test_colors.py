import numpy as np
import pytest

from rsc_seg.errors import UserError
from rsc_seg.viz.colors import COLORMAPS, ColorScale, color_table, colorize, css_gradient


def luminance(rgb: np.ndarray) -> np.ndarray:
    linear = (rgb / 255.0) ** 2.2
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", ["affinity", "norm"])
def test_sequential_tables_get_lighter_all_the_way(name: str) -> None:
    light = luminance(color_table(name).astype(float))
    assert (np.diff(light) > -1e-3).all()
    assert light[-1] > 10 * light[0]


def test_difference_table_is_lightest_and_grey_at_zero() -> None:
    table = color_table("difference").astype(int)
    light = luminance(table.astype(float))
    assert 120 <= light.argmax() <= 135
    assert np.ptp(table[127]) <= 12
    assert abs(light[0] - light[-1]) < 0.05


def test_equal_numbers_have_equal_colors_in_every_map_of_a_scale() -> None:
    scale = ColorScale(-0.5, 1.0)
    a, b = np.full((2, 2), 0.25), np.array([[0.9, 0.25], [-2.0, 5.0]])
    assert (colorize(a, scale)[0, 0] == colorize(b, scale)[0, 1]).all()
    assert (colorize(b, scale)[1, 0] == color_table("affinity")[0]).all()
    assert (colorize(b, scale)[1, 1] == color_table("affinity")[255]).all()


def test_not_a_number_is_grey() -> None:
    assert (colorize(np.array([[np.nan, 0.0]]), ColorScale(0, 1))[0, 0] == 128).all()


def test_table_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        color_table("affinity")[0] = 0


def test_bad_scale_and_unknown_table_say_what_to_do() -> None:
    with pytest.raises(UserError, match="below the upper end"):
        colorize(np.zeros((1, 1)), ColorScale(1.0, 1.0))
    with pytest.raises(UserError, match="Did you mean 'affinity'"):
        color_table("afinity")


def test_gradient_has_the_tables_ends() -> None:
    for name in COLORMAPS:
        assert bytes(color_table(name)[0]).hex() in css_gradient(name)
        assert bytes(color_table(name)[255]).hex() in css_gradient(name)
