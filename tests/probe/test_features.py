"""Tokens and token labels of a set."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.probe.features import LabelCache, cell_shares, extract_layers, extract_tokens, resize_labels, token_labels
from tests.probe.sets import SETTINGS, BlockImages, colour_tokens


def test_cell_shares_by_hand() -> None:
    labels = np.array([[0, 0, 1, 1], [0, 255, 1, 0]], np.uint8)
    share = cell_shares(labels, (1, 2), 2)
    assert share.tolist() == [[0.75, 0.0], [0.25, 0.75]]  # void is in the whole, in no class


def test_cell_shares_agree_with_a_loop_where_cells_do_not_divide_the_map() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (11, 7)).astype(np.uint8)
    labels[labels == 3] = 255
    counts = np.zeros((3, 2, 4))
    for y in range(11):
        for x in range(7):
            counts[int((y + 0.5) / 11 * 3), int((x + 0.5) / 7 * 2), min(int(labels[y, x]), 3)] += 1
    expected = (counts / counts.sum(2, keepdims=True)).reshape(6, 4)[:, :3]
    np.testing.assert_allclose(cell_shares(labels, (3, 2), 3).numpy(), expected, atol=1e-6)


def test_labels_smaller_than_the_grid_leave_cells_empty() -> None:
    share = cell_shares(np.zeros((1, 1), np.uint8), (2, 2), 1)
    assert share.sum().item() == 1.0
    assert share.isfinite().all()


def test_resize_labels_picks_existing_values() -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert resize_labels(labels, 1.0).tolist() == labels.tolist()
    assert resize_labels(labels, 0.5).tolist() == [[7, 9, 11], [19, 21, 23]]


def test_majority_needs_more_than_half_of_the_cell() -> None:
    labels = token_labels(BlockImages(2), (4, 6), 0.5)
    assert labels.maps[0].shape == (16, 24)
    majority = labels.majority()
    assert majority[:, 0].tolist() == [-1, -1]  # void
    assert majority[1, 1:].tolist() == BlockImages(2).blocks[1].reshape(-1)[1:].tolist()
    halves = token_labels(BlockImages(1), (4, 3), 0.5)  # two blocks a cell
    mixed = BlockImages(1).blocks[0].reshape(4, 3, 2)
    expected = np.where(mixed[..., 0] == mixed[..., 1], mixed[..., 0], -1).reshape(-1)
    assert halves.majority()[0, 1:].tolist() == expected[1:].tolist()


def test_tokens_lie_row_by_row_and_every_layer_comes_from_one_pass() -> None:
    calls = []

    def layers(images: Tensor) -> list[Tensor]:
        calls.append(len(images))
        return [colour_tokens(images), 2 * colour_tokens(images)[:, :2]]

    data = BlockImages(7)
    one, two = extract_layers(layers, data, SETTINGS, dtype=torch.float16)
    assert calls == [3, 3, 1]
    assert one.tokens.shape == (7, 24, 3)
    assert two.tokens.shape == (7, 24, 2)
    assert one.tokens.dtype == torch.float16
    assert one.tokens[5].argmax(1).tolist() == data.blocks[5].reshape(-1).tolist()
    chosen = extract_layers(layers, data, SETTINGS, indices=range(0, 7, 3))[0]
    assert chosen.tokens.argmax(2).tolist() == data.blocks[[0, 3, 6]].reshape(3, -1).tolist()


def test_label_cache_reads_a_grid_once() -> None:
    cache = LabelCache(BlockImages(3), 1.0, indices=[2])
    assert cache.at((4, 6)) is cache.at((4, 6))
    assert cache.at((2, 3)).share.shape == (1, 6, 3)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda x: colour_tokens(x) * float("nan"), "not finite.*picture 0, picture 1"),
        (lambda x: colour_tokens(x).flatten(2), r"expected a map \(3, D, h, w\)"),
        (lambda x: colour_tokens(x)[:1], r"expected a map \(3, D, h, w\)"),
    ],
)
def test_useless_maps_are_named(broken: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extract_tokens(broken, BlockImages(4), SETTINGS, name="mine")


def test_empty_and_unlabelled_sets_are_named() -> None:
    with pytest.raises(UserError, match="empty"):
        extract_tokens(colour_tokens, BlockImages(0), SETTINGS)
    unlabelled = BlockImages(1)
    unlabelled.labels = lambda i: np.full((32, 48), 255, np.uint8)
    with pytest.raises(UserError, match="no"):
        token_labels(unlabelled, (4, 6), 1.0)
    unlabelled.labels = lambda i: np.full((32, 48), 7, np.uint8)
    with pytest.raises(UserError, match="picture 0: label 7"):
        token_labels(unlabelled, (4, 6), 1.0)
