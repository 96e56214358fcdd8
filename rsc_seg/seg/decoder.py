"""From the grid to four times its side, class by class, guided by two maps of the image."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm and ReLU; the first reads [map; guidance]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        # nn.Sequential's numbers are the checkpoint's names
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.GroupNorm(out // 16, out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.GroupNorm(out // 16, out),
            nn.ReLU(),
        )

    def _weight(self) -> Tensor:
        first = self.double_conv[0]
        assert isinstance(first, nn.Conv2d)
        return first.weight

    def of_guidance(self, guidance: Float[Tensor, "B G H W"]) -> Float[Tensor, "B D H W"]:
        """Share of the guidance in the first convolution: the same for every class of an image."""
        return F.conv2d(guidance, self._weight()[:, -guidance.shape[1] :], padding=1)

    def forward(self, x: Float[Tensor, "N C H W"], share: Float[Tensor, "B D H W"]) -> Float[Tensor, "N D H W"]:
        """N = B * T maps in rows of images; `share` is `of_guidance`'s."""
        first = F.conv2d(x, self._weight()[:, : x.shape[1]], padding=1)
        x = (first.unflatten(0, (len(share), -1)) + share[:, None]).flatten(0, 1)
        for layer in self.double_conv[1:]:
            x = layer(x)
        return x


class Up(nn.Module):
    """Twice the side by a transposed convolution, then two convolutions."""

    def __init__(self, channels: int, out: int, guidance: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels - guidance, 2, 2)
        self.conv = DoubleConv(channels, out)

    def forward(self, x: Float[Tensor, "N C h w"], share: Float[Tensor, "B D H W"]) -> Float[Tensor, "N D H W"]:
        """`share`: the guidance's part of the first convolution."""
        return self.conv(self.up(x), share)


def guidance_layer(channels: int, out: int) -> nn.Sequential:
    """A 3x3 convolution with ReLU, by which a map of the image becomes guidance."""
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())


def decode(
    ups: tuple[Up, Up],
    head: nn.Module,
    x: Float[Tensor, "B T h w C"],
    shares: tuple[Tensor, Tensor],
) -> Float[Tensor, "B T H W"]:
    """Logits of every class at four times the side of the grid."""
    batch = x.shape[:2]
    maps = x.flatten(0, 1).permute(0, 3, 1, 2)  # (B * T, C, h, w), channels last in memory
    for up, share in zip(ups, shares, strict=True):
        maps = up(maps, share)
    logits: Tensor = head(maps)
    return torch.squeeze(logits, 1).unflatten(0, batch)
