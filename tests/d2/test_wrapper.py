"""Cat-Seg as detectron2 calls it: a loss in training, label maps of each image's size in evaluation."""

from typing import Any
from unittest import mock

import pytest
import torch

from rsc_seg.d2.wrapper import CatSegD2
from rsc_seg.errors import UserError
from rsc_seg.models.text import TextTower
from rsc_seg.seg import inference
from rsc_seg.seg.inference import SlidingOptions, predict_labels, predict_probabilities
from tests.seg.tiny import NAMES, label_map, photo, tiny_model

SLIDING = SlidingOptions(size=(72, 96), window=48)


def samples(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"image": photo(40, 56, i), "height": h, "width": w} for i, (h, w) in enumerate(sizes)]


def test_training_gives_the_models_loss_with_gradients() -> None:
    model = tiny_model()
    model.upsample1.requires_grad_(True)
    batch = [{"image": photo(32, 48, i), "sem_seg": label_map(32, 48, len(NAMES), i)} for i in range(2)]
    wrapped = CatSegD2(model, NAMES).train()
    losses = wrapped(batch)
    expected = model([s["image"] for s in batch], NAMES, [s["sem_seg"] for s in batch])["loss"]
    assert set(losses) == {"loss"} and torch.equal(losses["loss"], expected)
    losses["loss"].backward()
    assert model.upsample1.weight.grad is not None and bool(model.upsample1.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize("sliding", [None, SLIDING])
def test_evaluation_gives_labels_at_the_size_of_each_image(sliding: SlidingOptions | None) -> None:
    model = tiny_model()
    wrapped = CatSegD2(model, NAMES, sliding, view_batch=11).eval()
    batch = samples((31, 70), (64, 20))
    found = wrapped(batch)
    assert [tuple(f["sem_seg"].shape) for f in found] == [(31, 70), (64, 20)]
    for sample, each in zip(batch, found, strict=True):
        size = (sample["height"], sample["width"])
        alone = predict_labels(model, [sample["image"]], NAMES, sizes=[size], sliding=sliding)[0].labels
        assert torch.equal(each["sem_seg"], alone)
        whole = predict_probabilities(model, [sample["image"]], NAMES, sizes=[size], sliding=sliding)[0]
        assert torch.equal(each["sem_seg"], whole.argmax(dim=0))


def test_names_change_for_evaluation_only_and_bad_ones_are_refused() -> None:
    wrapped = CatSegD2(tiny_model(), NAMES[:3])
    wrapped.set_names(["cat", "dog"])
    assert wrapped.train_names == tuple(NAMES[:3]) and wrapped.names == ("cat", "dog")
    assert int(wrapped.eval()(samples((20, 20)))[0]["sem_seg"].max()) <= 1
    with pytest.raises(UserError, match="'cat' stands at 0 and at 1"):
        wrapped.set_names(["cat", "cat"])
    with pytest.raises(UserError, match="number 1 of 2 is empty"):
        CatSegD2(tiny_model(), ["cat", " "])


def test_text_is_embedded_once_a_vocabulary() -> None:
    wrapped = CatSegD2(tiny_model(), NAMES).eval()
    with mock.patch.object(TextTower, "encode", autospec=True, side_effect=TextTower.encode) as encode:
        wrapped(samples((20, 20)))
        first = encode.call_count
        wrapped(samples((20, 20), (30, 20)))
        assert first > 0 and encode.call_count == first
        wrapped.set_names(["dog", "river"])
        wrapped(samples((20, 20)))
        assert encode.call_count > first
        second = encode.call_count
        wrapped.set_names(NAMES)
        wrapped(samples((20, 20)))
        assert encode.call_count == second


def test_views_of_several_images_share_a_pass() -> None:
    model = tiny_model()
    views = len(SLIDING.corners) + 1
    assert CatSegD2(model, NAMES, SLIDING, view_batch=3 * views + 1).image_batch == 3
    assert CatSegD2(model, NAMES, SLIDING, view_batch=2).image_batch == 1
    wrapped = CatSegD2(model, NAMES, SLIDING, view_batch=2 * views).eval()
    with mock.patch.object(type(model), "logits", autospec=True, side_effect=type(model).logits) as logits:
        wrapped(samples((20, 20), (30, 20)))
    assert logits.call_count == 1 and logits.call_args.args[1].shape[0] == 2 * views


def test_no_tensor_of_classes_by_pixels_is_made() -> None:
    names = [f"thing {i}" for i in range(40)]
    wrapped = CatSegD2(tiny_model(class_length=0), names, SLIDING).eval()
    with mock.patch.object(inference, "_at_size", side_effect=inference._at_size) as at_size:
        found = wrapped([{"image": photo(40, 56), "height": 300, "width": 200}])
    assert found[0]["sem_seg"].shape == (300, 200)
    assert max(call.args[0].shape[0] for call in at_size.call_args_list) == 2  # class_chunk
