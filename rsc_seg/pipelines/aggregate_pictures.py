"""Pictures of the contexts' noise: its length token by token, and the affinities of the three maps."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from rsc_seg.data.source import ImageSource
from rsc_seg.pipelines.folder import command_line
from rsc_seg.viz.gallery import ENLARGED, Shot, affinity_groups, norm_group
from rsc_seg.viz.maps import token_norms
from rsc_seg.viz.parts import FigureGroup
from rsc_seg.viz.png import save_groups
from rsc_seg.zeroshot.aggregate import AggregateOptions
from rsc_seg.zeroshot.aggregate_store import TokenStore

QUERIES = 2


def noise_groups(
    images: ImageSource, stores: Mapping[str, TokenStore], options: AggregateOptions, count: int
) -> list[FigureGroup]:
    """Groups of `count` pictures at even distances: noise lengths, and affinities alone, of the noise and of the mean.

    The noise is Z - mean(Z): the first of `options.numbers` (the picture alone where that is 0) less the last.
    """
    first, last = options.numbers[0], options.numbers[-1]
    start = "alone" if first == 0 else f"N={first}"
    chosen = sorted({round(i * (len(images) - 1) / max(1, count - 1)) for i in range(min(count, len(images)))})
    lengths, shots = [], []
    for i in chosen:
        maps: dict[str, Tensor] = {}
        norms = {}
        for name, store in stores.items():
            z, mean = (_map(store, i, place) for place in (0, len(options.numbers) - 1))
            norms[name] = token_norms(z - mean)
            maps |= {f"{name}, {start}": z, f"{name}, noise": z - mean, f"{name}, mean over {last}": mean}
        shots.append(Shot(images.name(i), images.load(i), maps))
        lengths.append(Shot(images.name(i), shots[-1].image, maps, norms))
    group = norm_group(lengths, definition=f"of Z ({start}) - mean(Z) over {last} contexts")
    group.title = "Noise of the contexts"
    group.scale = None if group.scale is None else replace(group.scale, quantity="length of Z - mean(Z)")
    group.about = (
        f"Length of Z - mean(Z) at every token: Z {start}, the mean over {last} contexts; one scale for all. "
        + ENLARGED["nearest"]
    )
    return [group, *affinity_groups(shots, QUERIES)]


def _map(store: TokenStore, i: int, place: int) -> Tensor:
    return store.tokens(i, place).T.unflatten(1, store.grid)  # (L, E) -> (E, h, w)


def save_noise(
    images: ImageSource, stores: Mapping[str, TokenStore], options: AggregateOptions, folder: Path, count: int
) -> list[Path]:
    """Writes those groups as PNG files and returns their paths; none for a single number of contexts."""
    if not count or len(options.numbers) < 2:
        return []
    return save_groups(noise_groups(images, stores, options, count), folder, command_line())
