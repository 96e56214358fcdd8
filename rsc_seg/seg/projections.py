"""Query, key and value weights as parameters of their own inside packed projections, and back into one matrix."""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rsc_seg.models.attention import DenseAttention

_PART = re.compile(r"^(.*)parametrizations\.(weight|in_proj_weight)\.original([012])$")
QUERY, KEY, VALUE = 0, 1, 2


class JoinedRows(nn.Module):
    """Three matrices one above the other: the packed weight of queries, keys and values."""

    def forward(
        self, q: Float[Tensor, "D E"], k: Float[Tensor, "D E"], v: Float[Tensor, "D E"]
    ) -> Float[Tensor, "D3 E"]:
        """The packed weight."""
        return torch.cat([q, k, v])

    def right_inverse(self, weight: Float[Tensor, "D3 E"]) -> tuple[Tensor, ...]:
        """Its three parts."""
        return tuple(part.clone() for part in weight.chunk(3))


def split_projections(tower: nn.Module) -> None:
    """Gives every packed attention of a tower three weight parameters instead of one, in place; outputs stay equal.

    Queries and values can then train while keys stay as they are, also under weight decay. Towers whose projections are
    separate (EVA) stay as they are, and so do parts that are split already.
    """
    for module in list(tower.modules()):
        if isinstance(module, DenseAttention) and not parametrize.is_parametrized(module.qkv):
            parametrize.register_parametrization(module.qkv, "weight", JoinedRows())
        elif isinstance(module, nn.MultiheadAttention) and not parametrize.is_parametrized(module):
            parametrize.register_parametrization(module, "in_proj_weight", JoinedRows())


def joined_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the three parts as one packed weight again, under its ordinary name."""
    result = {}
    for key, value in state.items():
        match = _PART.match(key)
        if match is None:
            result[key] = value
        elif int(match[3]) == QUERY:
            stem = key[:-1]
            result[match[1] + match[2]] = torch.cat([state[f"{stem}{i}"] for i in (QUERY, KEY, VALUE)])
    return result


def split_state(state: Mapping[str, Tensor], wanted: Mapping[str, object]) -> dict[str, Tensor]:
    """A state dict with packed weights, under the keys `wanted` of a tower whose projections are split."""
    result = {}
    for key in wanted:
        match = _PART.match(key)
        if match is None:
            if key in state:
                result[key] = state[key]
        elif match[1] + match[2] in state:
            result[key] = state[match[1] + match[2]].chunk(3)[int(match[3])]
    return result
