"""The front-door heads (TR, MLP), their moving averages and the layers around them, in the official files' names."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rsc_seg.cause.contrast import assign_codes
from rsc_seg.config import require_choice
from rsc_seg.errors import UserError

KINDS = ("tr", "mlp")
HEAD_DROPOUT = 0.1
_HIDDEN = 2048  # of the decoder's feed-forward part


def _pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution on tokens (..., D)."""
    assert isinstance(layer, nn.Conv2d)
    return F.linear(x, layer.weight.flatten(1), layer.bias)


class Reducer(nn.Module):
    """f1(x) + f2(x): one linear and one two-layer map from width D to the reduced width, on tokens."""

    def __init__(self, dim: int, reduced: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.f1 = nn.Conv2d(dim, reduced, 1)
        self.f2 = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.ReLU(), nn.Conv2d(dim, reduced, 1))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout while training."""
        return F.dropout(x, self.dropout, self.training and self.dropout > 0)

    def reduce(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L E"]:
        """Each branch sees its own dropout."""
        hidden = F.relu(_pointwise(self.f2[0], self.drop(x)))
        return _pointwise(self.f1, self.drop(x)) + _pointwise(self.f2[2], hidden)


class MlpHead(Reducer):
    """CAUSE-MLP: the tokens alone."""

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        assigned: Int64[Tensor, "B L"] | None = None,
        codes: Float[Tensor, "K D"] | None = None,
        *,
        at: Int64[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B Q E"]:
        """All tokens, or those at the positions `at`; codes are not needed."""
        if at is not None:
            x = x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))
        return self.reduce(x)


def _score_map(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """(D, D) and (D,): a query times the one plus the other, dot a raw key, is their score up to a constant."""
    w_q, w_k, _ = attention.in_proj_weight.chunk(3)
    scale = 1 / math.sqrt(w_q.shape[1])
    return (w_q.T @ w_k) * scale, (attention.in_proj_bias.chunk(3)[0] @ w_k) * scale


def _value_map(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Weight and bias from a raw value to the output, without the output's own bias."""
    w_o, w_v = attention.out_proj.weight, attention.in_proj_weight.chunk(3)[2]
    return w_o @ w_v, w_o @ attention.in_proj_bias.chunk(3)[2]


