"""From pictures and feature maps to groups of figures, for the report and for PNG files: one way for both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.viz.colors import ColorScale, colorize
from rsc_seg.viz.coupling import CouplingExample, difference_scale
from rsc_seg.viz.maps import (
    UPSAMPLING,
    Features,
    Token,
    affinity,
    affinity_levels,
    affinity_scale,
    as_tensor,
    draw_cross,
    draw_ring,
    joint_pca,
    norm_scale,
    query_points,
    token_norms,
    upsample,
)
from rsc_seg.viz.parts import Figure, FigureGroup

TARGET = 336  # pixels that a map's longer side is enlarged to, in whole pixels a token

ENLARGED = {
    "nearest": "Every square is one token.",
    "bilinear": "Enlarged bilinearly: values between token centres are interpolated.",
}
AFFINITY_ABOUT = (
    "Cosine of the token under the cross with every token. Read a row from left to right: same picture, same query, "
    "same colours; one scale holds for all encoders, pictures and queries of the call. Below each map stand the mean "
    "cosine within 6 tokens of the cross and beyond. A map that glows only around its cross is not a better map: what "
    "counts is whether other parts of the same thing stay bright, also far away. And a darker map alone says little, "
    "because cosines of all pairs can shift together."
)
PCA_ABOUT = (
    "Three principal components of the tokens (length 1) of all models of a row together, as red, green and blue, with "
    "one basis and scale: equal colours mean equal features. Colours of different rows do not compare."
)
NORM_ABOUT = (
    "Length of every token, from the smallest to the largest of all compared maps. Single bright tokens in flat "
    "regions are the known high-norm artefacts of large vision transformers."
)
COUPLING_ABOUT = (
    "The pair is encoded side by side and each picture by itself; the maps show B's cosine with the query token of A. "
    "Unrelated pictures should not change each other: the nearer the difference is to zero (pale), the less coupling. "
    "The numbers are the cosines with the best-matching token of the joint map (ring), side by side and alone. "
    "Features that have collapsed also change little: look whether the maps still tell B's parts apart."
)


@dataclass
class Shot:
    """A picture with every compared model's map (D, h, w) of it, in the order to show them.

    `norms` holds norm maps (h, w) measured elsewhere, for example before the final norm, which evens norms out; if it
    is empty, they are taken from `maps` (the two are never mixed). `queries` are tokens chosen by hand; without them
    the fixed rule places them.
    """

    name: str
    image: Image.Image
    maps: Mapping[str, Features]
    norms: Mapping[str, np.ndarray] = field(default_factory=dict)
    queries: Sequence[Token] = ()

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid; UserError without maps or when the models' grids differ."""
        grids = {name: tuple(as_tensor(m).shape[1:]) for name, m in self.maps.items()}
        if len(set(grids.values())) != 1:
            listed = ", ".join(f"{name} {g[0]}x{g[1]}" for name, g in grids.items()) or "none"
            raise UserError(f"{self.name}: maps to compare need one token grid, found {listed}.")
        return next(iter(grids.values()))  # type: ignore[return-value]


def enlarged(grid: tuple[int, int]) -> tuple[int, int]:
    """Size in pixels of a map's picture: a whole number of pixels a token, the longer side near TARGET."""
    times = max(1, round(TARGET / max(grid)))
    return grid[0] * times, grid[1] * times


def map_picture(
    values: np.ndarray, scale: ColorScale | None, mode: str = "nearest", query: Token | None = None
) -> Image.Image:
    """A map of numbers under `scale`, or of RGB colours (`scale` null), enlarged, with a cross at `query`."""
    size = enlarged(values.shape[:2])
    full = upsample(values, size, mode)
    picture = Image.fromarray(colorize(full, scale) if scale else full)
    return picture if query is None else draw_cross(picture, query, values.shape[:2])


def photo(shot: Shot, query: Token | None = None) -> Image.Image:
    """The shot's picture at the size of its maps' pictures (it is squashed as the encoder saw it), with a cross."""
    height, width = enlarged(shot.grid())
    picture = shot.image.convert("RGB").resize((width * 2, height * 2), Image.Resampling.LANCZOS)
    return picture if query is None else draw_cross(picture, query, shot.grid())


