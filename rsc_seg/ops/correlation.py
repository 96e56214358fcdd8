"""Spatial correlation distillation (SCD), Eq. 2-5."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def similarities(
    a: Float[Tensor, "R L D"], b: Float[Tensor, "R M D"], *, normalize: bool = True
) -> Float[Tensor, "R L M"]:
    """Cosines (or raw dot products) of all tokens of `a` with all of `b`, region by region, in float32."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        if normalize:
            a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        return a @ b.transpose(1, 2)


def correlation_logits(
    tokens: Float[Tensor, "R L D"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, "R L L"]:
    """Similarities of all tokens of a region with each other, divided by the temperature, in float32.

    Cosines when `normalize`, raw dot products otherwise (Eq. 3 to the letter; the paper's temperature fits cosines).
    """
    return similarities(tokens, tokens, normalize=normalize) / temperature


def scd_loss(
    student: Float[Tensor, "R L D"],
    teacher: Float[Tensor, "R L E"],
    *,
    temperature_student: float = 0.2,
    temperature_teacher: float = 0.2,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Cross-entropy from the teacher's correlation rows to the student's, mean over regions and rows (Eq. 4-5).

    Student and teacher may differ in width, not in L. The teacher gets no gradient. Its least value is the entropy of
    the teacher's rows, reached when the correlations are equal.
    """
    target = correlation_logits(teacher.detach(), temperature_teacher, normalize=normalize).softmax(dim=-1)
    log_rows = correlation_logits(student, temperature_student, normalize=normalize).log_softmax(dim=-1)
    return -(target * log_rows).sum(dim=-1).mean()
