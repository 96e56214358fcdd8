"""[CLS] features of every CLIP family equal open_clip's pooled features at native size, on random toy weights."""

from dataclasses import replace

import pytest
import torch

from rsc_seg.models.registry import REGISTRY, BackboneRow, find_backbone
from tests.parity.compare_open_clip import (
    SIDE,
    TOLERANCE,
    WIDTH,
    difference,
    encoder_of,
    randomize,
    shrunk_open_clip,
    shrunk_row,
)

torch.set_num_threads(1)
ROWS = [row for row in REGISTRY.values() if row.text_id]


def test_every_family_is_here() -> None:
    assert {row.name.split("_")[0] for row in ROWS} == {"clip", "metaclip", "dfn", "laion", "evaclip"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_pooled_features(row: BackboneRow) -> None:
    model = randomize(shrunk_open_clip(row))
    encoder = encoder_of(model, shrunk_row(row))
    assert (encoder.embed_dim, encoder.depth, encoder.grid(encoder.row.native_size, encoder.row.native_size)) == (
        WIDTH,
        3,
        (SIDE, SIDE),
    )
    found, spread = difference(model, encoder)
    assert found < TOLERANCE
    assert 0.3 < spread < 3  # numbers of order one, so that the tolerance means something


def test_the_comparison_sees_a_lost_quick_gelu() -> None:
    row, plain = find_backbone("clip_vitb16"), find_backbone("laion_vitb16")
    model = randomize(shrunk_open_clip(row))
    lost = replace(shrunk_row(row), timm_id=plain.timm_id, activation=plain.activation)
    assert difference(model, encoder_of(model, lost))[0] > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["clip_vitb16", "evaclip_vitb16"])
def test_the_comparison_sees_a_part_in_a_thousand_of_one_bias(name: str) -> None:
    row = find_backbone(name)
    model = randomize(shrunk_open_clip(row))
    encoder = encoder_of(model, shrunk_row(row))
    encoder.get_parameter("trunk.blocks.0.attn.proj.bias")[0] += 1e-3
    assert difference(model, encoder)[0] > TOLERANCE
