"""What all kinds of tools/visualize.py share: pictures, encoders side by side, and the files that are written."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rsc_seg.config import EvaluateConfig, require_choice
from rsc_seg.data.source import load_image_file, thinned
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.candidates import UNTUNED, Candidate, open_candidates
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.page_parts import provenance
from rsc_seg.pipelines.pictures import Picture, picture
from rsc_seg.pipelines.segment_inputs import find_pictures
from rsc_seg.viz.parts import FigureGroup, Report
from rsc_seg.viz.png import FORMATS, save_groups
from rsc_seg.viz.report import write_report

log = logging.getLogger(__name__)
_MANY = 24  # pictures: beyond, figures become long, and the log says how to take fewer


@dataclass(frozen=True)
class Request:
    """Pictures (files and folders), tuned encoders, the size (height, width) that pictures are squashed to, and where
    and how figures are stored."""

    images: Sequence[Path]
    checkpoints: Sequence[Path]
    size: Sequence[int]
    folder: Path
    formats: Sequence[str] = FORMATS

    def check(self) -> None:
        """Raises UserError for an unknown or missing format, or a folder that is a file."""
        if not self.formats:
            raise UserError(f"--format: name one or more of {', '.join(FORMATS)}.")
        for kind in self.formats:
            require_choice("--format", kind, FORMATS)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: --output-dir is a file; name a folder.")


def picture_names(paths: Sequence[Path]) -> list[str]:
    """File names; with their folder where they repeat."""
    count = Counter(path.name for path in paths)
    return [path.name if count[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def open_images(config: EvaluateConfig, request: Request) -> list[tuple[str, Path, Image.Image]]:
    """Name, file and content of every picture of the request; of folders all pictures at any depth.

    data.every and data.limit thin them. Raises UserError without pictures, for a folder that holds none, and for a file
    that cannot be read.
    """
    request.check()
    if not request.images:
        raise UserError("no picture given: visualize.py KIND IMAGE... --backbone NAME.")
    paths = find_pictures(request.images, request.folder)
    paths = [paths[i] for i in thinned(len(paths), config.data.limit, config.data.every)]
    if len(paths) > _MANY:
        log.warning("%d pictures: data.limit=%d would take the first, data.every=N each N-th", len(paths), _MANY)
    return [(name, path, load_image_file(path)) for name, path in zip(picture_names(paths), paths, strict=True)]


def open_encoders(config: EvaluateConfig, request: Request) -> list[Candidate]:
    """The untuned encoder and every checkpoint; UserError for a size that the patch does not divide."""
    device = choose_device(config.run.device)
    found = open_candidates(config.backbone, request.checkpoints, device, first=UNTUNED)
    found[0].encoder.grid(request.size[0], request.size[1])
    return found


def as_seen(
    loaded: Sequence[tuple[str, Path, Image.Image]], size: Sequence[int], encoder: DenseEncoder
) -> list[Picture]:
    """Every picture as the encoder sees it, squashed to `size`."""
    return [picture(name, image, size, encoder, str(path)) for name, path, image in loaded]


def write_figures(
    request: Request, encoders: Sequence[Candidate], groups: Sequence[FigureGroup], page: Report, name: str
) -> list[Path]:
    """The figures' files, then `name`.html from `page` with the figures, whose weights these are, and the command."""
    info = encoders[0].info
    full = dataclasses.replace(
        page,
        provenance=provenance(info.note, info.source, info.licence),
        figures=list(groups),
        command=command_line(),
        environment={"commit": git_commit()} | environment(),
    )
    paths = save_groups(groups, request.folder, full.command, request.formats)
    return [*paths, write_report(request.folder / f"{name}.html", full)]
