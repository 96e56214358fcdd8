"""An embedding for each class: of a CLIP's text tower, or read from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.errors import UserError
from rsc_seg.files import sha256_of
from rsc_seg.models.registry import BackboneRow, find_backbone
from rsc_seg.models.text_embeddings import class_embeddings
from rsc_seg.models.text_weights import build_text_tower


@dataclass(frozen=True)
class TextOptions:
    """How names become vectors; `section` is where the options stand in a configuration, for messages."""

    section: str
    prompts: str
    text_weights: Optional[str] = None
    embeddings: Optional[str] = None


def require_text(name: str, what: str) -> BackboneRow:
    """The row of the backbone `name`; raises UserError when no text belongs to it. `what` is classified by names."""
    row = find_backbone(name)
    if row.joint_dim is None:
        raise UserError(
            f"backbone '{row.name}' has no text beside it, and {what} are classified by the names of classes; choose "
            "a CLIP such as clip_vitb16."
        )
    return row


def _read_embeddings(path: Path, classes: int, width: int, key: str) -> Float[Tensor, "T E"]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{path}: not readable as an .npy file of class embeddings ({e}).") from e
    if not isinstance(values, np.ndarray) or values.shape != (classes, width) or values.dtype.kind != "f":
        have = (
            f"{values.dtype} of shape {values.shape}"
            if isinstance(values, np.ndarray)
            else "an archive of several arrays"
        )
        raise UserError(
            f"{path}: holds {have}; this set has {classes} classes and the encoder a joint space of {width}, so "
            f"numbers of shape ({classes}, {width}) are needed ({key})."
        )
    found = torch.from_numpy(values.astype(np.float32))
    if not bool(torch.isfinite(found).all() and found.any(dim=1).all()):
        raise UserError(f"{path}: holds a row of zeros or numbers that are not finite; use another file.")
    return found


def text_vectors(
    backbone: BackboneConfig, names: Sequence[str], options: TextOptions, device: torch.device
) -> tuple[Float[Tensor, "T E"], dict[str, str]]:
    """An embedding for each name, and where it comes from: a file, or the text tower of the backbone's CLIP."""
    row = find_backbone(backbone.name)
    if options.embeddings is not None:
        path = Path(options.embeddings).expanduser()
        found = _read_embeddings(path, len(names), row.joint_dim or 0, f"{options.section}.embeddings")
        return found, {"embeddings": str(path), "sha256": sha256_of(path)}
    prompts = open_prompts(options.prompts)
    weights = options.text_weights or backbone.weights
    try:
        tower = build_text_tower(row.name, weights, device=device)
    except UserError as e:
        hint = (
            ""
            if options.text_weights
            else f" Text weights can be named apart from the image's: {options.section}.text_weights."
        )
        raise UserError(f"{e}{hint}") from e
    found = class_embeddings(tower, class_sentences(names, prompts), cached=weights != "none")
    return found, {"weights": weights, "prompts": f"{prompts.name}, {len(prompts.templates)} templates"}
