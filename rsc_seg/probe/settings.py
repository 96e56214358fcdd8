"""What the quick measure needs to know beside the encoders and the labelled sets."""

from dataclasses import dataclass
from typing import Optional

from rsc_seg.errors import UserError

_COUNTS = (
    *("batch_size", "linear_seeds", "linear_epochs", "linear_steps", "linear_batch", "kmeans_seeds", "kmeans_tokens"),
    *("kmeans_iterations", "coupling_pairs", "norm_images", "norm_bins"),
)


@dataclass(frozen=True)
class ProbeSettings:
    """Sizes, seeds and budgets of the quick measure; the defaults are those of every table of the project."""

    image_size: tuple[int, int] = (252, 336)  # height, width; images are squashed to it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of the encoder's input
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    batch_size: int = 8  # images in one call of the encoder
    score_scale: float = 0.5  # pixels are scored at this share of the labels' own height and width
    seed: int = 0  # the first probe seed, and the seed of the coupling pairs
    linear_seeds: int = 3
    linear_epochs: int = 20
    linear_steps: int = 500  # at least so many updates: small sets get more epochs
    linear_lr: float = 1e-2
    linear_batch: int = 2048  # tokens
    linear_weight_decay: float = 1e-2
    kmeans_k: Optional[tuple[int, ...]] = None  # null: T, and the larger of 27 and 2 T
    kmeans_seeds: int = 3
    kmeans_tokens: int = 60_000  # training tokens that k-means is fitted on, drawn evenly at random
    kmeans_iterations: int = 100
    coupling_pairs: int = 30  # fewer when there are not two images for each
    norm_images: int = 24
    norm_bins: int = 50
    norm_max: float = 200.0  # upper edge of the last bin; larger norms are counted beside
    outlier_factor: float = 3.0  # outlier: norm above this multiple of the row's own median

    def __post_init__(self) -> None:
        for key in _COUNTS:
            if getattr(self, key) < 1:
                raise UserError(f"probe setting {key}={getattr(self, key)}: must be at least 1.")
        if not 0 < self.score_scale <= 1:
            raise UserError(f"probe setting score_scale={self.score_scale}: must be above 0 and at most 1.")
        if any(k < 2 for k in self.kmeans_k or ()):
            raise UserError(f"probe setting kmeans_k={self.kmeans_k}: every k must be at least 2.")

    def clusters(self, num_classes: int) -> list[int]:
        """The numbers of clusters to measure, ascending, none twice."""
        return sorted(set(self.kmeans_k or (num_classes, max(27, 2 * num_classes))))
