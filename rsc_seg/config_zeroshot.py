"""Options of the zero-shot measures as typed dataclasses; read like those of `rsc_seg.config`."""

from dataclasses import dataclass, field
from typing import Optional

from rsc_seg.config import BackboneConfig, DataConfig, ProbeConfig, RunConfig


@dataclass
class RegionsConfig:
    """Which regions are classified, and by which class embeddings."""

    mask_resize: str = "plain"  # plain (bicubic, as published) | antialias (torchvision's default since 0.17)
    per_image: int = 100  # the first segments of a picture, in the file's order
    min_area: float = 64.0  # pixels of a segment's box in the original picture; smaller ones are left out
    max_area: float = 1048576.0  # and larger ones, too
    no_pixels: str = "skip"  # skip (segments without a pixel: named once, counted, left out) | fatal
    empty_masks: str = "wrong"  # wrong | official (ranked by torch.topk of equal similarities, docs/regions_eval.md)
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


@dataclass
class MaskclipConfig:
    """Which names the tokens are compared with, and how a picture becomes a map of classes (docs/maskclip.md)."""

    set: Optional[str] = None  # a prepared set such as pascal_context_59_val (docs/datasets.md); null: data.kind
    vocabulary: Optional[str] = None  # file of names for the set's classes, in their order; null: the set's own
    prompts: str = "imagenet"  # see docs/text.md; or a file of templates
    text_weights: Optional[str] = None  # official | none | a file of a whole CLIP; null: backbone.weights
    embeddings: Optional[str] = None  # .npy (names, width) instead of a text tower
    short_side: int = 512  # pixels that a picture's short side is brought to
    window: Optional[int] = None  # pixels of a side of a sliding window; null: one view of the whole picture
    stride: int = 224  # pixels from one window to the next
    average: str = "logits"  # logits (cosines) | probabilities (softmax at every token), where windows overlap
    scale: float = 100.0  # of the cosines before that softmax
    class_chunk: int = 32  # classes that are enlarged to the labels' size at once
    window_batch: int = 8  # windows of one pass
    save_every: int = 100  # pictures between two records of the counts so far


@dataclass
class EvaluateMaskclipConfig:
    """tools/evaluate.py maskclip; of `data` image_size, fit, hflip and on_error mean nothing."""

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="clip_vitb16"))
    data: DataConfig = field(default_factory=lambda: DataConfig(split="val"))
    maskclip: MaskclipConfig = field(default_factory=MaskclipConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class CouplingConfig:
    """Which pairs, and which of their tokens (docs/context.md)."""

    pairs: Optional[int] = None  # null: every picture in one pair
    padding: str = "exclude"  # exclude (tokens of the padding ask and answer nothing) | include; for data.fit=pad
    floor: float = 0.1  # tokens with a smaller denominator stay out of the stable mean
    save_every: int = 50  # pairs between two records


@dataclass
class EvaluateCouplingConfig:
    """tools/evaluate.py coupling; data.image_size is that of one picture, the pair is twice as wide."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(split="val", fit="squash"))
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class AggregateConfig:
    """How many contexts, how large, and what is measured of the averages (docs/context.md)."""

    numbers: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8, 16, 32])  # N; 0: the picture alone
    canvas: list[int] = field(default_factory=list)  # height, width of a context; []: twice data.image_size
    contexts: str = "images"  # images (of the training split) | blank (the mean colour: positions change, nothing else)
    measures: list[str] = field(default_factory=lambda: ["linear", "kmeans", "affinity"])
    pictures: int = 4  # validation images whose noise is drawn
    batch_size: int = 8  # canvases of one pass
    dtype: str = "float32"  # float32 | float16, of the tokens on disk
    max_gb: float = 20.0  # of one encoder's tokens on disk


@dataclass
class EvaluateAggregateConfig:
    """tools/evaluate.py aggregate; data.image_size is that of the target, null the encoder's crop size."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(fit="squash"))
    probe: ProbeConfig = field(
        default_factory=lambda: ProbeConfig(linear_seeds=1, linear_epochs=10, kmeans_seeds=1, best_layer=False)
    )
    aggregate: AggregateConfig = field(default_factory=AggregateConfig)
    run: RunConfig = field(default_factory=RunConfig)
