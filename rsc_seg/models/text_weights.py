"""Weights of text towers: open_clip's release, the text part of a CLIP file, or random."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from torch import Tensor

from rsc_seg.errors import UserError, suggestion
from rsc_seg.models.checkpoint_files import OPEN_CLIP_FILES, read_checkpoint, weights_file
from rsc_seg.models.clip_formats import text_state
from rsc_seg.models.official_weights import from_hub, torch_hub_file
from rsc_seg.models.registry import REGISTRY, BackboneRow, find_backbone
from rsc_seg.models.stated_facts import stated_facts
from rsc_seg.models.text import TextShape, TextTower, text_shape
from rsc_seg.models.weight_formats import check_shapes, to_timm_names
from rsc_seg.models.weights_info import read_sidecar

log = logging.getLogger(__name__)

NAMED = ("official", "none")
_LOGIT_SCALE = "logit_scale"


def find_official_text(row: BackboneRow) -> Path:
    """A local file of the whole CLIP that open_clip releases for `row`.

    That is torch.hub's copy of the release's own file, the hub's cached copy of open_clip's, or a download. Raises
    UserError within seconds when there is none and the hub does not answer; it says which file to fetch.
    """
    release = open_clip.get_pretrained_cfg(row.text_id, row.text_tag) if row.text_id else {}
    if not release:
        raise UserError(f"backbone '{row.name}' has no official text weights; use 'none' or a file.")
    repository = str(release["hf_hub"]).strip("/")
    local = torch_hub_file(row)
    if local is not None and local.is_file():
        log.info("text weights of %s: %s", row.name, local)
        return local
    # open_clip's own loader, which looks for these names in the same order
    found, reason = from_hub(repository, OPEN_CLIP_FILES, lambda: open_clip.download_pretrained(dict(release)))
    if found is None:
        raise UserError(
            f"text weights of {row.name} are not on this machine and cannot be fetched ({reason}): download "
            f"{' or '.join(OPEN_CLIP_FILES)} of {huggingface_hub.constants.ENDPOINT}/{repository} elsewhere, or the "
            f"release's own {row.official_file}, and give the path of that file."
        )
    log.info("text weights of %s: %s", row.name, found)
    return found


def fit_text_state(state: Mapping[str, Tensor], shape: TextShape, where: str) -> dict[str, Tensor]:
    """`state`, in open_clip's names, as float32 under the names of `TextTower`, in their order.

    A file without `logit_scale` gets CLIP's initial one, with a warning. Raises UserError beginning with `where` when
    keys or shapes are not those of `shape`, naming up to three, or when values are not finite.
    """
    with torch.device("meta"):
        wanted = {key.removeprefix("text."): tuple(v.shape) for key, v in TextTower(shape).state_dict().items()}
    held = dict(state)
    if _LOGIT_SCALE not in held:
        log.warning("%s: holds no logit_scale; the value at which CLIP starts to train is taken", where)
        held[_LOGIT_SCALE] = torch.tensor(1 / 0.07).log()
    held[_LOGIT_SCALE] = held[_LOGIT_SCALE].reshape(-1)[:1].squeeze()  # some files keep it with one dimension
    wrong = [f"lacks {key}" for key in wanted if key not in held]
    wrong += [f"has unknown {key}" for key in held if key not in wanted]
    wrong += [
        f"{key} is {tuple(held[key].shape)}, must be {size}"
        for key, size in wanted.items()
        if key in held and tuple(held[key].shape) != size
    ]
    if wrong:
        few = "; ".join(wrong[:3]) + ("; ..." if len(wrong) > 3 else "")
        raise UserError(f"{where}: not the text tower of {shape.name}: {few}; choose the backbone of this file.")
    result = {key: held[key].detach().to("cpu", torch.float32).contiguous() for key in wanted}
    broken = [key for key, value in result.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{where}: values of the text tower are not finite in {', '.join(broken[:3])}; use another file."
        )
    return {key if key == _LOGIT_SCALE else f"text.{key}": value for key, value in result.items()}


def _tells_activation(file: Path, row: BackboneRow) -> bool:
    """Whether the sidecar, the file or a config beside it tells the activation, which must then be the row's.

    A text tower's activation is that of its CLIP.
    """
    facts, info = stated_facts(file), read_sidecar(file, row)
    if facts is None or facts.activation in (None, row.activation):
        return info is not None or (facts is not None and facts.activation is not None)
    fits = [r.name for r in REGISTRY.values() if (r.joint_dim, r.activation) == (row.joint_dim, facts.activation)]
    advice = f"choose {' or '.join(fits[:4])}" if fits else "no known backbone runs it"
    raise UserError(
        f"{file}: a CLIP with activation '{facts.activation}' ({facts.source} says so), backbone '{row.name}' runs "
        f"'{row.activation}': {advice}."
    )


def _check_image_tower(content: Any, row: BackboneRow, where: str) -> bool:
    """Whether the file holds an image tower, which must then be the row's: text towers of several CLIPs look alike."""
    state = to_timm_names(content, where)
    if "cls_token" not in state:
        return False
    check_shapes(state, row, where)
    return True


def _read_text(path: Path, row: BackboneRow, shape: TextShape, *, official: bool) -> dict[str, Tensor]:
    path = weights_file(path)
    told = _tells_activation(path, row)
    content = read_checkpoint(path)
    state = text_state(content, str(path))
    if state is None:
        raise UserError(
            f"{path}: holds no text tower: give the file of the whole CLIP that this encoder comes from, or 'official'."
        )
    fitted = fit_text_state(state, shape, str(path))
    has_image = _check_image_tower(content, row, str(path))
    # the text towers beside SwiGLU image towers, which shapes do show, are all GELU
    if not (told or official or (has_image and row.activation == "swiglu")):
        log.warning(
            "%s: nothing tells the activation of its text tower (which shapes cannot show); '%s' is taken, as %s has",
            path,
            shape.activation,
            row.name,
        )
    return fitted


def build_text_tower(
    name: str, weights: str | Path = "official", *, seed: int = 0, device: torch.device | str = "cpu"
) -> TextTower:
    """The text tower of the backbone `name` on `device`, float32, in eval mode, all parameters frozen.

    `weights` is `official` (open_clip's release), `none` (random from `seed`, with a loud warning; the global random
    state is left as it was) or a file of a whole CLIP. No image tower is built. To tune it, set `requires_grad` on the
    parameters of `tower.text`. Raises UserError for a backbone without text, and weights that cannot be had or do not
    fit: among them files whose sidecar, activation or image tower is another CLIP's than `name`.
    """
    row = find_backbone(name)
    shape = text_shape(row)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TextTower(shape)
    if weights == "none":
        log.warning("RANDOM TEXT WEIGHTS in %s: NOTHING WAS LOADED, every class embedding is MEANINGLESS", name)
    else:
        path = find_official_text(row) if weights == "official" else Path(weights).expanduser()
        if not path.exists() and not path.suffix and path.name == str(weights):
            raise UserError(
                f"text weights '{weights}': neither {', '.join(NAMED)} nor a file.{suggestion(str(weights), NAMED)}"
            )
        tower.load_state_dict(_read_text(path, row, shape, official=weights == "official"), strict=True)
    return tower.to(device).eval().requires_grad_(False)
