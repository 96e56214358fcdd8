"""Files of class-agnostic boxes, and of boxes labelled with nouns, from images alone."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from PIL import Image
from torch import Tensor

from rsc_seg.config import EvaluateConfig, require_choice
from rsc_seg.data.box_writer import Found, Written, write_boxes
from rsc_seg.data.images import open_images
from rsc_seg.data.nouns import Nouns, coco_things, read_nouns
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.data.proposals import MAX_AREA, MIN_AREA, open_proposals
from rsc_seg.data.pseudo_labels import LabelOptions, label_image
from rsc_seg.data.source import ImageSource
from rsc_seg.data.transforms import fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.detector import build_detector, rpn_boxes
from rsc_seg.models.digest import module_digest
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText, noun_text
from rsc_seg.models.registry import find_backbone
from rsc_seg.models.text_weights import build_text_tower
from rsc_seg.ops.token_boxes import token_boxes
from rsc_seg.pipelines.device import choose_device
from rsc_seg.pipelines.folder import command_line, git_commit

METHODS = ("features", "rpn", "proposals")


@dataclass(frozen=True)
class ProposalOptions:
    """How boxes are made.

    method: features (regions of the encoder's tokens), rpn (a detector's), or proposals (those of data.proposals, to be
    labelled). per_image: at most so many, by NMS at `overlap` (IoU). nouns: `coco`, or a file of names: boxes are
    labelled by the encoder, which must be a CLIP; labels below `threshold` (cosine) are left out.
    """

    method: str = "features"
    per_image: int = 100
    overlap: float = 0.7
    detector: str = "fasterrcnn_resnet50_fpn"
    detector_weights: str = "official"
    nouns: Optional[str] = None
    text_weights: Optional[str] = None
    threshold: float = -1.0


def _plain_row(box: list[float], score: float) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    bbox = [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)]
    return {"bbox": bbox, "category_id": 0, "score": round(score, 6), "area": round(bbox[2] * bbox[3], 2), "iscrowd": 0}


def _rows(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Found:
    """Annotations of boxes xyxy, clipped to the image, within CLIPSelf's bounds of area."""
    inside = boxes.double().clamp(min=0).minimum(torch.tensor([*size, *size], dtype=torch.float64))
    area = (inside[:, 2:] - inside[:, :2]).prod(dim=1)
    kept = ((area >= MIN_AREA) & (area <= MAX_AREA)).nonzero()[:, 0].tolist()
    return [_plain_row(inside[i].tolist(), float(scores[i])) for i in kept]


