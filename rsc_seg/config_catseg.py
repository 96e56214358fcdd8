"""Options of Cat-Seg's commands as typed dataclasses; read like those of `rsc_seg.config`."""

from dataclasses import dataclass, field
from typing import Optional

from rsc_seg.config import BackboneConfig, RunConfig


@dataclass
class ClipConfig:
    """Cat-Seg's two towers."""

    name: str = "clip_vitb16"  # see rsc_seg.models.registry
    weights: str = "official"  # official | none | a file; of both towers
    checkpoint: Optional[str] = None  # a tuned image tower (student.safetensors) in the place of the image tower
    attention: str = "auto"  # auto | sdpa | xformers | eager


@dataclass
class CatSegModelConfig:
    """Version, what trains, and the fields of `rsc_seg.seg.options.CatSegOptions`, which says what they mean."""

    version: str = "updated"  # updated (CVPR) | vanilla (first version)
    finetune: Optional[str] = None  # attention | vanilla | full | none; null: the version's own
    guide: Optional[BackboneConfig] = None  # a frozen encoder without text beside CLIP (ours), such as a DINOv2 student
    prompts: Optional[str] = None  # null: the version's own
    grid: list[int] = field(default_factory=lambda: [24, 24])  # tokens, height and width
    hidden: int = 128
    heads: int = 4
    layers: int = 2
    window: int = 12
    pool: int = 2
    eval_pool: int = 1
    class_length: Optional[int] = None  # null: the version's own, 256 or 0
    decoder: list[int] = field(default_factory=lambda: [64, 32])
    taps: list[int] = field(default_factory=lambda: [256, 128])
    decoder_guidance: list[int] = field(default_factory=lambda: [32, 16])
    doubled_identity: bool = True
    ignore: str = "negative"  # negative | mask
    alignment: str = "official"  # official | exact
    class_chunk: int = 32
    gradient_checkpointing: bool = False


@dataclass
class CatSegDataConfig:
    """Sets by name (docs/datasets.md), their classes, and how pictures reach the model."""

    root: Optional[str] = None  # the folder of all sets (detectron2's DETECTRON2_DATASETS); null only for `scenes_*`
    train: str = "coco_stuff_171_train"
    test: list[str] = field(default_factory=lambda: ["coco_stuff_171_val"])
    classes: list[str] = field(default_factory=list)  # only these of a set's classes, others are ignored; []: all
    held_out: list[str] = field(default_factory=list)  # unseen in training: neither their names nor their pixels
    vocabulary: Optional[str] = None  # file of names for the training set's labels, in their order; null: the set's own
    test_vocabulary: Optional[str] = None  # the same for the test set, of which there must be one then
    crop: list[int] = field(default_factory=lambda: [384, 384])  # height, width of a training view
    min_size: list[int] = field(default_factory=lambda: [384])  # short side before cropping: one of these
    max_size: int = 1333
    color: bool = True  # SSD's changes of brightness, contrast, saturation and hue
    hflip: bool = True
    min_size_test: int = 640
    max_size_test: int = 2560
    limit: Optional[int] = None  # first images of the training set only
    test_limit: Optional[int] = None  # first images of each test set only
    workers: int = 4


@dataclass
class CatSegSolverConfig:
    """Optimiser and schedule."""

    max_iter: int = 80000
    batch_size: int = 4  # images of one step over all processes
    lr: float = 2e-4
    clip_factor: float = 0.01  # rate of both CLIP towers = lr * clip_factor
    weight_decay: float = 1e-4
    clip_norm: Optional[float] = 0.01  # of the whole gradient; null: none
    warmup_iters: int = 0
    ema: Optional[float] = None  # decay of an average of the weights that is evaluated and exported; null: none


@dataclass
class CatSegTestConfig:
    """One protocol for evaluations during and after training."""

    every: int = 5000  # steps between evaluations; 0: at the end only
    protocol: str = "sliding"  # sliding (tiles and a global view) | whole (one view)
    size: list[int] = field(default_factory=lambda: [640, 640])  # height, width of what tiles are cut from
    window: int = 384
    overlap: float = 0.333
    global_view: bool = True
    view_batch: int = 5  # views of one pass; views of neighbouring images share it
    check: str = "refuse"  # refuse (an image tower no better than chance) | warn | off
    check_images: int = 32  # of the training set, for that check
    pictures: int = 6  # test images in the report

    def __post_init__(self) -> None:
        self.check = {"False": "off"}.get(self.check, self.check)  # YAML reads off as a boolean


@dataclass
class TrainCatSegConfig:
    """tools/train_catseg.py."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    model: CatSegModelConfig = field(default_factory=CatSegModelConfig)
    data: CatSegDataConfig = field(default_factory=CatSegDataConfig)
    solver: CatSegSolverConfig = field(default_factory=CatSegSolverConfig)
    test: CatSegTestConfig = field(default_factory=CatSegTestConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(save_every=5000, log_every=20))


@dataclass
class SegmentConfig:
    """tools/segment.py."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    model: CatSegModelConfig = field(default_factory=CatSegModelConfig)
    test: CatSegTestConfig = field(default_factory=CatSegTestConfig)
    min_size_test: int = 640  # short side of a picture before the protocol, as of data.min_size_test
    max_size_test: int = 2560
    run: RunConfig = field(default_factory=RunConfig)
