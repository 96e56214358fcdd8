"""The interactive affinity page: one HTML file with pictures and quantised features that computes maps at a click."""

import base64
import html
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from PIL import Image
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.viz.colors import color_table
from rsc_seg.viz.maps import affinity, affinity_scale, as_tensor, query_points
from rsc_seg.viz.style import SCRIPT, style_sheet

log = logging.getLogger(__name__)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
COMPONENTS = 384
LARGE = 8_000_000  # bytes; above, the log says how to make the page smaller
_PHOTO_SIDE = 960  # pixels of a photograph's longer side
_QUERIES = 24  # tokens of each map that the page's colour scale is taken from
ABOUT = (
    "The maps show the cosine of the token under the cross with every token of the same picture, in one colour scale "
    "for all encoders. Below a map stand the mean cosine within 6 tokens of the cross and beyond. A map that glows "
    "only around its cross is not a better map: what counts is whether other parts of the same thing stay bright, also "
    "far away. A darker map alone says little, because cosines of all pairs can shift together."
)


@dataclass(frozen=True)
class Packed:
    """Tokens as int8 with a factor each, row by row, and how far cosines of all pairs are from the unpacked ones."""

    values: Int8[np.ndarray, "L K"]
    scales: Float[np.ndarray, " L"]
    largest: float
    mean: float


@dataclass(frozen=True)
class Explorable:
    """A picture with the maps (D, h, w) of every compared encoder, in the order to show them."""

    name: str
    image: Image.Image
    maps: Mapping[str, Float[Tensor, "D h w"]]


@dataclass(frozen=True)
class Explorer:
    """What the page shows besides the pictures."""

    title: str
    subtitle: str
    provenance: str
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)


