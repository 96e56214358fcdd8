"""The bank of teacher projections: first in, first out for each code, packed for one matrix product."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from rsc_seg.cause.sampling import Draws


class CodeBank:
    """At most `per_code` unit vectors for each of `codes` codes, in one block of memory without gaps.

    Vectors are normalised once, when they come in. A code that is full overwrites its own oldest row, so rows never
    move; the block doubles when it is full (at most codes x per_code rows: 1.7 GB at CAUSE's sizes).
    """

    def __init__(self, codes: int, width: int, per_code: int = 100, *, device: torch.device | str = "cpu") -> None:
        self.per_code = per_code
        self._slots = torch.zeros(codes, per_code, dtype=torch.int64)  # row of each entry of a code
        self._taken = torch.zeros(codes, dtype=torch.int64)  # entries that a code has ever taken
        self._rows = torch.empty(min(1024, codes * per_code), width, device=device)
        self._codes = torch.zeros(len(self._rows), dtype=torch.int64, device=device)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    @property
    def keys(self) -> Float[Tensor, "N E"]:
        """All entries, unit length, in no particular order; a view that later entries overwrite."""
        return self._rows[: self._used]

    @property
    def codes(self) -> Int64[Tensor, " N"]:
        """The code of each entry of `keys`."""
        return self._codes[: self._used]

    @property
    def sizes(self) -> Int64[Tensor, " K"]:
        """Entries of each code."""
        return self._taken.clamp(max=self.per_code)

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._rows):
            return
        capacity = min(max(rows, 2 * len(self._rows)), self._slots.numel())
        grown = self._rows.new_empty(capacity, self._rows.shape[1])
        codes = self._codes.new_zeros(capacity)
        grown[: self._used], codes[: self._used] = self.keys, self.codes
        self._rows, self._codes = grown, codes

    def append(self, codes: Int64[Tensor, " M"], values: Float[Tensor, "M E"]) -> None:
        """Takes entries in the order given; of more than `per_code` for one code the last ones stay."""
        codes = codes.cpu()
        order = codes.argsort(stable=True)
        kinds, counts = codes[order].unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(codes)) - starts.repeat_interleave(counts)  # n-th entry of its code in this call
        rank -= (counts - self.per_code).clamp(min=0).repeat_interleave(counts)  # below zero: pushed out at once
        order, rank = order[rank >= 0], rank[rank >= 0]
        kind = codes[order]
        number = self._taken[kind] + rank
        slot, fresh = number % self.per_code, number < self.per_code
        fresh_count = int(fresh.sum())
        self._reserve(self._used + fresh_count)
        self._slots[kind[fresh], slot[fresh]] = torch.arange(self._used, self._used + fresh_count)
        self._used += fresh_count
        self._taken[kinds] += counts.clamp(max=self.per_code)
        rows = self._slots[kind, slot].to(self._rows.device)
        self._rows[rows] = F.normalize(values.detach().float()[order.to(values.device)], dim=-1).to(self._rows.device)
        self._codes[rows] = kind.to(self._codes.device)

    def update(
        self, codes: Int64[Tensor, "B L"], projections: Float[Tensor, "B L E"], draws: Draws
    ) -> Int64[Tensor, " M"]:
        """Appends a random half, rounded down, of each code's projections, codes in ascending order.

        Returns the flat indices of the projections that came in.
        """
        flat = codes.flatten().cpu()
        order = flat.argsort(stable=True)
        counts = flat[order].unique_consecutive(return_counts=True)[1].tolist()
        groups = order.split(counts)
        chosen = torch.cat([group[half] for group, half in zip(groups, draws.halves(counts), strict=True)])
        self.append(flat[chosen], projections.flatten(0, 1)[chosen.to(projections.device)])
        return chosen
