"""Image and crop sizes that a configuration leaves to its backbone."""

from rsc_seg.config import CropConfig, DataConfig
from rsc_seg.errors import UserError
from rsc_seg.models.registry import find_backbone


def fill_sizes(backbone: str, data: DataConfig, crops: CropConfig | None = None) -> None:
    """Gives `data.image_size` and `crops.size` the backbone's usual values where they are empty, in place.

    Raises UserError for an unknown backbone, and for sizes that are not two whole patches or more of it.
    """
    row = find_backbone(backbone)
    data.image_size = data.image_size or [row.image_side] * 2
    _check("data.image_size", data.image_size, row.name, row.patch_size)
    if crops is not None:
        crops.size = crops.size or [row.crop_side] * 2
        _check("crops.size", crops.size, row.name, row.patch_size)


def _check(key: str, size: list[int], name: str, patch: int) -> None:
    if len(size) != 2 or any(side < patch or side % patch for side in size):
        have, near = ("x".join(map(str, s)) for s in (size, [max(patch, round(side / patch) * patch) for side in size]))
        raise UserError(f"{key}={have}: {name} needs [height,width] in multiples of {patch} (nearest: {near}).")
