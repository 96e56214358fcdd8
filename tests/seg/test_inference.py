import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.seg.inference import SlidingOptions, predict_labels, predict_probabilities
from tests.seg.tiny import NAMES, photo, tiny_model

SMALL = SlidingOptions(size=(160, 160), window=96, overlap=0.333)


@pytest.mark.parametrize("sliding", [None, SMALL])
@pytest.mark.parametrize("length", [8, 3])
def test_streamed_labels_are_the_argmax_of_the_probabilities(sliding: SlidingOptions | None, length: int) -> None:
    model = tiny_model(class_length=length, class_chunk=2)
    images, sizes = [photo(120, 90), photo(70, 110, seed=1)], [(50, 40), (33, 70)]
    maps = predict_probabilities(model, images, NAMES, sizes=sizes, sliding=sliding)
    found = predict_labels(model, images, NAMES, sizes=sizes, sliding=sliding)
    for probabilities, one, size in zip(maps, found, sizes, strict=True):
        assert probabilities.shape == (5, *size)
        assert torch.equal(one.labels, probabilities.argmax(dim=0))
        assert torch.equal(one.scores, probabilities.amax(dim=0))
        assert one.names == tuple(NAMES)


@pytest.mark.parametrize("sliding", [None, SMALL])
def test_chunks_view_batches_and_neighbours_change_nothing(sliding: SlidingOptions | None) -> None:
    images = [photo(120, 90), photo(70, 110, seed=1), photo(96, 96, seed=2)]
    wanted = [predict_probabilities(tiny_model(class_chunk=64), [i], NAMES, sliding=sliding)[0] for i in images]
    for batch in (1, 4, 20):
        found = predict_probabilities(tiny_model(), images, NAMES, sliding=sliding, view_batch=batch)
        for a, b, image in zip(found, wanted, images, strict=True):
            assert a.shape[1:] == image.shape[1:]
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_one_view_is_the_sigmoid_brought_to_size() -> None:
    model, image = tiny_model(), photo(100, 130)
    with torch.no_grad():
        logits = model([image], NAMES)["logits"]
    wanted = F.interpolate(logits.sigmoid(), size=(61, 47), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(predict_probabilities(model, [image], NAMES, sizes=[(61, 47)])[0], wanted)


def test_an_image_smaller_than_the_map_is_cropped_only_as_the_official_code_does() -> None:
    image = photo(20, 16)
    for alignment, crop in (("official", (20, 16)), ("exact", (24, 24))):
        model = tiny_model(alignment=alignment)
        with torch.no_grad():
            maps = model([image], NAMES)["logits"].sigmoid()[..., : crop[0], : crop[1]]
        wanted = F.interpolate(maps, size=(20, 16), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(predict_probabilities(model, [image], NAMES)[0], wanted)


def test_tiles_of_the_official_protocol() -> None:
    assert SlidingOptions().corners == [(0, 0), (0, 256), (256, 0), (256, 256)]
    assert SlidingOptions(size=(640, 700)).corners[:3] == [(0, 0), (0, 256), (0, 316)]
    assert SlidingOptions(size=(384, 384)).corners == [(0, 0)]


def test_sliding_by_unfold_and_fold() -> None:
    model, image, side, size = tiny_model(), photo(130, 100), 96, (160, 160)
    stride = int(side * (1 - 0.333))
    unfold, fold = nn.Unfold(side, stride=stride), nn.Fold(size, side, stride=stride)

    def tower_input(x: Tensor) -> Tensor:
        return model.resize(model.normalise(x))

    with torch.no_grad():
        raw = image.float()[None]
        whole = F.interpolate(raw, size=size, mode="bilinear", align_corners=False)
        tiles = unfold(whole)[0].T.unflatten(1, (3, side, side))
        views = torch.cat([tiles, F.interpolate(raw, size=(side, side), mode="bilinear", align_corners=False)])
        logits = model.logits(tower_input(views), model.embed_classes(NAMES)).dense()
        maps = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False).sigmoid()
        ones = fold(unfold(torch.ones(1, 1, *size)))
        stitched = fold(maps[:-1].permute(1, 2, 3, 0).flatten(1, 2)) / ones
        wanted = (stitched[:, 0] + F.interpolate(maps[-1:], size=size, mode="bilinear", align_corners=False)[0]) / 2
        wanted = F.interpolate(wanted[None], size=(130, 100), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(predict_probabilities(model, [image], NAMES, sliding=SMALL)[0], wanted)


def test_each_view_keeps_its_own_best_classes() -> None:
    model = tiny_model(class_length=2)
    with torch.no_grad():
        x = model.prepare([photo(64, 64), photo(64, 64, seed=3)])
        text = model.embed_classes(NAMES)
        cut = model.logits(x, text)
        assert cut.classes is not None
        dense, _ = model.features(x)
        cosines = torch.einsum("behw,te->bthw", F.normalize(dense, dim=1), text[:, 0])
    wanted = cosines.amax(dim=(2, 3)).topk(2).indices
    assert torch.equal(cut.classes.sort().values, wanted.sort().values)
    assert ((cut.dense() == -100).sum(dim=1) == 3).all()


def test_bad_input_is_named() -> None:
    model, image = tiny_model(), photo(32, 32)
    with pytest.raises(UserError, match="1 images and 2 sizes"):
        predict_labels(model, [image], NAMES, sizes=[(3, 3), (4, 4)])
    with pytest.raises(UserError, match=r"image of shape \(4, 32, 32\)"):
        predict_labels(model, [torch.zeros(4, 32, 32)], NAMES, sliding=SMALL)
    with pytest.raises(UserError, match="view_batch=0"):
        predict_probabilities(model, [image], NAMES, view_batch=0)
    with pytest.raises(UserError, match="window=700"):
        SlidingOptions(window=700)
    with pytest.raises(UserError, match="overlap=1.0"):
        SlidingOptions(overlap=1.0)
