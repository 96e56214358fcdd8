"""Affinity, PCA, norm and coupling maps of one's own pictures, encoders side by side, as files and one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsc_seg.config import EvaluateConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines.candidates import encoder_candidate
from rsc_seg.pipelines.pictures import NORM_DEFINITION, coupling_examples, shots_of
from rsc_seg.pipelines.visualize_inputs import Request, as_seen, open_encoders, open_images, write_figures
from rsc_seg.viz.gallery import affinity_groups, coupling_groups, norm_group, pca_group
from rsc_seg.viz.maps import token_at
from rsc_seg.viz.parts import FigureGroup, Report

KINDS = ("affinity", "pca", "norms", "coupling")


@dataclass(frozen=True)
class MapOptions:
    """Which maps, and how: `queries` by the fixed rule, or `points` by hand as shares (across, down); `scope` of a PCA;
    `mode` of enlargement."""

    kinds: Sequence[str]
    queries: int = 3
    points: Sequence[tuple[float, float]] = ()
    scope: str = "image"
    mode: str = "nearest"

    def check(self, pictures: int) -> None:
        """Raises UserError for options that cannot be used with so many pictures."""
        if self.queries < 1:
            raise UserError(f"--queries {self.queries}: must be 1 or more.")
        if "coupling" in self.kinds and pictures < 2:
            raise UserError(f"coupling maps: need two pictures or more, got {pictures}.")
        for across, down in self.points:
            token_at(1, 1, across, down)


def visualize(config: EvaluateConfig, request: Request, options: MapOptions) -> list[Path]:
    """Writes the maps of all pictures for the untuned encoder and every checkpoint; returns the files, the page last.

    One colour rule serves all encoders of a call: affinity and norm scales are common, a PCA's basis and scales joint.
    Raises UserError for a picture that cannot be read or is too small, a size that the patch does not divide, coupling
    maps of one picture, or a checkpoint of another backbone.
    """
    loaded = open_images(config, request)
    options.check(len(loaded))
    encoders = open_encoders(config, request)
    first = encoders[0].encoder
    pictures = as_seen(loaded, request.size, first)
    rows = [encoder_candidate(c.name, c.encoder, next(c.encoder.parameters()).device, c.note) for c in encoders]
    groups: list[FigureGroup] = []
    shots = shots_of(pictures, rows) if set(options.kinds) - {"coupling"} else []
    for shot in shots:
        shot.queries = [token_at(*shot.grid(), across, down) for across, down in options.points]
    if "affinity" in options.kinds:
        groups += affinity_groups(shots, options.queries, options.mode)
    if "pca" in options.kinds:
        groups.append(pca_group(shots, options.scope, options.mode))
    if "norms" in options.kinds:
        groups.append(norm_group(shots, options.mode, NORM_DEFINITION))
    if "coupling" in options.kinds:
        groups += coupling_groups(coupling_examples(pictures, rows, len(pictures) // 2), options.mode)
    height, width = request.size
    page = Report(f"Feature maps of {first.name}", f"{len(pictures)} pictures at {height}x{width} pixels")
    return write_figures(request, encoders, groups, page, "maps")
