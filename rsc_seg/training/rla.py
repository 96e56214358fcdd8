"""Region-language alignment (Eq. 1), alone or with a distillation beside it (Eq. 6)."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rsc_seg.config import DistillStageConfig, RlaConfig, require_choice
from rsc_seg.data.rla import KINDS
from rsc_seg.data.sampler import keyed_rng
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, trainable_parameters
from rsc_seg.models.noun_embeddings import NounText
from rsc_seg.models.passes import encoder_pass, patch_norms
from rsc_seg.models.refiner import Refiner
from rsc_seg.ops.alignment import clipself_loss, federated_classes, regiontext_loss
from rsc_seg.ops.regions import pool_boxes
from rsc_seg.training.batch import Batch, Regions
from rsc_seg.training.distill import DistillTask
from rsc_seg.training.reduce import any_process, share_of_mean
from rsc_seg.training.task import Task

_DEEP = 12  # blocks, beyond which lambda is the paper's of ViT-L


def distill_weight(config: DistillStageConfig, depth: int) -> float:
    """lambda: `distill.weight`, or the paper's 0.2 for encoders of up to 12 blocks and 0.4 for deeper ones.

    UserError for a negative one.
    """
    if config.weight is None:
        return 0.2 if depth <= _DEEP else 0.4
    if not 0 <= config.weight < float("inf"):
        raise UserError(f"distill.weight={config.weight}: must be 0 or more.")
    return config.weight


class RlaTask(Task):
    """RLA + weight * the distillation's loss; one pass of the student serves both.

    kind clipself: box features meet the frozen teacher's [CLS] of the crops. regiontext: they meet the embeddings of
    nouns (`text`); no teacher. Means are over the valid boxes of all processes. Without `distill` the student's
    trainable parameters follow `trainable`, with it they are the distillation's. `seed`: of the federated classes.
    """

    nouns: Tensor | None

    def __init__(
        self,
        student: DenseEncoder,
        teacher: DenseEncoder | None,
        rla: RlaConfig,
        kind: str,
        *,
        text: NounText | None = None,
        distill: DistillTask | None = None,
        weight: float = 0.0,
        trainable: str = "blocks",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_choice("objective", kind, KINDS)
        _check(student, teacher, rla, kind, text)
        if distill is not None and distill.student is not student:
            raise ValueError("the distillation beside RLA must train the same student")
        self.student, self.teacher, self.distill = student, teacher, distill
        self.rla, self.kind, self.weight, self.seed, self.step = rla, kind, weight, seed, 0
        self.scale = 0.0 if text is None else text.scale
        self.register_buffer("nouns", None if text is None else text.embeddings, persistent=False)
        if distill is None:
            trainable_parameters(student, trainable)
        self.train()

    @property
    def refiner(self) -> Refiner | None:
        """The distillation's, if there is one."""
        return None if self.distill is None else self.distill.refiner

    def trainable_modules(self) -> Iterable[nn.Module]:
        """The student."""
        return (self.student,)

    def train(self, mode: bool = True) -> "RlaTask":
        """Training mode for what trains, the distillation's own parts among it."""
        super().train(mode)
        if self.distill is not None:
            self.distill.train(mode)
        return self

    def begin(self, step: int) -> None:
        """Notes the micro-step, which the random classes of RegionText depend on."""
        self.step = step

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss; `rla` and `scd` (the distillation's loss, whichever it is) un-weighted; what the distillation logs."""
        if batch.regions is None:
            raise ValueError("this batch has no `regions`, which region-language alignment needs")
        images, distill = batch.pictures, self.distill
        seen = encoder_pass(self.student, images) if distill is None else distill.look(images)
        align = self._clipself if self.kind == "clipself" else self._regiontext
        loss = align(seen.dense, batch.regions)
        if distill is None:
            norms = patch_norms(self.student, seen.tokens)
            return {"loss": loss, "rla": loss.detach(), "token_norm": norms.mean(), "token_norm_max": norms.max()}
        logs = distill.losses(batch, seen)
        second = logs.pop("loss")
        return {"loss": loss + self.weight * second, "rla": loss.detach(), "scd": second.detach(), **logs}

    def features(
        self, dense: Float[Tensor, "B E h w"], boxes: Tensor, use: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "K E"]:
        """Unit features of the boxes in use, image by image (CLIPSelf's rule: see ops.regions.pool_boxes)."""
        chosen = [own[mine] for own, mine in zip(boxes, use, strict=True)]
        return pool_boxes(dense, chosen, patch_size=self.student.patch_size)

    def _clipself(self, dense: Tensor, regions: Regions) -> Float[Tensor, ""]:
        assert self.teacher is not None  # checked when it was made
        if regions.crops is None:
            raise ValueError("these regions have no `crops`, which CLIPSelf's teacher looks at")
        pred = self.features(dense, regions.boxes, regions.valid)
        with torch.no_grad():
            target = self.teacher.cls(regions.crops[regions.valid]) if len(pred) else pred
        return clipself_loss(pred, target) * share_of_mean(len(pred), dense.device)

    def _regiontext(self, dense: Tensor, regions: Regions) -> Float[Tensor, ""]:
        assert self.nouns is not None  # checked when it was made
        if regions.nouns is None:
            raise ValueError("these regions have no `nouns`, which RegionText aligns them with")
        use = regions.valid & (regions.nouns >= 0)
        nouns, total = regions.nouns[use], len(self.nouns)
        if len(nouns) and int(nouns.max()) >= total:
            raise UserError(f"noun {int(nouns.max())} of a box is beyond the {total} nouns (rla.nouns, from 0).")
        seen = torch.zeros(total, dtype=torch.bool, device=nouns.device)
        seen[nouns] = True
        draws = torch.Generator().manual_seed(int(keyed_rng("classes", self.seed, self.step).integers(2**62)))
        classes = federated_classes(any_process(seen).nonzero()[:, 0], total, self.rla.sampled, draws)
        pred = self.features(dense, regions.boxes, use)
        loss = regiontext_loss(pred, nouns, self.nouns, classes, self.scale)
        return loss * share_of_mean(len(pred), dense.device)


def _check(
    student: DenseEncoder, teacher: DenseEncoder | None, rla: RlaConfig, kind: str, text: NounText | None
) -> None:
    if student.joint_dim is None:
        raise UserError(
            f"backbone.name={student.name}: region-language alignment needs an encoder that shares a space with text; "
            "choose a CLIP such as clip_vitb16, or objective=rscv."
        )
    if kind == "clipself":
        if teacher is None:
            raise ValueError("clipself needs a frozen teacher")
        return
    if rla.sampled < 1:
        raise UserError(f"rla.sampled={rla.sampled}: must be 1 or more.")
    if text is None:
        raise ValueError("regiontext needs the embeddings of its nouns")
    if text.embeddings.shape[1] != student.out_dim:
        raise UserError(
            f"embeddings of nouns of width {text.embeddings.shape[1]} (rla.noun_embeddings) for {student.name}, whose "
            f"joint space has {student.out_dim}; make them with its own text tower."
        )
