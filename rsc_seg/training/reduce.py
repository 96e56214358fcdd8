"""Small sums over the processes of a run; without processes they do nothing."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of_mean(count: int, device: torch.device) -> float:
    """What a mean over `count` items of this process must be multiplied by, so that the average over processes (DDP's,
    of gradients) is the mean over all items of all processes: count * processes / all; 0 where there are none.

    All processes must call it, those without items too.
    """
    size = world()[1]
    if size == 1:
        return 1.0 if count else 0.0
    total = torch.tensor(float(count), device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
    dist.all_reduce(total)
    return count * size / float(total) if float(total) else 0.0


def any_process(flags: Bool[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Element by element, whether it is true in any process."""
    if world()[1] == 1:
        return flags
    found = flags.to(torch.int32)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.bool()


def process_mean(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean over processes; no gradient."""
    values, size = values.detach().clone(), world()[1]
    if size > 1:
        dist.all_reduce(values)
    return values / size


def gathered(rows: Float[Tensor, "K D"]) -> Float[Tensor, "W D"]:
    """The rows of all processes (as many in each) in the order of their ranks; no gradient."""
    rows, size = rows.detach().contiguous(), world()[1]
    if size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)
