"""How much memory the quick measure's tokens take, known before any image is encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from rsc_seg.errors import UserError
from rsc_seg.probe.layers import MAX_TRAIN_IMAGES

LIMIT = 16e9  # bytes


@dataclass(frozen=True)
class TokenBudget:
    """What decides the size: tokens of an image, their width, the classes, and the blocks that best_layer keeps (0:
    none)."""

    tokens: int
    width: int
    classes: int
    layers: int

    def suite(self, train: int, val: int) -> int:
        """Bytes of one row's tokens (float32) and the labels' shares, for numbers of images."""
        return (train + val) * self.tokens * (self.width + self.classes) * 4

    def best_layer(self, train: int, val: int) -> int:
        """Bytes of all layers' tokens (float16) and the labels' shares."""
        if not self.layers:
            return 0
        images = min(train, MAX_TRAIN_IMAGES) + val
        return images * self.tokens * (self.layers * self.width * 2 + self.classes * 4)

    def most(self, train: int, val: int) -> int:
        """Bytes at the larger of the two, which do not overlap in time."""
        return max(self.suite(train, val), self.best_layer(train, val))


def _smallest(images: int, fits: Callable[[int], bool]) -> Optional[int]:
    """The smallest k of which every k-th of `images` fits; `fits` takes the number of images left."""
    return next((k for k in range(1, images + 1) if fits(-(-images // k))), None)


def fitting_factors(budget: TokenBudget, train: int, val: int, limit: float = LIMIT) -> Optional[tuple[int, int]]:
    """Smallest (k, m) such that every k-th training and every m-th validation image fit; None when nothing does.

    Validation images are thinned only where they alone take more than half of `limit`, or all their layers too much.
    """

    def alone(images: int) -> bool:
        few = min(train, MAX_TRAIN_IMAGES)  # best_layer's training images are few and stay
        return budget.best_layer(few, images) <= limit and budget.suite(1, images) <= limit / 2

    m = _smallest(val, alone)
    if m is None:
        return None
    left = -(-val // m)
    k = _smallest(train, lambda images: budget.most(images, left) <= limit)
    return None if k is None else (k, m)


def check_memory(
    budget: TokenBudget, train: int, val: int, *, train_every: int = 1, val_every: int = 1, limit: float = LIMIT
) -> None:
    """Raises UserError when the tokens of `train` and `val` images take more than `limit` bytes.

    It names the values of probe.train_every and probe.val_every that fit, as multiples of the present ones.
    """
    needed = budget.most(train, val)
    if needed <= limit:
        return
    start = f"the tokens of {train} training and {val} validation images take {needed / 1e9:.1f} GB, more than "
    start += f"{limit / 1e9:.0f} GB"
    found = fitting_factors(budget, train, val, limit)
    if found is None:
        raise UserError(f"{start}; set a smaller data.image_size.")
    every = (("probe.train_every", train_every, found[0]), ("probe.val_every", val_every, found[1]))
    advice = " ".join(f"{key}={now * factor}" for key, now, factor in every if factor > 1)
    without = " or probe.best_layer=false" if budget.suite(train, val) <= limit else ""
    raise UserError(f"{start}; set {advice}{without}.")
