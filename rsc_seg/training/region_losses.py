"""What `distill.loss` may be: SCD, and the losses that Table 6 puts in its place."""

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import DistillStageConfig, require_choice
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.passes import QueriesKeys, attending_block
from rsc_seg.ops.boxes import roi_tokens
from rsc_seg.ops.correlation import attention_logits, frobenius_loss, inter_image_loss, row_cross_entropy, scd_loss
from rsc_seg.training.ema import AveragedStudent, DenseContrast, MaskedTokens

TOKEN_LOSSES = ("scd", "frobenius", "inter")  # between tokens of regions, the student's and the target's
AVERAGED_LOSSES = {"densecl": DenseContrast, "ibot": MaskedTokens}
LOSSES = (*TOKEN_LOSSES, "attention", *AVERAGED_LOSSES)

LossAndLeast = tuple[Tensor, Tensor | None]  # a loss, and the least value that its target allows


def check_loss(config: DistillStageConfig, student: DenseEncoder, *, with_refiner: bool) -> None:
    """UserError for a loss that does not exist, or not with this target, student or decay."""
    require_choice("distill.loss", config.loss, LOSSES)
    if with_refiner and config.loss not in TOKEN_LOSSES:
        whose = "the frozen encoder's attention" if config.loss == "attention" else "an average of the student"
        raise UserError(
            f"distill.loss={config.loss}: its target is {whose}, a Refiner has no part in it; take "
            "distill.target=teacher, or an objective without r-."
        )
    if config.loss in AVERAGED_LOSSES and not 0 <= config.ema < 1:
        raise UserError(f"distill.ema={config.ema}: must be from 0 (the student itself) to below 1.")
    if config.loss == "attention":
        block = attending_block(student)
        if not any(p.requires_grad for p in student.trunk.blocks[block].parameters()):
            raise UserError(
                f"distill.loss=attention reads block {block + 1} of {student.depth}, which "
                f"distill.trainable={config.trainable} leaves frozen; train more blocks."
            )


def averaged_student(config: DistillStageConfig, student: DenseEncoder, seed: int) -> AveragedStudent | None:
    """The averaged student of a loss that has one."""
    made = AVERAGED_LOSSES.get(config.loss)
    return None if made is None else made(student, decay=config.ema, seed=seed)


def token_loss(
    config: DistillStageConfig, student: Float[Tensor, "BR L D"], target: Float[Tensor, "BR L E"], *, images: int
) -> LossAndLeast:
    """scd, frobenius or inter of the regions of `images` images; the least value of the cross-entropies.

    UserError for inter on a batch of one image.
    """
    if config.loss == "frobenius":
        return frobenius_loss(student, target, normalize=config.normalize), None
    if config.loss == "inter":
        if images < 2:
            raise UserError(
                "distill.loss=inter correlates regions of different images: distill.optim.batch_size must be 2 or more."
            )
        student, target = (z.unflatten(0, (images, -1)) for z in (student, target))
    made = inter_image_loss if config.loss == "inter" else scd_loss
    sharp, normalize = config.temperature_teacher, config.normalize
    loss = made(
        student,
        target,
        temperature_student=config.temperature_student,
        temperature_teacher=sharp,
        normalize=normalize,
    )
    with torch.no_grad():
        least = made(target, target, temperature_student=sharp, temperature_teacher=sharp, normalize=normalize)
    return loss, least


def attention_loss(
    student: QueriesKeys, teacher: QueriesKeys, boxes: Float[Tensor, "B R 4"], grid: tuple[int, int], patch_size: int
) -> LossAndLeast:
    """Cross-entropy from the teacher's attention to the student's, among a region's tokens, mean over heads and rows.

    Queries and keys are brought to the region by RoIAlign, as dense features are; [CLS] has no part.
    """

    def logits(made: QueriesKeys) -> Tensor:
        q, k = (roi_tokens(maps, boxes, patch_size=patch_size, grid=grid) for maps in (made.queries, made.keys))
        return attention_logits(q, k, made.heads)

    target = logits(teacher).detach()
    return row_cross_entropy(logits(student), target), row_cross_entropy(target, target)
