"""What a step computes, one module a stage; whatever wraps for distribution wraps the task, and only it is called."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.config import AlignConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.ops.boxes import roi_map, roi_tokens, whole_image_boxes
from rsc_seg.ops.contrast import ALIGN_LOSSES, alignment_loss
from rsc_seg.training.batch import Batch
from rsc_seg.training.distill import REGIONS, DistillTask
from rsc_seg.training.rla import RlaTask
from rsc_seg.training.task import Task

__all__ = ["POSITIONS", "REGIONS", "DistillTask", "EndToEndTask", "RefinerTask", "RlaTask", "Task", "crop_features"]

POSITIONS = ("own", "shared")


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


class EndToEndTask(Task):
    """E2E: both stages' losses in one step; the Refiner's output is detached in SCD: each loss trains its own part.

    The second may hold region-language alignment as well.
    """

    def __init__(self, refine: RefinerTask, distill: DistillTask | RlaTask) -> None:
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
