"""Stage 2: what the student learns from the frozen Refiner, or from what an ablation puts in its place."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.config import DistillStageConfig, require_choice
from rsc_seg.models.encoder import DenseEncoder, EarlyFeatures, trainable_parameters
from rsc_seg.models.passes import EncoderPass, attention_of, encoder_pass, patch_norms
from rsc_seg.models.refiner import Refiner
from rsc_seg.ops.boxes import roi_tokens, whole_image_boxes
from rsc_seg.training.batch import Batch
from rsc_seg.training.ema import DenseContrast, MaskedTokens
from rsc_seg.training.region_losses import (
    TOKEN_LOSSES,
    LossAndLeast,
    attention_loss,
    averaged_student,
    check_loss,
    token_loss,
)
from rsc_seg.training.task import Task

REGIONS = ("local", "global", "both")


class Region(NamedTuple):
    """Boxes (xyxy, pixels), the token grid of each, and the target's tokens where a cache holds them."""

    boxes: Float[Tensor, "B R 4"]
    grid: tuple[int, int]
    known: Float[Tensor, "BR L D"] | None


class DistillTask(Task):
    """Stage 2: the student learns correlations inside regions (SCD, Eq. 2-5; R-SCD with a Refiner as teacher).

    `teacher` and `refiner` are frozen; without a Refiner the teacher's own dense features are the target. The student's
    trainable parameters follow `config.trainable`. `config.loss` may put another loss in SCD's place: see
    docs/objectives.md. `seed` is for the draws of densecl and ibot, whose target is an average of the student.
    """

    def __init__(
        self,
        student: DenseEncoder,
        teacher: DenseEncoder,
        refiner: Refiner | None,
        config: DistillStageConfig,
        *,
        grid: tuple[int, int],
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_choice("distill.regions", config.regions, REGIONS)
        self.student, self.teacher, self.refiner = student, teacher, refiner
        self.config, self.grid, self.step = config, grid, 0
        trainable_parameters(student, config.trainable)
        check_loss(config, student, with_refiner=refiner is not None)
        self.averaged = averaged_student(config, student, seed)
        self.train()

    @property
    def uses_targets(self) -> bool:
        """Whether the loss is between tokens of regions, the student's and `target`'s, which a cache may hold."""
        return self.config.loss in TOKEN_LOSSES

    def trainable_modules(self) -> Iterable[nn.Module]:
        """The student, and the loss's own head where it has one."""
        return (self.student,) if self.averaged is None else (self.student, self.averaged)

    def train(self, mode: bool = True) -> "DistillTask":
        """Training mode for what trains; the averaged student stays in eval."""
        super().train(mode)
        if self.averaged is not None:
            self.averaged.average.eval()
            self.averaged.average_head.eval()
        return self

    def begin(self, step: int) -> None:
        """Notes the micro-step, which the draws of densecl and ibot depend on."""
        self.step = step

    def end(self) -> None:
        """Lets the averaged student follow, after the optimiser."""
        if self.averaged is not None:
            self.averaged.follow(self.student)

    def kept(self) -> list[str]:
        """The averaged student and what else of densecl and ibot changes without gradient."""
        return [] if self.averaged is None else [f"averaged.{name}" for name in self.averaged.kept()]

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

    def look(self, images: Float[Tensor, "B 3 H W"]) -> EncoderPass:
        """The one pass of the student that `losses` needs."""
        return encoder_pass(self.student, images, with_attention=self.config.loss == "attention")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`losses` of a pass of its own."""
        # iBOT's gradient takes the way over the masked pictures
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.loss != "ibot"):
            seen = self.look(batch.pictures)
        return self.losses(batch, seen)

    def losses(self, batch: Batch, seen: EncoderPass) -> dict[str, Tensor]:
        """loss, its `excess` over its least value where it is a cross-entropy, and the student's token norms.

        `seen` is the student's pass over the batch's pictures, by `look`. With regions=both the losses of both kinds of
        regions are added. Norms are those before the final norm.
        """
        if self.uses_targets:
            losses = self._token_losses(batch, seen)
        elif self.config.loss == "attention":
            losses = self._attention_losses(batch, seen)
        else:
            losses = self._averaged_losses(batch, seen)
        loss = torch.stack([value for value, _ in losses]).sum()
        least = [value for _, value in losses if value is not None]
        excess = {"excess": loss.detach() - torch.stack(least).sum()} if least else {}
        norms = patch_norms(self.student, seen.tokens)
        return {"loss": loss, **excess, "token_norm": norms.mean(), "token_norm_max": norms.max()}

    def _token_losses(self, batch: Batch, seen: EncoderPass) -> list[LossAndLeast]:
        found, source, images = [], self._source(batch), batch.pictures
        for boxes, grid, known in self.regions(batch):
            target = self.target(images, boxes, source, grid) if known is None else known
            pred = roi_tokens(seen.dense, boxes, patch_size=self.student.patch_size, grid=grid)
            found.append(token_loss(self.config, pred, target, images=len(images)))
        return found

    def _attention_losses(self, batch: Batch, seen: EncoderPass) -> list[LossAndLeast]:
        assert seen.attention is not None  # `look` asked for it
        with torch.no_grad():
            theirs = attention_of(self.teacher, batch.pictures)
        patch = self.student.patch_size
        found = [attention_loss(seen.attention, theirs, r.boxes, r.grid, patch) for r in self.regions(batch)]
        # every trained parameter has a share in the loss, as several processes need: the blocks behind, one of nothing
        return [*found, (0 * seen.dense.float().mean(), None)]

    def _averaged_losses(self, batch: Batch, seen: EncoderPass) -> list[LossAndLeast]:
        if isinstance(self.averaged, MaskedTokens):
            return [(self.averaged(self.student, batch.pictures, batch.valid, self.step), None)]
        assert isinstance(self.averaged, DenseContrast)  # the one loss that is left
        view, temperature = self.averaged.view(batch.pictures, self.step), self.config.temperature_student
        return [(self.averaged(seen, view, r.boxes, r.grid, temperature), None) for r in self.regions(batch)]

    def _look(self, images: Tensor) -> EarlyFeatures | Tensor:
        """f_A of the images for the Refiner; without one the teacher's dense features."""
        with torch.no_grad():
            return self.teacher.dense(images) if self.refiner is None else self.refiner.early(self.teacher, images)

    def _source(self, batch: Batch) -> EarlyFeatures | Tensor | None:
        """What all kinds of regions take their targets from, computed once; None when every target is known."""
        if all(region.known is not None for region in self.regions(batch)):
            return None
        return batch.early if self.refiner is not None and batch.early is not None else self._look(batch.pictures)
