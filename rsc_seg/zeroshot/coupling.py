"""Coupling ratio (Eq. 15) over any number of pairs: three stable readings beside the paper's own mean, pair by pair."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import FITS, Geometry, fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.ops.coupling import coupling_cosines, coupling_ratio
from rsc_seg.probe.coupling import sample_pairs
from rsc_seg.probe.features import FeatureFn
from rsc_seg.training.cache import cache_key
from rsc_seg.zeroshot.records import StateFile, bounded
from rsc_seg.zeroshot.stream import Progress, prefetched

log = logging.getLogger(__name__)
PADDING = ("exclude", "include")
PRECISIONS = ("32-true", "bf16-mixed")
READINGS = ("stable_mean", "median", "ratio_of_means", "mean_of_ratios")
BINS = 2**17  # of the arc tangent of the ratios, from which the median over all pairs is read


@dataclass(frozen=True)
class CouplingOptions:
    """What is measured. `image_size` (height, width) is that of one picture; the pair is twice as wide."""

    image_size: tuple[int, int]
    fit: str = "squash"  # see rsc_seg.data.transforms.fit_image
    padding: str = "exclude"  # exclude: tokens whose centre lies in the padding ask and answer nothing
    pairs: Optional[int] = None  # null: as many as there are, no picture twice
    floor: float = 0.1  # tokens with a smaller denominator stay out of the stable mean
    seed: int = 0
    precision: str = "32-true"  # of the encoder; cosines are float32
    workers: int = 0  # threads that read pictures
    save_every: int = 50  # pairs

    def check(self) -> None:
        """Raises UserError for what cannot be used."""
        require_choice("data.fit", self.fit, FITS)
        require_choice("coupling.padding", self.padding, PADDING)
        require_choice("run.precision", self.precision, PRECISIONS)
        for key in ("pairs", "save_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"coupling.{key}={value}: must be 1 or more.")
        if not self.floor > 0:
            raise UserError(f"coupling.floor={self.floor:g}: must be above 0.")

    def what_counts(self) -> dict[str, Any]:
        """The options that numbers depend on."""
        idle = {"workers", "save_every", *(() if self.fit == "pad" else ("padding",))}
        return {key: value for key, value in asdict(self).items() if key not in idle}


class Subject(NamedTuple):
    """What is measured: `single` encodes pictures, `pair` two of them side by side (for an encoder the same function).

    Both take normalised batches on the CPU. `digest`: a hash of all weights and modes.
    """

    name: str
    single: FeatureFn
    pair: FeatureFn
    digest: str


class _Loaded(NamedTuple):
    """A picture as a frame (values 0..1) and which of its tokens take part."""

    frame: Float[Tensor, "3 H W"]
    tokens: Bool[Tensor, " L"]


@dataclass
class CouplingCounts:
    """The pairs so far: a row of numbers for each, and how often each range of ratios occurred over all tokens."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    histogram: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))

    def add(
        self, names: tuple[str, str], numerator: Float[Tensor, " N"], denominator: Float[Tensor, " N"], floor: float
    ) -> None:
        """Counts one pair; both arguments as from `coupling_cosines`.

        The stable mean is that of the ratios whose denominator is `floor` or more, so that features which a neighbour
        does not change give exactly 1; a denominator clamped to the floor would not.
        """
        above, below = numerator.double().cpu(), denominator.double().cpu()
        exact = coupling_ratio(above, below)._asdict()
        ratio, counted = above / below, below >= floor
        row = {
            "a": names[0],
            "b": names[1],
            "tokens": len(ratio),
            "above_floor": int(counted.sum()),
            "stable_mean": ratio[counted].mean().item(),
            **exact,
        }
        self.rows.append({key: _known(value) for key, value in row.items()})
        place = ((ratio[~ratio.isnan()].atan() / math.pi + 0.5) * BINS).long().clamp(0, BINS - 1)
        self.histogram += torch.bincount(place, minlength=BINS)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold; empty ranges are left out."""
        used = self.histogram.nonzero()[:, 0]
        return {"rows": self.rows, "bins": BINS, "used": used.tolist(), "tokens": self.histogram[used].tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CouplingCounts":
        """The counts of `to_json`."""
        if value["bins"] != BINS:
            raise ValueError(f"{value['bins']} ranges of ratios")
        found = cls([dict(row) for row in value["rows"]])
        found.histogram[torch.tensor(value["used"], dtype=torch.int64)] = torch.tensor(value["tokens"])
        return found

    def median(self) -> Optional[float]:
        """Median ratio of all tokens of all pairs: the centre of the range that holds it.

        Off by at most 1.2e-5 * (1 + ratio^2): half a range of the arc tangent. Of an even number of tokens the mean of
        the middle two.
        """
        total = int(self.histogram.sum())
        if not total:
            return None
        middle = torch.tensor([(total - 1) // 2, total // 2])
        bins = torch.searchsorted(self.histogram.cumsum(0), middle, right=True).double()
        return ((bins + 0.5) / BINS - 0.5).mul(math.pi).tan().mean().item()

    def summary(self) -> dict[str, Any]:
        """The readings over the tokens of all pairs together, and over pairs their mean and its standard error."""
        joint, alone = (_pooled(self.rows, key, "tokens") for key in ("mean_joint", "mean_alone"))
        tokens, kept = (sum(row[key] for row in self.rows) for key in ("tokens", "above_floor"))
        return {
            "stable_mean": _pooled([row for row in self.rows if row["above_floor"]], "stable_mean", "above_floor"),
            "median": self.median(),
            "ratio_of_means": joint / alone if joint is not None and alone else None,
            "mean_of_ratios": _pooled(self.rows, "mean_of_ratios", "tokens"),
            "mean_joint": joint,
            "mean_alone": alone,
            "below_floor": 1 - kept / tokens if tokens else None,
            "pairs": len(self.rows),
            "tokens": tokens,
            "over_pairs": {key: _spread([row[key] for row in self.rows]) for key in READINGS},
        }


def _known(value: Any) -> Any:
    """None for a number that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pooled(rows: Sequence[Mapping[str, Any]], key: str, weight: str) -> Optional[float]:
    """Mean of a number over rows, weighted by a count; None where one of them is not known."""
    values = [row[key] for row in rows]
    if not values or None in values:
        return None
    counts = torch.tensor([row[weight] for row in rows], dtype=torch.float64)
    return ((torch.tensor(values, dtype=torch.float64) * counts).sum() / counts.sum()).item()