def _signed(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def affinity_groups(shots: Sequence[Shot], queries: int = 2, mode: str = "nearest") -> list[FigureGroup]:
    """Affinity maps: a group a picture, a strip a query, a column a model; one colour scale for every map of the call.

    UserError for an unknown upsampling mode, a query off the map or unequal grids.
    """
    require_choice("upsampling", mode, UPSAMPLING)
    found: list[tuple[Shot, Token, dict[str, np.ndarray]]] = []
    for shot in shots:
        for query in shot.queries or query_points(*shot.grid(), queries):
            found.append((shot, query, {name: affinity(m, query) for name, m in shot.maps.items()}))
    if not found:
        return []
    scale = affinity_scale([values for _, _, maps in found for values in maps.values()])
    about = f"{AFFINITY_ABOUT} {ENLARGED[mode]}"
    groups = []
    for shot in shots:
        rows = []
        mine = [(query, maps) for owner, query, maps in found if owner is shot]
        for number, (query, maps) in enumerate(mine, start=1):
            where = f"query {number}, token row {query[0] + 1}, column {query[1] + 1}"
            row = [Figure(photo(shot, query), f"{shot.name} with a cross at {where}", f"query {number}", tokens=False)]
            for name, values in maps.items():
                near, far = affinity_levels(values, query)
                note = f"near {_signed(near)}, far {_signed(far)}"
                alt = f"Affinity map of {name} on {shot.name} for {where}: mean cosine {note}"
                row.append(Figure(map_picture(values, scale, mode, query), alt, name, note))
            rows.append(row)
        groups.append(FigureGroup(shot.name, rows, "", scale, about, "Affinity maps"))
    return groups


def pca_group(shots: Sequence[Shot], scope: str = "image", mode: str = "nearest", center: str = "joint") -> FigureGroup:
    """Joint PCA maps: a strip a picture, a column a model.

    `scope`: `image` (one PCA a picture), `set` (one for all: colours compare across pictures too) or `separate` (one a
    map, for models of different feature spaces: nothing compares); `center` as in `joint_pca`.
    UserError when the widths differ, unless separate.
    """
    require_choice("pca", scope, ("image", "set", "separate"))
    require_choice("upsampling", mode, UPSAMPLING)
    keys = [(k, name) for k, shot in enumerate(shots) for name in shot.maps]
    together = {"image": lambda key: key[0], "set": lambda key: 0, "separate": lambda key: key}[scope]
    pictures: dict[tuple[int, str], np.ndarray] = {}
    held: dict[tuple[int, str], float] = {}
    for part in dict.fromkeys(together(key) for key in keys):
        members = [key for key in keys if together(key) == part]
        pca = joint_pca({f"{shots[k].name}, {name}": shots[k].maps[name] for k, name in members}, center=center)
        pictures.update(zip(members, pca.pictures, strict=True))
        held.update(dict.fromkeys(members, sum(pca.variance)))
    rows = []
    for k, shot in enumerate(shots):
        names = list(shot.maps)
        notes = [f"{100 * held[k, name]:.0f} % of variance shown" for name in names]
        shared = "" if scope == "separate" else notes[0]
        row = [Figure(photo(shot), shot.name, shot.name, shared, tokens=False)]
        for name, note in zip(names, notes, strict=True):
            picture = map_picture(pictures[k, name], None, mode)
            alt = f"PCA map of {name} on {shot.name}: {note}"
            row.append(Figure(picture, alt, name, note if scope == "separate" else ""))
        rows.append(row)
    about = {
        "image": PCA_ABOUT,
        "set": PCA_ABOUT.replace("of a row", "and pictures").rsplit(" Colours", 1)[0],
        "separate": "A PCA of its own for every map: colours of different maps do not compare.",
    }[scope]
    if center == "each" and scope != "separate":
        about += " Every map has lost its own mean first, so a constant offset between models does not show."
    return FigureGroup(
        "Joint PCA" if scope != "separate" else "PCA", rows, "", None, f"{about} {ENLARGED[mode]}", "Joint PCA"
    )


def norm_group(
    shots: Sequence[Shot], mode: str = "nearest", definition: str = "of the encoder's output"
) -> FigureGroup:
    """Token-norm maps: a strip a picture, a column a model, one scale for all; `definition` says which tokens count."""
    require_choice("upsampling", mode, UPSAMPLING)
    found = [
        dict(shot.norms) if shot.norms else {name: token_norms(m) for name, m in shot.maps.items()} for shot in shots
    ]
    scale = norm_scale([values for maps in found for values in maps.values()])
    rows = []
    for shot, maps in zip(shots, found, strict=True):
        row = [Figure(photo(shot), shot.name, shot.name, tokens=False)]
        for name, values in maps.items():
            note = f"median {np.median(values):.3g}, largest {values.max():.3g}"
            row.append(
                Figure(map_picture(values, scale, mode), f"Token-norm map of {name} on {shot.name}: {note}", name, note)
            )
        rows.append(row)
    return FigureGroup(
        "Token norms", rows, "", scale, f"{NORM_ABOUT} Measured on tokens {definition}. {ENLARGED[mode]}", "Token norms"
    )


def _plain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize((2 * size[1], 2 * size[0]), Image.Resampling.LANCZOS)


def _coupling_row(
    example: CouplingExample, name: str, cosine: ColorScale, change: ColorScale, mode: str
) -> list[Figure]:
    maps, alt = example.models[name], f"{example.name}, {name}"
    grid = (maps.joint.shape[0], maps.joint.shape[1])
    joint, alone = maps.levels
    ends = f"{_signed(change.low)} (blue) to {_signed(change.high)} (brown)"
    found = draw_ring(_plain(example.image_b, enlarged(grid)), maps.match, grid)
    row = [Figure(found, f"{alt}: B, a ring round the token most like the query", f"{name}: best match", tokens=False)]
    for label, values, scale, note in (
        ("alone", maps.alone, cosine, f"at the ring {_signed(alone)}"),
        ("side by side", maps.joint, cosine, f"at the ring {_signed(joint)}"),
        ("difference", maps.joint - maps.alone, change, ends),
    ):
        picture = draw_ring(map_picture(values, scale, mode), maps.match, grid)
        row.append(Figure(picture, f"{alt}, {label}: cosine of B's tokens with the query of A; {note}", label, note))
    return row


def coupling_groups(examples: Sequence[CouplingExample], mode: str = "nearest") -> list[FigureGroup]:
    """Coupling examples: the pair, then a strip a model: the best match, B alone, B beside A, and the difference.

    The cosine maps of the call share one scale and the differences another, symmetric one. UserError for an example
    without models.
    """
    require_choice("upsampling", mode, UPSAMPLING)
    if not examples:
        return []
    if not all(e.models for e in examples):
        raise UserError("coupling examples: every example needs the maps of at least one model.")
    cosine = affinity_scale([m for e in examples for maps in e.models.values() for m in (maps.joint, maps.alone)])
    cosine = replace(cosine, quantity="cosine with the query token (differences: ends of their scale below them)")
    change = difference_scale(list(examples))
    groups = []
    for example in examples:
        shape = next(iter(example.models.values())).joint.shape
        grid = (shape[0], shape[1])
        height, width = enlarged(grid)
        pair = Image.new("RGB", (4 * width, 2 * height))
        for k, image in enumerate((example.image_a, example.image_b)):
            pair.paste(_plain(image, (height, width)), (2 * k * width, 0))
        pair = draw_cross(pair, example.query, grid, columns=(0, 2))
        alt = f"{example.name}: A with the query cross at the left, B at the right"
        rows = [[Figure(pair, alt, "A with the query, B", tokens=False, span=2)]]
        rows += [_coupling_row(example, name, cosine, change, mode) for name in example.models]
        groups.append(FigureGroup(example.name, rows, "", cosine, f"{COUPLING_ABOUT} {ENLARGED[mode]}", "Coupling"))
    return groups
