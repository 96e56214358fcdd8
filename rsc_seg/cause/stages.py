"""The three training steps of CAUSE on frozen tokens: codebook, front-door head, probes."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rsc_seg.cause.bank import CodeBank
from rsc_seg.cause.cluster import ClusterProbe, upsampled_cross_entropy
from rsc_seg.cause.contrast import CodeRelations, assign_codes, code_relations, contrastive_loss
from rsc_seg.cause.heads import HEAD_DROPOUT, KINDS, CauseModel
from rsc_seg.cause.modularity import modularity_loss
from rsc_seg.cause.sampling import Draws, SeededDraws, cell_positions, cells_of, take_tokens
from rsc_seg.cause.tokens import TokenSource
from rsc_seg.config import require_choice
from rsc_seg.errors import UserError

_log = logging.getLogger(__name__)

PRESETS = ("released-4gpu", "full-epoch")
PROBE_GRADS = ("detached", "released")
Watcher = Callable[[int, int, dict[str, float]], None]  # iteration from 1, iterations in all, numbers to log


@dataclass(frozen=True)
class CauseOptions:
    """Hyper-parameters of the three steps; the defaults are the official code's on 4 GPUs for Cityscapes, CAUSE-TR."""

    head: str = "tr"  # tr | mlp
    classes: int = 27  # of the labels, and clusters
    codes: int = 2048
    reduced: int = 90  # width of the features
    projection: int = 2048  # width of the contrastive space
    dropout: float = HEAD_DROPOUT
    batch_size: int = 16
    lr: float = 4e-3  # Adam, all steps
    share: float = 0.25  # of the views, seen in an epoch
    codebook_epochs: int = 1
    codebook_decay: float = 0.2  # of the rate, after each epoch
    head_epochs: int = 2
    probe_epochs: int = 5
    probe_decay: float = 0.5  # of the rate, every `probe_decay_every` epochs
    probe_decay_every: int = 2
    weight_decay: float = 0.0  # of heads, projections and linear probe (Adam's own, added to the gradient)
    head_clip: float | None = 1.0  # largest gradient norm in step 2
    probe_clip: float | None = 1.0  # and in step 3
    temperature: float = 0.07  # contrast
    positive: float = 0.3  # cosine of codes above which tokens attract
    negative: float = 0.1  # and below which they repel
    bank: int = 100  # projections kept for a code
    ema: float = 0.99
    modularity_temperature: float = 0.1
    codebook_resolution: int = 320  # pixels of a view's side; brought to whole patches by `whole_patches`
    head_resolution: int = 320
    test_resolution: int = 320
    seed: int = 0


def whole_patches(resolution: int, patch_size: int) -> int:
    """The multiple of the patch size nearest to `resolution`: 320 becomes 322 and 224 stays at patch 14."""
    return max(1, round(resolution / patch_size)) * patch_size


def cause_options(preset: str, dataset: str, head: str, *, classes: int, seed: int = 0) -> CauseOptions:
    """The official settings for a dataset and a head.

    `released-4gpu` is what one of the four processes of the official scripts does, whose gradients are not averaged and
    whose first process alone is saved: a quarter of the views per epoch, batch 16, rate 4e-3. `full-epoch` is the
    official code on one GPU: all views, rate 1e-3. Weight decay and clipping are Cityscapes' or COCO-Stuff-27's; other
    datasets, whose step 2 the official code refuses, take COCO-Stuff's there and no clipping in step 3.
    Raises UserError for an unknown preset or head.
    """
    require_choice("--preset", preset, PRESETS)
    require_choice("--head", head, KINDS)
    released, tr = preset == "released-4gpu", head == "tr"
    cityscapes = dataset == "cityscapes"
    head_clip = 1.0 if cityscapes else (2.0 if tr else 0.1)
    return CauseOptions(
        head=head,
        classes=classes,
        seed=seed,
        lr=4e-3 if released else 1e-3,
        share=0.25 if released else 1.0,
        probe_epochs=5 if tr else 1,
        weight_decay=0.0 if cityscapes else 1e-4,
        head_clip=head_clip,
        probe_clip=head_clip if dataset in ("cityscapes", "cocostuff27") else None,
        head_resolution=320 if tr else 224,
    )


