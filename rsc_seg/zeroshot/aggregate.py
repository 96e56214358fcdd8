"""Context aggregation (Eq. 7): a picture pasted into random others, its tokens cut out of each and averaged."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.zeroshot.stream import prefetched

log = logging.getLogger(__name__)
Size = tuple[int, int]  # height, width
CONTEXTS = ("images", "blank")
DTYPES = ("float32", "float16")
PRECISIONS = ("32-true", "bf16-mixed")
Encode = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B E h w"]]


@dataclass(frozen=True)
class AggregateOptions:
    """What is averaged. The target is never resized in its context: `target` pixels of it lie in `canvas` pixels."""

    target: Size
    canvas: Size
    numbers: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)  # ascending; 0: the target alone
    contexts: str = "images"  # images | blank (the mean colour: only the position changes)
    seed: int = 0
    precision: str = "32-true"  # of the encoder; averages are made in float64
    dtype: str = "float32"  # of tokens on disk
    batch_size: int = 8  # canvases of one pass
    workers: int = 0  # threads that read contexts

    def check(self, encoder: DenseEncoder) -> None:
        """Raises UserError for what cannot be used."""
        encoder.grid(*self.target)
        encoder.grid(*self.canvas)
        if self.canvas[0] < self.target[0] or self.canvas[1] < self.target[1]:
            small, large = ("x".join(map(str, size)) for size in (self.target, self.canvas))
            raise UserError(f"aggregate.canvas={large}: smaller than the target, data.image_size={small}.")
        if not self.numbers or list(self.numbers) != sorted(set(self.numbers)) or self.numbers[0] < 0:
            raise UserError(
                f"aggregate.numbers={list(self.numbers)}: must be numbers of contexts in ascending order, such as "
                "[0,1,2,4]; 0 is the picture alone."
            )
        require_choice("aggregate.contexts", self.contexts, CONTEXTS)
        require_choice("aggregate.dtype", self.dtype, DTYPES)
        require_choice("run.precision", self.precision, PRECISIONS)
        if self.batch_size < 1:
            raise UserError(f"aggregate.batch_size={self.batch_size}: must be 1 or more.")

    def what_counts(self) -> dict[str, Any]:
        """The options that numbers depend on."""
        return {key: value for key, value in asdict(self).items() if key not in ("batch_size", "workers")}


class Draw(NamedTuple):
    """One context: its number in the set (None: blank) and the target's place in it, in whole tokens."""

    context: Optional[int]
    row: int
    column: int


def draw_contexts(
    name: str, count: int, contexts: ImageSource, options: AggregateOptions, patch: int
) -> tuple[Draw, ...]:
    """`count` contexts for the target `name`, drawn by seed and name alone: fewer are the first of more.

    Contexts are drawn evenly, with replacement, and never the target itself; places evenly over the patch grid, so that
    the target's patches are the same pixels as alone. Raises UserError when there is no other picture.
    """
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32).tolist()
    generator = np.random.default_rng([options.seed, *words])
    rows, columns = ((large - small) // patch + 1 for large, small in zip(options.canvas, options.target, strict=True))
    if options.contexts == "images" and count and len(contexts) < 2:
        raise UserError(f"{len(contexts)} picture to be a context of '{name}': two or more are needed.")
    found = []
    for _ in range(count):
        row, column = int(generator.integers(rows)), int(generator.integers(columns))
        context = None
        if options.contexts == "images":
            context = int(generator.integers(len(contexts)))
            while contexts.name(context) == name:
                context = int(generator.integers(len(contexts)))
        found.append(Draw(context, row, column))
    return tuple(found)


def target_frame(images: ImageSource, i: int, encoder: DenseEncoder, size: Size) -> Float[Tensor, "3 H W"]:
    """Picture `i` squashed to `size` and normalised, as the quick measure sees it."""
    frame = fit_image(images.load(i), size, "squash", name=images.name(i))[0]
    return normalize(frame, encoder.mean, encoder.std)


def pasted(
    target: Float[Tensor, "3 H W"], context: Float[Tensor, "3 H2 W2"], draw: Draw, patch: int
) -> Float[Tensor, "3 H2 W2"]:
    """A copy of the context with the target over it."""
    out, (top, left) = context.clone(), (draw.row * patch, draw.column * patch)
    out[:, top : top + target.shape[1], left : left + target.shape[2]] = target
    return out


def canvases(
    target: Float[Tensor, "3 H W"],
    draws: Sequence[Draw],
    contexts: ImageSource,
    options: AggregateOptions,
    encoder: DenseEncoder,
) -> Iterator[Float[Tensor, "3 H2 W2"]]:
    """The target in each of its contexts; a blank one has the encoder's mean colour."""

    def make(k: int) -> Tensor:
        number = draws[k].context
        blank = torch.zeros(3, *options.canvas)
        context = blank if number is None else target_frame(contexts, number, encoder, options.canvas)
        return pasted(target, context, draws[k], encoder.patch_size)

    return prefetched(make, range(len(draws)), options.workers)


@torch.inference_mode()
def aggregated(
    encode: Encode,
    target: Float[Tensor, "3 H W"],
    draws: Sequence[Draw],
    *,
    contexts: ImageSource,
    options: AggregateOptions,
    encoder: DenseEncoder,
) -> Float[Tensor, "N E h w"]:
    """The target's features for each of `options.numbers`: alone for 0, else the mean over the first N contexts.

    Features are averaged as they are, without normalising (Eq. 7), in float64; float32 on the CPU. `encode` is the
    encoder under test, `encoder` says patch, mean and std.
    """
    h, w = (side // encoder.patch_size for side in options.target)
    means = [encode(target[None])[0].float().cpu()] if options.numbers[0] == 0 else []
    total, done = torch.zeros(1, dtype=torch.float64), 0
    waiting: list[Tensor] = []
    for k, canvas in enumerate(canvases(target, draws, contexts, options, encoder), 1):
        waiting.append(canvas)
        if len(waiting) < options.batch_size and k < len(draws):
            continue
        maps = encode(torch.stack(waiting)).float().cpu()
        for one, draw in zip(maps, draws[done : done + len(waiting)], strict=True):
            total = total + one[:, draw.row : draw.row + h, draw.column : draw.column + w].double()
            done += 1
            if done in options.numbers:
                means.append((total / done).float())
        waiting.clear()
    return torch.stack(means)
