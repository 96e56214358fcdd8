"""Every option of a run as typed dataclasses; YAML holds differences, `key=value` arguments have the last word."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rsc_seg.errors import UserError, suggestion

T = TypeVar("T")


@dataclass
class BackboneConfig:
    """Which encoder, with which weights, run how."""

    name: str = "dinov2_vitb14"  # see rsc_seg.models.registry
    weights: str = "official"  # official | demo | none | a file
    depth: Optional[int] = None  # keep the first `depth` blocks and the final norm; null: all
    attention: str = "auto"  # auto | sdpa | xformers | eager
    position_rule: str = "auto"  # auto | antialias | plain | dinov2 | dinov2_reg
    last_block: str = "auto"  # auto (the weights' own) | full | value | catseg
    gradient_checkpointing: bool = False


@dataclass
class DataConfig:
    """Training images."""

    kind: str = "auto"  # auto | folder | zip | coco | camvid | webdataset | scenes | ade20k | cocostuff | cityscapes
    root: Optional[str] = None  # null is allowed only for `scenes`
    split: str = "train"
    limit: Optional[int] = None  # first images only
    every: int = 1  # every n-th image only
    image_size: list[int] = field(default_factory=list)  # height, width; []: as the backbone is tuned and measured
    fit: str = "pad"  # pad (longest side fits, zeros right and below) | squash | crop (centre)
    hflip: bool = False
    on_error: str = "skip"  # skip (unreadable images: named, counted, replaced by the next) | fatal
    workers: int = 2
    proposals: Optional[str] = None  # COCO-format file of boxes; null: random boxes


@dataclass
class CropConfig:
    """Boxes on an image and the local crops cut at them."""

    size: list[int] = field(default_factory=list)  # height, width of a crop in pixels; []: the backbone's usual crop
    per_image: int = 4  # C: crops of an image in one step
    ratio: list[float] = field(default_factory=lambda: [0.3, 0.7])
    ratio_mode: str = "shared"  # shared (one side ratio for both sides) | per_axis | area
    bank: int = 0  # boxes drawn once for an image and reused; 0: new boxes at every visit
    positions: str = "own"  # own (the crop's own frame) | shared (position embeddings of the crop's place in the image)


@dataclass
class RefinerConfig:
    """The Refiner (Eq. 8-12); every ablation of the paper is one of these values."""

    depth: Optional[int] = None  # K, the blocks of the head; null: 4 (S, B), 6 (L), 10 (g)
    taps: Optional[list[int]] = (
        None  # l1, l2 counted from 1; null: 4, 7 (12 blocks, K 4), 9, 14 (24 blocks, K 6), else by rule
    )
    hidden: int = 4096
    head: str = "clone"  # clone | random | exogenous | pacl
    placement: str = "early"  # early (RoIAlign before the head) | late (after it, Eq. 12)
    inter: bool = True  # FC_inter
    region_cls: bool = True  # FC_cls
    cls_residual: bool = True  # FC_cls starts as f_A's own [CLS]; false: the paper to the letter


@dataclass
class AlignConfig:
    """Stage 1's loss between the Refiner's tokens and the crop's."""

    loss: str = "soft"  # soft (a departure from the paper) | infonce (Eq. 13) | cosine (Eq. 14)
    temperature: float = 0.1
    target_temperature: float = 0.1  # soft only
    normalize: bool = True  # false: raw dot products, Eq. 13 to the letter
    direction: str = "g2l"  # g2l (global to local) | l2g


@dataclass
class OptimConfig:
    """Optimiser and schedule of one stage."""

    lr: float = 1e-4
    epochs: float = 4.0
    max_steps: Optional[int] = None  # overrides epochs
    batch_size: int = 16  # images of one process in one step
    accumulate: int = 1
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup_steps: int = 1000
    clip_norm: Optional[float] = None


@dataclass
class RefineStageConfig:
    """Stage 1: the Refiner learns from local crops."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    align: AlignConfig = field(default_factory=AlignConfig)


@dataclass
class DistillStageConfig:
    """Stage 2: the student learns the Refiner's correlations (R-SCD)."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-5, epochs=6.0, batch_size=4))
    boxes: int = 4  # B: regions of an image in one step
    regions: str = "local"  # local (boxes) | global (the whole image is the one region) | both
    temperature_student: float = 0.2
    temperature_teacher: float = 0.2
    normalize: bool = True  # false: raw dot products
    target: str = "refiner"  # refiner (R-SCD) | teacher (SCD, the control); for objective=rscv: the others say it
    refiner: Optional[str] = None  # refiner.safetensors of another run in place of stage 1; null: trained here
    loss: str = "scd"  # scd | frobenius | inter | attention | densecl | ibot (Table 6's replacements of SCD)
    weight: Optional[float] = None  # lambda, of this loss beside RLA; null: 0.2 (up to 12 blocks), 0.4 (more)
    boxes_from: str = "own"  # own (crops.*: random boxes, or those of data.proposals) | rla (the boxes of RLA)
    ema: float = 0.999  # densecl and ibot: decay of the averaged student that is their target
    trainable: str = "blocks"  # blocks | blocks_norm | last_K (for example last_4) | all
    control: bool = False  # train the equal SCD control without the Refiner as well
    alpha: float = 0.5  # exported weights = alpha * student + (1 - alpha) * start
    end_to_end: bool = False  # E2E: both stages' losses in one run


