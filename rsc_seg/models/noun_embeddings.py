"""Embeddings of nouns for RegionText: by a CLIP's text tower, or read from an .npy file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.text import TextTower
from rsc_seg.models.text_embeddings import Sentences, class_embeddings


@dataclass(frozen=True)
class NounText:
    """Unit embeddings of the nouns (N,E), float32, frozen, and the factor of cosines that CLIP learnt."""

    embeddings: Float[Tensor, "N E"]
    scale: float

    def __len__(self) -> int:
        return len(self.embeddings)


def read_noun_embeddings(path: str | Path, *, nouns: int, width: int) -> Float[Tensor, "N E"]:
    """Unit vectors of an .npy file (nouns, width), float32, in the file's order.

    Raises UserError (rla.noun_embeddings) for a file that is missing, no array of numbers, of another shape, or with a
    row that is not finite or has no length.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{place}: no such file (rla.noun_embeddings).")
    try:
        array = np.load(place, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several arrays")
        found = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    except (OSError, ValueError, TypeError, EOFError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{place}: no .npy file of numbers ({reason}) (rla.noun_embeddings).") from e
    if found.ndim != 2 or found.shape[0] != nouns:
        shape = " x ".join(map(str, found.shape))
        raise UserError(
            f"{place}: holds {shape} numbers, but there are {nouns} nouns (rla.nouns): one row for each is "
            "needed, in their order (rla.noun_embeddings)."
        )
    if found.shape[1] != width:
        raise UserError(
            f"{place}: rows of width {found.shape[1]}, but this backbone's space of text has {width}; "
            "give embeddings made by its own text tower (rla.noun_embeddings)."
        )
    lengths = found.norm(dim=1)
    bad = (~torch.isfinite(lengths) | (lengths == 0)).nonzero()[:, 0].tolist()
    if bad:
        raise UserError(f"{place}: row {bad[0]} (from 0) is not finite or has no length (rla.noun_embeddings).")
    return F.normalize(found, dim=1)


def noun_text(
    tower: TextTower, sentences: Sentences, *, file: str | Path | None = None, cached: bool = True
) -> NounText:
    """The nouns as RegionText needs them, on the tower's device.

    `sentences` are the nouns' (by noun, template and synonym): their embeddings are the mean over templates' unit
    vectors, normalised again; with `file` they give the number of nouns only. The factor is the tower's own.
    """
    if file is None:
        found = F.normalize(class_embeddings(tower, sentences, cached=cached), dim=1)
    else:
        found = read_noun_embeddings(file, nouns=len(sentences), width=tower.joint_dim).to(tower.device)
    return NounText(found, float(tower.logit_scale.detach().exp()))
