from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rsc_seg.errors import UserError
from rsc_seg.models.text_embeddings import embed_sentences
from rsc_seg.seg.model import CatSeg, guidance_blocks
from rsc_seg.seg.policy import apply_policy
from rsc_seg.seg.spatial import window_biases
from tests.seg.tiny import NAMES, label_map, photo, tiny_encoder, tiny_model


@pytest.fixture(scope="module")
def model() -> CatSeg:
    return tiny_model()


def test_images_of_any_size_and_kind_become_logits_at_four_times_the_grid(model: CatSeg) -> None:
    images = [photo(100, 60), photo(64, 64).float(), photo(37, 211)]
    with torch.no_grad():
        found = model(images, NAMES)["logits"]
        assert found.shape == (3, 5, 24, 24)
        assert torch.isfinite(found).all()
        for i, image in enumerate(images):  # a batch is what its images are alone
            torch.testing.assert_close(model([image], NAMES)["logits"][0], found[i], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"grid": (5, 8)}, {"grid": (3, 4), "window": 5}, {"layers": 1}, {"pool": 3}])
@pytest.mark.parametrize("name", ["clip_tiny16", "evaclip_tiny16"])
def test_other_grids_windows_and_towers_run_and_learn(name: str, changes: dict[str, object]) -> None:
    model = tiny_model(name, **changes)
    apply_policy(model)
    model.train()
    out = model([photo(80, 90)], NAMES, [label_map(40, 40, 5)])
    out["loss"].backward()
    grads = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, grad in grads.items() if grad is None] == []
    assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)
    h, w = model.options.grid
    assert model([photo(80, 90)], NAMES)["logits"].shape == (1, 5, 4 * h, 4 * w)


def test_the_order_of_the_classes_does_not_matter(model: CatSeg) -> None:
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        first = model([photo(64, 96)], NAMES)["logits"]
        second = model([photo(64, 96)], [NAMES[i] for i in order])["logits"]
    torch.testing.assert_close(second, first[:, order], atol=2e-5, rtol=1e-4)


