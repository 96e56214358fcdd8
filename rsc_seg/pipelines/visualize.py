"""Maps of one's own pictures as PNG files and one page."""

from collections.abc import Sequence
from pathlib import Path

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.source import load_image_file
from rsc_seg.errors import UserError
from rsc_seg.pipelines.candidates import checkpoint_candidates, untuned
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.pictures import figure_groups, picture
from rsc_seg.viz.parts import Report
from rsc_seg.viz.png import save_groups
from rsc_seg.viz.report import write_report


def visualize(
    config: EvaluateConfig,
    images: Sequence[Path],
    checkpoints: Sequence[Path],
    *,
    kinds: Sequence[str],
    size: Sequence[int],
    queries: int,
    folder: Path,
) -> list[Path]:
    """Writes the maps of all pictures for the untuned encoder and every checkpoint; returns the files, the page last.

    Raises UserError for a picture that cannot be read or is too small, a size that the patch does not divide, coupling
    maps of one picture, or a checkpoint of another backbone.
    """
    if queries < 1:
        raise UserError(f"--queries {queries}: must be 1 or more.")
    if "coupling" in kinds and len(images) < 2:
        raise UserError(f"--maps coupling: needs two pictures or more, got {len(images)}.")
    device = choose_device(config.run.device)
    loaded = [(path.name, load_image_file(path)) for path in images]
    encoder, info, first = untuned(config.backbone, device)
    encoder.grid(size[0], size[1])
    candidates = [first, *checkpoint_candidates(checkpoints, config.backbone, device)]
    pictures = [
        picture(name, image, size, encoder, str(path)) for (name, image), path in zip(loaded, images, strict=True)
    ]
    groups = figure_groups(pictures, candidates, kinds=kinds, queries=queries, pairs=len(pictures) // 2)
    paths = save_groups(groups, folder, command_line())
    page = Report(
        title=f"Feature maps of {encoder.name}",
        subtitle=f"{len(pictures)} pictures at {size[0]}x{size[1]} pixels",
        provenance=f"{info.note or 'Weights: ' + info.source + '.'} Licence of the weights: {info.licence}.",
        figures=groups,
        command=command_line(),
        environment={"commit": git_commit()} | environment(),
    )
    return [*paths, write_report(folder / "maps.html", page)]
