"""Averaged tokens of a labelled set on disk, a file a picture, and the quick measure's scores of them."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.probe.affinity import affinity_probe
from rsc_seg.probe.features import LabelCache, LabelledTokens, TokenFeatures
from rsc_seg.probe.kmeans import kmeans_probe
from rsc_seg.probe.linear import linear_probe
from rsc_seg.probe.settings import ProbeSettings
from rsc_seg.zeroshot.aggregate import AggregateOptions, Encode, aggregated, draw_contexts, target_frame
from rsc_seg.zeroshot.stream import Progress

log = logging.getLogger(__name__)
MEASURES = ("linear", "kmeans", "affinity")


class TokenStore:
    """The tokens of one set by one encoder: for each picture an array (N, L, E), N as `options.numbers`."""

    def __init__(self, folder: Path, count: int, grid: tuple[int, int], width: int, options: AggregateOptions) -> None:
        self.folder, self.count, self.grid = folder, count, grid
        self.shape = (len(options.numbers), grid[0] * grid[1], width)
        self.dtype = np.dtype(options.dtype)

    def path(self, i: int) -> Path:
        """The file of picture `i`."""
        return self.folder / f"{i:06d}.npy"

    def _open(self, i: int) -> Optional[np.ndarray]:
        """The array of a picture without reading it; None when there is none, or a damaged one."""
        try:
            found = np.load(self.path(i), mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            found = None
        if found is None or found.shape != self.shape or found.dtype != self.dtype:
            log.warning("%s: damaged, computed again", self.path(i))
            return None
        return found

    def has(self, i: int) -> bool:
        """Whether picture `i` is there."""
        return self._open(i) is not None

    def write(self, i: int, maps: Float[Tensor, "N E h w"]) -> None:
        """The maps of picture `i`, as a whole or not at all."""
        values = maps.flatten(2).transpose(1, 2).contiguous().numpy().astype(self.dtype)  # (N, L, E)

        def save(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, values)

        atomic_write(self.path(i), save)

    def tokens(self, i: int, place: int) -> Float[Tensor, "L E"]:
        """Picture `i` for the number of contexts at `place`, float32. Raises UserError when it is not there."""
        found = self._open(i)
        if found is None:
            raise UserError(f"{self.path(i)}: not there; run the same command again.")
        return torch.from_numpy(found[place].astype(np.float32))

    def features(self, place: int) -> TokenFeatures:
        """All pictures for one number of contexts, in memory."""
        return TokenFeatures(torch.stack([self.tokens(i, place) for i in range(self.count)]), self.grid)

    def gigabytes(self) -> float:
        """Size on disk when it is complete."""
        return self.count * int(np.prod(self.shape)) * self.dtype.itemsize / 1e9


class Subject(NamedTuple):
    """An encoder under test: `encode` takes a normalised batch on the CPU."""

    name: str
    encode: Encode
    encoder: DenseEncoder


def fill_store(
    subject: Subject, images: LabelledSet, contexts: LabelledSet, store: TokenStore, options: AggregateOptions
) -> None:
    """Makes what `store` lacks, picture by picture; memory does not grow with their number.

    Raises UserError for pictures that cannot be read and features that are not finite.
    """
    missing = [i for i in range(len(images)) if not store.has(i)]
    if len(missing) < len(images):
        log.info("%s: %d of %d pictures are in %s", subject.name, len(images) - len(missing), len(images), store.folder)
    progress = Progress(subject.name, len(images), len(images) - len(missing))
    device = next(subject.encoder.parameters()).device
    draw = partial(draw_contexts, contexts=contexts, options=options, patch=subject.encoder.patch_size)
    for i in missing:
        frame = target_frame(images, i, subject.encoder, options.target)
        draws = draw(images.name(i), options.numbers[-1])
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            maps = aggregated(subject.encode, frame, draws, contexts=contexts, options=options, encoder=subject.encoder)
        if not bool(torch.isfinite(maps).all()):
            raise UserError(f"{subject.name}: features are not finite on {images.name(i)}.")
        store.write(i, maps)
        progress.add(1)


def distances(store: TokenStore) -> list[float]:
    """For each number of contexts the mean length of its difference from the last mean, over the last mean's length.

    For the picture alone that is the size of the noise Z - mean(Z). One picture in memory at a time.
    """
    numbers = store.shape[0]
    total, length = torch.zeros(numbers, dtype=torch.float64), 0.0
    for i in range(store.count):
        last = store.tokens(i, numbers - 1).double()
        length += last.norm(dim=1).sum().item()
        for place in range(numbers):
            total[place] += (store.tokens(i, place).double() - last).norm(dim=1).sum()
    return (total / length).tolist()


def scores_at(
    train: Optional[TokenStore],
    val: TokenStore,
    place: int,
    *,
    labels: tuple[LabelCache, LabelCache],
    settings: ProbeSettings,
    measures: Sequence[str],
) -> dict[str, Optional[float]]:
    """The quick measure's scores in percent for one number of contexts; `train` may be missing for affinity alone.

    k-means has as many clusters as there are classes. In memory: the tokens of that number in both sets.
    """
    found: dict[str, Optional[float]] = {}
    test = LabelledTokens(val.features(place), labels[1].at(val.grid))
    if train is not None:
        fitted = LabelledTokens(train.features(place), labels[0].at(train.grid))
        if "linear" in measures:
            found["linear_miou"] = linear_probe(fitted, test, settings)["miou"]["mean"]
        if "kmeans" in measures:
            k = max(2, len(labels[1].data.classes))
            settings = dataclasses.replace(settings, kmeans_k=(k,))
            found["kmeans_miou"] = kmeans_probe(fitted, test, k, settings)["miou"]["mean"]
    if "affinity" in measures:
        affinity: dict[str, Any] = affinity_probe(test)["ap"]
        found["affinity_ap"], found["affinity_ap_beyond_6"] = affinity["all"], affinity[">6"]
    return {key: None if value is None or value != value else float(value) for key, value in found.items()}
