"""A running average of the weights that train, to be evaluated and exported in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rsc_seg.errors import UserError


class WeightAverage:
    """average = rate * average + (1 - rate) * weights, once a step, in float32, for every parameter that trains.

    The rate after n steps is min(decay, (1 + n) / (10 + n)), so that the untrained weights are soon forgotten. Raises
    UserError for a decay outside 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"solver.ema={decay}: must be above 0 and below 1, or null for no average.")
        self.decay, self.steps = decay, 0
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone().float() for name, p in self.live.items()}

    @property
    def rate(self) -> float:
        """What the average keeps of itself in the next update."""
        return min(self.decay, (1 + self.steps) / (10 + self.steps))

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights in, after an optimiser step."""
        now = [p.detach().float() for p in self.live.values()]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - self.rate)
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for weights inside; afterwards its own, untouched, whatever happens."""
        own = {name: p.data for name, p in self.live.items()}
        try:
            for name, p in self.live.items():
                p.data = self.average[name].to(p.dtype)
            yield
        finally:
            for name, p in self.live.items():
                p.data = own[name]

    def state_dict(self) -> dict[str, Any]:
        """Decay, steps and the average by parameter name."""
        return {"decay": self.decay, "steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave; ValueError when it is of other parameters."""
        held: dict[str, Tensor] = state["average"]
        if held.keys() != self.average.keys() or any(held[k].shape != v.shape for k, v in self.average.items()):
            raise ValueError("the average is of other parameters")
        self.steps = int(state["steps"])
        for name, value in self.average.items():
            value.copy_(held[name])
