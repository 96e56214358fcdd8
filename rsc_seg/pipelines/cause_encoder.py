"""One encoder through CAUSE: tokens, codebook, head, probes and counts, each made once and found again."""

import dataclasses
import math
from contextlib import nullcontext
from typing import Any, Optional

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.cause.cluster import ClusterProbe
from rsc_seg.cause.crf import CrfPool, CrfSettings
from rsc_seg.cause.heads import CauseModel
from rsc_seg.cause.predict import CrfTag, EvalImages, Evaluation, Segmenter, evaluate
from rsc_seg.cause.scores import SegmentationScores
from rsc_seg.cause.stages import UNLABELLED, CauseOptions, settings_of, train_codebook, train_head, train_probes
from rsc_seg.cause.tokens import TokenSource, open_tokens
from rsc_seg.cause.views import Views
from rsc_seg.errors import UserError
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.candidates import Candidate
from rsc_seg.pipelines.cause_plan import Plan, cached_views, encoder_views
from rsc_seg.pipelines.cause_stages import Arrays, StageFiles, StageResult, numbers, part, prefixed
from rsc_seg.training.cache import encoder_digest


@dataclasses.dataclass
class Measured:
    """Scores of one encoder on `views` by seed, and the files that they come from; `shown`: the first seed's maps."""

    candidate: Candidate
    views: Views
    seeds: list[Optional[int]] = dataclasses.field(default_factory=list)
    scores: list[dict[str, SegmentationScores]] = dataclasses.field(default_factory=list)
    stages: list[dict[str, StageResult]] = dataclasses.field(default_factory=list)
    shown: Evaluation = dataclasses.field(default_factory=Evaluation)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is scored: the model and the cluster probe, and a key that stands for both."""

    model: CauseModel
    probe: ClusterProbe
    key: str


class EncoderRun:
    """The stages of one encoder. Tokens are computed only when a stage whose file is not there asks for them."""

    def __init__(self, plan: Plan, encoder: DenseEncoder, name: str, head: str) -> None:
        self.plan, self.encoder, self.name, self.head = plan, encoder, name, head
        self.views = encoder_views(plan, encoder, head)
        self.digest = encoder_digest(encoder)
        self.files = StageFiles(plan.cache / "stages")
        self._cached = cached_views(plan, encoder, self.views)
        self._sources: dict[int, TokenSource] = {}
        self._purpose = {id(views): what for what, views in self.views.distinct().items()}

    def _tokens(self, views: Optional[Views]) -> TokenSource:
        if views is None:
            raise ValueError("no training set was opened")
        if id(views) not in self._sources:
            config = self.plan.config
            self._sources[id(views)] = open_tokens(
                self.encoder,
                views,
                self.plan.cache / "tokens" if views in self._cached else None,
                device=self.plan.device,
                batch_size=config.score.batch_size,
                dtype=config.cache.dtype,
                name=f"{self.name}, {self._purpose[id(views)]}",
            )
        return self._sources[id(views)]

    def _inputs(self, views: Optional[Views], *, labels: bool = False) -> dict[str, Any]:
        """What a stage that reads tokens of these views depends on."""
        if views is None:
            return {}
        stored = self.plan.config.cache.dtype if views in self._cached else "live"
        return {
            "encoder": self.digest,
            "views": views.digest(),
            "tokens": stored,
            "labels": views.label_digest() if labels else None,
        }

    def codebook(self, options: CauseOptions) -> StageResult:
        """Step 1; the same for both heads."""
        depends = {"options": settings_of(options, "codebook"), **self._inputs(self.views.codebook)}

        def make() -> Arrays:
            codes = train_codebook(self._tokens(self.views.codebook), options, device=self.plan.device)
            return numbers({"codes": codes})

        return self.files.get("codebook", depends, make, self._of(options))

    def model(self, arrays: Arrays, codes: Float[Tensor, "K D"], options: CauseOptions) -> CauseModel:
        """A model from a stage's file."""
        side = self.views.head.resolution if self.views.head is not None else self.views.val.resolution
        model = CauseModel(
            options.head,
            codes,
            self.encoder.grid(side, side),
            options.classes,
            reduced=options.reduced,
            projection=options.projection,
            dropout=options.dropout,
        )
        model.load_state_dict(part(arrays, "model."))
        return model.to(self.plan.device)

    def front_door(self, options: CauseOptions, codebook: StageResult) -> StageResult:
        """Step 2."""
        grad = self.plan.config.cause.probe_grad
        depends = {"options": settings_of(options, "head"), "codebook": codebook.key, "probe_grad": grad}
        depends |= self._inputs(self.views.head, labels=True)

        def make() -> Arrays:
            codes = torch.from_numpy(codebook.arrays["codes"])
            model = train_head(self._tokens(self.views.head), codes, options, grad, device=self.plan.device)
            return prefixed(model, "model.")

        return self.files.get(f"head-{options.head}", depends, make, self._of(options))

    def probes(self, options: CauseOptions, codebook: StageResult, head: StageResult) -> StageResult:
        """Step 3; holds the model too, whose linear probe (`released`: and head) it trains."""
        grad = self.plan.config.cause.probe_grad
        depends = {"options": settings_of(options, "probes"), "head": head.key, "probe_grad": grad}
        depends |= self._inputs(self.views.head, labels=True)

        def make() -> Arrays:
            codes = torch.from_numpy(codebook.arrays["codes"])
            model = self.model(head.arrays, codes, options)
            source = self._tokens(self.views.head)
            labelled: list[int] = []  # iterations that trained the linear probe

            def watch(number: int, total: int, values: dict[str, float]) -> None:
                if math.isfinite(values["gradient"]):
                    labelled.append(number)

            probe = train_probes(source, model, codes, options, grad, device=self.plan.device, watcher=watch)
            if not labelled:  # its scores would say nothing, and look like scores
                raise UserError(f"{self.name}: {UNLABELLED}")
            return prefixed(model, "model.") | prefixed(probe, "probe.")

        return self.files.get(f"probes-{options.head}", depends, make, self._of(options))

    def train(self, options: CauseOptions) -> tuple[Trained, dict[str, StageResult]]:
        """Steps 1 to 3 for one seed, and their files."""
        codebook = self.codebook(options)
        head = self.front_door(options, codebook)
        probes = self.probes(options, codebook, head)
        model = self.model(probes.arrays, torch.from_numpy(codebook.arrays["codes"]), options)
        probe = ClusterProbe(options.classes, options.reduced)
        probe.load_state_dict(part(probes.arrays, "probe."))
        stages = {"codebook": codebook, "head": head, "probes": probes}
        return Trained(model, probe.to(self.plan.device), probes.key), stages

    def _evaluate(self, trained: Trained, keep: list[int]) -> Evaluation:
        plan, views, model = self.plan, self.views, trained.model.eval()
        grid = self.encoder.grid(views.val.resolution, views.val.resolution)
        segmenter = Segmenter(
            features=lambda x: model.features(x, grid),
            centroids=trained.probe.cluster_probe.detach(),
            linear=lambda f: model.linear(f.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid),
            device=plan.device,
        )
        images = EvalImages(
            views.val,
            self._tokens(views.val),
            None if views.flipped is None else self._tokens(views.flipped),
            self.encoder.mean,
            self.encoder.std,
        )
        pool: CrfPool[CrfTag] | nullcontext[None] = (
            CrfPool(plan.config.score.crf_workers) if plan.crf else nullcontext(None)
        )
        with pool as crf:
            return evaluate(
                segmenter, images, crf=crf, batch_size=plan.config.score.batch_size, keep=keep, name=self.name
            )

    def score(self, trained: Trained, seed: Optional[int]) -> tuple[Evaluation, StageResult]:
        """Counts of all rows on the validation views, and the kept predictions; `seed` is for the log alone."""
        keep, score = self.plan.shown(), self.plan.config.score
        depends = {
            "probes": trained.key,
            "flip": score.flip,
            "crf": dataclasses.asdict(CrfSettings()) if self.plan.crf else None,
            "keep": keep,
            **self._inputs(self.views.val, labels=True),
        }

        def make() -> Arrays:
            found = self._evaluate(trained, keep)
            counts = {f"counts.{row}": c for row, c in numbers(found.counts).items()}
            kept = {f"kept.{row}.{i}": map_ for row, maps in found.kept.items() for i, map_ in maps.items()}
            return counts | kept

        told = self.name if seed is None else f"{self.name}, seed {seed}"
        stage = self.files.get("scores", depends, make, told)
        found = Evaluation(counts=part(stage.arrays, "counts."))
        for name in (n for n in stage.arrays if n.startswith("kept.")):
            row, _, image = name.removeprefix("kept.").rpartition(".")
            found.kept.setdefault(row, {})[int(image)] = stage.arrays[name]
        return found, stage

    def _of(self, options: CauseOptions) -> str:
        return f"{self.name}, seed {options.seed}"