@dataclass
class RlaConfig:
    """Region-language alignment (Eq. 1), for the objectives that have it."""

    boxes: str = "auto"  # auto (proposals where data.proposals is set, else grid) | proposals | gt | grid | random
    per_image: int = 20  # boxes of an image in one step, at most
    enlarge: float = 1.5  # sides of the teacher's crop over those of its box; the grid's cells are never enlarged
    crop_size: list[int] = field(default_factory=list)  # height, width of that crop; []: the encoder's native size
    min_area: float = 64.0  # pixels of the original picture; smaller boxes are left out
    max_area: float = 1048576.0  # and larger ones, too
    nouns: Optional[str] = None  # RegionText: file of class names (docs/datasets.md); null: COCO's 80 things
    noun_embeddings: Optional[str] = None  # RegionText: .npy (nouns, width); null: made by the CLIP's text tower
    pseudo_labels: Optional[str] = None  # RegionText: COCO-format boxes whose category_id is a noun; null: made here
    sampled: int = 100  # RegionText: classes of one step, those that appear and random others


@dataclass
class CacheConfig:
    """Frozen features on disk."""

    mode: str = "auto"  # auto (when they fit max_gb and nothing augments) | on | off
    dir: Optional[str] = None  # null: <run folder>/cache
    max_gb: float = 20.0
    dtype: str = "float32"  # float32 | float16

    def __post_init__(self) -> None:
        self.mode = {"True": "on", "False": "off"}.get(self.mode, self.mode)  # YAML reads on and off as booleans


@dataclass
class RunConfig:
    """How the loop runs."""

    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | mps
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"  # auto | ddp | fsdp
    precision: str = "32-true"  # 32-true | bf16-mixed
    log_every: int = 10
    save_every: int = 200  # steps between checkpoints
    wandb: bool = False
    deterministic: bool = False


@dataclass
class ProbeConfig:
    """The quick measure: which labelled images, how many seeds."""

    train_split: str = "train"
    val_split: str = "val"
    train_every: int = 1  # every n-th image only
    val_every: int = 1
    linear_seeds: int = 3
    linear_epochs: int = 20
    kmeans_seeds: int = 3
    coupling_pairs: int = 30
    score_scale: float = 0.5  # labels are scored at this share of their height and width
    best_layer: bool = True  # measure every layer of the untuned encoder and show the best


