"""Refiners on disk: the head and the MLPs only, with a sidecar that says which encoder they belong to."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file

from rsc_seg.config import RefinerConfig
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write_group
from rsc_seg.models.digest import module_digest
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.safetensors_file import save_tensors


def _encoder_facts(encoder: DenseEncoder) -> dict[str, Any]:
    return {
        "backbone": encoder.name,
        "depth": encoder.depth,
        "activation": encoder.row.activation,
        "position_rule": encoder.position_rule,
        "last_block": encoder.last_block,
    }


def save_refiner(
    path: Path, refiner: Refiner, config: RefinerConfig, encoder: DenseEncoder, training: dict[str, Any]
) -> None:
    """Writes `X.safetensors` and `X.json`, both whole or neither; UserError when the system refuses."""
    sidecar = {
        "kind": "refiner",
        "encoder": {**_encoder_facts(encoder), "weights": module_digest(encoder)},
        "refiner": dataclasses.asdict(config),
        "training": training,
    }
    text = json.dumps(sidecar, indent=2) + "\n"
    atomic_write_group(
        {
            path.with_suffix(".json"): lambda p: p.write_text(text, encoding="utf-8"),
            path: lambda p: save_tensors(p, refiner.state_dict()),
        }
    )


def load_refiner(path: Path, encoder: DenseEncoder) -> tuple[Refiner, dict[str, Any]]:
    """The frozen Refiner of a file for `encoder`, with the sidecar's content.

    Raises UserError for a missing or damaged file, or one that was trained on another encoder or other weights of it.
    """
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise UserError(
            f"{path}: no Refiner here (it needs {path.name} and {path.with_suffix('.json').name}); "
            "run --stage refiner first."
        )
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        facts, options = dict(sidecar["encoder"]), dict(sidecar["refiner"])
        tensors = load_file(path)
    except (ValueError, KeyError, TypeError, SafetensorError) as e:
        raise UserError(f"{path}: damaged or not a Refiner ({str(e).splitlines()[0]}).") from e
    for key, value in _encoder_facts(encoder).items():
        if facts.get(key) != value:
            raise UserError(f"{path}: trained with {key}={facts.get(key)}, this encoder has {key}={value}.")
    if facts.get("weights") != module_digest(encoder):
        raise UserError(
            f"{path}: trained on other encoder weights than these; give those it started from (backbone.weights), "
            "or train a Refiner on these."
        )
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RefinerConfig), options))
        refiner = Refiner(encoder, cast(RefinerConfig, config))
        refiner.load_state_dict(tensors, strict=True)
    except (RuntimeError, ValueError, OmegaConfBaseException) as e:
        raise UserError(f"{path}: does not fit its own description ({str(e).splitlines()[0]}).") from e
    return refiner.eval().requires_grad_(False), sidecar
