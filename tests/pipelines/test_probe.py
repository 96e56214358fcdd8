"""The quick measure of a configuration: its images, its memory, its device, its notes."""

from pathlib import Path

import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.probe import labelled_pair, result_lines, run_probe
from rsc_seg.probe import memory
from rsc_seg.probe.memory import TokenBudget, check_memory, fitting_factors
from tests.pipelines.tiny import evaluation, labelled_set


def test_limit_holds_for_both_splits_behind_every(tmp_path: Path) -> None:
    root = labelled_set(tmp_path / "set", 5)
    train, val = labelled_pair(evaluation(root, "data.limit=2", "probe.val_every=3"))
    assert [Path(train.name(i)).stem for i in range(len(train))] == ["00", "01"]
    assert [Path(val.name(i)).stem for i in range(len(val))] == ["00", "03"]
    for flag, said in (("data.every=2", "probe.train_every"), ("probe.val_every=0", "probe.val_every=0: must be 1")):
        with pytest.raises(UserError, match=said):
            labelled_pair(evaluation(root, flag))


def test_memory_is_what_the_tokens_hold() -> None:
    budget = TokenBudget(tokens=10, width=4, classes=2, layers=3)
    assert budget.suite(3, 2) == 5 * 10 * (4 + 2) * 4
    assert budget.best_layer(1000, 2) == (150 + 2) * 10 * (3 * 4 * 2 + 2 * 4)
    assert TokenBudget(10, 4, 2, 0).best_layer(1000, 2) == 0


@pytest.mark.parametrize(("train", "val", "layers"), [(20_000, 500, 12), (118_000, 5_000, 0), (300, 6_000, 12)])
def test_what_the_message_names_fits_and_no_less_does(train: int, val: int, layers: int) -> None:
    budget = TokenBudget(tokens=37 * 37, width=768, classes=150, layers=layers)
    found = fitting_factors(budget, train, val)
    assert found is not None
    k, m = found
    assert budget.most(-(-train // k), -(-val // m)) <= memory.LIMIT
    if k > 1:
        assert budget.most(-(-train // (k - 1)), -(-val // m)) > memory.LIMIT
        with pytest.raises(UserError, match=f"set probe.train_every={2 * k}"):
            check_memory(budget, train, val, train_every=2)
    if m > 1:
        with pytest.raises(UserError, match=f"probe.val_every={3 * m}"):
            check_memory(budget, train, val, val_every=3)


def test_a_measure_that_does_not_fit_stops_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = labelled_set(tmp_path / "set", 4)
    config = evaluation(root, "probe.best_layer=false")
    bound = 0.9 * TokenBudget(4 * 6, 64, 3, 0).suite(4, 4)
    monkeypatch.setattr(memory.check_memory, "__kwdefaults__", {"train_every": 1, "val_every": 1, "limit": bound})
    with pytest.raises(UserError, match=r"4 training and 4 validation images take .* set probe.val_every=2"):
        run_probe(config)


def test_notes_say_which_blocks_there_are(tmp_path: Path) -> None:
    result = run_probe(evaluation(labelled_set(tmp_path / "set", 2), "backbone.depth=2"))
    first, best = result["rows"][:2]
    assert first["note"] == "block 2 of 4 (backbone.depth=2)"
    assert "of 4, chosen by" in best["note"] and "only blocks 1 to 2 were searched" in best["note"]
    assert result["config"]["backbone"]["depth"] == 2
    text = "\n".join(result_lines(result))
    assert "of blocks 1 to 2" in text and result["weights"]["note"] in text


def test_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="run.device=qqq: must be one of"):
        choose_device("qqq")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="no usable CUDA device"):
            choose_device("cuda")