def _spread(values: Sequence[Optional[float]]) -> dict[str, Optional[float]]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "standard_error": None}
    numbers = torch.tensor(known, dtype=torch.float64)
    error = (numbers.std() / math.sqrt(len(numbers))).item() if len(numbers) > 1 else None
    return {"mean": numbers.mean().item(), "standard_error": error}


def inside(geometry: Geometry, grid: tuple[int, int], patch: int) -> Bool[Tensor, " L"]:
    """Which tokens of a frame, row by row, have their centre in the picture and not in the padding."""
    x0, y0, x1, y1 = geometry.valid
    y = (torch.arange(grid[0]) + 0.5) * patch
    x = (torch.arange(grid[1]) + 0.5) * patch
    rows, columns = (y > y0) & (y < y1), (x > x0) & (x < x1)
    return (rows[:, None] & columns[None]).flatten()


def _load(images: ImageSource, options: CouplingOptions, encoder: DenseEncoder, i: int) -> _Loaded:
    frame, geometry = fit_image(
        images.load(i), options.image_size, options.fit, patch=encoder.patch_size, name=images.where(i)
    )
    tokens = inside(geometry, encoder.grid(*options.image_size), encoder.patch_size)
    return _Loaded(frame, tokens if options.padding == "exclude" else torch.ones_like(tokens))


@torch.inference_mode()
def pair_cosines(
    subject: Subject, a: _Loaded, b: _Loaded, encoder: DenseEncoder, precision: str = "32-true"
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Numerators and denominators of Eq. 15 for the tokens of A that take part; A stands on the left.

    `encoder` says mean, std and device. Raises UserError when the joint map is not twice as wide as the single ones, or
    features are not finite.
    """
    device = next(encoder.parameters()).device
    batch = normalize(torch.stack([a.frame, b.frame]), encoder.mean, encoder.std)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        alone = subject.single(batch)  # (2, D, h, w)
        joint = subject.pair(torch.cat([batch[:1], batch[1:]], dim=3))  # (1, D, h, 2w)
    width = alone.shape[3]
    if joint.shape != (1, *alone.shape[1:3], 2 * width):
        raise UserError(
            f"coupling: the joined picture gave a map {tuple(joint.shape)} beside single maps {tuple(alone.shape)}."
        )
    if not bool(torch.isfinite(alone).all() and torch.isfinite(joint).all()):
        raise UserError(f"{subject.name}: features are not finite.")
    left, right = joint[0, :, :, :width].flatten(1).T, joint[0, :, :, width:].flatten(1).T
    in_a, in_b = a.tokens.to(alone.device), b.tokens.to(alone.device)
    return coupling_cosines(
        left[in_a], right[in_b], alone[0].flatten(1).T[in_a], alone[1].flatten(1).T[in_b]
    )  # (L, D) each


def coupling_counts(
    subject: Subject,
    images: ImageSource,
    options: CouplingOptions,
    encoder: DenseEncoder,
    *,
    source: str = "",
    state: Optional[Path] = None,
) -> CouplingCounts:
    """Eq. 15 over seeded pairs in which no picture occurs twice, one pair at a time; features are not centred.

    `encoder` is the untuned one: its patch, mean, std and device hold for every subject. With `state`, a folder, the
    pairs are recorded there every `save_every` of them under a hash of subject, `source` (a fingerprint of the
    pictures) and options, and a later call goes on from them. Kept in memory: a line of numbers a pair. Raises
    UserError for fewer than two pictures, and one that cannot be read. Source: the paper's Eq. 15.
    """
    options.check()
    wanted = len(images) // 2 if options.pairs is None else options.pairs
    pairs = sample_pairs(len(images), wanted, options.seed)
    if len(pairs) < wanted:
        log.warning("coupling.pairs=%d: %d pictures give %d pairs, which are measured", wanted, len(images), len(pairs))
    counts, record = CouplingCounts(), None
    if state is not None:
        device = next(encoder.parameters()).device.type
        key = cache_key(subject=subject.digest, source=source, options=options.what_counts(), device=device)
        parse = bounded(CouplingCounts.from_json, lambda found: len(found.rows), len(pairs))
        record = StateFile(state, key, parse=parse, dump=CouplingCounts.to_json)
        counts = record.read() or counts
        if counts.rows:
            log.info("%s: %d of %d pairs are in %s", subject.name, len(counts.rows), len(pairs), record.path)
    saved = len(counts.rows)
    progress = Progress(subject.name, len(pairs), saved, what="pairs")
    load = partial(_load, images, options, encoder)
    flat = [i for pair in pairs[saved:] for i in pair]
    loaded = prefetched(load, flat, options.workers)
    for a, b in pairs[saved:]:
        cosines = pair_cosines(subject, next(loaded), next(loaded), encoder, options.precision)
        counts.add((images.name(a), images.name(b)), *cosines, options.floor)
        progress.add(1)
        if record is not None and (len(counts.rows) - saved >= options.save_every or len(counts.rows) == len(pairs)):
            record.write(counts)
            saved = len(counts.rows)
    return counts