@dataclass
class EvaluateConfig:
    """tools/evaluate.py and tools/visualize.py."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class RscvConfig:
    """tools/rscv_finetune.py."""

    objective: str = (
        "rscv"  # rscv | scd | clipself | sc-clipself | r-sc-clipself | regiontext | sc-regiontext | r-sc-regiontext
    )
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    refine: RefineStageConfig = field(default_factory=RefineStageConfig)
    distill: DistillStageConfig = field(default_factory=DistillStageConfig)
    rla: RlaConfig = field(default_factory=RlaConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class CauseDataConfig:
    """The set that CAUSE is trained and scored on."""

    dataset: str = (
        "cityscapes"  # cityscapes | cocostuff27 | cocostuff171 | coco81 | pascalvoc | scenes | camvid | plain
    )
    root: Optional[str] = None  # null is allowed only for `scenes`
    train_split: str = "train"
    val_split: str = "val"
    limit: Optional[int] = None  # first images of each split only
    train_every: int = 1  # every n-th image only
    val_every: int = 1
    stored_crops: bool = False  # train on the crops that the official scripts wrote (JPEG), not on crops cut on the fly


@dataclass
class CauseConfig:
    """The training of CAUSE: head, recipe, and every hyper-parameter of the recipe (null: the preset's)."""

    head: str = "tr"  # tr | mlp
    preset: str = "released-4gpu"  # released-4gpu (a quarter of the crops, rate 4e-3) | full-epoch (all, 1e-3)
    probe_grad: str = "detached"  # detached (unsupervised) | released (labels reach the head, as officially)
    seeds: int = 1  # runs with the seeds run.seed, run.seed + 1, ...
    codes: Optional[int] = None
    reduced: Optional[int] = None  # width of the features
    projection: Optional[int] = None  # width of the contrastive space
    dropout: Optional[float] = None
    batch_size: Optional[int] = None
    lr: Optional[float] = None
    share: Optional[float] = None  # of the crops, seen in an epoch
    codebook_epochs: Optional[int] = None
    codebook_decay: Optional[float] = None  # of the rate, after each epoch
    head_epochs: Optional[int] = None
    probe_epochs: Optional[int] = None
    probe_decay: Optional[float] = None  # of the rate, every probe_decay_every epochs
    probe_decay_every: Optional[int] = None
    weight_decay: Optional[float] = None
    head_clip: Optional[float] = None  # 0: no clipping
    probe_clip: Optional[float] = None  # 0: no clipping
    temperature: Optional[float] = None
    positive: Optional[float] = None  # cosine of codes above which tokens attract
    negative: Optional[float] = None  # and below which they repel
    bank: Optional[int] = None  # projections kept for a code
    ema: Optional[float] = None
    modularity_temperature: Optional[float] = None
    codebook_resolution: Optional[int] = None  # pixels of a view's side, brought to whole patches
    head_resolution: Optional[int] = None
    test_resolution: Optional[int] = None


@dataclass
class CauseScoreConfig:
    """How CAUSE is scored."""

    flip: bool = False  # also with features averaged over the image and its mirror image
    crf: str = "auto"  # auto (when pydensecrf2 is there) | on | off
    crf_workers: Optional[int] = None  # processes of the CRF; null: one a core; 0: none of its own
    full_image: bool = False  # our own protocol: whole images; officially only their centre square
    pictures: int = 4  # validation images in the report
    batch_size: int = 16  # views in a pass

    def __post_init__(self) -> None:
        self.crf = {"True": "on", "False": "off"}.get(self.crf, self.crf)  # YAML reads on and off as booleans


@dataclass
class EvalCauseConfig:
    """tools/eval_cause.py."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: CauseDataConfig = field(default_factory=CauseDataConfig)
    cause: CauseConfig = field(default_factory=CauseConfig)
    score: CauseScoreConfig = field(default_factory=CauseScoreConfig)
    cache: CacheConfig = field(default_factory=lambda: CacheConfig(dtype="float16"))
    run: RunConfig = field(default_factory=RunConfig)


def _all_keys(cls: Any, prefix: str = "") -> list[str]:
    keys = []
    for f in dataclasses.fields(cls):
        keys.append(prefix + f.name)
        if dataclasses.is_dataclass(f.type):
            keys += _all_keys(f.type, prefix + f.name + ".")
    return keys


def _explain(error: Exception, where: str, schema: Any) -> UserError:
    text = str(error).splitlines()[0]
    full = re.search(r"full_key: (\S+)", str(error))
    key = full.group(1) if full else ""
    if "not in" in text and key:
        return UserError(
            f"{where}: there is no option '{key}'.{suggestion(key, _all_keys(schema))} --print-config lists all."
        )
    return UserError(f"{where}: option '{key}': {text}" if key else f"{where}: {text}")


def _plain(value: Any) -> Any:
    """A value that stands for itself: `${` in a text is no reference to another option."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _with_file(merged: Any, path: str | Path, schema: Any) -> Any:
    """A configuration with a YAML file's values in it."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such config file.")
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise UserError(f"{path}: a config file holds sections with options (backbone: ...), this one does not.")
        return OmegaConf.merge(merged, loaded)
    except (OmegaConfBaseException, ValueError, OSError) as e:
        raise _explain(e, str(path), schema) from e
    except UserError:
        raise
    except Exception as e:  # the YAML reader's own errors share no base class that we may import
        raise UserError(f"{path}: not readable as YAML: {str(e).splitlines()[0]}") from e


def load_config(
    schema: type[T],
    path: Optional[str | Path] = None,
    overrides: Optional[list[str]] = None,
    *,
    base: Optional[dict[str, Any]] = None,
    named: Optional[dict[str, Any]] = None,
) -> T:
    """Defaults of `schema`, then `base` (sections of another config), then the YAML file, then `named`, then the
    `key=value` strings.

    `named` are values of options by their keys; unlike `key=value`, whose right side is YAML, they are taken as they
    are: a folder called 2024_11_22 or off keeps its name. Raises UserError for a missing file, an unknown key (with the
    nearest known one) or a wrong type.
    """
    merged = OmegaConf.merge(OmegaConf.structured(schema), base or {})
    if path is not None:
        merged = _with_file(merged, path, schema)
    for key, value in (named or {}).items():
        try:
            OmegaConf.update(merged, key, _plain(value))
        except (OmegaConfBaseException, ValueError) as e:
            raise _explain(e, f"'{key}={value}'", schema) from e
    for item in overrides or []:
        if "=" not in item or item.startswith("-"):
            raise UserError(f"'{item}': expected key=value (for example data.root=/data/coco).")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, ValueError) as e:
            raise _explain(e, f"'{item}'", schema) from e
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as e:  # `${...}` that names no option
        raise _explain(e, "configuration", schema) from e


def to_yaml(config: Any) -> str:
    """The whole config, defaults included, as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def require_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError unless `value` is one of `known`."""
    if value not in known:
        raise UserError(f"{key}={value}: must be one of {', '.join(known)}.{suggestion(value, known)}")
