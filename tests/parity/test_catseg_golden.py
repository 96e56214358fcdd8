"""CatSeg against numbers of the official CAT-Seg model (make_catseg_golden.py)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.official import load_official, official_state
from tests.parity.make_catseg_golden import (
    CASES,
    GOLDEN,
    TRAIN,
    Case,
    official_name,
    our_options,
    our_outputs,
    our_training,
    without_gradient,
)
from tests.parity.official_catseg import SIZES, our_model, seeded

torch.set_num_threads(1)
PROBABILITIES, LOGITS, LOSS, NORMS = 1e-5, 1e-4, 1e-6, 1e-3


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "catseg_model.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    shapes = {key: value.shape for key, value in official_state(our_model(SIZES["toy"])).items()}
    return {key: seeded(key, shape) for key, shape in shapes.items() if not key.endswith("attn_mask")}


def model_of(case: Case, weights: dict[str, Tensor]) -> CatSeg:
    model = our_model(SIZES["toy"], our_options(case))
    load_official(model, weights, "seeded")
    return model


@pytest.mark.parametrize("key", CASES)
def test_official_numbers(key: str, golden: dict[str, np.ndarray], weights: dict[str, Tensor]) -> None:
    found = our_outputs(model_of(CASES[key], weights), CASES[key])
    assert list(found) == [name.split("/")[1] for name in golden if name.split("/")[0] == key]
    for what, bound in (("probabilities", PROBABILITIES), ("logits", LOGITS)):
        if what in found:
            wanted = torch.from_numpy(golden[f"{key}/{what}"])
            assert float(wanted.std()) > 0.01
            assert float((found[what] - wanted).abs().max()) < bound


def test_official_loss_and_gradients(golden: dict[str, np.ndarray], weights: dict[str, Tensor]) -> None:
    loss, grads = our_training(model_of(TRAIN, weights))
    assert float(loss) == pytest.approx(float(golden["train/loss"]), abs=LOSS)
    ours = {official_name(key): float(grad.norm()) for key, grad in grads.items()}
    theirs = dict(zip(golden["train/names"].tolist(), golden["train/norms"].tolist(), strict=True))
    assert ours.keys() == theirs.keys()
    nothing = without_gradient(theirs, blocks=12)
    for key, norm in theirs.items():
        if key in nothing:
            assert max(ours[key], norm) < 1e-7, key
        else:
            assert ours[key] == pytest.approx(norm, rel=NORMS), key


@pytest.mark.parametrize(
    "changes",
    [{"eval_pool": 2}, {"class_length": 0}, {"doubled_identity": False}, {"window": 8}],
)
def test_the_comparison_sees_another_rule(
    changes: dict[str, int], golden: dict[str, np.ndarray], weights: dict[str, Tensor]
) -> None:
    case = CASES["pool1"]
    held = {key: value for key, value in weights.items() if "padding" not in key or changes.get("class_length") != 0}
    model = our_model(SIZES["toy"], replace(our_options(case), **changes))
    load_official(model, held, "seeded")
    found = our_outputs(model, case)["probabilities"]
    assert float((found - torch.from_numpy(golden["pool1/probabilities"])).abs().max()) > 1e-3
