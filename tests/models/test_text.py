"""The text tower against open_clip, its trimmed context, and what its tokenizer refuses."""

from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsc_seg.data import vocab
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.errors import UserError
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.text import TextTower, text_shape
from rsc_seg.models.text_weights import build_text_tower

CLIP_ROWS = [row for row in REGISTRY.values() if row.joint_dim]
REAL_ROWS = [row for row in CLIP_ROWS if row.text_id]
SENTENCES = ["a photo of a cat.", "a", "There is a close-up photo of an embroidered umbrella in the scene."]


def tower(name: str = "clip_tiny16", seed: int = 0) -> TextTower:
    """A tiny tower with no parameter at zero or one."""
    made = build_text_tower(name, "none", seed=seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.text.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return made


def same_clip(made: TextTower, custom: bool) -> nn.Module:
    """open_clip's whole model with the same text weights, its text built in or as a tower of its own."""
    shape = made.shape
    sizes = {"width": shape.width, "layers": shape.layers, "heads": shape.heads}
    config: dict[str, Any] = {
        "embed_dim": shape.joint_dim,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": sizes,
        "quick_gelu": shape.activation == "quick_gelu",
    }
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    prefix = "text." if custom else ""
    state = {prefix + key: value for key, value in made.text.state_dict().items()}
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    assert unknown == []
    return model


@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("name", ["clip_tiny16", "laion_tiny16", "evaclip_tiny16"])
def test_equal_to_open_clip(name: str, custom: bool) -> None:
    made = tower(name)
    with torch.no_grad():
        wanted = same_clip(made, custom).encode_text(open_clip.tokenize(SENTENCES))
        found = made.encode(made.tokenize(SENTENCES))
    assert found.shape == (3, 32)
    torch.testing.assert_close(F.normalize(found, dim=1), F.normalize(wanted, dim=1), atol=1e-6, rtol=0)


def test_trimmed_equals_untrimmed_on_ade20k() -> None:
    made = tower()
    cells = class_sentences(vocab.load("ade20k_150").names, open_prompts("catseg"))
    tokens = made.tokenize([cell[0][0] for cell in cells])
    with torch.no_grad():
        trimmed, full = made.encode(tokens), made.encode(tokens, trim=False)
    torch.testing.assert_close(F.normalize(trimmed, dim=1), F.normalize(full, dim=1), atol=1e-6, rtol=0)


def test_the_trimmed_tower_sees_only_the_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tower()
    seen: list[tuple[int, ...]] = []
    made.text.transformer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    tokens = made.tokenize(SENTENCES[:2])
    made.encode(tokens)
    made.encode(tokens, trim=False)
    assert seen == [(2, 8, 32), (2, 77, 32)]  # start, a photo of a cat . , end


def test_a_text_that_fills_the_context_is_not_cut() -> None:
    made = tower()
    full = "a " * 75
    tokens = made.tokenize([full])
    assert int(tokens.argmax()) == 76
    assert torch.equal(tokens, open_clip.tokenize([full]))
    with torch.no_grad():
        assert torch.equal(made.encode(tokens), made.encode(tokens, trim=False))
    with pytest.raises(UserError, match=r"^'a a a .*more than the 75 tokens"):
        made.tokenize(["short", "a " * 76])


def test_no_sentences_give_no_rows() -> None:
    made = tower()
    assert made.tokenize([]).shape == (0, 77)
    assert made.encode(made.tokenize([])).shape == (0, 32)


def test_activation_matters_and_follows_the_row() -> None:
    assert {row.name: text_shape(row).activation for row in CLIP_ROWS} == {
        row.name: "quick_gelu" if row.activation == "quick_gelu" else "gelu" for row in CLIP_ROWS
    }
    quick, plain = tower("clip_tiny16"), tower("laion_tiny16")
    assert all(torch.equal(a, b) for a, b in zip(quick.parameters(), plain.parameters(), strict=True))
    tokens = quick.tokenize(SENTENCES)
    with torch.no_grad():
        assert (quick.encode(tokens) - plain.encode(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("row", REAL_ROWS, ids=lambda row: row.name)
def test_shapes_of_the_released_towers(row: Any) -> None:
    shape = text_shape(row)
    large = "vitl14" in row.name
    assert (shape.width, shape.layers, shape.heads) == ((768, 12, 12) if large else (512, 12, 8))
    assert (shape.joint_dim, shape.context_length, shape.vocab_size) == (row.joint_dim, 77, 49408)
    with torch.device("meta"):
        made = TextTower(shape)
    assert made.text.text_projection.shape == (shape.width, row.joint_dim)
    assert len([name for name in made.state_dict() if "visual" in name]) == 0


def test_a_backbone_without_text_is_refused() -> None:
    with pytest.raises(UserError, match="backbone 'dinov2_vits14' has no text tower"):
        text_shape(REGISTRY["dinov2_vits14"])


def test_a_text_tower_of_another_kind_is_not_built_wrongly() -> None:
    with pytest.raises(ValueError, match="text tower of another kind"):
        text_shape(replace(REGISTRY["clip_vitb16"], text_id="ViT-B-16-SigLIP"))


def test_frozen_by_default_and_tunable() -> None:
    made = tower()
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    tokens = made.tokenize(SENTENCES)
    assert not made.encode(tokens).requires_grad
    attention = [p for name, p in made.text.named_parameters() if ".attn.in_proj_weight" in name]
    for parameter in attention:
        parameter.requires_grad_(True)
    made.encode(tokens).square().sum().backward()
    assert len(attention) == 2 and all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention)


def test_gradients_are_those_of_the_untrimmed_tower() -> None:
    grads: list[Tensor] = []
    for trim in (True, False):
        made = tower().requires_grad_(True)
        made.encode(made.tokenize(SENTENCES), trim=trim).square().mean().backward()
        grads.append(made.text.positional_embedding.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)
