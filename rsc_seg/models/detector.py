"""Torchvision's detectors, of which only the region proposal network is used."""

import logging
from pathlib import Path

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.rpn import concat_box_prediction_layers

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.official_weights import unreachable

log = logging.getLogger(__name__)

DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)


def _official_file(name: str) -> Path:
    """torch.hub's copy of torchvision's weights, downloaded when it is not there."""
    entry = torchvision.models.get_model_weights(name).DEFAULT
    place = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if not place.is_file():
        reason = unreachable(entry.url)
        if reason:
            raise UserError(
                f"the weights of {name} cannot be had ({reason}): put torchvision's {place.name} into {place.parent}, "
                "give it by --detector-weights FILE, or take --method features, which needs none."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(place), hash_prefix=place.stem[-8:], progress=False)
    return place


def build_detector(name: str, weights: str, *, count: int, overlap: float) -> FasterRCNN:
    """A detector of torchvision in eval mode, frozen; its RPN gives at most `count` boxes, by NMS at `overlap`.

    weights: official (torch.hub's copy or a download), none (random), or a file of its state dict. Raises UserError for
    an unknown name, weights that cannot be had, and a file that does not fit.
    """
    require_choice("--detector", name, DETECTORS)
    options = {"rpn_nms_thresh": overlap, "rpn_post_nms_top_n_test": count, "rpn_pre_nms_top_n_test": 1000}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    if weights == "none":
        log.warning("RANDOM WEIGHTS in %s: its boxes are MEANINGLESS", name)
    else:
        file = _official_file(name) if weights == "official" else Path(weights).expanduser()
        if not file.is_file():
            raise UserError(
                f"{file}: no such file (--detector-weights); give official, none, or a state dict of {name}."
            )
        try:
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as e:  # what a foreign file raises has many types
            reason = str(e).splitlines()[0]
            raise UserError(f"{file}: no state dict of torchvision's {name} (--detector-weights): {reason}") from e
    nn.Module.requires_grad_(model, False)
    return model.eval()


@torch.no_grad()
def rpn_boxes(model: FasterRCNN, image: Float[Tensor, "3 H W"]) -> tuple[Float[Tensor, "N 4"], Float[Tensor, " N"]]:
    """Proposals of an image (values 0..1): boxes xyxy in its pixels and objectness 0..1, best first."""
    images, _ = model.transform([image])
    maps = list(model.backbone(images.tensors).values())
    objectness, deltas = model.rpn.head(maps)
    anchors = model.rpn.anchor_generator(images, maps)
    counts = [level[0].numel() for level in objectness]
    flat, offsets = concat_box_prediction_layers(objectness, deltas)
    decoded = model.rpn.box_coder.decode(offsets, anchors).view(1, -1, 4)
    boxes, scores = model.rpn.filter_proposals(decoded, flat, images.image_sizes, counts)
    height, width = images.image_sizes[0]
    scale = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2, device=image.device)
    order = scores[0].argsort(descending=True)
    return boxes[0][order] * scale, scores[0][order]
