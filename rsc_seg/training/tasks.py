"""What a step computes, one module a stage; whatever wraps for distribution wraps the task, and only it is called."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.config import AlignConfig, DistillStageConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, EarlyFeatures, trainable_parameters
from rsc_seg.models.refiner import Refiner
from rsc_seg.ops.boxes import roi_map, roi_tokens, whole_image_boxes
from rsc_seg.ops.contrast import ALIGN_LOSSES, alignment_loss
from rsc_seg.ops.correlation import scd_loss
from rsc_seg.training.batch import Batch

POSITIONS = ("own", "shared")

REGIONS = ("local", "global", "both")


class Task(nn.Module):
    """`task(batch) -> {"loss": scalar, other scalars}`; frozen parts stay in eval mode."""

    def trainable_modules(self) -> Iterable[nn.Module]:
        """Modules whose mode follows `train()`; all others stay in eval."""
        return ()

    def train(self, mode: bool = True) -> "Task":
        """Training mode for the modules that train, eval for the rest."""
        super().train(False)
        for module in self.trainable_modules():
            module.train(mode)
        self.training = mode
        return self


def crop_features(
    encoder: DenseEncoder,
    images_size: tuple[int, int],
    boxes: Float[Tensor, "B R 4"],
    crops: Float[Tensor, "B R 3 h w"],
    positions: str,
) -> Float[Tensor, "BR L D"]:
    """f_I of every crop in one call, without gradient: the alignment's target Z'.

    positions: own (each crop in its own frame) or shared (position embeddings of its place in the image).
    """
    require_choice("crops.positions", positions, POSITIONS)
    with torch.no_grad():
        flat = crops.flatten(0, 1)
        place = None
        if positions == "shared":
            grid = encoder.grid(flat.shape[-2], flat.shape[-1])
            whole = encoder.position_map(encoder.grid(*images_size))
            place = roi_map(whole.expand(len(boxes), -1, -1, -1), boxes, patch_size=encoder.patch_size, grid=grid)
        return encoder.dense(flat, place).flatten(2).transpose(1, 2)


class RefinerTask(Task):
    """Stage 1 (Eq. 9): the Refiner's tokens of a box meet the frozen encoder's tokens of the crop cut there.

    Trains the Refiner only. direction g2l: image -> Refiner, crop -> encoder. l2g: crop -> Refiner, image -> encoder.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        refiner: Refiner,
        align: AlignConfig,
        *,
        grid: tuple[int, int],
        positions: str = "own",
    ) -> None:
        super().__init__()
        require_choice("refine.align.loss", align.loss, ALIGN_LOSSES)
        require_choice("refine.align.direction", align.direction, ("g2l", "l2g"))
        require_choice("crops.positions", positions, POSITIONS)
        self.encoder, self.refiner = encoder, refiner
        self.align, self.grid, self.positions = align, grid, positions
        self.train()

    def trainable_modules(self) -> Iterable[nn.Module]:
        """The Refiner."""
        return (self.refiner,)

    def _global_to_local(self, batch: Batch) -> tuple[Tensor, Tensor]:
        early = batch.early if batch.early is not None else self.refiner.early(self.encoder, batch.pictures)
        size = (early.patches.shape[-2] * self.encoder.patch_size, early.patches.shape[-1] * self.encoder.patch_size)
        target = batch.crop_tokens
        if target is None:
            target = crop_features(self.encoder, size, batch.boxes, batch.cuts, self.positions)
        return self.refiner(early, batch.boxes, self.grid), target

    def _local_to_global(self, batch: Batch) -> tuple[Tensor, Tensor]:
        crops = batch.cuts.flatten(0, 1)
        early = self.refiner.early(self.encoder, crops)
        whole = whole_image_boxes(len(crops), crops.shape[-2], crops.shape[-1], like=crops)
        with torch.no_grad():
            target = roi_tokens(
                self.encoder.dense(batch.pictures), batch.boxes, patch_size=self.encoder.patch_size, grid=self.grid
            )
        return self.refiner(early, whole, self.grid), target

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss, and the cosine of corresponding tokens."""
        pred, target = self._global_to_local(batch) if self.align.direction == "g2l" else self._local_to_global(batch)
        loss = alignment_loss(
            self.align.loss,
            pred,
            target,
            temperature=self.align.temperature,
            target_temperature=self.align.target_temperature,
            normalize=self.align.normalize,
        )
        with torch.no_grad():
            cosine = torch.cosine_similarity(pred.float(), target.float(), dim=-1).mean()
            norm = pred.float().norm(dim=-1).mean()
        return {"loss": loss, "cosine": cosine, "token_norm": norm}


class Region(NamedTuple):
    """Boxes (xyxy, pixels), the token grid of each, and the target's tokens where a cache holds them."""

    boxes: Float[Tensor, "B R 4"]
    grid: tuple[int, int]
    known: Float[Tensor, "BR L D"] | None


