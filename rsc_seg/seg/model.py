"""CatSeg: an image tower, a text tower and the aggregator between them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rsc_seg.data.prompts import class_sentences, open_prompts
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder, to_map
from rsc_seg.models.text import TextTower
from rsc_seg.models.text_embeddings import embed_sentences, prompt_embeddings
from rsc_seg.seg.aggregator import Aggregator, ClassLogits
from rsc_seg.seg.loss import segmentation_loss
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.seg.projections import split_projections

PAD_MULTIPLE = 32  # of the official alignment
Classes = Sequence[str] | Tensor  # names, or their embeddings by `embed_classes`


def guidance_blocks(depth: int) -> tuple[int, int]:
    """The blocks whose outputs guide the decoder, counted from 1: at one and two thirds of the depth."""
    if depth < 3:
        raise UserError(f"an image tower of {depth} blocks: Cat-Seg takes guidance from two of at least 3 blocks.")
    return depth // 3, 2 * depth // 3


def check_names(names: Sequence[str]) -> None:
    """UserError for an empty vocabulary, an empty name, or a name that stands there twice."""
    if isinstance(names, str) or not len(names):
        raise UserError(f"class names: {names!r}; give a list of at least one name.")
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not name.strip():
            raise UserError(f"class names: number {i} of {len(names)} is empty; name every class.")
        if name in seen:
            raise UserError(f"class names: '{name}' stands at {seen[name]} and at {i}; remove one of them.")
        seen[name] = i


def _weighted_sum(weight: Tensor) -> Float[Tensor, ""]:
    """A sum in which every place counts differently, so that an exchange of values shows too; no copy of the weight."""
    rows = weight.float().reshape(len(weight) if weight.ndim else 1, -1)
    across, down = (torch.arange(1.0, n + 1, device=weight.device).cos() for n in (rows.shape[1], rows.shape[0]))
    return down @ (rows @ across)


class CatSeg(nn.Module):
    """Images and class names to logits of every class at every place; free of detectron2.

    `encoder` is the image tower, of any patch, width and depth, in the joint space of `text`; its `last_block` is
    `catseg` for the CVPR version, `value` for the first. `guide` is an optional frozen encoder without text (DINOv2)
    whose map joins the appearance guidance, at first with no say. Packed attention projections of both towers are split
    in place (`split_projections`). All parameters keep the state in which the towers come; see `apply_policy`.

    Images are lists of (3, H, W), RGB from 0 to 255, uint8 or float, of any sizes. The grid, not the image, fixes the
    size that the tower sees: aspect ratios are not kept. Matches cvlab-kaist/CAT-Seg at 6d3a188.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        text: TextTower,
        options: CatSegOptions | None = None,
        *,
        guide: DenseEncoder | None = None,
    ) -> None:
        super().__init__()
        if encoder.joint_dim != text.joint_dim:
            raise UserError(
                f"image tower '{encoder.name}' has a joint space of {encoder.joint_dim}, text tower "
                f"'{text.shape.name}' of {text.joint_dim}: take both from one CLIP."
            )
        self.options = options or CatSegOptions()
        self.prompts = open_prompts(self.options.prompts)
        self.taps = guidance_blocks(encoder.depth)
        split_projections(encoder)
        split_projections(text)
        self.encoder, self.text = encoder, text
        self.guide = None if guide is None else guide.requires_grad_(False)
        width, (first, second) = encoder.embed_dim, self.options.taps
        self.upsample1 = nn.ConvTranspose2d(width, first, 2, 2)
        self.upsample2 = nn.ConvTranspose2d(width, second, 4, 4)
        self.aggregator = Aggregator(
            encoder.out_dim, len(self.prompts.templates), self.options, 0 if guide is None else guide.out_dim
        )
        self._embedded: dict[tuple[str, ...], tuple[object, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.upsample1.weight.device

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what the image tower sees."""
        h, w = self.options.grid
        return h * self.encoder.patch_size, w * self.encoder.patch_size

    def train(self, mode: bool = True) -> "CatSeg":
        """Training mode; the guide stays in evaluation."""
        super().train(mode)
        if self.guide is not None:
            self.guide.eval()
        return self

    def _text_state(self) -> tuple[object, ...]:
        """Changes with the weights of the text tower, also where a writer leaves autograd's version as it was."""
        held = list(self.text.parameters())
        sums = torch.stack([_weighted_sum(p.detach()) for p in held]).tolist()
        return tuple((p.data_ptr(), p._version, total) for p, total in zip(held, sums, strict=True))

    def embed_classes(self, names: Sequence[str]) -> Float[Tensor, "T P E"]:
        """Unit vectors by class and template.

        With gradients where the text tower trains; otherwise float32 and kept in memory for these names until a weight
        of the text tower changes. Raises UserError for empty names and names that stand there twice.
        """
        check_names(names)
        sentences = class_sentences(names, self.prompts)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.text.parameters()):
            return embed_sentences(self.text, sentences)
        key, state = tuple(names), self._text_state()
        held = self._embedded.get(key)
        if held is None or held[0] != state:
            # never a tensor of inference mode: training may use it later
            with torch.inference_mode(False):
                held = (state, prompt_embeddings(self.text, sentences, cached=False))
            self._embedded = {**{k: v for k, v in self._embedded.items() if v[0] == state}, key: held}
        return held[1]

    def forget_classes(self) -> None:
        """Drops the embeddings that `embed_classes` keeps."""
        self._embedded = {}

    def normalise(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Values from 0 to 255 as the image tower takes them."""
        mean, std = (images.new_tensor(v).view(3, 1, 1) * 255 for v in (self.encoder.mean, self.encoder.std))
        return (images - mean) / std

    def resize(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """To `image_size`, bilinear without antialiasing, as the checkpoints were trained."""
        return F.interpolate(x, size=self.image_size, mode="bilinear", align_corners=False)

    def prepare(self, images: Sequence[Float[Tensor, "3 H W"]]) -> Float[Tensor, "B 3 h w"]:
        """Normalised, padded as `alignment` says, and resized, each image on its own. UserError for other shapes."""
        out = []
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 1:
                raise UserError(
                    f"image {i} is of shape {tuple(image.shape)}; give (3, height, width), RGB from 0 to 255."
                )
            x = self.normalise(image.to(self.device, torch.float32)[None])
            if self.options.alignment == "official":
                h, w = x.shape[2:]
                x = F.pad(x, (0, -w % PAD_MULTIPLE, 0, -h % PAD_MULTIPLE))
            out.append(self.resize(x))
        if not out:
            raise UserError("no images: give at least one.")
        return torch.cat(out)

    def features(
        self, x: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B E h w"], tuple[Float[Tensor, "B D h w"], Float[Tensor, "B D h w"]]]:
        """Dense features in the joint space and the outputs of the two guiding blocks, in one pass."""
        encoder = self.encoder
        grid, start, kept = encoder.grid(x.shape[-2], x.shape[-1]), 0, []
        tokens = encoder.embed(x)
        for block in self.taps:
            tokens, start = encoder.run(tokens, grid, start, block), block
            kept.append(to_map(tokens[:, encoder.num_prefix_tokens :], grid))
        return encoder.finish(encoder.run(tokens, grid, start), grid), (kept[0], kept[1])

    def _guide_map(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B G h w"] | None:
        """The guide's map on the grid of the image tower; the guide sees as many patches, of its own size."""
        if self.guide is None:
            return None
        guide, grid = self.guide, self.options.grid
        ours, theirs = (
            (x.new_tensor(e.mean).view(3, 1, 1), x.new_tensor(e.std).view(3, 1, 1)) for e in (self.encoder, guide)
        )
        size = (grid[0] * guide.patch_size, grid[1] * guide.patch_size)
        with torch.no_grad():
            x = (x * ours[1] + ours[0] - theirs[0]) / theirs[1]
            return guide.dense(F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True))

    def logits(
        self, x: Float[Tensor, "B 3 H W"], text: Float[Tensor, "T P E"], *, pool: int | None = None
    ) -> ClassLogits:
        """Logits at four times the grid for prepared images and embedded classes; `pool`: see `CatSegOptions`."""
        dense, (first, second) = self.features(x)
        taps = (self.upsample1(first), self.upsample2(second))
        pool = pool or (self.options.pool if self.training else self.options.eval_pool)
        return self.aggregator(dense, taps, text.to(self.device), pool=pool, guide=self._guide_map(x))

    def forward(
        self,
        images: Sequence[Float[Tensor, "3 H W"]],
        classes: Classes,
        targets: Sequence[Int[Tensor, "H W"]] | None = None,
    ) -> dict[str, Tensor]:
        """`{"logits": (B, T, h, w)}`, or with `targets` `{"loss": scalar}`.

        `classes`: names, or what `embed_classes` gave for them. `targets`: label maps of one size, 0..T-1 and 255 for
        pixels to be ignored. Raises UserError for images, names or labels that cannot be used.
        """
        text = classes if isinstance(classes, Tensor) else self.embed_classes(classes)
        if targets is not None and (len(targets) != len(images) or len({t.shape for t in targets}) != 1):
            sizes = sorted({tuple(t.shape) for t in targets})
            raise UserError(
                f"{len(images)} images, {len(targets)} label maps of sizes {sizes}; give one each, of one size."
            )
        found = self.logits(self.prepare(images), text)
        if targets is None:
            return {"logits": found.dense()}
        options = self.options
        loss = segmentation_loss(
            found,
            torch.stack(list(targets)).to(self.device),
            ignore=options.ignore,
            chunk=options.class_chunk,
            checkpointed=options.gradient_checkpointing,
        )
        return {"loss": loss}