def _turned(unit: Float[Tensor, "L D"], components: int) -> Float[Tensor, "L K"]:
    """The tokens in their leading directions (all, where there are no more), turned at random, always the same way.

    Single numbers hold much of a token's length, in the leading directions as in the outlier channels of transformers,
    and rounding would be coarse for all others; turned, the length is spread evenly, and cosines stay what they were.
    """
    directions = torch.linalg.eigh((unit.T @ unit).double())[1].flip(1)[:, :components]
    count = directions.shape[1]
    drawn = torch.randn(count, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unit @ (directions @ torch.linalg.qr(drawn)[0]).float()


def pack(features: Float[Tensor, "D h w"], components: int = COMPONENTS) -> Packed:
    """A map's tokens at unit length as int8, turned first, and wider ones projected to their leading directions.

    The projection keeps as much of the tokens' length as `components` directions can (it is exact where the picture
    has no more tokens). Every token is divided by its largest number so that int8 is used in full; its factor gives the
    rounded token unit length. The errors are measured on the cosines of all pairs of tokens. UserError for
    `components` below 1 or a token that is zero or not finite.
    """
    if components < 1:
        raise UserError(f"--components {components}: must be 1 or more.")
    tokens = as_tensor(features).flatten(1).T  # (L, D)
    if not bool(torch.isfinite(tokens).all() and tokens.any(dim=1).all()):
        raise UserError("features hold a token that is zero or not finite: it has no direction to compare.")
    unit = F.normalize(tokens, dim=1)
    kept = _turned(unit, components)
    values = (kept / kept.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) * 127).round()
    scales = 1 / values.norm(dim=1).clamp(min=1e-12)
    rounded = values * scales[:, None]
    error = (rounded @ rounded.T - unit @ unit.T).abs()
    return Packed(values.to(torch.int8).numpy(), scales.numpy(), float(error.max()), float(error.mean()))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _photo(image: Image.Image, grid: tuple[int, int]) -> str:
    """The picture at the proportions of its maps, as a data URI."""
    times = max(1, round(_PHOTO_SIDE / max(grid)))
    small = image.convert("RGB").resize((grid[1] * times, grid[0] * times), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return f"data:image/jpeg;base64,{_text(buffer.getvalue())}"


def _one_grid(pictures: Sequence[Explorable]) -> tuple[list[str], tuple[int, int]]:
    """The encoders' names and the grid of all maps; UserError when pictures differ in either."""
    if not pictures:
        raise UserError("an affinity page needs a picture.")
    names = list(pictures[0].maps)
    grids = {tuple(as_tensor(m).shape[1:]) for p in pictures for m in p.maps.values()}
    if len(grids) != 1 or any(list(p.maps) != names for p in pictures):
        raise UserError("an affinity page needs maps of the same encoders on one token grid for every picture.")
    height, width = next(iter(grids))
    return names, (height, width)


def _page_low(pictures: Sequence[Explorable], grid: tuple[int, int]) -> float:
    maps = [affinity(m, q) for p in pictures for m in p.maps.values() for q in query_points(*grid, _QUERIES)]
    return affinity_scale(maps).low


def _about(explorer: Explorer, facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    return (
        f"<section><h2>How to read it</h2><p>{html.escape(ABOUT)}</p></section>"
        f'<aside class="origin"><h2>About the weights</h2><p>{html.escape(explorer.provenance)}</p></aside>'
        f"<section><h2>What is inside</h2><dl>{rows}</dl></section>"
        f'<section><h2>How to repeat this</h2><pre class="wrap"><code>{html.escape(explorer.command)}</code></pre>'
        "</section>"
    )


def render_explorer(pictures: Sequence[Explorable], explorer: Explorer, components: int = COMPONENTS) -> str:
    """The page as the text of one HTML file; it states the largest and mean error of its affinities.

    Raises UserError without pictures, for maps of different grids or encoders, and whatever `pack` refuses.
    """
    names, grid = _one_grid(pictures)
    packed = [[pack(p.maps[name], components) for name in names] for p in pictures]
    every = [one for row in packed for one in row]
    width = every[0].values.shape[1]
    full = as_tensor(pictures[0].maps[names[0]]).shape[0]
    held = f"{full} numbers each" if width == full else f"{full} numbers each, projected to {width} for every map"
    facts = {
        "tokens": f"{grid[0]} x {grid[1]} for every picture, {held}, as int8 with a factor a token",
        "error": (
            f"affinities computed here differ from those of the features before quantisation by at most "
            f"{max(one.largest for one in every):.4f}, on average {np.mean([one.mean for one in every]):.5f} "
            "(measured on all pairs of tokens of every map)"
        ),
        "colours": (
            f"one scale for the page: from the 1st percentile of the affinities of {_QUERIES} tokens of each map, "
            "rounded down to a tenth, up to 1"
        ),
        **explorer.facts,
    }
    payload: dict[str, Any] = {
        "grid": grid,
        "width": width,
        "low": round(_page_low(pictures, grid), 1),
        "colors": _text(color_table("affinity").tobytes()),
        "encoders": names,
        "pictures": [
            {
                "name": picture.name,
                "photo": _photo(picture.image, grid),
                "maps": [
                    {"values": _text(one.values.tobytes()), "scales": _text(one.scales.astype("<f4").tobytes())}
                    for one in row
                ],
            }
            for picture, row in zip(pictures, packed, strict=True)
        ],
    }
    files = resources.files("rsc_seg.viz")
    read = {kind: files.joinpath(f"interactive.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")}
    return Template(read["html"]).substitute(
        policy=html.escape(POLICY),
        title=html.escape(explorer.title),
        subtitle=html.escape(explorer.subtitle),
        style=style_sheet() + read["css"],
        about=_about(explorer, facts),
        data=json.dumps(payload, ensure_ascii=False).replace("<", "\\u003c"),
        theme=SCRIPT,
        script=read["js"],
    )


def write_explorer(
    path: Path, pictures: Sequence[Explorable], explorer: Explorer, components: int = COMPONENTS
) -> Path:
    """Writes `render_explorer` as a whole or not at all and returns the path; a large page is named in the log."""
    text = render_explorer(pictures, explorer, components)
    size = len(text.encode())
    if size > LARGE:
        log.warning("%s: %.1f MB; fewer pictures, --components or a smaller --size make it lighter", path, size / 1e6)
    atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"))
    log.info("page: %s (%.1f MB)", path, size / 1e6)
    return path
