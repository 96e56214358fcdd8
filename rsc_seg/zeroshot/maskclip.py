"""MaskCLIP: every token takes the class whose name is nearest, without any training on masks."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from rsc_seg.config import require_choice
from rsc_seg.data.transforms import normalize
from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import ConfusionMatrix, Scores
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.training.cache import cache_key, encoder_digest
from rsc_seg.zeroshot.class_sets import ClassSet
from rsc_seg.zeroshot.class_vectors import check_vectors
from rsc_seg.zeroshot.records import StateFile, bounded
from rsc_seg.zeroshot.stream import Progress, prefetched
from rsc_seg.zeroshot.windows import Layout, best_classes, check_windows, view_layout, view_maps

log = logging.getLogger(__name__)
AVERAGES = ("logits", "probabilities")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class MaskclipOptions:
    """What is measured; sizes in pixels. See docs/maskclip.md for where the defaults come from."""

    short_side: int = 512
    window: Optional[int] = None  # null: one view of the whole picture
    stride: int = 224
    average: str = "logits"  # where windows overlap: cosines, or a softmax of `scale` times them at every token
    scale: float = 100.0
    precision: str = "32-true"  # of the encoder; cosines are float32
    class_chunk: int = 32
    window_batch: int = 8
    workers: int = 0  # threads that read pictures
    save_every: int = 100  # pictures

    def check(self, patch: int) -> None:
        """Raises UserError for what cannot be used with an encoder of this patch size."""
        check_windows(self.short_side, self.window, self.stride, patch)
        require_choice("maskclip.average", self.average, AVERAGES)
        require_choice("run.precision", self.precision, PRECISIONS)
        for key in ("class_chunk", "window_batch", "save_every"):
            if getattr(self, key) < 1:
                raise UserError(f"maskclip.{key}={getattr(self, key)}: must be 1 or more.")
        if not self.scale > 0:
            raise UserError(f"maskclip.scale={self.scale:g}: must be above 0.")

    def what_counts(self) -> dict[str, Any]:
        """The options that numbers depend on."""
        idle = {"class_chunk", "window_batch", "workers", "save_every"}
        idle |= {"stride"} if self.window is None else set()
        idle |= {"scale"} if self.average == "logits" else set()
        return {key: value for key, value in asdict(self).items() if key not in idle}


@dataclass
class MaskclipCounts:
    """Pixels by class and answer of the pictures so far."""

    confusion: ConfusionMatrix
    pictures: int = 0

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold; most cells of a large matrix are zero and left out."""
        flat = self.confusion.matrix.flatten()
        cells = flat.nonzero()[:, 0]
        return {
            "pictures": self.pictures,
            "classes": self.confusion.num_classes,
            "ignore": self.confusion.ignore_index,
            "cells": cells.tolist(),
            "pixels": flat[cells].tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "MaskclipCounts":
        """The counts of `to_json`."""
        confusion = ConfusionMatrix(int(value["classes"]), int(value["ignore"]))
        pixels = torch.tensor(value["pixels"], dtype=torch.int64)
        confusion.matrix.view(-1)[torch.tensor(value["cells"], dtype=torch.int64)] = pixels
        return cls(confusion, int(value["pictures"]))

    @property
    def pixels(self) -> list[int]:
        """Labelled pixels of each class."""
        return self.confusion.matrix.sum(1).tolist()

    @property
    def recall(self) -> list[float]:
        """Share of each class's pixels that are right, NaN for a class without pixels."""
        matrix = self.confusion.matrix.double()
        return (matrix.diagonal() / matrix.sum(1)).tolist()

    def scores(self) -> Scores:
        """mIoU over both denominators, mAcc, pAcc, fwIoU and the IoU of each class, as fractions."""
        return self.confusion.scores()


def resized(image: Image.Image, layout: Layout) -> Float[Tensor, "3 H W"]:
    """An RGB picture at the size of `layout`, values 0..1; bicubic with antialiasing."""
    small = image.resize((layout.size[1], layout.size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small, np.float32) / 255).permute(2, 0, 1).contiguous()


@torch.inference_mode()
def token_scores(
    encoder: DenseEncoder,
    embeddings: Float[Tensor, "T E"],
    image: Float[Tensor, "3 H W"],
    layout: Layout,
    options: MaskclipOptions,
) -> Float[Tensor, "V T h w"]:
    """Cosine of every token of every view with every class, or its probability (`options.average`), in float32.

    `image` as from `resized`; `embeddings` are unit vectors on the encoder's device. Raises UserError for features that
    are not finite.
    """
    device = next(encoder.parameters()).device
    x = normalize(image, encoder.mean, encoder.std).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
        maps = view_maps(encoder.dense, x, layout, options.window_batch)
    if not bool(torch.isfinite(maps).all()):
        raise UserError(f"{encoder.name}: features are not finite.")
    cosines = torch.einsum("vehw,te->vthw", F.normalize(maps.float(), dim=1), embeddings)
    return cosines if options.average == "logits" else (options.scale * cosines).softmax(dim=1)


def segment(
    encoder: DenseEncoder, embeddings: Float[Tensor, "T E"], image: Image.Image, options: MaskclipOptions
) -> Int64[Tensor, "H W"]:
    """The class of every pixel of a picture, at its own size, on the encoder's device; `embeddings` of any length."""
    device = next(encoder.parameters()).device
    unit = F.normalize(embeddings.detach().float(), dim=-1).to(device)
    layout = _layout(image, encoder, options)
    scores = token_scores(encoder, unit, resized(image, layout), layout, options)
    return best_classes(scores, layout, (image.height, image.width), options.class_chunk)


def _layout(image: Image.Image, encoder: DenseEncoder, options: MaskclipOptions) -> Layout:
    size = (image.height, image.width)
    return view_layout(
        size,
        short_side=options.short_side,
        window=options.window,
        stride=options.stride,
        patch=encoder.patch_size,
    )


def _check(encoder: DenseEncoder, embeddings: Tensor, source: ClassSet) -> None:
    check_vectors(encoder, embeddings, len(source.names), what="tokens", title=source.title)
    if not len(source):
        raise UserError(f"{source.title}: holds no picture.")


def _record(
    state: Path, encoder: DenseEncoder, embeddings: Tensor, source: ClassSet, options: MaskclipOptions
) -> StateFile[MaskclipCounts]:
    key = cache_key(
        encoder=encoder_digest(encoder),
        embeddings=embeddings.tolist(),
        source=source.fingerprint(),
        options=options.what_counts(),
        device=embeddings.device.type,
    )
    parse = bounded(MaskclipCounts.from_json, lambda counts: counts.pictures, len(source))
    return StateFile(state, key, parse=parse, dump=MaskclipCounts.to_json)


def maskclip_counts(
    encoder: DenseEncoder,
    embeddings: Float[Tensor, "T E"],
    source: ClassSet,
    options: MaskclipOptions,
    *,
    state: Optional[Path] = None,
    name: str = "encoder",
) -> MaskclipCounts:
    """Segments every picture by class names and counts its labelled pixels; the encoder is used as it is.

    `embeddings` are brought to unit length, in the order of `source.names`. Memory does not grow with the number of
    pictures. With `state`, a folder, counts are recorded there every `save_every` pictures under a hash of encoder,
    embeddings, options and all bytes of the set, and a later call goes on from them with equal numbers. Raises
    UserError for an encoder without text, embeddings of another shape, unreadable files, and a set without labelled
    pixels. Source: MaskCLIP (Zhou et al., 2022), as the paper uses it in Fig. 6.
    """
    options.check(encoder.patch_size)
    _check(encoder, embeddings, source)
    embeddings = F.normalize(embeddings.detach().float(), dim=-1).to(next(encoder.parameters()).device)
    counts, record = MaskclipCounts(ConfusionMatrix(source.classes, source.ignore)), None
    if state is not None:
        record = _record(state, encoder, embeddings, source, options)
        counts = record.read() or counts
        if counts.pictures:
            what = "all counted before" if counts.pictures == len(source) else "goes on from there"
            log.info("%s: %d of %d pictures are in %s, %s", name, counts.pictures, len(source), record.path, what)
    progress, saved = Progress(name, len(source), counts.pictures), counts.pictures
    for layout, x, labels in prefetched(
        partial(_read, source, encoder, options), range(saved, len(source)), options.workers
    ):
        scores = token_scores(encoder, embeddings, x, layout, options)
        truth = torch.from_numpy(labels)
        answer = best_classes(scores, layout, (truth.shape[0], truth.shape[1]), options.class_chunk).cpu()
        if source.merged_from is not None:
            answer = answer.clamp(max=source.merged_from)
        counts.confusion.update(truth, answer)
        counts.pictures += 1
        progress.add(1)
        if record is not None and (counts.pictures - saved >= options.save_every or counts.pictures == len(source)):
            record.write(counts)
            saved = counts.pictures
    if not int(counts.confusion.matrix.sum()):
        raise UserError(f"{source.title}: none of its {len(source)} label maps holds a labelled pixel.")
    return counts


def _read(
    source: ClassSet, encoder: DenseEncoder, options: MaskclipOptions, i: int
) -> tuple[Layout, Tensor, Int64[np.ndarray, "H W"]]:
    image, labels = source.load(i)
    layout = _layout(image, encoder, options)
    return layout, resized(image, layout), labels.astype(np.int64)
