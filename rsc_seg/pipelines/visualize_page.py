"""The interactive affinity page of one's own pictures for the untuned encoder and every checkpoint."""

from pathlib import Path

from rsc_seg.config import EvaluateConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines.candidates import encoder_candidate
from rsc_seg.pipelines.folder import command_line, git_commit
from rsc_seg.pipelines.page_parts import provenance
from rsc_seg.pipelines.pictures import shots_of
from rsc_seg.pipelines.visualize_inputs import Request, as_seen, open_encoders, open_images
from rsc_seg.viz.interactive import COMPONENTS, Explorable, Explorer, write_explorer

PAGE = "affinity.html"


def draw_page(config: EvaluateConfig, request: Request, components: int = COMPONENTS) -> list[Path]:
    """Writes affinity.html and returns its path in a list.

    Raises UserError for whatever pictures, checkpoints and size can have wrong, and `components` below 1.
    """
    if components < 1:
        raise UserError(f"--components {components}: must be 1 or more.")
    loaded = open_images(config, request)
    encoders = open_encoders(config, request)
    first = encoders[0]
    rows = [encoder_candidate(c.name, c.encoder, next(c.encoder.parameters()).device) for c in encoders]
    shots = shots_of(as_seen(loaded, request.size, first.encoder), rows)
    height, width = request.size
    explorer = Explorer(
        title=f"Affinities of {first.encoder.name}",
        subtitle=f"{len(shots)} {'picture' if len(shots) == 1 else 'pictures'} squashed to {height}x{width} pixels, "
        f"{len(encoders)} {'encoder' if len(encoders) == 1 else 'encoders'}",
        provenance=provenance(first.info.note, first.info.source, first.info.licence),
        command=command_line(),
        facts={"commit": git_commit()},
    )
    pictures = [Explorable(shot.name, shot.image, dict(shot.maps)) for shot in shots]  # type: ignore[arg-type]
    return [write_explorer(request.folder / PAGE, pictures, explorer, components)]
