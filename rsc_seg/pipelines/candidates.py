"""The encoders of a comparison: the untuned one, its controls, and what a run made of it."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import load_refiner
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.probe.suite import ProbeRow

UNTUNED = "untuned, last layer"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An encoder to compare; the first one is the untuned one."""

    name: str
    encoder: DenseEncoder
    info: WeightsInfo
    note: str = ""


def encoder_candidate(name: str, encoder: DenseEncoder, device: torch.device, note: str = "") -> ProbeRow:
    """A plain encoder on `device`."""

    def norms(x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w"]:
        tokens = encoder.tokens(x.to(device))[:, encoder.num_prefix_tokens :]
        return tokens.float().norm(dim=-1).unflatten(1, encoder.grid(x.shape[-2], x.shape[-1]))

    return ProbeRow(name, lambda x: encoder.dense(x.to(device)), note, norm_fn=norms)


def layer_candidate(encoder: DenseEncoder, layer: int, device: torch.device, note: str) -> ProbeRow:
    """One earlier layer of an encoder through the final norm."""
    return ProbeRow(
        f"untuned, layer {layer} (best)", lambda x: encoder.intermediates(x.to(device), [layer], norm=True)[0], note
    )


def refiner_candidate(encoder: DenseEncoder, refiner: Refiner, device: torch.device) -> ProbeRow:
    """The Refiner with the whole image as its one region; of a pair, each half is a region."""

    def dense(x: Tensor) -> Tensor:
        return refiner.whole_image(refiner.early(encoder, x.to(device)))

    def pair(x: Tensor) -> Tensor:
        height, width = x.shape[-2], x.shape[-1] // 2
        halves = torch.tensor([[0.0, 0.0, width, height], [width, 0.0, 2 * width, height]], device=device)
        h, w = encoder.grid(height, width)
        tokens = refiner(refiner.early(encoder, x.to(device)), halves.expand(len(x), 2, 4), (h, w))
        # (2B, L, D) -> (B, D, h, 2w): halves side by side
        return tokens.unflatten(0, (len(x), 2)).unflatten(2, (h, w)).permute(0, 4, 2, 1, 3).flatten(3)

    return ProbeRow(
        "Refiner", dense, "the whole image as one region; of a pair, each image is a region of its own", pair
    )


def open_checkpoint(
    path: Path, name: str, config: BackboneConfig, device: torch.device
) -> tuple[DenseEncoder, WeightsInfo, str]:
    """A tuned encoder from a file, checked against the backbone of `config`, with its sidecar's facts and `name`, to
    which the blend is added."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint.")
    encoder, info = build_backbone(
        dataclasses.replace(config, weights=str(path), position_rule="auto", last_block="auto", depth=None), device
    )
    alpha = info.training.get("alpha")
    return encoder, info, name if alpha is None else f"{name}, alpha {alpha:g}"


def checkpoint_candidate(path: Path, name: str, config: BackboneConfig, device: torch.device) -> ProbeRow:
    """The row of a tuned encoder from a file."""
    encoder, _, name = open_checkpoint(path, name, config, device)
    return encoder_candidate(name, encoder, device)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File stems; `folder/stem` where stems repeat, and the whole path where that repeats too.

    Raises UserError for a file that is named twice.
    """
    whole = [str(path) for path in paths]
    if len(set(whole)) != len(whole):
        twice = next(name for name, count in Counter(whole).items() if count > 1)
        raise UserError(f"{twice}: named twice; name every file once.")
    names = [path.stem for path in paths]
    for longer in ([f"{path.parent.name}/{path.stem}" for path in paths], whole):
        count = Counter(names)
        names = [name if count[name] == 1 else more for name, more in zip(names, longer, strict=True)]
    return names


def open_candidates(
    config: BackboneConfig, checkpoints: Sequence[Path], device: torch.device, first: str = "untuned"
) -> list[Candidate]:
    """The untuned encoder under the name `first`, then the tuned ones from files, each under a name of its own."""
    encoder, info = build_backbone(config, device)
    found = [Candidate(first, encoder, info, shortened(encoder, config))]
    for path, name in zip(checkpoints, unique_names(checkpoints), strict=True):
        tuned, facts, named = open_checkpoint(path, name, config, device)
        note = "" if tuned.depth == encoder.depth else f"{tuned.depth} blocks, the untuned encoder has {encoder.depth}"
        found.append(Candidate(named, tuned, facts, note))
    names = [c.name for c in found]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two encoders would be called '{twice}'; rename the checkpoint's file.")
    return found


def checkpoint_candidates(paths: Sequence[Path], config: BackboneConfig, device: torch.device) -> list[ProbeRow]:
    """Tuned encoders from files, each under a name of its own."""
    return [
        checkpoint_candidate(path, name, config, device) for path, name in zip(paths, unique_names(paths), strict=True)
    ]


def run_candidates(folder: Path, config: BackboneConfig, encoder: DenseEncoder, device: torch.device) -> list[ProbeRow]:
    """What a run folder holds, in the order of the tables: SCD control, Refiner, student at alpha 1 and as exported."""
    found = []
    if (folder / "control.safetensors").is_file():
        found.append(checkpoint_candidate(folder / "control.safetensors", "SCD control", config, device))
    if (folder / "refiner.safetensors").is_file():
        found.append(
            refiner_candidate(encoder, load_refiner(folder / "refiner.safetensors", encoder)[0].to(device), device)
        )
    for file in ("student_alpha1.safetensors", "student.safetensors"):
        if (folder / file).is_file():
            found.append(checkpoint_candidate(folder / file, "student", config, device))
    names = [c.name for c in found]
    if not found:
        raise UserError(
            f"{folder}: no refiner.safetensors or student.safetensors here; train first or go on with --resume."
        )
    return [c for i, c in enumerate(found) if c.name not in names[:i]]  # alpha 1 exported as the default: one row


def untuned(config: BackboneConfig, device: torch.device) -> tuple[DenseEncoder, WeightsInfo, ProbeRow]:
    """The encoder that everything is compared with."""
    encoder, info = build_backbone(config, device)
    return encoder, info, encoder_candidate(UNTUNED, encoder, device, shortened(encoder, config))


def shortened(encoder: DenseEncoder, config: BackboneConfig) -> str:
    """`block 10 of 12 (backbone.depth=10)` for an encoder that keeps fewer blocks than its kind has, else nothing."""
    if encoder.depth == encoder.row.depth:
        return ""
    reason = f"backbone.depth={config.depth}" if config.depth else f"the weights hold {encoder.depth} blocks"
    return f"block {encoder.depth} of {encoder.row.depth} ({reason})"
