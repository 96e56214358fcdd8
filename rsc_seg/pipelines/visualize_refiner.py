"""What Refiners make of boxes of one's own pictures, beside the encoder they belong to."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.transforms import cut_crop, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, to_map
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import load_refiner
from rsc_seg.ops.boxes import roi_map
from rsc_seg.pipelines.candidates import Candidate, unique_names
from rsc_seg.pipelines.pictures import Picture
from rsc_seg.pipelines.visualize_inputs import Request, as_seen, open_encoders, open_images, write_figures
from rsc_seg.viz.parts import Report
from rsc_seg.viz.refiner_maps import ALONE, SECTION, BoxMaps, Share, refiner_groups

FILE = "refiner.safetensors"
MIDDLE: Share = (0.25, 0.25, 0.75, 0.75)
_IN_PICTURE = "{}, in the picture"


def checked_boxes(boxes: Sequence[Sequence[float]]) -> list[Share]:
    """The boxes as shares, the middle of the picture where none is given; UserError for one that is no box."""
    found: list[Share] = []
    for box in boxes:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            said = ",".join(f"{value:g}" for value in box)
            raise UserError(
                f"--box {said}: expected left,top,right,bottom as shares of width and height, 0 to 1, for example "
                "0.2,0.3,0.7,0.8."
            )
        found.append((x0, y0, x1, y1))
    return found or [MIDDLE]


def open_refiners(paths: Sequence[Path], encoder: DenseEncoder, device: torch.device) -> dict[str, Refiner]:
    """Refiners by name; a run folder stands for the one inside. Raises UserError for one of another encoder."""
    if not paths:
        raise UserError(f"--refiner: name a Refiner, for example runs/mine/{FILE} (or --run runs/mine).")
    files = [path / FILE if path.is_dir() else path for path in paths]
    names = unique_names(files)
    return {
        name.removesuffix("/refiner"): load_refiner(file, encoder)[0].to(device)
        for name, file in zip(names, files, strict=True)
    }


def _pixels(box: Share, width: float, height: float) -> tuple[float, float, float, float]:
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _check_tokens(box: Share, grid: tuple[int, int]) -> None:
    if (box[2] - box[0]) * grid[1] < 1 or (box[3] - box[1]) * grid[0] < 1:
        said = ",".join(f"{value:g}" for value in box)
        raise UserError(
            f"--box {said}: smaller than one of the picture's {grid[0]} x {grid[1]} tokens; enlarge the box or --size."
        )


def _crop_picture(image: Image.Image, box: Share, grid: tuple[int, int]) -> Image.Image:
    """The part of the picture in the box, at the proportions of its maps."""
    times = max(1, round(672 / max(grid)))
    part = _pixels(box, image.width, image.height)
    return image.convert("RGB").resize((grid[1] * times, grid[0] * times), Image.Resampling.LANCZOS, box=part)


@torch.inference_mode()
def box_maps(
    seen: Picture, box: Share, encoders: Sequence[Candidate], refiners: dict[str, Refiner], crop: Sequence[int]
) -> dict[str, Float[Tensor, "D h w"]]:
    """The maps of a box by name: every encoder's of the whole picture cut there (RoIAlign), each Refiner's, the crop's.

    The first encoder is the Refiners' own; it also encodes the crop, cut from the original pixels to `crop` (height,
    width) without keeping proportions. All maps have the crop's token grid.
    """
    first = encoders[0].encoder
    device, grid = next(first.parameters()).device, first.grid(crop[0], crop[1])
    x = seen.x[None].to(device)
    height, width = x.shape[-2:]
    corners = torch.tensor([[_pixels(box, width, height)]], device=device)  # (1, 1, 4)
    found: dict[str, Tensor] = {}
    for candidate in encoders:
        dense = candidate.encoder.dense(x)
        cut = roi_map(dense, corners, patch_size=first.patch_size, grid=grid)
        found[_IN_PICTURE.format(candidate.name)] = cut[0]
    for name, refiner in refiners.items():
        tokens = refiner(refiner.early(first, x), corners, grid)
        found[name if name != "refiner" else "Refiner"] = to_map(tokens, grid)[0]
    pixels = cut_crop(seen.image, _pixels(box, *seen.image.size), crop)
    found[ALONE] = first.dense(normalize(pixels, first.mean, first.std)[None].to(device))[0]
    return {name: features.float().cpu() for name, features in found.items()}


def draw_refiner(
    config: EvaluateConfig, request: Request, refiners: Sequence[Path], boxes: Sequence[Sequence[float]]
) -> list[Path]:
    """Writes a figure for every box of every picture, and refiner.html; returns the files, the page last.

    Boxes are shares x0, y0, x1, y1. Raises UserError for a missing Refiner, one of another encoder or other weights of
    it, a box that is none, and whatever pictures and checkpoints can have wrong.
    """
    shares = checked_boxes(boxes)
    loaded = open_images(config, request)
    encoders = open_encoders(config, request)
    first = encoders[0].encoder
    device = next(first.parameters()).device
    opened = open_refiners(refiners, first, device)
    crop = [first.row.crop_side] * 2
    for box in shares:
        _check_tokens(box, first.grid(request.size[0], request.size[1]))
    shots = []
    for seen in as_seen(loaded, request.size, first):
        for box in shares:
            maps = box_maps(seen, box, encoders, opened, crop)
            cut = _crop_picture(seen.image, box, first.grid(crop[0], crop[1]))
            shots.append(BoxMaps(seen.name, seen.image, cut, box, maps))
    height, width = request.size
    page = Report(
        f"Refiners of {first.name}",
        f"Pictures at {height}x{width}, crops at {crop[0]}x{crop[1]} pixels",
        sections=[SECTION],
    )
    return write_figures(request, encoders, refiner_groups(shots), page, "refiner")
