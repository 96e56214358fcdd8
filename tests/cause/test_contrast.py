"""The front-door loss against the definition written out pair by pair, with its gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rsc_seg.cause.contrast as contrast
from rsc_seg.cause.bank import CodeBank
from rsc_seg.cause.contrast import CodeRelations, assign_codes, code_relations, contrastive_loss

TAU = 0.07


def by_definition(
    z: Tensor, t: Tensor, assigned: Tensor, relations: CodeRelations, sets: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """`sets`: keys and their codes; the first set is the teacher's tokens of the batch."""
    terms = []
    for number, (keys, codes) in enumerate(sets):
        for b in range(len(z)):
            pairs = []
            for i in range(z.shape[1]):
                anchor, own = int(assigned[b, i]), b * z.shape[1] + i
                others = [n for n in range(len(keys)) if number > 0 or n != own]
                used = [n for n in others if relations.used[anchor, codes[n]]]
                if used:
                    logits = F.normalize(keys[used], dim=1) @ F.normalize(z[b, i], dim=0) / TAU
                    attract = relations.positive[anchor, codes[used]]
                    pairs.append((logits.logsumexp(0) - logits)[attract])
            terms.append(torch.cat(pairs).mean())
    return torch.stack(terms).mean()


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, CodeRelations]:
    """Student and teacher projections of 3 x 8 tokens, their codes out of 6, and relations with gaps."""
    generator = torch.Generator().manual_seed(seed)
    z, t = torch.randn(2, 3, 8, 5, generator=generator)
    relations = code_relations(torch.randn(6, 4, generator=generator))
    return z, t, torch.randint(6, (3, 8), generator=generator), relations


def test_relations_are_by_the_cosine_of_the_codes() -> None:
    angles = torch.tensor([0.0, 60, 85, 120]) * math.pi / 180
    relations = code_relations(torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [2], [3], [4]]))
    # cosines: 0.5, 0.09, -0.5 from the first; 0.91, 0.5 from the second; 0.82 from the third
    assert relations.positive[0].tolist() == [True, True, False, False]
    assert relations.used[0].tolist() == [True, True, True, True]
    assert relations.positive[1].tolist() == [True, True, True, True]
    between = code_relations(torch.tensor([[1.0, 0], [0.2, 0.98]]))
    assert not between.used[0, 1] and not between.positive[0, 1]


def test_a_token_takes_the_code_of_the_highest_cosine() -> None:
    codes = torch.tensor([[1.0, 0], [0, 0.01], [-5, -5]])
    assert assign_codes(torch.tensor([[[3.0, 1], [1, 3], [-1, -2]]]), codes).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("chunk", [4096, 5])
def test_loss_and_gradient_are_those_of_the_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "_CHUNK", chunk)
    z, t, assigned, relations = case()
    generator = torch.Generator().manual_seed(5)
    bank = CodeBank(6, 5, per_code=4)
    bank.append(torch.randint(6, (30,), generator=generator), torch.randn(30, 5, generator=generator))
    for held in (None, bank):
        mine, exact = z.clone().requires_grad_(), z.double().requires_grad_()
        sets = [(t.double().flatten(0, 1), assigned.flatten())]
        if held is not None:
            sets.append((held.keys.double(), held.codes))
        loss = contrastive_loss(mine, t, assigned, relations, temperature=TAU, bank=held)
        reference = by_definition(exact, t.double(), assigned, relations, sets)
        (slope,), (expected,) = torch.autograd.grad(loss, mine), torch.autograd.grad(reference, exact)
        assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
        assert torch.allclose(slope.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_an_empty_bank_changes_nothing() -> None:
    z, t, assigned, relations = case()
    with_empty = contrastive_loss(z, t, assigned, relations, bank=CodeBank(6, 5))
    assert torch.equal(with_empty, contrastive_loss(z, t, assigned, relations))


def test_two_tokens_of_one_code_alone_cost_nothing() -> None:
    # the only key of each is its positive, which is the whole denominator
    z, t = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    relations = code_relations(torch.eye(1))
    assert float(contrastive_loss(z, t, torch.zeros(1, 2, dtype=torch.long), relations)) == pytest.approx(0, abs=1e-6)


def test_an_image_without_a_positive_pair_has_no_loss() -> None:
    z, t = torch.randn(2, 1, 3, 4)
    loss = contrastive_loss(z, t, torch.tensor([[0, 1, 2]]), code_relations(torch.eye(3)))
    assert math.isnan(float(loss))


def test_no_gradient_reaches_teacher_or_bank() -> None:
    z, t, assigned, relations = case()
    t.requires_grad_()
    z.requires_grad_()
    contrastive_loss(z, t, assigned, relations).backward()
    assert t.grad is None and z.grad is not None
