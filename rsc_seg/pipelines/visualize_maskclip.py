"""Classes by name on one's own pictures with nothing but a CLIP (MaskCLIP), encoders side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.data.segmentation import distinct_palette
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text_embeddings import class_embeddings
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.pipelines.visualize_inputs import Request, as_seen, open_encoders, open_images, write_figures
from rsc_seg.viz.maskclip_maps import SECTION, Classes, Named, maskclip_groups, shown_size
from rsc_seg.viz.parts import Report

_AT_ONCE = 16  # classes whose cosines are held at the picture's size
MEANINGLESS = "RANDOM TEXT WEIGHTS: the class embeddings, and so the colours, mean nothing."


@dataclass(frozen=True)
class MaskClipOptions:
    """What to look for: names, which of them has no colour, the sentences (docs/text.md), the text tower's weights
    (None: the backbone's), and the share of the colours."""

    names: Sequence[str]
    background: Optional[str] = None
    prompts: str = "imagenet"
    text_weights: Optional[str] = None
    alpha: float = 0.55

    def check(self, backbone: str) -> None:
        """Raises UserError for an encoder without text, fewer than two names, or a share that is none."""
        if find_backbone(backbone).joint_dim is None:
            raise UserError(
                f"backbone '{backbone}' has no text beside it, and classes are found by their names; choose a CLIP "
                "such as clip_vitb16."
            )
        if len(self.names) < 2:
            raise UserError(
                f"--classes: '{self.names[0]}' alone takes every pixel; name what else there is, or a --background."
            )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha {self.alpha}: must be from 0 (photograph) to 1 (colours alone).")


def text_vectors(
    config: EvaluateConfig, options: MaskClipOptions, device: torch.device
) -> tuple[Float[Tensor, "T E"], str]:
    """A unit vector for every name, and in words where it comes from."""
    prompts = open_prompts(options.prompts)
    weights = options.text_weights or config.backbone.weights
    tower = build_text_tower(config.backbone.name, weights, seed=config.run.seed, device=device)
    found = class_embeddings(tower, class_sentences(options.names, prompts), cached=weights != "none")
    said = f"Names by prompt set {prompts.name}, {len(prompts.templates)} templates."
    return found, f"{said} {MEANINGLESS}" if weights == "none" else said


@torch.inference_mode()
def nearest_classes(
    encoder: DenseEncoder, x: Float[Tensor, "3 H W"], vectors: Float[Tensor, "T E"], size: tuple[int, int]
) -> Int64[np.ndarray, "h w"]:
    """The class of every pixel of a picture of `size` (width, height) that the encoder sees as `x`.

    Cosines of tokens and class vectors, enlarged bilinearly, then the largest; of equal ones the first.
    """
    device = next(encoder.parameters()).device
    tokens = functional.normalize(encoder.dense(x[None].to(device)).float(), dim=1)
    cosines = torch.einsum("bdhw,td->bthw", tokens, vectors.to(device))
    shape = (size[1], size[0])
    best = torch.full((1, 1, *shape), -torch.inf, device=device)
    label = torch.zeros(1, 1, *shape, dtype=torch.int64, device=device)
    for start in range(0, cosines.shape[1], _AT_ONCE):
        part = functional.interpolate(cosines[:, start : start + _AT_ONCE], shape, mode="bilinear", align_corners=False)
        high, place = part.max(dim=1, keepdim=True)
        label = torch.where(high > best, place + start, label)
        best = torch.maximum(best, high)
    return label[0, 0].cpu().numpy()


def draw_maskclip(config: EvaluateConfig, request: Request, options: MaskClipOptions) -> list[Path]:
    """Writes an overlay of every picture for the untuned encoder and each checkpoint, and maskclip.html.

    The text tower is the untuned CLIP's for all. Raises UserError for an encoder without text, names or prompts that
    cannot be used, text weights that cannot be had, and whatever pictures and checkpoints can have wrong.
    """
    options.check(config.backbone.name)
    loaded = open_images(config, request)
    open_prompts(options.prompts)
    encoders = open_encoders(config, request)
    first = encoders[0].encoder
    vectors, prompts = text_vectors(config, options, next(first.parameters()).device)
    shots = []
    for seen in as_seen(loaded, request.size, first):
        size = shown_size(seen.image)
        labels = {c.name: nearest_classes(c.encoder, seen.x, vectors, size) for c in encoders}
        shots.append(Named(seen.name, seen.image, labels))
    clear = [k for k, name in enumerate(options.names) if name == options.background]
    classes = Classes(options.names, distinct_palette(len(options.names)), clear, options.alpha)
    height, width = request.size
    said = f"{prompts} Pictures squashed to {height}x{width}, one view of the whole."
    groups = maskclip_groups(shots, classes, said)
    page = Report(
        f"Classes by name: {first.name}", f"{len(shots)} pictures, {len(options.names)} classes", sections=[SECTION]
    )
    return write_figures(request, encoders, groups, page, "maskclip")
