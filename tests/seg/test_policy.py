import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.seg.policy import apply_policy, parameter_groups
from rsc_seg.seg.projections import joined_state, split_projections
from tests.seg.tiny import NAMES, label_map, photo, tiny_encoder, tiny_model


def inside(names: list[str], tower: str) -> list[str]:
    return [name for name in names if name.startswith(tower)]


def test_attention_trains_queries_and_values_of_both_towers() -> None:
    model = tiny_model()
    names = apply_policy(model)
    assert len(inside(names, "encoder.")) == 2 * 4
    assert len(inside(names, "text.")) == 2 * 2
    assert all(name.endswith(("original0", "original2")) for name in inside(names, "encoder.") + inside(names, "text."))
    rest = [name for name, _ in model.named_parameters() if not name.startswith(("encoder.", "text."))]
    assert [name for name in names if name in rest] == rest


def test_keys_stay_under_weight_decay_and_the_last_queries_get_a_gradient_of_zero() -> None:
    model = tiny_model()
    apply_policy(model)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.AdamW(parameter_groups(model, lr=1e-2, clip_factor=1.0, weight_decay=0.5))
    model([photo(64, 64)], NAMES, [label_map(24, 24, 5)])["loss"].backward()
    last = model.encoder.trunk.blocks[-1].attn.qkv.parametrizations.weight.original0
    assert last.grad is not None
    assert not last.grad.any()
    optimiser.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert not moved & frozen
    assert any(key.endswith("original1") for key in frozen)
    assert all(key in moved for key in dict(model.named_parameters()) if key not in frozen)


@pytest.mark.parametrize(
    ("policy", "visual", "text"),
    [("vanilla", 4 * (3 + 3) + 1, 0), ("full", 4 * (12 + 2), 2 * (12 + 2)), ("none", 0, 0)],
)
def test_other_policies(policy: str, visual: int, text: int) -> None:
    model = tiny_model()
    names = apply_policy(model, policy)
    assert (len(inside(names, "encoder.")), len(inside(names, "text."))) == (visual, text)
    assert ("encoder.trunk.pos_embed" in names) == (policy == "vanilla")
    assert "encoder.trunk.head.bias" not in names


def test_eva_has_separate_projections_of_which_the_last_queries_are_never_read() -> None:
    model = tiny_model("evaclip_tiny16")
    names = inside(apply_policy(model), "encoder.")
    assert len(names) == 2 * 4 - 1
    assert "encoder.trunk.blocks.3.attn.v_proj.weight" in names
    assert "encoder.trunk.blocks.3.attn.q_proj.weight" not in names
    with pytest.raises(UserError, match="finetune"):
        apply_policy(model, "qv")


def test_splitting_keeps_outputs_and_the_packed_weights() -> None:
    plain, split = tiny_encoder(), tiny_encoder()
    split_projections(split)
    split_projections(split)  # a second time changes nothing
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(split.dense(x), plain.dense(x))
    joined = joined_state(split.trunk.state_dict())
    assert joined.keys() == plain.trunk.state_dict().keys()
    assert all(torch.equal(joined[key], value) for key, value in plain.trunk.state_dict().items())


def test_groups_have_the_official_rates_and_decays() -> None:
    model = tiny_model()
    apply_policy(model)
    groups = {group["name"]: group for group in parameter_groups(model)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "clip": (pytest.approx(2e-6), 1e-4),
        "aggregator": (2e-4, 1e-4),
        "aggregator without decay": (2e-4, 0.0),
    }
    assert len(groups["clip"]["params"]) == 12
    # every layer: four norms of the blocks, two of the class part, one of the guidance; four of the decoder
    assert len(groups["aggregator without decay"]["params"]) == 2 * (2 * 7 + 4)
    held = [p for group in groups.values() for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == sum(p.requires_grad for p in model.parameters())
