"""What a training step receives."""

from dataclasses import dataclass, field, replace
from typing import Optional

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rsc_seg.models.encoder import EarlyFeatures


def _present(value: Optional[Tensor], name: str) -> Tensor:
    if value is None:
        raise ValueError(f"this batch has no `{name}`, and no cached features in their place")
    return value


@dataclass  # not frozen: under mixed precision Fabric casts the fields of a copy
class Regions:
    """Boxes of region-language alignment, N places an image of which `valid` are filled (the others hold zeros).

    boxes: xyxy in pixels of the resized frame. crops: what the teacher sees of them, normalised (CLIPSelf). nouns: the
    class of each box, -1 where there is none (RegionText).
    """

    boxes: Float[Tensor, "B N 4"]
    valid: Bool[Tensor, "B N"]
    crops: Optional[Float[Tensor, "B N 3 h w"]] = None
    nouns: Optional[Int[Tensor, "B N"]] = None

    def to(self, device: torch.device) -> "Regions":
        """The same regions with their tensors on `device`."""

        def move(value: Optional[Tensor]) -> Optional[Tensor]:
            return None if value is None else value.to(device, non_blocking=True)

        return Regions(
            self.boxes.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
            move(self.crops),
            move(self.nouns),
        )


@dataclass  # not frozen, for the same reason
class Batch:
    """B images with R boxes each (xyxy, pixels of the resized frame). What a cache supplies is left out of the rest.

    valid: the un-padded part of every frame, xyxy in its pixels; None: all of it. images: normalised.
    crops: the boxes cut from the original pictures, normalised. early: f_A's output.
    crop_tokens: f_I of the crops. region_tokens, whole_tokens: the distillation targets of the boxes and of the image.
    """

    boxes: Float[Tensor, "B R 4"]
    names: list[str]
    images: Optional[Float[Tensor, "B 3 H W"]] = None
    crops: Optional[Float[Tensor, "B R 3 h w"]] = None
    early: Optional[EarlyFeatures] = None
    crop_tokens: Optional[Float[Tensor, "BR L D"]] = None
    region_tokens: Optional[Float[Tensor, "BR L D"]] = None
    whole_tokens: Optional[Float[Tensor, "B N D"]] = None
    valid: Optional[Float[Tensor, "B 4"]] = None
    regions: Optional[Regions] = None  # of region-language alignment
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, reason) of unreadable images

    @property
    def pictures(self) -> Float[Tensor, "B 3 H W"]:
        """`images`; ValueError when the batch was made without them."""
        return _present(self.images, "images")

    @property
    def cuts(self) -> Float[Tensor, "B R 3 h w"]:
        """`crops`; ValueError when the batch was made without them."""
        return _present(self.crops, "crops")

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""

        def move(value: Optional[Tensor]) -> Optional[Tensor]:
            return None if value is None else value.to(device, non_blocking=True)

        return replace(
            self,
            boxes=self.boxes.to(device, non_blocking=True),
            images=move(self.images),
            crops=move(self.crops),
            early=None if self.early is None else EarlyFeatures(*(t.to(device, non_blocking=True) for t in self.early)),
            crop_tokens=move(self.crop_tokens),
            region_tokens=move(self.region_tokens),
            whole_tokens=move(self.whole_tokens),
            valid=move(self.valid),
            regions=None if self.regions is None else self.regions.to(device),
        )