@contextmanager
def _seeded(options: CauseOptions, step: int, device: torch.device) -> Iterator[Draws]:
    """The global generator (initial weights, dropout) and a step's own draws, by seed; the global one is given back."""
    seed = 10 * options.seed + step
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield SeededDraws(torch.Generator().manual_seed(seed))


class _Trained:
    """Parameters under one Adam and one gradient clip; a step whose gradients are not finite is left out.

    Leaving it out is what the official code's gradient scaler does.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, clip: float | None = None, weight_decay: float = 0.0
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self.lr, self.clip, self.skipped, self.taken = lr, clip, 0, 0

    def step(self) -> float:
        """Clips, updates, forgets the gradients; the norm before clipping."""
        limit = float("inf") if self.clip is None else self.clip
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if norm - norm == 0:  # neither infinite nor NaN
            self.optimizer.step()
            self.taken += 1
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def decay(self, factor: float) -> None:
        """The rate becomes `factor` times the first one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor


@dataclass(frozen=True)
class _Batch:
    """One iteration's views."""

    epoch: int
    number: int  # from 1
    total: int
    views: list[int]


def _batches(source: TokenSource, options: CauseOptions, epochs: int, draws: Draws) -> Iterator[_Batch]:
    """A share of the views in random order, anew in each epoch; the last batch may be short."""
    cells_of(source.grid)
    for key, value in (("batch_size", options.batch_size), ("epochs", epochs), ("share of the views", options.share)):
        if value <= 0:
            raise UserError(f"CAUSE: {key}={value}: must be above 0.")
    if len(source) == 0:
        raise UserError("CAUSE: no training views; check --data-root and --limit.")
    count = -(-len(source) * min(options.share, 1.0) // 1)
    per_epoch = int(-(-count // options.batch_size))
    for epoch in range(epochs):
        order = draws.views(len(source))[: int(count)]
        for n in range(per_epoch):
            views = order[n * options.batch_size : (n + 1) * options.batch_size]
            yield _Batch(epoch, epoch * per_epoch + n + 1, epochs * per_epoch, views)


def _told(name: str, batch: _Batch, watcher: Watcher | None, values: dict[str, float]) -> None:
    """One line about ten times in a step, and every iteration for the watcher."""
    if watcher is not None:
        watcher(batch.number, batch.total, values)
    if batch.number == batch.total or batch.number * 10 // batch.total > (batch.number - 1) * 10 // batch.total:
        numbers = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
        _log.info("CAUSE %s: iteration %d of %d, %s", name, batch.number, batch.total, numbers)


def _ended(name: str, trained: _Trained) -> None:
    """Says what was left out; UserError when nothing was learned."""
    if not trained.taken:
        raise UserError(
            f"CAUSE {name}: no iteration had finite gradients; use more or larger views "
            "(an image without a pair of tokens of near codes, or a batch without labels, has no loss)."
        )
    if trained.skipped:
        _log.warning("CAUSE %s: %d iterations without finite gradients were left out", name, trained.skipped)


UNLABELLED = (
    "no iteration trained the linear probe, since no pixel of its training views has a class; "
    "check the training labels, or use more views (--limit, cause.share)."
)


def _linear_ended(name: str, trained: _Trained) -> None:
    """The same for what labels train: without any there is no error, since head and clusters need none."""
    if trained.taken:
        _ended(name, trained)
    else:
        _log.warning("CAUSE %s: %s", name, UNLABELLED)


def train_codebook(
    source: TokenSource,
    options: CauseOptions,
    *,
    start: Float[Tensor, "K D"] | None = None,
    draws: Draws | None = None,
    device: torch.device | str = "cpu",
    watcher: Watcher | None = None,
) -> Float[Tensor, "K D"]:
    """Step 1: codes that maximise modularity on one random token per cell. No labels are read.

    `start` and `draws` replace what the seed would give. The result is on the CPU. Raises UserError without views.
    """
    device = torch.device(device)
    with _seeded(options, 1, device) as seeded:
        if start is None:
            start = torch.empty(options.codes, source.dim).uniform_(-1 / options.codes, 1 / options.codes)
        codes = nn.Parameter(start.detach().clone().to(device))
        trained, draws = _Trained([codes], options.lr), draws or seeded
        for batch in _batches(source, options, options.codebook_epochs, draws):
            trained.decay(options.codebook_decay**batch.epoch)
            x = source.tokens(batch.views)
            x = take_tokens(x, cell_positions(source.grid, draws.cells(len(x), source.grid))).to(device)
            loss = modularity_loss(x, codes, options.modularity_temperature)
            loss.backward()
            trained.step()
            _told("codebook", batch, watcher, {"modularity": -float(loss.detach())})
        _ended("codebook", trained)
    return codes.detach().cpu()


def new_model(source: TokenSource, codes: Float[Tensor, "K D"], options: CauseOptions) -> CauseModel:
    """A model with fresh weights for the tokens of `source`; UserError for a codebook of another width."""
    if codes.ndim != 2 or codes.shape[1] != source.dim:
        raise UserError(
            f"CAUSE: the codebook has shape {tuple(codes.shape)} and the tokens are {source.dim} wide; "
            "train it on this encoder, or give this encoder's own."
        )
    return CauseModel(
        options.head,
        codes,
        source.grid,
        options.classes,
        reduced=options.reduced,
        projection=options.projection,
        dropout=options.dropout,
    )


def _front_door(
    model: CauseModel, x: Tensor, at: Tensor, relations: CodeRelations, options: CauseOptions, bank: CodeBank
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contrastive loss, the teacher's features of all tokens, its projections at `at`, and the codes there."""
    if model.kind == "tr":
        assigned = assign_codes(x, model.codes)
        student = model.head(x, assigned, model.codes, at=at)
        with torch.no_grad():
            features = model.head_ema(x, assigned, model.codes)
            sampled = take_tokens(features, at)
        chosen = assigned.gather(1, at)
    else:
        with torch.no_grad():
            features = model.head_ema(x)
            sampled = model.head_ema(x, at=at)  # a dropout of its own, as in the official code
        student = model.head(x, at=at)
        chosen = assign_codes(take_tokens(x, at), model.codes)
    with torch.no_grad():
        teacher = model.projection_head_ema(sampled)
    loss = contrastive_loss(
        model.projection_head(student), teacher, chosen, relations, temperature=options.temperature, bank=bank
    )
    return loss, features, teacher, chosen


def _probe_loss(model: CauseModel, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the linear probe; `features` (B, L, E)."""
    logits = model.linear(features).transpose(1, 2).unflatten(2, model.grid)
    return upsampled_cross_entropy(logits, labels.to(features.device))


def train_head(
    source: TokenSource,
    codes: Float[Tensor, "K D"],
    options: CauseOptions,
    probe_grad: str = "detached",
    *,
    model: CauseModel | None = None,
    draws: Draws | None = None,
    device: torch.device | str = "cpu",
    watcher: Watcher | None = None,
) -> CauseModel:
    """Step 2: the student head by contrast, its teacher by moving average, and a first linear probe.

    The teacher follows the first update as a whole (the official code lets both share their memory until then) and is
    a moving average afterwards. Labels train the linear probe alone; but the official code clips head and probe by one
    norm, through which labels scale the head's gradient: `released` does so, `detached` gives each its own clip and
    optimiser. `model` (trained in place) and `draws` replace what the seed would give. Raises UserError without views,
    for a codebook of another width, and when no iteration has a loss; a linear probe without a label is a warning here.
    """
    require_choice("--probe-grad", probe_grad, PROBE_GRADS)
    device = torch.device(device)
    with _seeded(options, 2, device) as seeded:
        model = (model or new_model(source, codes, options)).to(device).train()
        draws = draws or seeded
        model.start_teacher()
        relations = code_relations(model.codes, positive=options.positive, negative=options.negative)
        bank = CodeBank(len(model.codes), options.projection, options.bank, device=device)
        front, linear = [*model.head.parameters(), *model.projection_head.parameters()], list(model.linear.parameters())
        groups = [front + linear] if probe_grad == "released" else [front, linear]
        trained = [_Trained(group, options.lr, options.head_clip, options.weight_decay) for group in groups]
        for batch in _batches(source, options, options.head_epochs, draws):
            x = source.tokens(batch.views).to(device)
            at = cell_positions(source.grid, draws.cells(len(x), source.grid)).to(device)
            loss, features, teacher, chosen = _front_door(model, x, at, relations, options, bank)
            probe = _probe_loss(model, features, source.labels(batch.views))
            (loss + probe).backward()
            norm = [group.step() for group in trained][0]
            model.follow(options.ema if batch.number > 1 else 0.0)
            bank.update(chosen, teacher, draws)
            values = {"contrast": float(loss.detach()), "linear": float(probe.detach()), "gradient": norm}
            _told("head", batch, watcher, values)
        _ended("head", trained[0])
        if len(trained) > 1:
            _linear_ended("head, linear probe", trained[1])
    return model.eval()


def train_probes(
    source: TokenSource,
    model: CauseModel,
    codes: Float[Tensor, "K D"],
    options: CauseOptions,
    probe_grad: str = "detached",
    *,
    probe: ClusterProbe | None = None,
    draws: Draws | None = None,
    device: torch.device | str = "cpu",
    watcher: Watcher | None = None,
) -> ClusterProbe:
    """Step 3: the cluster probe by modularity and the linear probe by labels; `model.linear` is trained in place.

    `detached`: the features are constants, so `head_ema` stays as it is. `released`: the linear probe's gradient trains
    `model.head_ema` in place, as the official code does; its clusters have then seen labels. `probe` and `draws`
    replace what the seed would give. Raises UserError as `train_head`; views without any label are a warning, and leave
    the linear probe as it was.
    """
    require_choice("--probe-grad", probe_grad, PROBE_GRADS)
    device, released = torch.device(device), probe_grad == "released"
    with _seeded(options, 3, device) as seeded:
        probe = (probe or ClusterProbe(options.classes, options.reduced)).to(device)
        draws = draws or seeded
        model.to(device).train().head_ema.requires_grad_(released)
        model.codes = codes.to(device)
        learned = [*model.linear.parameters(), *(model.head_ema.parameters() if released else [])]
        labelled = _Trained(learned, options.lr, options.probe_clip, options.weight_decay)
        clusters = _Trained(probe.parameters(), options.lr)
        for batch in _batches(source, options, options.probe_epochs, draws):
            for trained in (labelled, clusters):
                trained.decay(options.probe_decay ** (batch.epoch // options.probe_decay_every))
            x = source.tokens(batch.views).to(device)
            at = cell_positions(source.grid, draws.cells(len(x), source.grid)).to(device)
            with torch.set_grad_enabled(released):
                features = model.head_ema(x, model.assign(x), model.codes)
            modularity = probe.loss(take_tokens(features.detach(), at), options.modularity_temperature)
            linear = _probe_loss(model, features, source.labels(batch.views))
            (modularity + linear).backward()
            norm, _ = labelled.step(), clusters.step()
            values = {"modularity": -float(modularity.detach()), "linear": float(linear.detach()), "gradient": norm}
            _told("probes", batch, watcher, values)
        _ended("probes", clusters)
        _linear_ended("probes, linear probe", labelled)
    model.head_ema.requires_grad_(False)
    model.eval()
    return probe.eval()


def settings_of(options: CauseOptions, step: str) -> dict[str, object]:
    """The options that the result of a step (codebook, head or probes) depends on: what its file is keyed by."""
    shared = {"codes", "batch_size", "lr", "share", "modularity_temperature", "codebook_epochs", "codebook_decay"}
    shared |= {"codebook_resolution", "seed"}
    head = {"head", "classes", "reduced", "projection", "dropout", "head_epochs", "weight_decay", "head_clip"}
    head |= {"temperature", "positive", "negative", "bank", "ema", "head_resolution"}
    probes = {"probe_epochs", "probe_decay", "probe_decay_every", "probe_clip"}
    wanted = {"codebook": shared, "head": shared | head, "probes": shared | head | probes}[step]
    return {key: value for key, value in dataclasses.asdict(options).items() if key in wanted}
