"""Names and notes of the encoders that are compared."""

import dataclasses
from pathlib import Path

import pytest
import torch

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines.candidates import unique_names, untuned


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/student", "a/control"], ["student", "control"]),
        (["a/student", "b/student", "b/control"], ["a/student", "b/student", "control"]),
        (["x/a/student", "y/a/student"], ["x/a/student.safetensors", "y/a/student.safetensors"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]) -> None:
    assert unique_names([Path(f"{path}.safetensors") for path in paths]) == names


def test_a_file_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="a/s.safetensors: named twice"):
        unique_names([Path("a/s.safetensors")] * 2)


def test_blocks_that_are_left_out_stand_in_the_note() -> None:
    device = torch.device("cpu")
    config = BackboneConfig(name="dinov2_tiny14", weights="none")
    assert untuned(config, device)[2].note == ""
    assert untuned(dataclasses.replace(config, depth=3), device)[2].note == "block 3 of 4 (backbone.depth=3)"
