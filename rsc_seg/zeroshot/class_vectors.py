"""Whether class embeddings fit an encoder and the classes of a set."""

from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder


def check_vectors(encoder: DenseEncoder, embeddings: Tensor, classes: int, *, what: str, title: str) -> None:
    """UserError unless `encoder` lies in a space shared with text and `embeddings` are (classes, joint width).

    `what` is classified, and `title` has the classes, as the error shall say.
    """
    if encoder.joint_dim is None:
        raise UserError(
            f"{encoder.name} has no text beside it, and {what} are classified by the names of classes; "
            "choose a CLIP such as clip_vitb16."
        )
    wanted = (classes, encoder.joint_dim)
    if tuple(embeddings.shape) != wanted:
        raise UserError(
            f"class embeddings of shape {tuple(embeddings.shape)}: {title} has {classes} classes and {encoder.name} a "
            f"joint space of {wanted[1]}, so {wanted} is needed."
        )