class _Maker:
    """Boxes of one image after another, and what they depend on."""

    def __init__(
        self, config: EvaluateConfig, options: ProposalOptions, source: ImageSource, device: torch.device
    ) -> None:
        self.config, self.options, self.source, self.device = config, options, source, device
        self.encoder: Optional[DenseEncoder] = None
        self.facts: dict[str, Any] = {"method": options.method, "commit": git_commit()}
        if options.method == "features" or options.nouns is not None:
            self.encoder, info = build_backbone(config.backbone, device)
            self.facts |= {"backbone": config.backbone.name, "weights": info.source}
        self._boxes = {"features": self._from_features, "rpn": self._from_rpn, "proposals": self._from_file}
        self.detector = self.file = None
        if options.method == "rpn":
            model = build_detector(
                options.detector, options.detector_weights, count=options.per_image, overlap=options.overlap
            )
            self.detector = model.to(device)
            self.facts |= {"detector": options.detector, "weights": options.detector_weights}
        if options.method == "proposals":
            if config.data.proposals is None:
                raise UserError("--method proposals: data.proposals is not set; give the file whose boxes to label.")
            if options.nouns is None:
                raise UserError("--method proposals: these are boxes already; give --nouns FILE to label them.")
            self.file = open_proposals(config.data.proposals)
        self.nouns: Optional[Nouns] = None if options.nouns is None else _nouns(options.nouns)
        self.text = None if self.nouns is None else _text(config, options, self.nouns, device)

    def depends(self) -> str:
        """A hash of all that the boxes depend on, but the images' pixels: those are taken by their names."""
        digest = hashlib.sha256()
        parts: list[Any] = [dataclasses.asdict(self.options), dataclasses.asdict(self.config.data)]
        if self.encoder is not None:
            parts.append([module_digest(self.encoder), self.encoder.position_rule, self.encoder.last_block])
        if self.detector is not None:
            parts.append(module_digest(self.detector))
        if self.nouns is not None:
            parts.append(self.nouns.names)
        if self.file is not None:
            parts.append(hashlib.sha256(self.file.path.read_bytes()).hexdigest())
        parts.append([self.source.name(i) for i in range(len(self.source))])
        digest.update(json.dumps(parts, sort_keys=True).encode())
        return digest.hexdigest()

    def __call__(self, image: Image.Image, i: int) -> Found:
        found = self._boxes[self.options.method](image, self.source.name(i))
        if self.text is None or self.encoder is None or self.nouns is None:
            return found
        side = find_backbone(self.config.backbone.name).native_size
        boxes = torch.tensor([row["bbox"] for row in found], dtype=torch.float64).reshape(-1, 4)
        show = LabelOptions((side, side), threshold=self.options.threshold)
        return label_image(self.encoder, self.text.embeddings, image, boxes, show)

    @torch.no_grad()
    def _from_features(self, image: Image.Image, name: str) -> Found:
        encoder, data = self.encoder, self.config.data
        assert encoder is not None  # built for this method
        frame, geometry = fit_image(image, data.image_size, data.fit, patch=encoder.patch_size, name=name)
        maps = encoder.dense(normalize(frame, encoder.mean, encoder.std)[None].to(self.device))[0]
        # only the tokens that hold pixels of the picture
        width, height = (-(-int(side) // encoder.patch_size) for side in geometry.valid[2:])
        found = token_boxes(maps[:, :height, :width], overlap=self.options.overlap, count=self.options.per_image)
        edges = found.boxes * encoder.patch_size
        inside = edges.minimum(torch.tensor(geometry.valid[2:] * 2))
        return _rows(geometry.to_original(inside), found.scores, image.size)

    def _from_rpn(self, image: Image.Image, name: str) -> Found:
        assert self.detector is not None  # built for this method
        frame, _ = fit_image(image, (image.height, image.width), "squash")
        boxes, scores = rpn_boxes(self.detector, frame.to(self.device))
        return _rows(boxes.cpu(), scores.cpu(), image.size)

    def _from_file(self, image: Image.Image, name: str) -> Found:
        assert self.file is not None  # opened for this method
        self.file.check_size(name, image.size)
        boxes = torch.from_numpy(self.file.boxes(name))[: self.options.per_image]
        return _rows(boxes, torch.ones(len(boxes)), image.size)


def _nouns(given: str) -> Nouns:
    return coco_things() if given == "coco" else read_nouns(given)


def _text(config: EvaluateConfig, options: ProposalOptions, nouns: Nouns, device: torch.device) -> NounText:
    weights = options.text_weights or config.backbone.weights
    tower = build_text_tower(config.backbone.name, weights, device=device)
    return noun_text(tower, class_sentences(list(nouns.names), open_prompts("clipself")))


def _check(options: ProposalOptions) -> None:
    require_choice("--method", options.method, METHODS)
    if options.per_image < 1:
        raise UserError(f"--per-image {options.per_image}: must be 1 or more.")
    if not 0 < options.overlap <= 1:
        raise UserError(f"--overlap {options.overlap}: must be above 0, at most 1.")


def make_proposals(config: EvaluateConfig, path: Path, options: ProposalOptions) -> Written:
    """Writes boxes of all images of `config.data` into `path`, in COCO's format, best first for each image.

    A run that was broken off goes on where it was, see `write_boxes`. Raises UserError for options or weights that do
    not fit, and when no box was found.
    """
    _check(options)
    data = config.data
    source = open_images(data.kind, data.root, data.split, data.limit, data.every)
    make = _Maker(config, options, source, choose_device(config.run.device))
    if make.file is not None:
        make.file.coverage([source.name(i) for i in range(len(source))])
    names = ["object"] if make.nouns is None else list(make.nouns.names)
    facts = {**make.facts, "command": command_line()}
    return write_boxes(path, source, make, key=make.depends(), names=names, info=facts)
