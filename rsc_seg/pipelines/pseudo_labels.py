"""RegionText's labels, made by the CLIP that is trained where `rla.pseudo_labels` names no file."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

from lightning_fabric import Fabric

from rsc_seg.cache_dir import cache_dir
from rsc_seg.config import RscvConfig
from rsc_seg.data.nouns import PseudoLabels, open_nouns
from rsc_seg.data.pseudo_labels import LabelOptions, write_pseudo_labels
from rsc_seg.data.rla import box_source, label_boxes
from rsc_seg.data.source import ImageSource
from rsc_seg.models.digest import module_digest
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.registry import find_backbone
from rsc_seg.pipelines.objectives import nouns_of

_log = logging.getLogger(__name__)


def _key(config: RscvConfig, source: ImageSource, encoder: DenseEncoder, text: NounText) -> str:
    """A hash of all that the labels depend on; images are taken by their place and names."""
    rla = dataclasses.asdict(config.rla) | {"sampled": 0, "noun_embeddings": None}
    data = dataclasses.asdict(config.data) | {"workers": 0, "hflip": False, "image_size": [], "fit": ""}
    parts = [rla, data, dataclasses.asdict(config.crops), config.run.seed, open_nouns(config.rla).names]
    parts += [module_digest(encoder), [source.name(i) for i in range(len(source))]]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(text.embeddings.cpu().numpy().tobytes())
    return digest.hexdigest()


def made_labels(config: RscvConfig, source: ImageSource, encoder: DenseEncoder, fabric: Fabric) -> Path:
    """A file of boxes from `rla.boxes`, each with the noun that the untuned CLIP finds nearest to what it shows.

    Made once for the same images, weights and options, in the cache folder; one process makes it, the others wait. The
    best `rla.per_image` of an image are kept. Raises UserError for nouns or boxes that cannot be had.
    """
    text = nouns_of(config, fabric.device)
    key = _key(config, source, encoder, text)
    path = cache_dir() / "pseudo_labels" / f"{key[:16]}.json"
    if fabric.local_rank == 0 and not path.is_file():
        side = find_backbone(config.backbone.name).native_size
        height, width = config.rla.crop_size or [side, side]
        grid = box_source(config.rla, config.data) == "grid"  # whose cells are never enlarged
        _log.info("labelling boxes of %d images with %d nouns into %s", len(source), len(text), path)
        write_pseudo_labels(
            path,
            source,
            label_boxes(config.rla, config.data, config.crops, source, config.run.seed),
            encoder=encoder,
            embeddings=text.embeddings,
            nouns=open_nouns(config.rla),
            options=LabelOptions((height, width), 1.0 if grid else config.rla.enlarge, per_image=config.rla.per_image),
            key=key,
        )
    fabric.barrier()
    return path


def open_labels(config: RscvConfig, source: ImageSource, encoder: DenseEncoder, fabric: Fabric) -> PseudoLabels:
    """The labels of `rla.pseudo_labels`, or those made here; UserError for what cannot be had or does not fit."""
    path = config.rla.pseudo_labels
    return PseudoLabels(path or made_labels(config, source, encoder, fabric), open_nouns(config.rla))
