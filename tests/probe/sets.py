"""A labelled set in memory, and encoders whose tokens are known."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.probe.settings import ProbeSettings

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SETTINGS = ProbeSettings(
    image_size=(32, 48),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    batch_size=3,
    score_scale=1.0,
    linear_epochs=10,
    linear_batch=64,
    kmeans_k=(3, 5),
    coupling_pairs=4,
)


class BlockImages(LabelledSet):
    """Pictures of 4 x 6 blocks of 8 pixels, one colour a class; a corner block is void."""

    def __init__(self, count: int, seed: int = 0, classes: int = 3) -> None:
        self.classes = [f"class {t}" for t in range(classes)]
        self.palette = list(COLORS[:classes])
        self.blocks = np.random.default_rng(seed).integers(0, classes, (count, 4, 6))

    def __len__(self) -> int:
        return len(self.blocks)

    def name(self, i: int) -> str:
        return f"picture {i}"

    def load(self, i: int) -> Image.Image:
        return Image.fromarray(np.array(COLORS, np.uint8)[self.blocks[i]].repeat(8, 0).repeat(8, 1))

    def labels(self, i: int) -> np.ndarray:
        labels = self.blocks[i].repeat(8, 0).repeat(8, 1).astype(np.uint8)
        labels[:8, :8] = 255
        return labels


def colour_tokens(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3, H/8, W/8): the mean colour of each block, which tells the class without context."""
    return F.avg_pool2d(images, 8)


def grey_tokens(images: Tensor) -> Tensor:
    """Tokens that are all equal: nothing can be told from them."""
    return torch.ones(len(images), 3, images.shape[2] // 8, images.shape[3] // 8)
