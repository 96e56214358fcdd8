"""The quick measure of one run of a comparison: probe, coupling, and with a CLIP the accuracy of regions."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import BackboneConfig, EvaluateConfig, RscvConfig, load_config, require_choice
from rsc_seg.config_zeroshot import EvaluateRegionsConfig
from rsc_seg.data.segmentation import LabelledSet
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.sizes import fill_sizes
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.candidates import UNTUNED, encoder_candidate, open_checkpoint, shortened
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.evaluate_regions import class_vectors, region_options, resolved
from rsc_seg.pipelines.folder import command_line, environment, git_commit
from rsc_seg.pipelines.probe import labelled_pair, settings_of
from rsc_seg.probe.suite import probe_suite
from rsc_seg.zeroshot.panoptic_regions import KINDS, PanopticRegions, open_panoptic_regions
from rsc_seg.zeroshot.prototypes import prototype_vectors
from rsc_seg.zeroshot.regions import region_accuracy

_log = logging.getLogger(__name__)
REGIONS = ("auto", "on", "off")
CLASSES = ("auto", "text", "prototypes")
_CLASS_REMARKS = {
    "text": "classes of regions by their names",
    "prototypes": "classes of regions by prototypes, the untuned encoder's mean [CLS] of their training regions",
}
REGION_COLUMNS = {"boxes": "boxes_top1", "thing_masks": "thing_masks_top1", "stuff_masks": "stuff_masks_top1"}


@dataclass(frozen=True)
class MeasureOptions:
    """How the rows of a comparison are measured.

    overrides: `key=value` of the quick measure (data.*, probe.*), in place of what the runs trained with. regions: auto
    (with a CLIP, on a set with panoptic segments) | on | off. classes: auto (text; prototypes with random weights) |
    text (embeddings of the class names) | prototypes (the untuned encoder's [CLS] of training regions).
    """

    overrides: Sequence[str] = ()
    regions: str = "auto"
    classes: str = "auto"


def evaluation_of(config: RscvConfig, options: MeasureOptions) -> EvaluateConfig:
    """The quick measure for rows whose reference is trained by `config`: its data, all images of the probe's splits."""
    base = {
        "backbone": dataclasses.asdict(config.backbone),
        "data": dataclasses.asdict(dataclasses.replace(config.data, every=1, limit=None)),
        "probe": dataclasses.asdict(config.probe) | {"best_layer": False},
        "run": dataclasses.asdict(config.run),
    }
    found = load_config(EvaluateConfig, None, list(options.overrides), base=base)
    fill_sizes(found.backbone.name, found.data)
    return found


def _panoptic(config: EvaluateConfig, split: str, every: int) -> PanopticRegions:
    data = config.data
    return open_panoptic_regions(data.kind, data.root, split, data.limit, every)


def wants_regions(config: EvaluateConfig, options: MeasureOptions) -> bool:
    """Whether regions are classified; UserError when they shall be and there is no CLIP, or no panoptic segment."""
    require_choice("--regions", options.regions, REGIONS)
    require_choice("--classes", options.classes, CLASSES)
    if options.regions == "off":
        return False
    row, data = find_backbone(config.backbone.name), config.data
    if row.joint_dim is None:
        if options.regions == "on":
            raise UserError(f"--regions on: {row.name} has no text beside it; take a CLIP, or --regions auto.")
        return False
    if options.regions == "auto" and data.kind not in KINDS:
        return False
    try:
        _panoptic(config, config.probe.val_split, config.probe.val_every)
    except UserError as e:
        if options.regions == "auto":
            _log.warning("regions are not classified: %s", e)
            return False
        raise UserError(
            f"--regions on: {e} Name a set with panoptic segments by --measure data.kind=coco --measure data.root=DIR, "
            "or leave regions out."
        ) from e
    return True


@dataclass
class Measurer:
    """Measures encoders that share a start, on the same images with the same class vectors; made for one reference.

    Raises UserError when there is nothing to measure on.
    """

    config: EvaluateConfig
    options: MeasureOptions
    device: torch.device = field(init=False)
    encoder: DenseEncoder = field(init=False)
    info: WeightsInfo = field(init=False)
    sets: tuple[LabelledSet, LabelledSet] = field(init=False)
    _vectors: Optional[Float[Tensor, "T E"]] = field(init=False, default=None)
    _first: Optional[dict[str, Any]] = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.device = choose_device(self.config.run.device)
        try:
            self.sets = labelled_pair(self.config)
        except UserError as e:
            raise UserError(
                f"{e} A comparison is measured on a labelled set: name one by --measure data.kind=KIND --measure "
                "data.root=DIR."
            ) from e
        self.with_regions = wants_regions(self.config, self.options)
        self.encoder, self.info = build_backbone(self.config.backbone, self.device)
        if self.with_regions:
            self._vectors = self._class_vectors()  # what is wrong with them shall be said before hours of training

    @property
    def classes(self) -> str:
        """What stands for the classes: text or prototypes."""
        if self.options.classes != "auto":
            return self.options.classes
        return "prototypes" if self.config.backbone.weights == "none" else "text"

    def _regions_config(self) -> EvaluateRegionsConfig:
        probe = self.config.probe
        data = dataclasses.replace(self.config.data, fit="pad", split=probe.val_split, every=probe.val_every)
        return resolved(EvaluateRegionsConfig(self.config.backbone, data, run=self.config.run))

    def _class_vectors(self) -> Float[Tensor, "T E"]:
        probe = self.config.probe
        if self.classes == "text":
            source = _panoptic(self.config, probe.val_split, probe.val_every)
            return class_vectors(self._regions_config(), source.categories, self.device)[0]
        train = _panoptic(self.config, probe.train_split, probe.train_every)
        side = self.encoder.row.native_size
        return prototype_vectors(self.encoder, train, crop_size=[side, side])

    def _regions(self, encoder: DenseEncoder, name: str) -> dict[str, dict[str, Any]]:
        assert self._vectors is not None  # made where regions are wanted
        source = _panoptic(self.config, self.config.probe.val_split, self.config.probe.val_every)
        return region_accuracy(
            encoder, self._vectors, source, region_options(self._regions_config()), name=name
        ).summary()

    def _row(self, name: str, encoder: DenseEncoder, seed: int, note: str = "") -> dict[str, Any]:
        settings = dataclasses.replace(settings_of(self.config, encoder), seed=seed)
        result = probe_suite([encoder_candidate(name, encoder, self.device, note)], *self.sets, settings)
        row: dict[str, Any] = result["rows"][0]
        if self.with_regions:
            regions = self._regions(encoder, name)
            row["regions"] = regions
            row["headline"] |= {column: regions[kind]["top1"] for kind, column in REGION_COLUMNS.items()}
        return {**result, "rows": [row]}

    def untuned(self) -> dict[str, Any]:
        """The start, measured once, with the first seed."""
        if self._first is None:
            note = shortened(self.encoder, self.config.backbone)
            self._first = self._row(UNTUNED, self.encoder, self.config.run.seed, note)
        return self._first

    def measure(self, checkpoint: Path, name: str, backbone: BackboneConfig, seed: int) -> dict[str, Any]:
        """A tuned encoder beside the start, in the form of probe.json: rows, settings, and what made them."""
        encoder, _, named = open_checkpoint(checkpoint, name, backbone, self.device)
        first, own = self.untuned(), self._row(named, encoder, seed)
        remarks = ["the untuned row was measured once, with the first probe seed"]
        if self.with_regions:
            remarks.append(_CLASS_REMARKS[self.classes])
        return {
            **own,
            "rows": [*first["rows"], *own["rows"]],
            "layers": None,
            "remarks": remarks,
            "weights": dataclasses.asdict(self.info),
            "data": self.config.data.root or self.config.data.kind,
            "splits": [self.config.probe.train_split, self.config.probe.val_split],
            "command": command_line(),
            "commit": git_commit(),
            "environment": environment(),
            "config": dataclasses.asdict(self.config),
        }
