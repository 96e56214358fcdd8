"""Writes golden/clipself_regions.npz: what CLIPSelf's zero-shot evaluation gives on a small seeded panoptic set.

    python -m tests.parity.make_regions_golden CHECKOUT [--out DIR]

CHECKOUT is a clone of github.com/wusize/CLIPSelf; it needs einops, ftfy and regex besides this project's packages.
Set and weights come from their seeds, so that only outputs are stored: features, labels, right answers and mean
accuracies, for two sizes of the picture and under both ways of torchvision to resize masks; and the class embeddings,
which are made of features. The official code is called here and is no part of this project.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.parity.make_clip_golden import GOLDEN, TINY, official_tower
from tests.zeroshot.sample import informed, write_sample

VARIANT = "clipself_openai"
SIDES = (256, 224)
RULES = {"plain": False, "antialias": True}


def stand_in_for_panopticapi() -> None:
    """The one function that the official reader takes from panopticapi: ids of a PNG's colours."""
    package, utils = ModuleType("panopticapi"), ModuleType("panopticapi.utils")
    utils.rgb2id = lambda c: c[..., 0] + 256 * c[..., 1].astype(np.int64) + 65536 * c[..., 2].astype(np.int64)  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"panopticapi": package, "panopticapi.utils": utils}
    six, moves = ModuleType("six"), ModuleType("six.moves")
    moves.map, moves.zip = map, zip  # type: ignore[attr-defined]
    six.moves = moves  # type: ignore[attr-defined]
    sys.modules |= {"six": six, "six.moves": moves}


class WritableNumpy(ModuleType):
    """numpy whose asarray copies: the official reader writes into an array of a picture, which is read-only by now."""

    def __getattr__(self, name: str) -> Any:
        return np.array if name == "asarray" else getattr(np, name)


class Recorder:
    """The official model with the features that it hands to the evaluation kept."""

    def __init__(self) -> None:
        from open_clip.model import CLIP  # the checkout's own

        text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
        v = TINY[VARIANT]
        vision = {"image_size": v.native, "layers": 1, "width": v.width, "head_width": 16, "patch_size": v.patch}
        self.model = CLIP(embed_dim=v.joint, quick_gelu=True, vision_cfg=vision, text_cfg=text).eval()
        self.model.visual = official_tower(VARIANT)
        self.kept: dict[str, list[torch.Tensor]] = {"boxes": [], "masks": []}

    def encode_pseudo_boxes(self, *args: Any, **options: Any) -> torch.Tensor:
        self.kept["boxes"].append(self.model.encode_pseudo_boxes(*args, **options))
        return self.kept["boxes"][-1]

    def encode_masks(self, *args: Any, **options: Any) -> torch.Tensor:
        self.kept["masks"].append(self.model.encode_masks(*args, **options))
        return self.kept["masks"][-1]

    def encode_image(self, crops: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.ones(len(crops), TINY[VARIANT].joint)  # crops are not compared


def evaluate(folder: Path, side: int, rule: str) -> dict[str, np.ndarray]:
    """The official evaluation at one size of the picture under one rule."""
    from open_clip import transform
    from torch.utils.data import DataLoader
    from training import data
    from training.zero_shot import macc_with_is_thing, run

    real = transform.F
    data.np = WritableNumpy("numpy")

    def resize(image: Any, size: Any, interpolation: Any) -> Any:
        # pictures are resized by PIL, which always antialiases; masks are tensors
        return real.resize(image, size, interpolation, antialias=RULES[rule] or not torch.is_tensor(image))

    transform.F = SimpleNamespace(resize=resize, pad=real.pad)
    dataset = data.COCOPanopticDataset(
        str(folder / "annotations/panoptic_val2017.json"),
        [transform.det_image_transform(side, is_train=False), lambda crop: torch.zeros(3, 32, 32)],
        str(folder / "val2017"),
        str(folder / "classes.npy"),
        str(folder / "annotations/panoptic_val2017"),
        crop_size=32,
        downsample_factor=TINY[VARIANT].patch,
    )
    recorder = Recorder()
    args = SimpleNamespace(
        device="cpu", precision="fp32", distributed=False, horovod=False, extract_type="v2", image_ave_pool=False
    )
    args.rank, args.local_rank, args.log_local = 0, 0, False
    found = run(recorder, DataLoader(dataset, batch_size=1), args)
    rois, _, masks, _, _, _, _, thing, labels = found
    arrays = {key: torch.cat(values).numpy() for key, values in recorder.kept.items()}
    arrays |= {"labels": labels.numpy(), "thing": thing.numpy() > 0}
    for what, correct in (("boxes", rois), ("masks", masks)):
        arrays[f"{what}_correct"] = torch.stack([correct[:, 0], correct.sum(1)], 1).numpy().astype(bool)
        for key, value in macc_with_is_thing(correct, thing, labels, what).items():
            arrays[f"macc/{key}"] = np.array(value)
    transform.F = real
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="clone of github.com/wusize/CLIPSelf")
    parser.add_argument("--out", type=Path, default=GOLDEN, help="folder for the file")
    args = parser.parse_args()
    commit = subprocess.check_output(["git", "-C", args.checkout, "rev-parse", "HEAD"], text=True).strip()
    stand_in_for_panopticapi()
    sys.path.insert(0, str(args.checkout.resolve() / "src"))
    torch.set_num_threads(1)
    arrays: dict[str, Any] = {"commit": np.array(commit), "torch": np.array(torch.__version__)}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        write_sample(folder)
        np.save(folder / "classes.npy", np.ones((133, TINY[VARIANT].joint), np.float32))
        first = evaluate(folder, SIDES[0], "plain")
        arrays["embeddings"] = informed(first["boxes"], first["labels"])
        np.save(folder / "classes.npy", arrays["embeddings"])
        for side in SIDES:
            for rule in RULES:
                arrays |= {f"{side}/{rule}/{key}": value for key, value in evaluate(folder, side, rule).items()}
    for side in SIDES:  # the same under both rules
        for key in ("boxes", "boxes_correct", "labels", "thing"):
            assert np.array_equal(arrays[f"{side}/plain/{key}"], arrays.pop(f"{side}/antialias/{key}"))
    np.savez_compressed(args.out / "clipself_regions.npz", **arrays)


if __name__ == "__main__":
    main()
