"""Attention among the classes at one place: linear in their number, with the learnt padding counted, not computed."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.seg.volume import GuidedProjections, by_chunks

EPSILON = 1e-6


def _positive(x: Tensor) -> Tensor:
    """elu(x) + 1, in float32: the sums over classes need it."""
    return F.elu(x.float()) + 1


class LinearAttention(GuidedProjections):
    """Multi-head attention with the feature map elu + 1, and no output projection."""

    def __init__(self, dim: int, guidance_dim: int, heads: int) -> None:
        super().__init__(dim, guidance_dim)
        self.heads = heads

    def _split(self, qkv: Float[Tensor, "N T C3"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.chunk(3, dim=-1)
        return _positive(q), _positive(k), v.float()

    def forward(
        self, qkv: Float[Tensor, "N T C3"], padding: Float[Tensor, "1 1 C3"] | None = None, count: int = 0
    ) -> Float[Tensor, "N T C"]:
        """Over T classes at N places, and `count` further ones which all have the projections `padding`.

        Their sums are those of one, times their number; nobody reads what they would attend to.
        """
        q, k, v = self._split(qkv)
        width, out = self.dim // self.heads, []
        with torch.autocast(qkv.device.type, enabled=False):
            for head in range(self.heads):
                part = slice(head * width, (head + 1) * width)
                summed, total = k[..., part].mT @ v[..., part], k[..., part].sum(dim=1)[..., None]
                if padding is not None:
                    _, pad_k, pad_v = (share[..., part] for share in self._split(padding))
                    summed = summed + count * pad_k.mT @ pad_v
                    total = total + count * pad_k.mT
                query = q[..., part]
                out.append((query @ summed) / (query @ total + EPSILON))
        return torch.cat(out, dim=-1).to(qkv.dtype)


class ClassBlock(nn.Module):
    """Pooling, attention among classes, feed-forward part, and back to the grid. Matches CAT-Seg's class part.

    With `length`, vocabularies below it are filled up with a learnt token and a learnt guidance (`padding_tokens`,
    `padding_guidance`); they are attended to, and equal to each other, so that one of them stands for all.
    """

    def __init__(self, dim: int, guidance_dim: int, heads: int, *, length: int, doubled_identity: bool) -> None:
        super().__init__()
        self.length, self.doubled_identity = length, doubled_identity
        self.attention = LinearAttention(dim, guidance_dim, heads)
        self.MLP = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if length:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim))

    def _padding(self, classes: int) -> tuple[Float[Tensor, "1 1 C3"] | None, int]:
        count = self.length - classes
        if count <= 0:
            return None, 0
        project = self.attention
        token = project.of_tokens(self.norm1(self.padding_tokens))
        return token + project.of_guidance(self.padding_guidance), count

    def _places(
        self, x: Float[Tensor, "B T L C"], guidance: Float[Tensor, "B T C3"], *, add: Tensor | None
    ) -> Float[Tensor, "B T L C"]:
        """Attention and feed-forward part at L places; `add` is a residual beside the block's own."""
        batch, classes, places, dim = x.shape
        at = x.transpose(1, 2)  # (B, L, T, C)
        padding, count = self._padding(classes)
        qkv = self.attention.of_tokens(self.norm1(at)) + guidance[:, None]
        at = at + self.attention(qkv.flatten(0, 1), padding, count).unflatten(0, (batch, places))
        at = at + self.MLP(self.norm2(at))
        back = at.transpose(1, 2)
        return back if add is None else back + add

    def forward(
        self,
        x: Float[Tensor, "B T H W C"],
        guidance: Float[Tensor, "B T G"],
        *,
        pool: int,
        chunk: int,
        checkpointed: bool = False,
    ) -> Float[Tensor, "B T H W C"]:
        """`pool`: side of the mean pooling, whose result is brought back with corners aligned.

        `chunk` counts classes; as many places run at once as make the same number of tokens.
        """
        batch, classes, height, width, _ = x.shape
        places = max(1, chunk * height * width // classes)
        share = self.attention.of_guidance(guidance)

        def step(part: Tensor) -> Tensor:
            alone = pool == 1 and self.doubled_identity
            return self._places(part, share, add=part if alone else None)

        if pool == 1:
            flat = x.flatten(2, 3)
            done = by_chunks(step, flat, chunk=places, checkpointed=checkpointed, dim=2)
            return done.unflatten(2, (height, width))
        # (B, T, H, W, C) -> (B * T, C, H, W), channels last in memory
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(maps, pool)
        small = (pooled.shape[2], pooled.shape[3])
        tokens = pooled.permute(0, 2, 3, 1).unflatten(0, (batch, classes))
        done = by_chunks(step, tokens.flatten(2, 3), chunk=places, checkpointed=checkpointed, dim=2)
        if not self.doubled_identity:
            done = done - tokens.flatten(2, 3)
        grown = F.interpolate(
            done.flatten(0, 1).unflatten(1, small).permute(0, 3, 1, 2),
            size=(height, width),
            mode="bilinear",
            align_corners=True,
        )
        return x + grown.permute(0, 2, 3, 1).unflatten(0, (batch, classes))
