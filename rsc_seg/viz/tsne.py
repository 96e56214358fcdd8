"""Object features in a plane (t-SNE): one panel an encoder, one colour and shape a class, and what the space says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from rsc_seg.errors import UserError
from rsc_seg.viz.drawing import INK, RGB, SHAPES, SOFT, Drawing, Frame, Item, Mark, Words, painted
from rsc_seg.viz.fonts import built_in, fitted
from rsc_seg.viz.parts import Figure, FigureGroup

SECTION = "Object features (t-SNE)"
# told apart with every common colour vision, and darker than paper; shapes tell them apart in grey
COLORS: tuple[RGB, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 140, 105),
    (170, 68, 153),
    (150, 120, 0),
    (70, 170, 220),
    (60, 60, 60),
)
MOST_CLASSES = 7
NEIGHBOURS = 10
_SIDE = 682  # pixels of a panel: two columns of a figure
_ROOM = 26.0  # between the frame and the outermost points
_LEGEND_COLUMNS, _LEGEND_COLUMN, _LEGEND_LINE = 2, 220, 26  # narrow: legible on a phone
ABOUT = (
    "A point is an object: the mean of the unit tokens under its mask, of unit length again, t-SNE by the distance of "
    "these vectors. All panels show the same objects, and one colour and shape a class. Only neighbourhoods mean "
    "something: not the distance of groups, nor their size. Panels after the first are turned and mirrored to fit it. "
    f"Below a panel stands what the features themselves say: how many of an object's {NEIGHBOURS} nearest are of its "
    "class, mean over the objects; by chance it is the number in brackets."
)


@dataclass(frozen=True)
class Panel:
    """One encoder's objects: features of unit length and their places in the plane."""

    name: str
    features: Float[np.ndarray, "N D"]
    places: Float[np.ndarray, "N 2"]


def check_perplexity(perplexity: float, count: int) -> None:
    """Raises UserError unless `count` objects suffice for the perplexity, by the rule of t-SNE's authors."""
    if perplexity < 1:
        raise UserError(f"--perplexity {perplexity:g}: must be 1 or more.")
    if 3 * perplexity > count - 1:
        raise UserError(
            f"--perplexity {perplexity:g}: too large for {count} objects, of which each needs three times as many "
            f"others; at most {max(0, count - 1) / 3:.3g} here: lower it or use more objects."
        )


def embed(features: Float[np.ndarray, "N D"], perplexity: float, seed: int) -> Float[np.ndarray, "N 2"]:
    """Places of the objects by scikit-learn's t-SNE: Euclidean, begun at the first two principal components.

    The same features and seed give the same places. Raises UserError for a perplexity that does not fit, or without
    the package.
    """
    check_perplexity(perplexity, len(features))
    try:
        from sklearn.manifold import TSNE
    except ImportError as e:
        raise UserError("t-SNE needs scikit-learn: pip install 'rsc-seg[viz]'.") from e
    model = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(features.astype(np.float32)), np.float64)


def turned_to(places: Float[np.ndarray, "N 2"], reference: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
    """The same places about their mean, turned and perhaps mirrored to lie nearest to those of `reference`."""
    own, other = places - places.mean(0), reference - reference.mean(0)
    left, _, right = np.linalg.svd(own.T @ other)
    return own @ (left @ right)


def neighbour_share(
    features: Float[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], count: int = NEIGHBOURS
) -> tuple[float, float]:
    """How many of an object's `count` nearest others by cosine are of its class, and how many would be by chance.

    Both are means over the objects, 0..1; fewer than `count` others: all of them.
    """
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    count = min(count, len(labels) - 1)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    sizes = np.bincount(labels)[labels]
    return float((labels[nearest] == labels[:, None]).mean()), float(((sizes - 1) / (len(labels) - 1)).mean())


def style_of(number: int) -> tuple[RGB, str]:
    """Colour and shape of a class by its number."""
    return COLORS[number % len(COLORS)], tuple(SHAPES)[number % len(SHAPES)]


def scatter(places: Float[np.ndarray, "N 2"], labels: Int[np.ndarray, " N"], seed: int) -> Drawing:
    """The points in a square, one scale for both axes; their order is drawn by `seed`, so that no class lies on top."""
    middle = (places.max(0) + places.min(0)) / 2
    reach = max(float(np.ptp(places, axis=0).max()) / 2, 1e-12)
    at = (places - middle) / reach * (_SIDE / 2 - _ROOM) + _SIDE / 2
    radius = float(np.clip(60 / np.sqrt(len(places)), 2.6, 7.0))
    items: list[Item] = [Frame(0, 0, _SIDE, _SIDE)]
    for k in np.random.default_rng(seed).permutation(len(places)):
        color, shape = style_of(int(labels[k]))
        items.append(Mark(float(at[k, 0]), float(_SIDE - at[k, 1]), radius, color, shape))
    return Drawing(_SIDE, _SIDE, items)


def legend(classes: Sequence[str], counts: Sequence[int]) -> Drawing:
    """The classes' marks, names and numbers of objects, in columns."""
    items: list[Item] = []
    rows = -(-len(classes) // _LEGEND_COLUMNS)
    for k, (name, count) in enumerate(zip(classes, counts, strict=True)):
        x, y = 4 + _LEGEND_COLUMN * (k // rows), 4 + _LEGEND_LINE * (k % rows)
        color, shape = style_of(k)
        items.append(Mark(x + 9, y + 9, 6.5, color, shape))
        shown = fitted(name, _LEGEND_COLUMN - 80, built_in(15))
        items.append(Words(x + 24, y, shown, 15, INK))
        items.append(Words(x + 32 + built_in(15).getlength(shown), y + 1, str(count), 14, SOFT))
    return Drawing(_LEGEND_COLUMNS * _LEGEND_COLUMN, 8 + _LEGEND_LINE * rows, items)


def tsne_group(
    panels: Sequence[Panel], labels: Int[np.ndarray, " N"], classes: Sequence[str], caption: str, seed: int
) -> FigureGroup:
    """The panels side by side and the legend below; `labels` number the classes, up to `MOST_CLASSES`."""
    row = []
    for panel in panels:
        places = panel.places if panel is panels[0] else turned_to(panel.places, panels[0].places)
        drawing = scatter(places, labels, seed)
        share, chance = neighbour_share(panel.features, labels)
        note = f"{NEIGHBOURS} nearest: {100 * share:.1f} % of the same class ({100 * chance:.1f} % by chance)"
        alt = f"Scatter plot of {len(labels)} objects of {len(classes)} classes by {panel.name}; {note}"
        row.append(Figure(painted(drawing, 1.5), alt, panel.name, note, tokens=False, span=2, drawing=drawing))
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    key = legend(classes, counts)
    named = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
    below = Figure(painted(key, 3), f"Classes and numbers of objects: {named}", tokens=False, span=2, drawing=key)
    return FigureGroup(SECTION, [row, [below]], caption, about=ABOUT, section=SECTION)
