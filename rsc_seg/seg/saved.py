"""A whole Cat-Seg in one file: under the official names where it has such a form, else under our own; read strictly."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write, sha256_of
from rsc_seg.models.checkpoint_files import read_checkpoint, unwrap
from rsc_seg.seg.model import CatSeg
from rsc_seg.seg.official import LOAD_AS_TRAINED, PREDICTOR, load_official, official_state, state_differences
from rsc_seg.seg.projections import joined_state, split_state

log = logging.getLogger(__name__)

_GUIDE = ("guide.", "aggregator.guide.")
_RANDOM_LOGGERS = ("rsc_seg.models.weights", "rsc_seg.models.text_weights")


def whole_state(model: CatSeg) -> dict[str, Tensor]:
    """All tensors of a model under the names in which it is saved; values are the model's own, not copies.

    The official names, or for towers that the official code does not know and models with a guide our own, with packed
    projections.
    """
    try:
        return official_state(model)
    except UserError:
        return joined_state(model.state_dict())


def load_whole(model: CatSeg, path: Path) -> str:
    """Loads a file of either form and returns what it is, for records: name and the beginning of its SHA-256.

    Strict by name and shape, but that a file without a guide may go into a model with one: its part begins at zero, and
    the model as the one without. Raises UserError that names what is lacking, unknown or misshapen, values that are not
    finite, or a file that cannot be read; the model is then as it was.
    """
    content = read_checkpoint(path)
    held = unwrap(content, str(path))
    if any(name.startswith(PREDICTOR) for name in held):
        load_official(model, held, str(path))
    else:
        _load_own(model, held, path)
    if model.guide is not None and not _has_guide(held):
        log.info("%s: holds no guide; it begins without a say, and the model as the one without it", path)
    return f"{path.name} sha256 {sha256_of(path)[:12]}"


def _has_guide(held: Iterable[str]) -> bool:
    return any(name.startswith(_GUIDE) for name in held)


def _load_own(model: CatSeg, held: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    wanted = joined_state(own)
    if not _has_guide(held):
        held = {name: value for name, value in wanted.items() if name.startswith(_GUIDE)} | held
    found = state_differences(held, wanted)
    if found:
        raise UserError(
            f"{path}: not a checkpoint of Cat-Seg with {model.encoder.name}: {'; '.join(found)}; {LOAD_AS_TRAINED}."
        )
    broken = [name for name, value in held.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: values are not finite in {', '.join(broken[:3])}; use an earlier checkpoint.")
    model.load_state_dict(split_state(held, own), strict=True)
    log.info("%s: %d tensors loaded", path, len(held))


def repack_official(source: Path, target: Path) -> None:
    """A trained Cat-Seg as the `.pth` that the official code and detectron2 load.

    Raises UserError for a file that is no Cat-Seg, or one that has no official form.
    """
    held = unwrap(read_checkpoint(source), str(source))
    if not any(name.startswith(PREDICTOR) for name in held):
        what = "a Cat-Seg without official form" if "upsample1.weight" in held else "no Cat-Seg"
        raise UserError(f"{source}: {what}; give the catseg.safetensors of a run on one of CLIP's ViTs, without guide.")
    if target.suffix != ".pth":
        raise UserError(f"{target}: the official code loads .pth; give the file that suffix, such as model_final.pth.")
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: is read by this export and would be overwritten; choose another --output.")
    atomic_write(target, lambda path: torch.save({"model": held}, path))


def _not_about_random_weights(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("RANDOM ")


@contextmanager
def filled_later(quiet: bool) -> Iterator[None]:
    """Inside, random weights of towers are not warned of (with `quiet`): a whole Cat-Seg is about to replace them."""
    loggers = [logging.getLogger(name) for name in _RANDOM_LOGGERS] if quiet else []
    for logger in loggers:
        logger.addFilter(_not_about_random_weights)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_not_about_random_weights)
