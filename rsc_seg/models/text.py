"""The text tower of a CLIP: open_clip's text transformer alone, its context cut to the sentences at hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.models.registry import BackboneRow

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # as CLIP starts
_TINY = {"width": 32, "layers": 2, "heads": 4}  # for rows without an architecture of open_clip
# what this tower can be built from; another key would be another architecture
_SIZE_KEYS = frozenset({"context_length", "vocab_size", "width", "heads", "layers"})


@dataclass(frozen=True)
class TextShape:
    """The architecture of a text tower."""

    name: str  # of the backbone
    joint_dim: int
    width: int
    layers: int
    heads: int
    activation: str  # gelu | quick_gelu
    context_length: int = 77
    vocab_size: int = 49408


def text_shape(row: BackboneRow) -> TextShape:
    """The text tower that belongs to `row`: open_clip's for its `text_id`, a tiny one where that is empty.

    The activation of an EVA row's text tower is GELU. Raises UserError for a backbone without text.
    """
    if row.joint_dim is None:
        raise UserError(f"backbone '{row.name}' has no text tower; choose a CLIP such as clip_vitb16.")
    if not row.text_id:
        activation = "quick_gelu" if row.activation == "quick_gelu" else "gelu"
        return TextShape(row.name, row.joint_dim, activation=activation, **_TINY)
    config = open_clip.get_model_config(row.text_id)
    sizes = config["text_cfg"]
    if not sizes.keys() <= _SIZE_KEYS:
        raise ValueError(f"open_clip's {row.text_id} has a text tower of another kind: {sorted(sizes)}")
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    return TextShape(row.name, config["embed_dim"], activation=activation, **sizes)


class TextTower(nn.Module):
    """Sentences to the space shared with images.

    The module `text` is open_clip's TextTransformer, whose names the weights have; `logit_scale` is the logarithm of
    CLIP's learnt scale. Attributes `shape`, `joint_dim`, `context_length`.
    """

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.joint_dim = shape.joint_dim
        self.context_length = shape.context_length
        self.text = TextTransformer(
            context_length=shape.context_length,
            vocab_size=shape.vocab_size,
            width=shape.width,
            heads=shape.heads,
            layers=shape.layers,
            output_dim=shape.joint_dim,
            act_layer=QuickGELU if shape.activation == "quick_gelu" else nn.GELU,
        )
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    def tokenize(self, sentences: Sequence[str]) -> Int[Tensor, "T N"]:
        """Token ids of CLIP's byte-pair vocabulary on the CPU, N = context length, zeros behind the end of the text.

        Raises UserError for a sentence that does not fit: it would lose its end without a word.
        """
        if not sentences:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        tokens = open_clip.tokenize(list(sentences), context_length=self.context_length + 1)
        long = tokens[:, -1].nonzero().flatten().tolist()
        if long:
            raise UserError(
                f"'{sentences[long[0]][:60]}...': more than the {self.context_length - 2} tokens that the text tower "
                "reads; shorten the class name or the template."
            )
        return tokens[:, :-1]

    def encode(self, tokens: Int[Tensor, "T N"], trim: bool = True) -> Float[Tensor, "T D"]:
        """Embeddings in the joint space, not normalised, with gradients where parameters ask for them.

        The output is read at the end-of-text token, the highest id, and no token sees a later one: with `trim` all that
        lies behind the longest text of the batch is not computed, which leaves the result as it is. Matches
        open_clip's `encode_text`.
        """
        if not len(tokens):
            return self.text.token_embedding.weight.new_zeros(0, self.joint_dim)
        tokens = tokens.to(self.device)
        end = tokens.argmax(dim=1)
        length = int(end.max()) + 1 if trim else tokens.shape[1]
        x = self.text.token_embedding(tokens[:, :length]) + self.text.positional_embedding[:length]
        x = self.text.transformer(x, attn_mask=self.text.attn_mask[:length, :length])
        # (T, N, D) -> (T, D) before the norm, which treats each token alone
        x = self.text.ln_final(x[torch.arange(len(x), device=x.device), end])
        return x @ self.text.text_projection