def test_other_classes_change_a_class_only_through_the_class_attention(model: CatSeg) -> None:
    with torch.no_grad():
        few, many = model([photo(64, 64)], NAMES[:3])["logits"], model([photo(64, 64)], NAMES)["logits"][:, :3]
    assert (few - many).abs().max() > 1e-4


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("classes", [1, 5])
def test_chunks_and_checkpoints_change_no_result(pool: int, classes: int) -> None:
    names, images, labels = NAMES[:classes], [photo(64, 64), photo(70, 50)], [label_map(30, 30, classes)] * 2
    whole = tiny_model(class_chunk=64, pool=pool, eval_pool=pool)
    parts = tiny_model(class_chunk=2, pool=pool, eval_pool=pool, gradient_checkpointing=True)
    with torch.no_grad():
        torch.testing.assert_close(parts(images, names)["logits"], whole(images, names)["logits"], atol=2e-5, rtol=1e-4)
    norms = []
    for model in (whole, parts):
        apply_policy(model)
        model.train()
        loss = model(images, names, labels)["loss"]
        loss.backward()
        norms.append([loss.detach(), *(p.grad.norm() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(torch.stack(norms[1]), torch.stack(norms[0]), atol=1e-7, rtol=1e-4)


def test_bf16_autocast_stays_near() -> None:
    model = tiny_model()
    apply_policy(model)
    model.train()
    images, labels = [photo(64, 64)], [label_map(32, 32, 5)]
    exact = model(images, NAMES, labels)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        near = model(images, NAMES, labels)["loss"]
    near.backward()
    assert near.dtype == torch.float32
    assert abs(near - exact) < 0.02 * exact
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.embed_classes(NAMES).dtype == torch.float32


def test_class_embeddings_are_kept_until_the_text_tower_changes() -> None:
    model = tiny_model()
    apply_policy(model)
    model.eval()
    with torch.no_grad():
        first = model.embed_classes(NAMES)
        assert model.embed_classes(NAMES) is first
        assert model.embed_classes(NAMES[:2]).shape == (2, 1, 32)
        assert model.embed_classes(NAMES) is first
    assert model.embed_classes(NAMES).requires_grad  # with gradients they are computed anew
    optimiser = torch.optim.AdamW([p for p in model.text.parameters() if p.requires_grad], lr=1e-2)
    model.embed_classes(NAMES).sum().backward()
    optimiser.step()
    with torch.no_grad():
        second = model.embed_classes(NAMES)
    assert (second - first).abs().max() > 1e-4
    with torch.no_grad():
        model.text.text.ln_final.bias.data += 1e-3  # as weight averaging writes: autograd does not hear of it
        assert (model.embed_classes(NAMES) - second).abs().max() > 1e-5
    sentences = [["A photo of a sky in the scene"]]
    torch.testing.assert_close(model.embed_classes(["sky, heaven"]), embed_sentences(model.text, [sentences]))


def test_embeddings_follow_values_that_change_places() -> None:
    model = tiny_model()
    norm = model.text.text.ln_final.weight
    with torch.no_grad():
        norm.data = torch.linspace(0.5, 1.5, len(norm))
        first = model.embed_classes(NAMES)
        norm.data.copy_(norm.data.flip(0))  # same sum, same place in memory, same version
        second = model.embed_classes(NAMES)
        model.forget_classes()
        torch.testing.assert_close(second, model.embed_classes(NAMES))
    assert float((first - second).abs().max()) > 0.01


def test_what_inference_mode_leaves_behind_can_be_trained_with() -> None:
    window_biases.cache_clear()
    model = tiny_model()
    with torch.inference_mode():
        model([photo(64, 64)], NAMES)
    apply_policy(model, "none")
    model.train()
    model([photo(64, 64)], NAMES, [label_map(24, 24, 5)])["loss"].backward()
    assert model.upsample1.weight.grad is not None


def test_a_frozen_text_tower_is_run_once_in_training() -> None:
    model = tiny_model()
    apply_policy(model, "none")
    model.train()
    assert model.embed_classes(NAMES) is model.embed_classes(NAMES)


def test_vanilla_has_eighty_prompts_and_no_padding() -> None:
    model = CatSeg(tiny_encoder(last_block="value"), tiny_model().text, tiny_model().options.vanilla()).eval()
    assert model.aggregator.conv1.weight.shape[1] == 80
    assert not any("padding" in key for key in model.state_dict())
    with torch.no_grad():
        assert model([photo(64, 64)], NAMES[:2])["logits"].shape == (1, 2, 24, 24)


def test_residual_of_the_last_block_is_the_towers_own_mode() -> None:
    x = tiny_model().prepare([photo(96, 96)])
    modes = {mode: tiny_encoder(last_block=mode) for mode in ("catseg", "value")}
    dense = {}
    for mode, encoder in modes.items():
        model = CatSeg(encoder, tiny_model().text, tiny_model().options)
        dense[mode], taps = model.features(x)
        torch.testing.assert_close(dense[mode], encoder.dense(x))
        for found, wanted in zip(taps, encoder.intermediates(x, guidance_blocks(encoder.depth)), strict=True):
            torch.testing.assert_close(found, wanted)
    assert (dense["catseg"] - dense["value"]).abs().max() > 1e-2


def test_taps_stand_at_one_and_two_thirds() -> None:
    assert [guidance_blocks(depth) for depth in (12, 24, 4)] == [(4, 8), (8, 16), (1, 2)]
    with pytest.raises(UserError, match="2 blocks: Cat-Seg takes guidance from two of at least 3"):
        guidance_blocks(2)


def test_alignment_official_pads_to_32_and_exact_does_not() -> None:
    image = photo(40, 64)
    official, exact = tiny_model(), tiny_model(alignment="exact")
    x = official.normalise(image.float()[None])
    torch.testing.assert_close(official.prepare([image]), official.resize(F.pad(x, (0, 0, 0, 24))))
    torch.testing.assert_close(exact.prepare([image]), exact.resize(x))
    assert torch.equal(official.prepare([photo(64, 96)]), exact.prepare([photo(64, 96)]))


def test_doubled_identity_is_an_option() -> None:
    images = [photo(64, 64)]
    for pool in (1, 2):
        twice, once = (tiny_model(doubled_identity=d, eval_pool=pool) for d in (True, False))
        with torch.no_grad():
            assert (twice(images, NAMES)["logits"] - once(images, NAMES)["logits"]).abs().max() > 1e-3


def test_a_guide_has_no_say_at_first_and_learns_one() -> None:
    plain, guided = tiny_model(), tiny_model(guide=True)
    own = {key: value for key, value in guided.state_dict().items() if "guide" not in key.split(".")}
    plain.load_state_dict(own)
    images, labels = [photo(64, 64)], [label_map(24, 24, 5)]
    bias = guided.aggregator.guide.bias
    bias.data.zero_()  # the tiny model fills biases
    with torch.no_grad():
        torch.testing.assert_close(guided(images, NAMES)["logits"], plain(images, NAMES)["logits"])
    names = apply_policy(guided)
    assert "aggregator.guide.weight" in names
    assert not any(name.startswith("guide.") for name in names)
    guided.train()
    assert guided.guide is not None
    assert not guided.guide.training
    guided(images, NAMES, labels)["loss"].backward()
    weight = guided.aggregator.guide.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_bad_input_is_named(model: CatSeg) -> None:
    image = photo(32, 32)
    cases = [
        (([], NAMES), "no images"),
        (([image[:1]], NAMES), r"image 0 is of shape \(1, 32, 32\)"),
        (([image], []), "give a list of at least one name"),
        (([image], ["cat", " "]), "number 1 of 2 is empty"),
        (([image], ["cat", "dog", "cat"]), "'cat' stands at 0 and at 2"),
        (([image], NAMES, [label_map(8, 8, 5)] * 2), "1 images, 2 label maps"),
        (([image], NAMES, [torch.full((8, 8), 7)]), r"labels hold values 7..7; expected 0..4"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            model(*arguments)
    with pytest.raises(UserError, match="take both from one CLIP"):
        other = tiny_model("evaclip_tiny16").text
        other.joint_dim = 48
        CatSeg(tiny_encoder(), other)
    for changes, message in (
        ({"hidden": 15}, "multiple of heads=2"),
        ({"pool": 9}, "must not exceed the grid"),
        ({"ignore": "drop"}, "ignore"),
        ({"decoder": (20, 16)}, "multiples of 16"),
        ({"class_length": -1}, "must be 0"),
    ):
        with pytest.raises(UserError, match=message):
            replace(model.options, **changes)  # type: ignore[arg-type]
