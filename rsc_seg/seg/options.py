"""What a Cat-Seg model is made of and which of the official habits it keeps."""

from dataclasses import dataclass, replace

from rsc_seg.config import require_choice
from rsc_seg.errors import UserError

IGNORE_RULES = ("negative", "mask")
ALIGNMENTS = ("official", "exact")


@dataclass(frozen=True)
class CatSegOptions:
    """Sizes and rules of one model; the defaults are those of the released checkpoints (CVPR version).

    `grid`: tokens in height and width to which every image is brought. `pool`, `eval_pool`: side of the pooling before
    attention among classes, in training and in evaluation. `class_length`: that attention runs over this many classes;
    shorter vocabularies are filled up with learnt padding, of longer ones each image keeps its best (0: neither).
    `class_chunk`: classes times images that run through the spatial blocks and the decoder at once without gradients,
    or with `gradient_checkpointing`; it bounds memory and changes no result.

    Official habits: `doubled_identity` (the class attention's input is added twice), `ignore` (`negative`: pixels to be
    ignored count as negatives of every class; `mask`: they do not count), `alignment` (`official`: an image is padded
    to a multiple of 32 and the padding stretched into the result; `exact`: it is not padded).
    """

    prompts: str = "catseg"  # see rsc_seg.data.prompts
    grid: tuple[int, int] = (24, 24)
    hidden: int = 128
    heads: int = 4
    layers: int = 2
    window: int = 12
    pool: int = 2
    eval_pool: int = 1
    class_length: int = 256
    decoder: tuple[int, int] = (64, 32)
    taps: tuple[int, int] = (256, 128)  # channels of the two guidance maps
    decoder_guidance: tuple[int, int] = (32, 16)  # channels of them inside the decoder
    doubled_identity: bool = True
    ignore: str = "negative"
    alignment: str = "official"
    class_chunk: int = 32
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        require_choice("ignore", self.ignore, IGNORE_RULES)
        require_choice("alignment", self.alignment, ALIGNMENTS)
        counts = {
            "hidden": self.hidden,
            "heads": self.heads,
            "layers": self.layers,
            "window": self.window,
            "pool": self.pool,
            "eval_pool": self.eval_pool,
            "class_chunk": self.class_chunk,
            "grid": min(self.grid),
        }
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name}={value}: must be 1 or more.")
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden}: must be a multiple of heads={self.heads}.")
        if self.class_length < 0:
            raise UserError(f"class_length={self.class_length}: must be 0 (no limit) or more.")
        if max(self.pool, self.eval_pool) > min(self.grid):
            raise UserError(f"pool={self.pool}, eval_pool={self.eval_pool}: must not exceed the grid {self.grid}.")
        for name, widths, step in (("decoder", self.decoder, 16), ("decoder_guidance", self.decoder_guidance, 1)):
            if any(width < step or width % step for width in widths):
                raise UserError(f"{name}={list(widths)}: must be positive multiples of {step}.")
        for before, guide in zip((self.hidden, self.decoder[0]), self.decoder_guidance, strict=True):
            if guide >= before:
                raise UserError(f"decoder_guidance={list(self.decoder_guidance)}: must be narrower than its input.")

    def vanilla(self) -> "CatSegOptions":
        """These options with the rules of the first version: 80 templates kept apart, no padding, no limit."""
        return replace(self, prompts="catseg_v1", class_length=0)
