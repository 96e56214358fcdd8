"""The three steps: a plain recomputation of whole iterations, seeds, the first update of the teacher, bad input."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.contrast import assign_codes, code_relations
from rsc_seg.cause.heads import CauseModel, MlpHead
from rsc_seg.cause.sampling import SeededDraws, cell_positions, take_tokens
from rsc_seg.cause.stages import (
    CauseOptions,
    cause_options,
    new_model,
    settings_of,
    train_codebook,
    train_head,
    train_probes,
    whole_patches,
)
from rsc_seg.errors import UserError
from tests.cause import test_contrast, test_modularity
from tests.cause.test_heads import plain_reduce, plain_tr
from tests.cause.tiny import CLASSES, DIM, GRID, TinySource, tiny_codes, tiny_options


class SameDraws:
    """The choices of a seed, remembered, views in their own order."""

    def __init__(self, seed: int = 0) -> None:
        self._draws = SeededDraws(torch.Generator().manual_seed(seed))
        self.seen_cells: list[Tensor] = []
        self.seen_halves: list[list[Tensor]] = []

    def views(self, count: int) -> list[int]:
        return list(range(count))

    def cells(self, batch: int, grid: tuple[int, int]) -> Tensor:
        self.seen_cells.append(self._draws.cells(batch, grid))
        return self.seen_cells[-1]

    def halves(self, counts: Sequence[int]) -> list[Tensor]:
        self.seen_halves.append(self._draws.halves(counts))
        return self.seen_halves[-1]


def plain_head(head: torch.nn.Module, x: Tensor, codes: Tensor) -> Tensor:
    return plain_reduce(head, x) if isinstance(head, MlpHead) else plain_tr(head, x, codes)  # type: ignore[arg-type]


def plain_linear(model: CauseModel, features: Tensor, labels: Tensor) -> Tensor:
    maps = model.linear.f(features.transpose(1, 2).unflatten(2, GRID))
    full = F.interpolate(maps, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels.long(), ignore_index=-1)


def plain_step_two(source: TinySource, model: CauseModel, options: CauseOptions, draws: SameDraws) -> None:
    """Two official iterations: both heads on all tokens, a bank of lists, one Adam, shared memory at first."""
    relations, bank = code_relations(model.codes), defaultdict[int, list[Tensor]](list)
    model.start_teacher()
    learned = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(learned, lr=options.lr)
    for n, (choice, halves) in enumerate(zip(draws.seen_cells, draws.seen_halves, strict=True)):
        indices = range(n * options.batch_size, (n + 1) * options.batch_size)
        x, at = source.tokens(indices), cell_positions(GRID, choice)
        features = plain_head(model.head_ema, x, model.codes).detach()
        student = model.projection_head(take_tokens(plain_head(model.head, x, model.codes), at))
        teacher = model.projection_head_ema(take_tokens(features, at)).detach()
        assigned = assign_codes(take_tokens(x, at), model.codes)
        sets = [(teacher.flatten(0, 1), assigned.flatten())]
        if held := [(value, code) for code, values in bank.items() for value in values]:
            sets.append((torch.stack([value for value, _ in held]), torch.tensor([code for _, code in held])))
        front = test_contrast.by_definition(student, teacher, assigned, relations, sets)
        adam.zero_grad()
        (front + plain_linear(model, features, source.labels(indices))).backward()
        torch.nn.utils.clip_grad_norm_(learned, options.head_clip or 1e9)
        adam.step()
        for mine, theirs in model._pairs():
            mine.data = theirs.data.clone() if n == 0 else 0.99 * mine.data + 0.01 * theirs.data
        for code, half in zip(assigned.unique().tolist(), halves, strict=True):
            bank[code] = [*bank[code], *teacher.flatten(0, 1)[assigned.flatten() == code][half]][-options.bank :]


def close(a: torch.nn.Module, b: torch.nn.Module, tolerance: float = 1e-2) -> None:
    for (name, mine), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm() + 1e-6, name


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_two_iterations_of_steps_two_and_three_are_the_plain_recomputation(kind: str) -> None:
    source, codes = TinySource(8), tiny_codes()
    options = tiny_options(kind, dropout=0.0, lr=1e-3)
    torch.manual_seed(0)
    plain = new_model(source, codes, options)
    model = new_model(source, codes, options)
    model.load_state_dict(plain.state_dict())
    draws = SameDraws()
    train_head(source, codes, options, "released", model=model, draws=draws)
    assert len(draws.seen_cells) == 2
    plain_step_two(source, plain, options, draws)
    close(model, plain)

    probe, centers = ClusterProbe(CLASSES, 6), torch.nn.Parameter(torch.empty(0))
    centers.data = probe.cluster_probe.detach().clone()
    draws = SameDraws()
    train_probes(source, model, codes, options, "released", probe=probe, draws=draws)
    plain.head_ema.requires_grad_(True)
    learned = [*plain.head_ema.parameters(), *plain.linear.parameters()]
    adams = torch.optim.Adam(learned, lr=options.lr), torch.optim.Adam([centers], lr=options.lr)
    for n, choice in enumerate(draws.seen_cells):
        indices = range(4 * n, 4 * n + 4)
        features = plain_head(plain.head_ema, source.tokens(indices), codes)
        sampled = take_tokens(features.detach(), cell_positions(GRID, choice))
        loss = test_modularity.by_definition(sampled, centers, 0.1)
        for adam in adams:
            adam.zero_grad()
        (loss + plain_linear(plain, features, source.labels(indices))).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        for adam in adams:
            adam.step()
    close(model, plain)
    assert torch.allclose(probe.cluster_probe, centers, atol=1e-5)


def test_step_one_is_adam_on_the_modularity_of_sampled_tokens() -> None:
    # codes far from the tokens: where the tanh saturates, float32 leaves Adam nothing but noise to scale up
    source, draws, start = TinySource(8), SameDraws(), torch.randn(16, DIM, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.Parameter(start.double())
    trained = train_codebook(source, tiny_options("tr"), start=start, draws=draws)
    adam = torch.optim.Adam([plain], lr=1e-2)
    for n, choice in enumerate(draws.seen_cells):
        x = take_tokens(source.tokens(range(4 * n, 4 * n + 4)), cell_positions(GRID, choice)).double()
        adam.zero_grad()
        test_modularity.by_definition(x, plain, 0.1).backward()
        adam.step()
    assert (trained - plain).norm() < 1e-4 * (start - plain).norm()


def test_more_iterations_raise_the_modularity() -> None:
    seen: list[float] = []
    options = tiny_options("tr", codebook_epochs=30, codebook_decay=1.0)
    start = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0))
    train_codebook(TinySource(8), options, start=start, watcher=lambda *told: seen.append(told[2]["modularity"]))
    assert len(seen) == 60 and sum(seen[-20:]) > 1.5 * sum(seen[:20]) > 0


@pytest.mark.parametrize("kind", ["tr", "mlp"])
def test_a_seed_fixes_everything_and_the_global_generator_stays(kind: str) -> None:
    source = TinySource(8)

    def run(seed: int) -> dict[str, Tensor]:
        options = tiny_options(kind, seed=seed)
        codes = train_codebook(source, options)
        model = train_head(source, codes, options)
        probe = train_probes(source, model, codes, options)
        return {"codes": codes, "probe": probe.cluster_probe.detach(), **model.state_dict()}

    before = torch.get_rng_state()
    first, torch_state = run(1), torch.get_rng_state()
    torch.manual_seed(99)
    second, other = run(1), run(2)
    assert torch.equal(before, torch_state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(
        torch.equal(first[key], other[key]) for key in ("codes", "probe", "head_ema.f1.weight") if key in first
    )


def test_the_teacher_is_the_student_after_the_first_update_and_its_average_after_the_second() -> None:
    options = tiny_options("mlp", dropout=0.0)
    source, codes = TinySource(8), tiny_codes()
    model, students, teachers = new_model(source, codes, options), [], []

    def watch(*_: object) -> None:
        students.append(model.state_dict()["head.f1.weight"].clone())
        teachers.append(model.state_dict()["head_ema.f1.weight"].clone())

    train_head(source, codes, options, model=model, watcher=watch)
    assert torch.equal(teachers[0], students[0]) and not torch.equal(students[1], students[0])
    assert torch.allclose(teachers[1], 0.99 * students[0] + 0.01 * students[1], atol=1e-7)


def test_an_epoch_is_a_share_of_the_views_each_once() -> None:
    seen: list[list[int]] = []

    class Watched(TinySource):
        def tokens(self, indices: Sequence[int]) -> Tensor:
            seen.append(list(indices))
            return super().tokens(indices)

    train_codebook(Watched(29), tiny_options("tr", share=0.25, codebook_epochs=2))
    assert [len(batch) for batch in seen] == [4, 4, 4, 4]  # 8 of 29 views, twice
    epochs = [sorted(itertools.chain(*seen[:2])), sorted(itertools.chain(*seen[2:]))]
    assert all(len(set(epoch)) == 8 for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("step", ["head", "probes"])
def test_iterations_without_labels_are_left_out_as_the_official_code_does_and_only_there(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    blank = TinySource(8, labels=torch.full((8, *GRID), -1))
    codes, options = tiny_codes(), tiny_options("mlp")
    start = new_model(blank, codes, options)
    before = {key: value.clone() for key, value in start.state_dict().items()}
    with caplog.at_level(logging.WARNING, "rsc_seg"):
        model = train_head(blank, codes, options, model=start)  # detached: the head learns without any label
    start_of = "linear probe: no iteration trained the linear probe"
    assert [record.message.partition(" since")[0] for record in caplog.records] == [f"CAUSE head, {start_of},"]
    assert torch.equal(model.linear.f.weight, before["linear.f.weight"])
    assert not torch.equal(model.head_ema.f1.weight, before["head_ema.f1.weight"])
    if step == "head":
        with pytest.raises(UserError, match="CAUSE head: no iteration had finite gradients"):
            train_head(blank, codes, options, "released")
    else:
        for grad in ("detached", "released"):
            caplog.clear()
            probe = train_probes(blank, model, codes, options, grad)
            assert [r.message.partition(" since")[0] for r in caplog.records] == [f"CAUSE probes, {start_of},"]
            assert torch.equal(model.linear.f.weight, before["linear.f.weight"])
            assert bool(torch.isfinite(probe.cluster_probe).all())


@pytest.mark.parametrize("grad", ["detached", "released"])
def test_batches_without_a_label_are_counted_for_the_linear_probe(grad: str, caplog: pytest.LogCaptureFixture) -> None:
    source = TinySource(8)
    source.maps[1:] = -1  # one view of eight, so one batch of two has a label
    codes, options = tiny_codes(), tiny_options("mlp")
    model = new_model(source, codes, options)
    with caplog.at_level(logging.WARNING, "rsc_seg"):
        train_head(source, codes, options, "detached", model=model)
        train_probes(source, model, codes, options, grad)
    assert [record.message for record in caplog.records] == [
        f"CAUSE {step}: 1 iterations without finite gradients were left out"
        for step in ("head, linear probe", "probes, linear probe")
    ]


def test_the_released_presets_are_those_of_the_official_scripts() -> None:
    city = cause_options("released-4gpu", "cityscapes", "tr", classes=27)
    assert (city.lr, city.batch_size, city.share, city.weight_decay) == (4e-3, 16, 0.25, 0.0)
    assert (city.head_epochs, city.probe_epochs, city.head_clip, city.probe_clip) == (2, 5, 1.0, 1.0)
    assert (city.codes, city.reduced, city.projection, city.bank, city.ema) == (2048, 90, 2048, 100, 0.99)
    assert (city.temperature, city.positive, city.negative, city.dropout) == (0.07, 0.3, 0.1, 0.1)
    mlp = cause_options("released-4gpu", "cocostuff27", "mlp", classes=27)
    assert (mlp.weight_decay, mlp.head_clip, mlp.probe_clip, mlp.probe_epochs) == (1e-4, 0.1, 0.1, 1)
    assert (mlp.codebook_resolution, mlp.head_resolution, mlp.test_resolution) == (320, 224, 320)
    assert cause_options("released-4gpu", "cocostuff27", "tr", classes=27).head_clip == 2.0
    voc = cause_options("full-epoch", "pascalvoc", "tr", classes=21)
    assert (voc.classes, voc.lr, voc.share, voc.head_clip, voc.probe_clip) == (21, 1e-3, 1.0, 2.0, None)
    assert [whole_patches(320, p) for p in (8, 14, 16)] == [320, 322, 320] and whole_patches(224, 14) == 224


def test_what_a_step_depends_on() -> None:
    options = tiny_options("mlp")
    codebook, head, probes = (set(settings_of(options, step)) for step in ("codebook", "head", "probes"))
    assert codebook < head < probes
    # both heads share a codebook
    assert settings_of(options, "codebook") == settings_of(tiny_options("tr"), "codebook")
    assert "ema" in head and "probe_epochs" not in head


def test_bad_input_is_one_clear_error() -> None:
    source, codes, options = TinySource(4), tiny_codes(), tiny_options("mlp")
    with pytest.raises(UserError, match=f"shape \\(16, 5\\) and the tokens are {DIM} wide"):
        train_head(source, codes[:, :5], options)
    with pytest.raises(UserError, match="--probe-grad=free: must be one of detached, released"):
        train_head(source, codes, options, "free")
    with pytest.raises(UserError, match="no training views"):
        train_codebook(TinySource(0), options)
    with pytest.raises(UserError, match="batch_size=0: must be above 0"):
        train_codebook(source, tiny_options("mlp", batch_size=0))
    with pytest.raises(UserError, match="--preset=mine: must be one of"):
        cause_options("mine", "cityscapes", "tr", classes=27)
