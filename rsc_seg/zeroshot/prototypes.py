"""Class vectors without any text: what an encoder's [CLS] says of the training regions of a class."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rsc_seg.data.region_boxes import letterboxed
from rsc_seg.data.transforms import normalize
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.zeroshot.panoptic_regions import PanopticRegions, Segment

log = logging.getLogger(__name__)
_AT_ONCE = 64  # crops of one pass


def _corners(segment: Segment, ids: np.ndarray) -> tuple[float, float, float, float] | None:
    """xyxy: a thing's box as annotated, stuff's around its pixels; None for one without area."""
    if segment.thing:
        x, y, width, height = segment.box
        box = (x, y, x + width, y + height)
    else:
        mask = ids == segment.id
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        box = (float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1)
    return box if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 else None


def _crops(source: PanopticRegions, size: Sequence[int]) -> Iterator[tuple[Tensor, int]]:
    for i in range(len(source)):
        image: Image.Image
        image, ids = source.load(i)
        for segment in source.segments[i]:
            box = _corners(segment, ids)
            if box is not None:
                yield letterboxed(image, box, size), segment.label


@torch.inference_mode()
def prototype_vectors(
    encoder: DenseEncoder, source: PanopticRegions, *, crop_size: Sequence[int]
) -> Float[Tensor, "T E"]:
    """For each class the mean of the unit [CLS] of its regions' crops, as a unit vector on the encoder's device.

    Crops are cut at the regions' boxes and letterboxed to `crop_size` (height, width), as a teacher of CLIPSelf sees
    them. A class without a region gets zeros, which a line of the log says. Needs an encoder whose [CLS] and dense
    features share a space.
    """
    device = next(encoder.parameters()).device
    total = torch.zeros(len(source.categories), encoder.out_dim, device=device)
    pending: list[tuple[Tensor, int]] = []

    def flush() -> None:
        if pending:
            crops = normalize(torch.stack([crop for crop, _ in pending]), encoder.mean, encoder.std).to(device)
            labels = torch.tensor([label for _, label in pending], device=device)
            total.index_add_(0, labels, functional.normalize(encoder.cls(crops).float(), dim=-1))
            pending.clear()

    for item in _crops(source, crop_size):
        pending.append(item)
        if len(pending) == _AT_ONCE:
            flush()
    flush()
    empty = [source.categories[t].name for t in (~total.any(dim=1)).nonzero()[:, 0].tolist()]
    if empty:
        log.info("no region of %d classes to take a vector from: %s", len(empty), ", ".join(empty[:5]))
    return functional.normalize(total, dim=-1)
