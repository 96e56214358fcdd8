"""Linear softmax probe on frozen tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.metrics.confusion import ConfusionMatrix, Scores
from rsc_seg.probe.features import LabelledTokens
from rsc_seg.probe.scoring import one_thread, percent_summary, pixel_counts
from rsc_seg.probe.settings import ProbeSettings


def token_statistics(
    tokens: Float[Tensor, "N D"], chunk: int = 65536
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and standard deviation of each channel, summed in float64 by chunks; a constant channel gets deviation 1."""
    total = torch.zeros(tokens.shape[1], dtype=torch.float64)
    square = torch.zeros_like(total)
    for part in tokens.split(chunk):
        values = part.double()
        total += values.sum(0)
        square += (values * values).sum(0)
    mean = total / len(tokens)
    std = (square / len(tokens) - mean * mean).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6 * (mean.abs() + 1e-6), std, 1.0)
    return mean.float(), std.float()


@one_thread()
def fit_linear(
    tokens: Float[Tensor, "N D"], share: Float[Tensor, "N T"], *, seed: int, settings: ProbeSettings
) -> tuple[Float[Tensor, "T D"], Float[Tensor, " T"]]:
    """Weight and bias of softmax(W x + b) on standardised tokens, fitted to soft labels by cross-entropy.

    A token weighs as much as the labelled share of its cell; tokens without any label are left out. AdamW from zero
    weights, cosine decay to zero without warm-up, minibatches reshuffled by `seed` in each epoch. The standardisation
    is folded into the result, which applies to raw tokens. Raises UserError when no token is labelled.
    """
    labelled = (share.sum(1) > 0).nonzero().squeeze(1)
    if len(labelled) == 0:
        raise UserError("the linear probe found no labelled token in the training images.")
    mean, std = token_statistics(tokens)
    weight = torch.zeros(share.shape[1], tokens.shape[1], requires_grad=True)
    bias = torch.zeros(share.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=settings.linear_lr, weight_decay=settings.linear_weight_decay)
    generator = torch.Generator().manual_seed(seed)
    batches = -(-len(labelled) // settings.linear_batch)
    epochs = max(settings.linear_epochs, -(-settings.linear_steps // batches))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * batches)
    for _ in range(epochs):
        order = labelled[torch.randperm(len(labelled), generator=generator)]
        for part in order.split(settings.linear_batch):
            x = (tokens.index_select(0, part).float() - mean) / std
            target = share.index_select(0, part)
            loss = -(target * F.log_softmax(F.linear(x, weight, bias), dim=1)).sum() / target.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    folded = weight.detach() / std
    return folded, bias.detach() - folded @ mean


def linear_scores(train: LabelledTokens, val: LabelledTokens, *, seed: int, settings: ProbeSettings) -> Scores:
    """Fits the probe on `train` and scores it on the pixels of `val` (logits upsampled bilinearly); fractions."""
    weight, bias = fit_linear(
        train.features.tokens.flatten(0, 1), train.labels.share.flatten(0, 1), seed=seed, settings=settings
    )
    logits = [F.linear(tokens.float(), weight, bias) for tokens in val.features.tokens]
    num_classes = train.labels.share.shape[2]
    confusion = ConfusionMatrix(num_classes)
    confusion.matrix += pixel_counts(logits, val.labels.maps, val.features.grid, num_classes)
    return confusion.scores()


def linear_probe(train: LabelledTokens, val: LabelledTokens, settings: ProbeSettings) -> dict[str, Any]:
    """The probe over `settings.linear_seeds` seeds: summaries in percent, and each class's IoU averaged over the seeds.

    A class that occurs neither in the labels of `val` nor in a prediction has IoU NaN.
    """
    seeds = range(settings.seed, settings.seed + settings.linear_seeds)
    runs = [linear_scores(train, val, seed=seed, settings=settings) for seed in seeds]
    iou = torch.tensor([run.iou for run in runs], dtype=torch.float64).nanmean(0) * 100
    return {
        "miou": percent_summary([r.miou_present for r in runs]),
        "miou_union": percent_summary([r.miou_union for r in runs]),
        "macc": percent_summary([r.macc for r in runs]),
        "pacc": percent_summary([r.pacc for r in runs]),
        "fwiou": percent_summary([r.fwiou for r in runs]),
        "iou": iou.tolist(),
    }
