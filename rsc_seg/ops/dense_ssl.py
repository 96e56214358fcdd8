"""The self-supervised losses of Table 6: dense contrast (L_CL) and prediction of masked tokens (L_MIM)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rsc_seg.ops.correlation import at_least_single, similarities

BRIGHTNESS, CONTRAST = 0.2, 0.2  # of the mirrored view, in units of normalised values


def mirrored_view(images: Float[Tensor, "B 3 H W"], draws: Float[Tensor, "B 2"]) -> Float[Tensor, "B 3 H W"]:
    """Another view of normalised pictures: left and right exchanged, contrast and brightness shifted.

    `draws` lie in -1..1: the shares of the greatest change of contrast and of brightness, one for all channels.
    """
    contrast, brightness = (draws.to(images)[:, i, None, None, None] for i in range(2))
    return images.flip(-1) * (1 + CONTRAST * contrast) + BRIGHTNESS * brightness


def mirrored_boxes(boxes: Float[Tensor, "B R 4"], width: int) -> Float[Tensor, "B R 4"]:
    """Boxes xyxy on a picture of `width` pixels, where they lie in its mirror image."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def nearest_tokens(a: Float[Tensor, "R L D"], b: Float[Tensor, "R M D"]) -> Int[Tensor, "R L"]:
    """For every token of `a` the place of the token of `b` in the same region with the greatest cosine."""
    with torch.no_grad():
        return similarities(a, b).argmax(dim=-1)


def dense_contrast_loss(
    queries: Float[Tensor, "R L E"],
    keys: Float[Tensor, "R L E"],
    pool: Float[Tensor, "P E"],
    *,
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """InfoNCE on cosines: query j against key j, its match, and all vectors of the pool; mean over tokens.

    No gradient reaches keys and pool. Computed at least in float32. DenseCL's dense loss.
    """
    with torch.autocast(queries.device.type, enabled=False):
        ours = F.normalize(at_least_single(queries), dim=-1)
        match, others = (F.normalize(t.detach().to(ours.dtype), dim=-1) for t in (keys, pool))
        positive = (ours * match).sum(dim=-1, keepdim=True)
        logits = torch.cat([positive, ours @ others.T], dim=-1) / temperature
        return -logits.log_softmax(dim=-1)[..., 0].mean()


def masked_pictures(
    images: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B h w"], patch: Float[Tensor, "3 p p"]
) -> Float[Tensor, "B 3 H W"]:
    """Pictures with the pixels of `patch` in place of every masked patch."""
    filled = patch.to(images.dtype).repeat(1, *mask.shape[1:])
    covered = mask.repeat_interleave(patch.shape[-2], dim=1).repeat_interleave(patch.shape[-1], dim=2)
    return torch.where(covered[:, None], filled, images)


def masked_token_loss(
    student: Float[Tensor, "B L P"],
    teacher: Float[Tensor, "B L P"],
    mask: Bool[Tensor, "B L"],
    centre: Float[Tensor, " P"],
    *,
    temperature_student: float = 0.1,
    temperature_teacher: float = 0.04,
) -> Float[Tensor, ""]:
    """Cross-entropy between distributions over P prototypes at the masked tokens; mean over a picture's, then pictures.

    Student and teacher are scores; the teacher's are centred first and get no gradient. Pictures without a masked token
    are left out. Computed at least in float32. iBOT's patch loss.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours = at_least_single(student)
        target = ((teacher.detach().to(ours.dtype) - centre) / temperature_teacher).softmax(dim=-1)
        losses = -(target * (ours / temperature_student).log_softmax(dim=-1)).sum(dim=-1)
        count = mask.sum(dim=1)
        per_picture = (losses * mask).sum(dim=1) / count.clamp(min=1)
        return per_picture.sum() / (count > 0).sum().clamp(min=1)
