"""Cost maps of image and text, refined among places and among classes, decoded to logits."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rsc_seg.seg.classes import ClassBlock
from rsc_seg.seg.decoder import Up, decode, guidance_layer
from rsc_seg.seg.options import CatSegOptions
from rsc_seg.seg.spatial import SpatialBlocks
from rsc_seg.seg.volume import by_chunks

ABSENT = -100.0  # logit of a class that an image has not kept


@dataclass(frozen=True)
class ClassLogits:
    """Logits of K classes for each image: of all `total` in order, or of those numbered in `classes`."""

    values: Float[Tensor, "B K h w"]
    total: int
    classes: Int[Tensor, "B K"] | None = None

    def select(self, numbers: Int[Tensor, "N"]) -> Float[Tensor, "B N h w"]:
        """Logits of the classes with these numbers; `ABSENT` where an image has not kept one."""
        if self.classes is None:
            return self.values.index_select(1, numbers)
        batch = len(self.values)
        place = self.classes.new_full((batch, self.total), -1)
        place.scatter_(1, self.classes, torch.arange(self.classes.shape[1], device=place.device).expand(batch, -1))
        place = place[:, numbers]
        rows = torch.arange(batch, device=place.device)[:, None]
        return self.values[rows, place.clamp(min=0)].masked_fill((place < 0)[..., None, None], ABSENT)

    def dense(self) -> Float[Tensor, "B T h w"]:
        """Logits of all classes in order."""
        if self.classes is None:
            return self.values
        return self.select(torch.arange(self.total, device=self.values.device))

    def kept(self) -> Int[Tensor, "N"]:
        """Numbers of the classes that at least one image has kept, ascending."""
        if self.classes is None:
            return torch.arange(self.total, device=self.values.device)
        return self.classes.unique()

    def images(self, start: int, stop: int) -> "ClassLogits":
        """Those of some of the images."""
        classes = None if self.classes is None else self.classes[start:stop]
        return ClassLogits(self.values[start:stop], self.total, classes)


def cost_volume(dense: Float[Tensor, "B E h w"], text: Float[Tensor, "#B T P E"]) -> Float[Tensor, "B P T h w"]:
    """Cosines of every place with every sentence, float32, without temperature."""
    with torch.autocast(dense.device.type, enabled=False):
        places = F.normalize(dense.float().flatten(2), dim=1)  # (B, E, L)
        unit = F.normalize(text.float(), dim=-1).transpose(1, 2).flatten(1, 2)  # (B, P * T, E)
        cost = unit.expand(len(places), -1, -1) @ places
        return cost.unflatten(2, dense.shape[2:]).unflatten(1, (text.shape[2], text.shape[1]))


class AggregatorLayer(nn.Module):
    """Spatial blocks, then attention among classes; names of the official checkpoint."""

    def __init__(self, options: CatSegOptions) -> None:
        super().__init__()
        o = options
        self.swin_block = SpatialBlocks(o.hidden, o.hidden, o.heads, o.window)
        self.attention = ClassBlock(
            o.hidden, o.hidden, o.heads, length=o.class_length, doubled_identity=o.doubled_identity
        )


class Aggregator(nn.Module):
    """CAT-Seg's aggregator with its parameter names.

    `width` is that of the space shared with text, `prompts` the number of sentences a class. `guide_width`: channels of
    an optional further map of the image, whose share of the guidance starts at zero (an addition of our own).
    """

    def __init__(self, width: int, prompts: int, options: CatSegOptions, guide_width: int = 0) -> None:
        super().__init__()
        o = options
        self.options = o
        self.layers = nn.ModuleList(AggregatorLayer(o) for _ in range(o.layers))
        self.conv1 = nn.Conv2d(prompts, o.hidden, 7, padding=3)
        self.guidance_projection = guidance_layer(width, o.hidden)
        self.text_guidance_projection = nn.Sequential(nn.Linear(width, o.hidden), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            guidance_layer(*pair) for pair in zip(o.taps, o.decoder_guidance, strict=True)
        )
        self.decoder1 = Up(o.hidden, o.decoder[0], o.decoder_guidance[0])
        self.decoder2 = Up(o.decoder[0], o.decoder[1], o.decoder_guidance[1])
        self.head = nn.Conv2d(o.decoder[1], 1, 3, padding=1)
        if guide_width:
            self.guide = nn.Conv2d(guide_width, o.hidden, 3, padding=1)
            nn.init.zeros_(self.guide.weight)
            nn.init.zeros_(self.guide.bias)  # type: ignore[arg-type]

    def _embed(self, cost: Float[Tensor, "B T P h w"]) -> Float[Tensor, "B T h w C"]:
        maps = self.conv1(cost.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        return maps.permute(0, 2, 3, 1).unflatten(0, cost.shape[:2])

    def _appearance(self, dense: Tensor, guide: Tensor | None) -> Float[Tensor, "B C h w"]:
        if guide is None:
            return self.guidance_projection(dense)
        return F.relu(self.guidance_projection[0](dense) + self.guide(guide))

    def _cut(
        self, cost: Float[Tensor, "B P T h w"], text: Float[Tensor, "#B T P E"]
    ) -> tuple[Tensor, Tensor, Int[Tensor, "B K"] | None]:
        """Cost and text of the classes that each image keeps: those with the highest single cosine."""
        length = self.options.class_length
        if not length or text.shape[1] <= length:
            return cost, text.expand(len(cost), -1, -1, -1), None
        best = cost.detach().amax(dim=(1, 3, 4))
        classes = best.topk(length, dim=1, sorted=False).indices
        rows = torch.arange(len(cost), device=cost.device)[:, None]
        return (
            cost.transpose(1, 2)[rows, classes].transpose(1, 2),
            text.expand(len(cost), -1, -1, -1)[rows, classes],
            classes,
        )

    def forward(
        self,
        dense: Float[Tensor, "B E h w"],
        taps: tuple[Tensor, Tensor],
        text: Float[Tensor, "T P E"],
        *,
        pool: int,
        guide: Float[Tensor, "B G h w"] | None = None,
    ) -> ClassLogits:
        """Logits at four times the grid of `dense`.

        `taps`: maps of the image at twice and four times that grid. `text`: unit vectors by class and template. `guide`
        belongs to `guide_width`.
        """
        o, total = self.options, len(text)
        # without gradients, images count too: what runs at once stays bounded
        chunk, saving = max(1, o.class_chunk // len(dense)), o.gradient_checkpointing
        cost, words, classes = self._cut(cost_volume(dense, text[None]), text[None])
        mean = F.normalize(words.float().mean(dim=2), dim=-1)
        text_guidance = self.text_guidance_projection(mean)
        appearance = self._appearance(dense, guide)
        ups = (self.decoder1, self.decoder2)
        shares = []
        for up, project, tap in zip(ups, self.decoder_guidance_projection, taps, strict=True):
            shares.append(up.conv.of_guidance(project(tap)))
        x = by_chunks(self._embed, cost.transpose(1, 2), chunk=chunk, checkpointed=saving)
        for layer in self.layers:
            assert isinstance(layer, AggregatorLayer)
            x = layer.swin_block(x, appearance, chunk=chunk, checkpointed=saving)
            x = layer.attention(x, text_guidance, pool=pool, chunk=chunk, checkpointed=saving)
        step = partial(decode, ups, self.head, shares=(shares[0], shares[1]))
        return ClassLogits(by_chunks(step, x, chunk=chunk, checkpointed=saving), total, classes)
