"""What a weights file or the config beside it says about how its weights must be run, against the registry row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models.checkpoint_files import OPEN_CLIP_FILES, TRANSFORMERS_FILES, is_torchscript, torchscript_code
from rsc_seg.models.official_weights import release_row
from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.weight_formats import matching_backbones
from rsc_seg.models.weights_info import Triple, other_normalisation, triple

# What transformers assumes for a CLIP whose config does not say
_TRANSFORMERS_ACTIVATION = "quick_gelu"


@dataclass(frozen=True)
class StatedFacts:
    """None is what the source does not say."""

    source: str
    activation: Optional[str] = None  # gelu | quick_gelu | swiglu, or another name as it stands in the config
    mean: Optional[Triple] = None
    std: Optional[Triple] = None


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = values.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read as JSON ({e}); mend it or move the weights elsewhere.") from e
    return values if isinstance(values, Mapping) else {}


def _timm_activation(name: str) -> Optional[str]:
    """Of timm's architecture; a plain name says nothing, since timm keeps QuickGELU weights under it too."""
    if name.startswith("eva02"):
        return "swiglu"
    return "quick_gelu" if "quickgelu" in name else None


def _open_clip(file: Path) -> Optional[StatedFacts]:
    config = file.with_name("open_clip_config.json")
    values = _read_json(config)
    model, images = _section(values, "model_cfg"), _section(values, "preprocess_cfg")
    if not model:
        return None
    name = _section(model, "vision_cfg").get("timm_model_name")
    own = "quick_gelu" if model.get("quick_gelu") else "gelu"
    activation = _timm_activation(name) if isinstance(name, str) else own
    return StatedFacts(str(config), activation, triple(images.get("mean")), triple(images.get("std")))


def _transformers_or_timm(file: Path) -> Optional[StatedFacts]:
    config = file.with_name("config.json")
    values = _read_json(config)
    if isinstance(values.get("architecture"), str):
        images = _section(values, "pretrained_cfg")
        activation = _timm_activation(values["architecture"])
        return StatedFacts(str(config), activation, triple(images.get("mean")), triple(images.get("std")))
    if values.get("model_type") not in ("clip", "clip_vision_model"):
        return None
    vision = values
    if values["model_type"] == "clip":
        vision = {**_section(values, "vision_config"), **_section(values, "vision_config_dict")}
    images = _read_json(file.with_name("preprocessor_config.json"))
    return StatedFacts(
        str(config),
        str(vision.get("hidden_act", _TRANSFORMERS_ACTIVATION)),
        triple(images.get("image_mean")),
        triple(images.get("image_std")),
    )


def stated_facts(file: Path) -> Optional[StatedFacts]:
    """What is known about the weights in `file` besides its tensors; None when nothing is.

    A TorchScript archive says its activation by its code, a file with a hub's name by the config beside it (open_clip,
    transformers, timm), a released file by its name. Raises UserError for a config that is not JSON.
    """
    if file.suffix != ".safetensors" and is_torchscript(file):
        plain = "torch.gelu(" in torchscript_code(file)  # OpenAI's archives multiply by a sigmoid
        return StatedFacts("its code", "gelu" if plain else "quick_gelu")
    if file.name in OPEN_CLIP_FILES:
        return _open_clip(file)
    if file.name in TRANSFORMERS_FILES:
        return _transformers_or_timm(file)
    row = release_row(file.name)
    return None if row is None else StatedFacts(f"its name, that of the release of {row.name},", row.activation)


def check_stated(facts: Optional[StatedFacts], state: Mapping[str, Tensor], row: BackboneRow, file: Path) -> None:
    """UserError when the weights of `file` (`state`, in timm's names) are to be run otherwise than `row` runs.

    The message names the backbones of the same shapes that fit.
    """
    if facts is None:
        return
    if facts.activation is not None and facts.activation != row.activation:
        names = matching_backbones(state, facts.activation)
        advice = f"use --backbone {' or '.join(names)}" if names else "no known backbone runs it"
        raise UserError(
            f"{file}: these weights belong to activation '{facts.activation}' ({facts.source} says so), "
            f"backbone '{row.name}' runs '{row.activation}': {advice}."
        )
    other = other_normalisation(facts.mean, facts.std, row)
    if other is not None:
        key, stated, known = other
        raise UserError(
            f"{file}: {facts.source} normalises images with {key} {stated}, backbone '{row.name}' with {known}: "
            "choose the backbone that the weights belong to."
        )