class Decoder(Reducer):
    """A post-norm transformer decoder layer with one attention head: codes as queries, the tokens as memory.

    With one head, W_k moves to the query side and W_v, W_o behind the weighted mean, so no token is ever projected to
    a key or a value: the cost is that of the queries asked for, and codes are projected once each. A key bias is the
    same for all keys of a query and cancels in the softmax, so it is not read; its exact gradient is zero.
    """

    def __init__(self, dim: int, reduced: int, dropout: float) -> None:
        super().__init__(dim, reduced, dropout)
        self.self_attn = nn.MultiheadAttention(dim, 1)
        self.multihead_attn = nn.MultiheadAttention(dim, 1)
        self.linear1, self.linear2 = nn.Linear(dim, _HIDDEN), nn.Linear(_HIDDEN, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def _weights(self, scores: Tensor) -> Tensor:
        return self.drop(scores.softmax(dim=-1))

    def _look_at_codes(
        self, codes: Tensor, assigned: Tensor, pos: Tensor, at: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention among the codes of the tokens; also their codes and positions at the queries."""
        score, score_bias = _score_map(self.self_attn)
        value, value_bias = _value_map(self.self_attn)
        kinds, which = assigned.unique(return_inverse=True)
        few = codes[kinds]  # (U, D): codes that occur in this batch
        keys = few[which] + pos
        # linear, so the query side of code + position is a sum of two small products
        of_codes, of_pos = few @ score, pos @ score + score_bias
        values = F.embedding(which, F.linear(few, value, value_bias))
        if at is None:
            own, queries, places = which, F.embedding(which, of_codes) + of_pos, pos.expand_as(keys)
        else:
            own = which.gather(1, at)
            queries, places = F.embedding(own, of_codes) + F.embedding(at, of_pos), F.embedding(at, pos)
        mixed = self._weights(queries @ keys.transpose(1, 2)) @ values
        return mixed + self.self_attn.out_proj.bias, few[own], places

    def _look_at_tokens(self, query: Tensor, x: Tensor) -> Tensor:
        """Cross-attention to the tokens."""
        score, score_bias = _score_map(self.multihead_attn)
        value, value_bias = _value_map(self.multihead_attn)
        weights = self._weights((query @ score + score_bias) @ x.transpose(1, 2))
        # dropout changes the sum of the weights, and with it the share of the value bias
        shares = weights.sum(dim=-1, keepdim=True)
        return F.linear(weights @ x, value, self.multihead_attn.out_proj.bias) + shares * value_bias

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        assigned: Int64[Tensor, "B L"],
        codes: Float[Tensor, "K D"],
        pos: Float[Tensor, "L D"],
        at: Int64[Tensor, "B Q"] | None,
    ) -> Float[Tensor, "B Q E"]:
        """Outputs for the queries `at`, or for all tokens."""
        seen, own, places = self._look_at_codes(codes, assigned, pos, at)
        v = self.norm1(own + self.drop(seen))
        v = self.norm2(v + self.drop(self._look_at_tokens(v + places, x)))
        hidden = self.drop(F.relu(self.linear1(v)))
        v = self.norm3(v + self.drop(self.linear2(hidden)))
        return self.reduce(v + (x if at is None else x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))))


class TrHead(nn.Module):
    """CAUSE-TR: the decoder over the codes of the tokens. `query_pos` fixes the number of tokens."""

    def __init__(self, dim: int, num_tokens: int, reduced: int, dropout: float) -> None:
        super().__init__()
        self.query_pos = nn.Parameter(torch.randn(num_tokens, dim))
        self.tr = Decoder(dim, reduced, dropout)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        assigned: Int64[Tensor, "B L"] | None = None,
        codes: Float[Tensor, "K D"] | None = None,
        *,
        at: Int64[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B Q E"]:
        """All tokens, or those at the positions `at` (same numbers as picking them afterwards, for less work).

        `assigned` is each token's code; computed here when it is None. Raises UserError for another number of tokens.
        """
        if codes is None:
            raise ValueError("the TR head needs the codebook")
        if x.shape[1] != len(self.query_pos):
            raise UserError(
                f"CAUSE-TR was made for {len(self.query_pos)} tokens an image and got {x.shape[1]}; "
                "use the resolution that it was trained at, or --head mlp."
            )
        return self.tr(x, assign_codes(x, codes) if assigned is None else assigned, codes, self.query_pos, at)


FrontDoorHead = MlpHead | TrHead


def make_head(
    kind: str, dim: int, num_tokens: int, *, reduced: int = 90, dropout: float = HEAD_DROPOUT
) -> FrontDoorHead:
    """The head called `kind` (tr or mlp), with fresh weights; UserError for another name."""
    require_choice("--head", kind, KINDS)
    return TrHead(dim, num_tokens, reduced, dropout) if kind == "tr" else MlpHead(dim, reduced, dropout)


class Pointwise(nn.Module):
    """A 1x1 convolution named `f`, on tokens."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.f = nn.Conv2d(dim, out, 1)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L E"]:
        """(B, L, D) -> (B, L, out)."""
        return _pointwise(self.f, x)


class CauseModel(nn.Module):
    """Student and teacher heads, their projections and the linear probe; `state_dict` is the official one.

    `codes` (K, D) is the frozen codebook of step 1, kept outside the state dict as in the official code. `grid` is the
    token map that the heads train on; the MLP head takes any other as well. Only `head_ema` serves after training.
    """

    codes: Tensor

    def __init__(
        self,
        kind: str,
        codes: Float[Tensor, "K D"],
        grid: tuple[int, int],
        classes: int,
        *,
        reduced: int = 90,
        projection: int = 2048,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        super().__init__()
        self.kind, self.grid, self.classes = kind, grid, classes
        dim, tokens = codes.shape[1], grid[0] * grid[1]
        self.head = make_head(kind, dim, tokens, reduced=reduced, dropout=dropout)
        self.head_ema = make_head(kind, dim, tokens, reduced=reduced, dropout=dropout)
        self.projection_head, self.projection_head_ema = Pointwise(reduced, projection), Pointwise(reduced, projection)
        self.linear = Pointwise(reduced, classes)
        self.register_buffer("codes", codes.detach().clone(), persistent=False)

    def assign(self, x: Float[Tensor, "B L D"]) -> Int64[Tensor, "B L"] | None:
        """Each token's code where the head needs it (TR)."""
        return assign_codes(x, self.codes) if self.kind == "tr" else None

    def features(self, x: Float[Tensor, "B L D"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B E h w"]:
        """Maps of `head_ema`; `grid` when it is not the one of training. Dropout only in training mode."""
        height, width = grid or self.grid
        tokens = self.head_ema(x, self.assign(x), self.codes)
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        students = [*self.head.parameters(), *self.projection_head.parameters()]
        teachers = [*self.head_ema.parameters(), *self.projection_head_ema.parameters()]
        return list(zip(teachers, students, strict=True))

    def start_teacher(self) -> None:
        """The teacher becomes a copy of the student and is frozen."""
        self.follow(0.0)
        for teacher, _ in self._pairs():
            teacher.requires_grad_(False)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """teacher = decay * teacher + (1 - decay) * student."""
        for teacher, student in self._pairs():
            teacher.lerp_(student, 1 - decay)
