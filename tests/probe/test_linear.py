"""The linear probe finds what is linear, at its optimum, and is quiet over seeds."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from rsc_seg.errors import UserError
from rsc_seg.probe.features import LabelledTokens, TokenFeatures, TokenLabels
from rsc_seg.probe.linear import fit_linear, linear_probe, token_statistics
from rsc_seg.probe.settings import ProbeSettings

SETTINGS = ProbeSettings(linear_epochs=30, linear_batch=256, linear_steps=800)


def overlapping(count: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = torch.randint(0, 3, (count,), generator=generator)
    tokens = torch.randn(count, 6, generator=generator) + 1.5 * torch.eye(3, 6)[names]
    return tokens * torch.tensor([1.0, 10.0, 0.1, 1.0, 5.0, 1.0]) + torch.arange(6), names


def test_statistics_agree_with_torch_over_chunks() -> None:
    tokens = torch.randn(1000, 5) * torch.arange(5) + 3
    mean, std = token_statistics(tokens, chunk=70)
    torch.testing.assert_close(mean, tokens.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std[1:], tokens.std(0, unbiased=False)[1:], atol=1e-5, rtol=1e-5)
    assert std[0] == 1.0  # a constant channel is not blown up


def test_reaches_the_loss_of_a_full_solver() -> None:
    tokens, names = overlapping()
    share = F.one_hot(names, 3).float()
    weight, bias = fit_linear(tokens, share, seed=0, settings=SETTINGS)
    scaled = ((tokens - tokens.mean(0)) / tokens.std(0)).numpy()
    solver = LogisticRegression(C=1e6, max_iter=1000).fit(scaled, names.numpy())
    best = -np.log(solver.predict_proba(scaled)[np.arange(len(names)), names.numpy()]).mean()
    ours = F.cross_entropy(F.linear(tokens, weight, bias), names).item()
    assert best <= ours < best + 1e-3


def test_soft_labels_give_the_shares_back() -> None:
    tokens = torch.zeros(400, 2)
    share = torch.tensor([0.5, 0.25, 0.0]).repeat(400, 1)  # a quarter is void
    weight, bias = fit_linear(tokens, share, seed=0, settings=dataclasses.replace(SETTINGS, linear_lr=0.1))
    probabilities = F.linear(tokens[:1], weight, bias).softmax(1)[0]
    assert probabilities.tolist() == pytest.approx([2 / 3, 1 / 3, 0.0], abs=0.02)


def test_tokens_without_labels_do_not_count() -> None:
    tokens, names = overlapping(500)
    share = F.one_hot(names, 3).float()
    poisoned = torch.cat([tokens, tokens.flip(0)])
    with_void = torch.cat([share, torch.zeros_like(share)])
    a = fit_linear(poisoned, with_void, seed=0, settings=SETTINGS)[0]
    b = fit_linear(tokens, share, seed=0, settings=SETTINGS)[0]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_small_sets_get_more_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (taken.append(1), step(self))[1])
    tokens, names = overlapping(500)  # two batches
    share = F.one_hot(names, 3).float()
    fit_linear(tokens, share, seed=0, settings=ProbeSettings(linear_batch=256, linear_epochs=20, linear_steps=55))
    assert len(taken) == 56
    taken.clear()
    fit_linear(tokens, share, seed=0, settings=ProbeSettings(linear_batch=256, linear_epochs=20, linear_steps=1))
    assert len(taken) == 40


def test_no_labelled_token_is_named() -> None:
    with pytest.raises(UserError, match="no labelled token"):
        fit_linear(torch.randn(5, 2), torch.zeros(5, 3), seed=0, settings=SETTINGS)


def as_set(seed: int, images: int = 12) -> LabelledTokens:
    tokens, names = overlapping(images * 24, seed)
    share = F.one_hot(names, 3).float().unflatten(0, (images, 24))
    maps = list(names.to(torch.uint8).view(images, 4, 6))
    return LabelledTokens(TokenFeatures(tokens.unflatten(0, (images, 24)), (4, 6)), TokenLabels(share, maps, (4, 6)))


def test_probe_scores_what_bayes_allows_and_is_quiet_over_seeds() -> None:
    result = linear_probe(as_set(0, 100), as_set(1, 100), SETTINGS)
    generator = torch.Generator().manual_seed(9)
    names = torch.randint(0, 3, (20000,), generator=generator)
    clean = torch.randn(20000, 3, generator=generator) + 1.5 * torch.eye(3)[names]
    bayes = 100 * (clean.argmax(1) == names).float().mean().item()
    assert result["pacc"]["mean"] == pytest.approx(bayes, abs=3.0)
    assert result["miou"]["std"] < 0.2
    assert len(result["iou"]) == 3
    assert result["miou"]["mean"] == pytest.approx(sum(result["iou"]) / 3)


def test_one_seed_has_no_spread() -> None:
    result = linear_probe(
        as_set(0), as_set(1), dataclasses.replace(SETTINGS, linear_seeds=1, linear_epochs=2, linear_steps=1)
    )
    assert result["miou"]["std"] is None
    assert len(result["miou"]["seeds"]) == 1
