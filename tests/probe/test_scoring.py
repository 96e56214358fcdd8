"""From token scores to pixels, and summaries over seeds."""

import math
import statistics

import pytest
import torch

from rsc_seg.probe.scoring import one_thread, percent_summary, pixel_counts


def test_upsampled_argmax_by_hand() -> None:
    # two tokens over four pixels: the weights of the second are 0, 1/4, 3/4, 1
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    maps = [torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)]
    assert pixel_counts([scores], maps, (1, 2), 2).tolist() == [[2, 0], [0, 1]]
    tilted = torch.tensor([[1.0, 0.9], [0.0, 9.0]])  # at the second pixel the second score is already larger
    assert pixel_counts([tilted], maps, (1, 2), 2).tolist() == [[1, 1], [0, 1]]


def test_images_of_different_sizes_add_up() -> None:
    scores = [torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])]
    maps = [torch.zeros(2, 3, dtype=torch.uint8), torch.ones(4, 1, dtype=torch.uint8)]
    assert pixel_counts(scores, maps, (1, 1), 2).tolist() == [[6, 0, 0], [0, 0, 4]]


def test_summary_is_in_percent_with_the_sample_deviation() -> None:
    found = percent_summary([0.5, 0.6, 0.55])
    assert found["mean"] == pytest.approx(55)
    assert found["std"] == pytest.approx(statistics.stdev([50, 60, 55]))
    assert found["seeds"] == pytest.approx([50, 60, 55])
    assert percent_summary([0.5])["std"] is None
    assert math.isnan(percent_summary([math.nan, 0.5])["mean"])


def test_one_thread_is_undone_even_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="inside"), one_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
