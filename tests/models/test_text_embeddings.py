"""Class embeddings: rules by hand, order, and the cache on disk."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsc_seg.cache_dir import cache_dir
from rsc_seg.data.prompts import PromptSet, class_sentences, open_prompts
from rsc_seg.models import text_embeddings
from rsc_seg.models.text import TextTower
from rsc_seg.models.text_embeddings import (
    class_embeddings,
    embed_sentences,
    embeddings_key,
    pool_prompts,
    prompt_embeddings,
)
from rsc_seg.models.text_weights import build_text_tower

NAMES = ["cat;kitty", "sky", "traffic light"]
TWO = open_prompts(["a photo of a {}.", "a drawing of the {}."])
SENTENCES = class_sentences(NAMES, TWO)


@pytest.fixture(scope="module")
def shared_tower() -> Iterator[TextTower]:
    yield build_text_tower("clip_tiny16", "none")


@pytest.fixture
def tower(shared_tower: TextTower) -> TextTower:
    return copy.deepcopy(shared_tower)


def one(tower: TextTower, sentence: str) -> Tensor:
    """The unit vector of one sentence, by itself and untrimmed."""
    with torch.no_grad():
        return F.normalize(tower.encode(open_clip.tokenize([sentence]), trim=False)[0], dim=0)


def files() -> list[Path]:
    return sorted((cache_dir() / "text").glob("*"))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_the_mean_over_synonyms_is_taken_within_each_template(tower: TextTower) -> None:
    found = prompt_embeddings(tower, SENTENCES)
    assert found.shape == (3, 2, 32) and found.dtype == torch.float32
    pair = F.normalize(one(tower, "a drawing of the cat.") + one(tower, "a drawing of the kitty."), dim=0)
    close(found[0, 1], pair)
    close(found[1, 0], one(tower, "a photo of a sky."))
    close(found[2, 1], one(tower, "a drawing of the traffic light."))
    close(found.norm(dim=2), torch.ones(3, 2))


def test_pooling_over_templates_with_and_without_l2(tower: TextTower) -> None:
    each = prompt_embeddings(tower, SENTENCES)
    raw = class_embeddings(tower, SENTENCES, l2=False)
    close(raw, each.mean(1))
    assert (raw.norm(dim=1) < 1 - 1e-4).all()
    close(class_embeddings(tower, SENTENCES), F.normalize(each.mean(1), dim=1))
    close(pool_prompts(each), class_embeddings(tower, SENTENCES))


def test_clipself_rule_by_hand(tower: TextTower) -> None:
    sentences = class_sentences(["orange", "cat"], open_prompts("clipself"))
    means = [torch.stack([one(tower, cell[0]) for cell in row]).mean(0) for row in sentences]
    close(class_embeddings(tower, sentences), F.normalize(torch.stack(means), dim=1))


def test_catseg_rules_by_hand(tower: TextTower) -> None:
    names = ["bag, purse", "sky"]
    found = prompt_embeddings(tower, class_sentences(names, open_prompts("catseg")))
    assert found.shape == (2, 1, 32)
    close(found[0, 0], one(tower, "A photo of a bag in the scene"))
    first = prompt_embeddings(tower, class_sentences(names, open_prompts("catseg_v1")))
    assert first.shape == (2, 80, 32)
    both = one(tower, "a bad photo of a bag.") + one(tower, "a bad photo of a purse.")
    close(first[0, 0], F.normalize(both, dim=0))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_change_the_result_or_its_order(tower: TextTower, batch_size: int) -> None:
    names = ["a very long name of a thing", "b", "some words", "b"]
    sentences = class_sentences(names, TWO)
    found = prompt_embeddings(tower, sentences, batch_size=batch_size, cached=False)
    for i, row in enumerate(sentences):
        for j, cell in enumerate(row):
            close(found[i, j], one(tower, cell[0]))
    assert torch.equal(found[1], found[3])


def test_repeated_sentences_are_encoded_once(tower: TextTower) -> None:
    rows: list[int] = []
    tower.text.transformer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    prompt_embeddings(tower, class_sentences(["bag", "bag", "cat"], TWO), cached=False)
    assert sum(rows) == 4


def test_gradients_reach_the_tower_through_the_pooling(tower: TextTower) -> None:
    tower.requires_grad_(True)
    pool_prompts(embed_sentences(tower, SENTENCES))[:, 0].sum().backward()
    grad = tower.text.transformer.resblocks[0].attn.in_proj_weight.grad
    assert grad is not None and grad.abs().sum() > 0
    assert not class_embeddings(tower, SENTENCES, cached=False).requires_grad


def test_float32_under_autocast(tower: TextTower) -> None:
    wanted = class_embeddings(tower, SENTENCES, cached=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_embeddings(tower, SENTENCES, cached=False), wanted)


def test_a_second_call_reads_the_file(tower: TextTower, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = class_embeddings(tower, SENTENCES)
    assert len(files()) == 1
    monkeypatch.setattr(text_embeddings, "embed_sentences", lambda *args: pytest.fail("computed again"))
    assert torch.equal(class_embeddings(tower, SENTENCES), wanted)
    assert len(files()) == 1


def test_uncached_writes_nothing(tower: TextTower) -> None:
    class_embeddings(tower, SENTENCES, cached=False)
    assert files() == []


def test_every_ingredient_changes_the_key(tower: TextTower) -> None:
    def sentences(names: list[str] = NAMES, prompts: PromptSet = TWO) -> list[list[list[str]]]:
        return class_sentences(names, prompts)

    tuned = copy.deepcopy(tower)
    with torch.no_grad():
        tuned.text.ln_final.bias[0] += 1e-6
    quick = copy.deepcopy(tower)
    quick.shape = replace(tower.shape, activation="gelu")
    keys = [
        embeddings_key(tower, sentences(), "mean_l2"),
        embeddings_key(tower, sentences(names=["kitty", *NAMES[1:]]), "mean_l2"),
        embeddings_key(tower, sentences(names=NAMES[::-1]), "mean_l2"),
        embeddings_key(tower, sentences(prompts=replace(TWO, templates=TWO.templates[::-1])), "mean_l2"),
        embeddings_key(tower, sentences(prompts=open_prompts("single")), "mean_l2"),
        embeddings_key(tower, sentences(prompts=replace(TWO, synonyms="first")), "mean_l2"),
        embeddings_key(tower, sentences(), "mean"),
        embeddings_key(tower, sentences(), "prompts"),
        embeddings_key(tuned, sentences(), "mean_l2"),
        embeddings_key(quick, sentences(), "mean_l2"),
    ]
    assert len(set(keys)) == len(keys)
    assert embeddings_key(copy.deepcopy(tower), sentences(), "mean_l2") == keys[0]


def test_a_tuned_tower_does_not_meet_its_earlier_embeddings(tower: TextTower) -> None:
    before = class_embeddings(tower, SENTENCES)
    with torch.no_grad():
        tower.text.text_projection.mul_(-1)
    torch.testing.assert_close(class_embeddings(tower, SENTENCES), -before)
    assert len(files()) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_file_is_rebuilt_with_a_warning(
    tower: TextTower, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = class_embeddings(tower, SENTENCES)
    (file,) = files()
    good = file.read_bytes()
    bad = {"cut": good[:-7], "bit": good[:-1] + bytes([good[-1] ^ 1]), "empty": b"", "other": b"hello" * 9}[damage]
    file.write_bytes(bad)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(class_embeddings(tower, SENTENCES), wanted)
    assert f"{file}: damaged class embeddings" in caplog.text
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_a_warning(
    tower: TextTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RSC_SEG_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert class_embeddings(tower, SENTENCES).shape == (3, 32)
    assert "class embeddings are not kept" in caplog.text


def test_no_classes(tower: TextTower) -> None:
    assert embed_sentences(tower, []).shape == (0, 0, 32)
    assert class_embeddings(tower, []).shape == (0, 32)


def test_uneven_templates_are_a_bug_of_the_caller(tower: TextTower) -> None:
    with pytest.raises(ValueError, match="same number of templates"):
        embed_sentences(tower, [[["a"]], [["a"], ["b"]]])
    with pytest.raises(ValueError, match="every template a sentence"):
        embed_sentences(tower, [[[]]])
