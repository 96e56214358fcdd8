"""Losses whose target is an average of the student itself: dense contrast (DenseCL) and masked tokens (iBOT)."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rsc_seg.data.sampler import keyed_rng
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.passes import EncoderPass
from rsc_seg.ops.boxes import roi_tokens
from rsc_seg.ops.dense_ssl import (
    dense_contrast_loss,
    masked_pictures,
    masked_token_loss,
    mirrored_boxes,
    mirrored_view,
    nearest_tokens,
)
from rsc_seg.training.reduce import gathered, process_mean, world

CONTRAST_WIDTH, POOL = 128, 1024  # of DenseCL's projections; vectors kept as negatives
BOTTLENECK, PROTOTYPES = 256, 1024  # of iBOT's head
MASKED = (0.1, 0.5)  # least and greatest share of a picture's patches that are masked
CENTRE_DECAY = 0.9


def _seeded(seed: int, make: type[nn.Module], *args: int) -> nn.Module:
    """A module whose first weights depend on `seed` alone; torch's own random state is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args)


class _Projection(nn.Sequential):
    """Two layers, as DenseCL's dense head."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))


class _Prototypes(nn.Module):
    """Cosines with prototypes, after two layers: iBOT's head."""

    def __init__(self, width: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = _Projection(width, bottleneck)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to scores, at least in float32."""
        z = F.normalize(self.mlp(tokens).float(), dim=-1)
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z, F.normalize(self.prototypes.weight.float(), dim=-1))


class AveragedStudent(nn.Module):
    """The student's head that trains, and averages of head and student that follow them and are the target.

    `head` is the student's; `average` and `average_head` start equal to student and head, are frozen, and move by
    `follow`, once an optimiser step. Random draws depend on (seed, micro-step, the image's place in the global batch).
    """

    def __init__(self, student: DenseEncoder, head: nn.Module, *, decay: float, seed: int) -> None:
        super().__init__()
        self.decay, self.seed = decay, seed
        self.followed = [name for name, p in student.named_parameters() if p.requires_grad]
        self.head = head
        self.average = copy.deepcopy(student).requires_grad_(False)
        self.average_head = copy.deepcopy(head).requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: DenseEncoder) -> None:
        """Moves the averages by 1 - decay towards student and head."""
        for name in self.followed:
            self.average.get_parameter(name).lerp_(student.get_parameter(name), 1 - self.decay)
        for ours, theirs in zip(self.average_head.parameters(), self.head.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)

    def kept(self) -> list[str]:
        """Names of what a checkpoint must hold beside the parameters that train."""
        heads = [f"average_head.{name}" for name, _ in self.average_head.named_parameters()]
        own = [name for name, _ in self.named_buffers(recurse=False)]
        return [f"average.{name}" for name in self.followed] + heads + own

    def draws(self, what: str, step: int, images: int) -> list[np.random.Generator]:
        """A generator for each image of this process's batch."""
        first = world()[0] * images
        return [keyed_rng(what, self.seed, step, first + i) for i in range(images)]


class DenseContrast(AveragedStudent):
    """DenseCL as read here (docs/objectives.md): tokens of a region meet the averaged student's of the mirrored view.

    The match of a token is the nearest of the averaged student's tokens in the same region, by the encoders' own
    features; the negatives are region means that the averaged student gave in earlier steps, random at first.
    """

    pool: Tensor
    place: Tensor

    def __init__(self, student: DenseEncoder, *, decay: float, seed: int) -> None:
        head = _seeded(seed, _Projection, student.out_dim, CONTRAST_WIDTH)
        super().__init__(student, head, decay=decay, seed=seed)
        start = torch.randn(POOL, CONTRAST_WIDTH, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("pool", F.normalize(start, dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def view(self, images: Float[Tensor, "B 3 H W"], step: int) -> Float[Tensor, "B E h w"]:
        """The averaged student's dense features of the mirrored view."""
        draws = torch.tensor(np.stack([rng.uniform(-1, 1, 2) for rng in self.draws("view", step, len(images))]))
        with torch.no_grad():
            return self.average.dense(mirrored_view(images, draws))

    def forward(
        self,
        seen: EncoderPass,
        view: Float[Tensor, "B E h w"],
        boxes: Float[Tensor, "B R 4"],
        grid: tuple[int, int],
        temperature: float,
    ) -> Float[Tensor, ""]:
        """The loss over all tokens of all regions; in training mode the region means join the pool afterwards."""
        patch = self.average.patch_size
        ours = roi_tokens(seen.dense, boxes, patch_size=patch, grid=grid)
        there = mirrored_boxes(boxes, view.shape[-1] * patch)
        theirs = roi_tokens(view, there, patch_size=patch, grid=grid)
        with torch.no_grad():
            keys = self.average_head(theirs)
            match = nearest_tokens(ours, theirs)[..., None].expand(-1, -1, keys.shape[-1])
        loss = dense_contrast_loss(self.head(ours), keys.gather(1, match), self.pool.clone(), temperature=temperature)
        if self.training:
            self._remember(keys.float().mean(dim=1))
        return loss

    @torch.no_grad()
    def _remember(self, means: Float[Tensor, "R E"]) -> None:
        """Puts region means of all processes in the place of the oldest."""
        rows = F.normalize(gathered(means), dim=1)[-POOL:]
        where = (self.place + torch.arange(len(rows), device=rows.device)) % POOL
        self.pool[where] = rows
        self.place.add_(len(rows)).remainder_(POOL)


class MaskedTokens(AveragedStudent):
    """iBOT as read here (docs/objectives.md): the student predicts the averaged student's tokens at masked patches.

    A masked patch has learnt pixels (`mask_patch`, at first the mean colour), which the frozen patch embedding turns
    into the mask token. The averaged student sees the whole picture. There is no loss on [CLS].
    """

    centre: Tensor

    def __init__(self, student: DenseEncoder, *, decay: float, seed: int) -> None:
        head = _seeded(seed, _Prototypes, student.out_dim, BOTTLENECK, PROTOTYPES)
        super().__init__(student, head, decay=decay, seed=seed)
        self.mask_patch = nn.Parameter(torch.zeros(3, student.patch_size, student.patch_size))
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def mask(self, images: Tensor, valid: Tensor | None, step: int) -> Bool[Tensor, "B h w"]:
        """Which patches are masked: a random share of those whose centre lies in the un-padded part (xyxy)."""
        patch, (height, width) = self.average.patch_size, images.shape[-2:]
        grid, found = self.average.grid(height, width), []
        y, x = ((torch.arange(n) + 0.5) * patch for n in grid)
        edges = torch.tensor([[0.0, 0.0, width, height]] * len(images)) if valid is None else valid.detach().cpu()
        for rng, (x0, y0, x1, y1) in zip(self.draws("mask", step, len(images)), edges.tolist(), strict=True):
            inside = (((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))[None]).flatten().nonzero()[:, 0]
            count = round(float(rng.uniform(*MASKED)) * len(inside))
            picked = inside[torch.from_numpy(rng.permutation(len(inside))[: max(1, count)])]
            found.append(
                torch.zeros(grid[0] * grid[1], dtype=torch.bool).index_fill(0, picked, True).unflatten(0, grid)
            )
        return torch.stack(found).to(images.device)

    def forward(
        self, student: DenseEncoder, images: Float[Tensor, "B 3 H W"], valid: Tensor | None, step: int
    ) -> Float[Tensor, ""]:
        """The loss of this batch; runs the student on the masked pictures. In training mode the centre moves after."""
        mask = self.mask(images, valid, step)
        dense = student.dense(masked_pictures(images, mask, self.mask_patch))
        with torch.no_grad():
            target = self.average_head(self.average.dense(images).flatten(2).transpose(1, 2))
        scores = self.head(dense.flatten(2).transpose(1, 2))
        loss = masked_token_loss(scores, target, mask.flatten(1), self.centre.clone())
        if self.training:
            self.centre.lerp_(process_mean(target.float().mean(dim=(0, 1))), 1 - CENTRE_DECAY)
        return loss
