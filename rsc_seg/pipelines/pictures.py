"""Feature maps of fixed pictures for the report and for one's own images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.probe.suite import ProbeRow
from rsc_seg.viz.coupling import CouplingExample, coupling_maps
from rsc_seg.viz.gallery import Shot, affinity_groups, coupling_groups, norm_group, pca_group
from rsc_seg.viz.maps import query_points
from rsc_seg.viz.parts import FigureGroup

KINDS = ("affinity", "pca", "norms", "coupling")
NORM_DEFINITION = "of the last block, before the final norm"


@dataclass(frozen=True)
class Picture:
    """An image by name, with its file or place, as it is and as the encoder sees it (normalised, (3,H,W))."""

    name: str
    image: Image.Image
    x: Tensor
    where: str = ""


def picture(name: str, image: Image.Image, size: Sequence[int], encoder: DenseEncoder, where: str = "") -> Picture:
    """Squashes an image to `size` (height, width) for `encoder`; ImageError with `where` when it is too small."""
    frame = fit_image(image, size, "squash", patch=encoder.patch_size, name=where or name)[0]
    return Picture(name, image, normalize(frame, encoder.mean, encoder.std), where or name)


def spread_pictures(source: ImageSource, count: int, size: Sequence[int], encoder: DenseEncoder) -> list[Picture]:
    """`count` images at even distances through a source."""
    indices = sorted({round(i * (len(source) - 1) / max(1, count - 1)) for i in range(min(count, len(source)))})
    return [picture(source.name(i), source.load(i), size, encoder, source.where(i)) for i in indices]


@torch.no_grad()
def shots_of(pictures: Sequence[Picture], candidates: Sequence[ProbeRow]) -> list[Shot]:
    """Every picture with every candidate's map, and norm maps where all candidates have them."""
    with_norms = [c for c in candidates if c.norm_fn is not None]
    shots = []
    for p in pictures:
        maps = {c.name: c.feature_fn(p.x[None])[0].float().cpu() for c in candidates}
        norms = {c.name: c.norm_fn(p.x[None])[0].cpu().numpy() for c in with_norms}  # type: ignore[misc]
        shots.append(Shot(p.name, p.image, maps, norms))
    return shots


def _whole_or_pair(candidate: ProbeRow, width: int) -> ProbeRow:
    """A candidate whose `feature_fn` takes single images and pairs alike."""
    pair = candidate.pair_fn
    if pair is None:
        return candidate
    return ProbeRow(candidate.name, lambda x: pair(x) if x.shape[-1] == 2 * width else candidate.feature_fn(x))


def coupling_examples(pictures: Sequence[Picture], candidates: Sequence[ProbeRow], count: int) -> list[CouplingExample]:
    """Neighbouring pictures as pairs, the query where the fixed rule places it in A."""
    examples = []
    for a, b in list(zip(pictures[::2], pictures[1::2], strict=False))[:count]:
        dense = [_whole_or_pair(c, a.x.shape[-1]) for c in candidates]
        grid = candidates[0].feature_fn(a.x[None]).shape[-2:]
        query = query_points(int(grid[0]), int(grid[1]), 1)[0]
        models = {c.name: coupling_maps(c.feature_fn, a.x, b.x, query) for c in dense}
        examples.append(CouplingExample(f"{a.name} | {b.name}", a.image, b.image, query, models))
    return examples


def figure_groups(
    pictures: Sequence[Picture],
    candidates: Sequence[ProbeRow],
    *,
    kinds: Sequence[str] = KINDS,
    queries: int = 2,
    pairs: int = 2,
) -> list[FigureGroup]:
    """All kinds of maps that are asked for; coupling needs two pictures, norms at least one plain encoder."""
    groups: list[FigureGroup] = []
    shots = shots_of(pictures, candidates)
    if "affinity" in kinds:
        groups += affinity_groups(shots, queries)
    if "pca" in kinds:
        groups.append(pca_group(shots))
    if "norms" in kinds and any(s.norms for s in shots):
        groups.append(norm_group(shots, definition=NORM_DEFINITION))
    if "coupling" in kinds and len(pictures) > 1:
        groups += coupling_groups(coupling_examples(pictures, candidates, pairs))
    return groups
