"""The Refiner's map of a box beside what the encoder says of it within the picture and by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from rsc_seg.viz.drawing import INK, PAPER
from rsc_seg.viz.gallery import ENLARGED, map_picture
from rsc_seg.viz.maps import affinity, affinity_scale, as_tensor, draw_cross, joint_pca
from rsc_seg.viz.parts import Figure, FigureGroup

SECTION = "Refiner"
ALONE = "crop by itself"
ABOUT = (
    "One box of a picture, the same tokens in every column: cut from the encoder's map of the whole picture, by the "
    "Refiner, and from the crop encoded by itself, which nothing around it can change and which the Refiner learns "
    "from. First row: joint PCA of the row's maps (one basis and scale: equal colours mean equal features). Second "
    "row: cosine with the token under the cross, one scale for all boxes and pictures of the call. Below the first "
    "row stands the mean cosine of each token with the same token of the crop, and how often that one is the nearest "
    "of all the crop's, which is what a Refiner is trained for; below the second the correlation of all the map's "
    "affinities with the crop's, 1 for the same structure."
)
_SIDE = 672  # pixels of a photograph's longer side
Share = tuple[float, float, float, float]


@dataclass
class BoxMaps:
    """A box (shares x0, y0, x1, y1 of the picture) and its maps (D, h, w) by name, the crop's own under `ALONE`."""

    name: str
    image: Image.Image
    crop: Image.Image
    box: Share
    maps: Mapping[str, Float[Tensor, "D h w"]]


def _unit(features: Float[Tensor, "D h w"]) -> Float[Tensor, "L D"]:
    return F.normalize(as_tensor(features), dim=0).flatten(1).T


def token_agreement(a: Float[Tensor, "D h w"], b: Float[Tensor, "D h w"]) -> tuple[float, float]:
    """Mean cosine of the tokens at the same places, and the share of `a`'s tokens whose nearest of `b` is that one."""
    cosine = _unit(a) @ _unit(b).T
    own = torch.arange(len(cosine))
    return float(cosine.diagonal().mean()), float((cosine.argmax(dim=1) == own).float().mean())


def affinity_correlation(a: Float[Tensor, "D h w"], b: Float[Tensor, "D h w"]) -> float:
    """Pearson correlation of the cosines of all pairs of different tokens; NaN where one map is constant."""
    one, other = _unit(a), _unit(b)
    upper = torch.ones(len(one), len(one), dtype=torch.bool).triu(1)
    pairs = torch.stack([(one @ one.T)[upper], (other @ other.T)[upper]])
    return float(torch.corrcoef(pairs)[0, 1])


def _framed(shot: BoxMaps) -> Image.Image:
    share = _SIDE / max(shot.image.size)
    size = (max(1, round(shot.image.width * share)), max(1, round(shot.image.height * share)))
    picture = shot.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    corners = [value * side for value, side in zip(shot.box, (*size, *size), strict=True)]
    draw = ImageDraw.Draw(picture)
    for color, width in ((INK, 9), (PAPER, 4)):
        draw.rectangle(corners, outline=color, width=width)
    return picture


def _photographs(shot: BoxMaps, grid: tuple[int, int]) -> list[Figure]:
    cross = draw_cross(shot.crop, (grid[0] // 2, grid[1] // 2), grid)
    return [
        Figure(_framed(shot), f"{shot.name} with the box", shot.name, "the box", tokens=False),
        Figure(cross, f"The part of {shot.name} in the box, a cross at the query", "in the box", tokens=False),
    ]


def refiner_groups(shots: Sequence[BoxMaps]) -> list[FigureGroup]:
    """A group a box: photographs, a strip of joint PCA and one of affinity, in one colour rule for all encoders."""
    values: list[dict[str, np.ndarray]] = []
    for shot in shots:
        height, width = as_tensor(shot.maps[ALONE]).shape[1:]
        values.append({name: affinity(m, (height // 2, width // 2)) for name, m in shot.maps.items()})
    if not shots:
        return []
    scale = affinity_scale([one for maps in values for one in maps.values()])
    groups = []
    for shot, cosines in zip(shots, values, strict=True):
        pca = joint_pca(shot.maps)
        alone = shot.maps[ALONE]
        colors, glow = [], []
        for picture, (name, features) in zip(pca.pictures, shot.maps.items(), strict=True):
            own = name == ALONE
            cosine, right = token_agreement(features, alone)
            note = "" if own else f"cosine with the crop {cosine:.2f}, nearest {100 * right:.0f} %"
            far = "" if own else f"correlation of affinities {affinity_correlation(features, alone):.2f}"
            where = f"{name}, a box of {shot.name}"
            query = (cosines[name].shape[0] // 2, cosines[name].shape[1] // 2)
            colors.append(Figure(map_picture(picture, None), f"PCA map, {where}. {note}", name, note))
            drawn = map_picture(cosines[name], scale, query=query)
            glow.append(Figure(drawn, f"Affinity map of the middle token, {where}. {far}", "", far))
        rows = [_photographs(shot, as_grid(alone)), colors, glow]
        corners = ", ".join(f"{value:g}" for value in shot.box)
        held = f"{100 * sum(pca.variance):.0f} % of the variance shown by the PCA"
        title = f"{shot.name}, box {corners}"
        groups.append(FigureGroup(title, rows, f"{held}.", scale, f"{ABOUT} {ENLARGED['nearest']}", SECTION))
    return groups


def as_grid(features: Float[Tensor, "D h w"]) -> tuple[int, int]:
    """Rows and columns of a map."""
    height, width = torch.as_tensor(features).shape[1:]
    return int(height), int(width)
