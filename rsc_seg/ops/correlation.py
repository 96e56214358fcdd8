"""Spatial correlation distillation (SCD), Eq. 2-5, and the correlation losses that Table 6 puts in its place."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def at_least_single(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision brought to float32; single and double precision stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


def similarities(
    a: Float[Tensor, "R L D"], b: Float[Tensor, "R M D"], *, normalize: bool = True
) -> Float[Tensor, "R L M"]:
    """Cosines (or raw dot products) of all tokens of `a` with all of `b`, region by region, at least in float32."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = at_least_single(a), at_least_single(b)
        if normalize:
            a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        return a @ b.transpose(1, 2)


def correlation_logits(
    tokens: Float[Tensor, "R L D"], temperature: float, *, normalize: bool = True
) -> Float[Tensor, "R L L"]:
    """Similarities of all tokens of a region with each other, divided by the temperature, at least in float32.

    Cosines when `normalize`, raw dot products otherwise (Eq. 3 to the letter; the paper's temperature fits cosines).
    """
    return similarities(tokens, tokens, normalize=normalize) / temperature


def row_cross_entropy(student: Float[Tensor, "*R L M"], teacher: Float[Tensor, "*R L M"]) -> Float[Tensor, ""]:
    """Cross-entropy from the teacher's softmaxed rows to the student's, mean over all rows; both are logits.

    The teacher gets no gradient.
    """
    return -(teacher.detach().softmax(dim=-1) * student.log_softmax(dim=-1)).sum(dim=-1).mean()


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
    return row_cross_entropy(
        correlation_logits(student, temperature_student, normalize=normalize),
        correlation_logits(teacher.detach(), temperature_teacher, normalize=normalize),
    )


def frobenius_loss(
    student: Float[Tensor, "R L D"], teacher: Float[Tensor, "R L E"], *, normalize: bool = True
) -> Float[Tensor, ""]:
    """Frobenius norm of the difference of the correlation matrices over L, mean over regions (Table 6's L_F).

    Divided by L the norm is the root mean square over the matrix's entries: it does not grow with the grid. No softmax
    and no temperature. The teacher gets no gradient; where the matrices are equal the student's gradient is zero.
    """
    theirs = similarities(teacher.detach(), teacher.detach(), normalize=normalize)
    difference = similarities(student, student, normalize=normalize) - theirs
    return torch.linalg.vector_norm(difference, dim=(1, 2)).mean() / student.shape[1]


def inter_image_loss(
    student: Float[Tensor, "B R L D"],
    teacher: Float[Tensor, "B R L E"],
    *,
    temperature_student: float = 0.2,
    temperature_teacher: float = 0.2,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """SCD's cross-entropy on correlations between images (Table 6's L_Inter): no token meets one of its own image.

    Region r of image b is correlated with region r of image b + 1, the last image's with the first's. The teacher gets
    no gradient. Raises ValueError for fewer than two images, which have no other image.
    """
    if len(student) < 2:
        raise ValueError("correlations between images need two images or more in a batch")

    def logits(z: Tensor, temperature: float) -> Tensor:
        return similarities(z.flatten(0, 1), z.roll(-1, dims=0).flatten(0, 1), normalize=normalize) / temperature

    return row_cross_entropy(logits(student, temperature_student), logits(teacher.detach(), temperature_teacher))


def attention_logits(
    queries: Float[Tensor, "R L D"], keys: Float[Tensor, "R L D"], heads: int
) -> Float[Tensor, "R N L L"]:
    """Scaled products of a region's queries and keys, one matrix for each of N heads, at least in float32."""
    with torch.autocast(queries.device.type, enabled=False):
        # (R, L, N*K) -> (R, N, L, K)
        q, k = (at_least_single(t).unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys))
        return (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
