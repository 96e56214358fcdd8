"""Options of the zero-shot measures as typed dataclasses; read like those of `rsc_seg.config`."""

from dataclasses import dataclass, field
from typing import Optional

from rsc_seg.config import BackboneConfig, DataConfig, RunConfig


@dataclass
class RegionsConfig:
    """Which regions are classified, and by which class embeddings."""

    mask_resize: str = "plain"  # plain (bicubic, as published) | antialias (torchvision's default since 0.17)
    per_image: int = 100  # the first segments of a picture, in the file's order
    min_area: float = 64.0  # pixels of a segment's box in the original picture; smaller ones are left out
    max_area: float = 1048576.0  # and larger ones, too
    no_pixels: str = "skip"  # skip (segments without a pixel: named once, counted, left out) | fatal
    prompts: str = "clipself"  # see docs/text.md; or a file of templates
    text_weights: Optional[str] = None  # official | none | a file of a whole CLIP; null: backbone.weights
    embeddings: Optional[str] = None  # .npy (classes, width) instead of a text tower, classes by ascending id
    batch_size: int = 1  # pictures of one pass; officially 1
    save_every: int = 200  # pictures between two records of the counts so far


@dataclass
class EvaluateRegionsConfig:
    """tools/evaluate.py regions."""

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="clip_vitb16"))
    data: DataConfig = field(default_factory=lambda: DataConfig(split="val"))
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    run: RunConfig = field(default_factory=RunConfig)