class DistillTask(Task):
    """Stage 2: the student learns correlations inside regions (SCD, Eq. 2-5; R-SCD with a Refiner as teacher).

    `teacher` and `refiner` are frozen; without a Refiner the teacher's own dense features are the target. The student's
    trainable parameters follow `config.trainable`.
    """

    def __init__(
        self,
        student: DenseEncoder,
        teacher: DenseEncoder,
        refiner: Refiner | None,
        config: DistillStageConfig,
        *,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        require_choice("distill.regions", config.regions, REGIONS)
        self.student, self.teacher, self.refiner = student, teacher, refiner
        self.config, self.grid = config, grid
        trainable_parameters(student, config.trainable)
        self.train()

    def trainable_modules(self) -> Iterable[nn.Module]:
        """The student."""
        return (self.student,)

    def target(
        self, images: Tensor, boxes: Tensor, source: EarlyFeatures | Tensor | None, grid: tuple[int, int]
    ) -> Float[Tensor, "BR L D"]:
        """The regions' tokens that the student shall imitate; no gradient. `source`: see `_source`; None: made here."""
        with torch.no_grad():
            if source is None:
                source = self._look(images)
            if self.refiner is not None:
                return self.refiner(source, boxes, grid)
            assert isinstance(source, Tensor)  # without a Refiner it is the teacher's map
            return roi_tokens(source, boxes, patch_size=self.teacher.patch_size, grid=grid)

    def regions(self, batch: Batch) -> list[Region]:
        """The batch's boxes at the crops' grid (local), the whole image at its own grid (global), or both in turn.

        The whole image is its un-padded part.
        """
        found = []
        if self.config.regions in ("local", "both"):
            found.append(Region(batch.boxes, self.grid, batch.region_tokens))
        if self.config.regions in ("global", "both"):
            height, width = batch.pictures.shape[-2:]
            if batch.valid is not None:
                box = batch.valid[:, None]
            else:
                box = whole_image_boxes(len(batch.pictures), height, width, like=batch.pictures)
            found.append(Region(box, self.student.grid(height, width), batch.whole_tokens))
        return found

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """What a cache keeps of a batch: `region_tokens` (B,R,L,D) and `whole_tokens` (B,N,D), as `regions` says."""
        source, images = self._source(batch), batch.pictures
        found = {}
        for boxes, grid, _ in self.regions(batch):
            z = self.target(images, boxes, source, grid).unflatten(0, (len(images), -1))
            found["region_tokens" if boxes is batch.boxes else "whole_tokens"] = z if boxes is batch.boxes else z[:, 0]
        return found

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss (less the target's entropy it is `excess`), and the student's token norms before the final norm.

        With regions=both the losses of both kinds of regions are added.
        """
        images = batch.pictures
        tokens = self.student.tokens(images)
        dense = self.student.finish(tokens, self.student.grid(images.shape[-2], images.shape[-1]))
        options: dict[str, Any] = {
            "temperature_student": self.config.temperature_student,
            "temperature_teacher": self.config.temperature_teacher,
            "normalize": self.config.normalize,
        }
        same = {**options, "temperature_student": self.config.temperature_teacher}
        loss, entropy = dense.new_zeros(()), dense.new_zeros(())
        source = self._source(batch)
        for boxes, grid, known in self.regions(batch):
            target = self.target(images, boxes, source, grid) if known is None else known
            pred = roi_tokens(dense, boxes, patch_size=self.student.patch_size, grid=grid)
            loss = loss + scd_loss(pred, target, **options)
            with torch.no_grad():
                entropy = entropy + scd_loss(target, target, **same)
        with torch.no_grad():
            norms = tokens[:, self.student.num_prefix_tokens :].float().norm(dim=-1)
        return {
            "loss": loss,
            "excess": loss.detach() - entropy,
            "token_norm": norms.mean(),
            "token_norm_max": norms.max(),
        }

    def _look(self, images: Tensor) -> EarlyFeatures | Tensor:
        """f_A of the images for the Refiner; without one the teacher's dense features."""
        with torch.no_grad():
            return self.teacher.dense(images) if self.refiner is None else self.refiner.early(self.teacher, images)

    def _source(self, batch: Batch) -> EarlyFeatures | Tensor | None:
        """What all kinds of regions take their targets from, computed once; None when every target is known."""
        if all(region.known is not None for region in self.regions(batch)):
            return None
        return batch.early if self.refiner is not None and batch.early is not None else self._look(batch.pictures)


class EndToEndTask(Task):
    """E2E: both stages' losses in one step; the Refiner's output is detached in SCD: each loss trains its own part."""

    def __init__(self, refine: RefinerTask, distill: DistillTask) -> None:
        super().__init__()
        if distill.refiner is not refine.refiner:
            raise UserError("distill.end_to_end needs distill.target=refiner.")
        self.refine, self.distill = refine, distill
        self.train()

    def trainable_modules(self) -> Iterable[nn.Module]:
        """Refiner and student."""
        return (self.refine.refiner, self.distill.student)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of both losses, and each stage's logs under its own prefix."""
        first, second = self.refine(batch), self.distill(batch)
        logs = {f"refine_{k}": v.detach() for k, v in first.items()} | {
            f"distill_{k}": v.detach() for k, v in second.items()
        }
        return {"loss": first["loss"] + second["loss"], **logs}
