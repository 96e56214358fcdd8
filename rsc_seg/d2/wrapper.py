"""Cat-Seg as detectron2 calls a model: lists of dicts in, a loss or label maps out."""

from collections.abc import Sequence
from typing import Any, Optional

from torch import Tensor, nn

from rsc_seg.seg.inference import SlidingOptions, predict_labels
from rsc_seg.seg.loss import IGNORE
from rsc_seg.seg.model import CatSeg, check_names
from rsc_seg.training.reduce import share_of_mean


class CatSegD2(nn.Module):
    """`model` with the vocabulary that it trains on, and the protocol by which it is evaluated.

    `sliding` None: one view of the whole image, as the official code does without a sliding window. `view_batch`: views
    of one pass in evaluation. Class embeddings are computed once a vocabulary and state of the text tower.
    """

    def __init__(
        self,
        model: CatSeg,
        train_names: Sequence[str],
        sliding: Optional[SlidingOptions] = None,
        view_batch: int = 5,
    ) -> None:
        super().__init__()
        check_names(train_names)
        self.model = model
        self.train_names = tuple(train_names)
        self.names = self.train_names
        self.sliding, self.view_batch = sliding, view_batch

    def set_names(self, names: Sequence[str]) -> None:
        """The vocabulary of evaluation from now on. Raises UserError for names that cannot serve."""
        check_names(names)
        self.names = tuple(names)

    @property
    def image_batch(self) -> int:
        """Images whose views fill one pass."""
        views = 1 if self.sliding is None else len(self.sliding.corners) + int(self.sliding.global_view)
        return max(1, self.view_batch // views)

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In training `{"loss": scalar}`; in evaluation `{"sem_seg": (H, W) labels}` for each image.

        The average of the losses over processes is the mean over all their pixels. Takes `image` (3, h, w), RGB from 0
        to 255, and in training `sem_seg` (h, w), classes of `train_names` and 255; in evaluation `height` and `width`,
        the size of the result. Raises UserError for images or labels of other shapes or values.
        """
        images = [sample["image"] for sample in batch]
        if self.training:
            labels = [sample["sem_seg"] for sample in batch]
            loss = self.model(images, self.train_names, labels)["loss"]
            if self.model.options.ignore == "mask":
                # a mean over labelled pixels, of which each process has another number
                count = sum(int((one != IGNORE).sum()) for one in labels)
                loss = loss * share_of_mean(count, self.model.device)
            return {"loss": loss}
        sizes = [(int(sample["height"]), int(sample["width"])) for sample in batch]
        found = predict_labels(
            self.model, images, self.names, sizes=sizes, sliding=self.sliding, view_batch=self.view_batch
        )
        return [{"sem_seg": each.labels} for each in found]
