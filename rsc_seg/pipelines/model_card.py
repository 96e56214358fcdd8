"""A model card from what is known about a tuned encoder: its sidecar and, where there is one, its measure."""

import json
from dataclasses import dataclass
from typing import Any, Optional

from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.pipelines.objectives import OBJECTIVES, objective_title
from rsc_seg.probe.table import table_cells

_PAPER = '"Refining CLIP\'s Spatial Awareness" (ICLR 2025)'
_BY = "rsc-seg, an independent implementation"
# by `target` of the training facts: what stage 2 distilled from
_TUNED = {
    "refiner": "An image encoder whose dense features were tuned by R-SC-V, the visual-only form of "
    f"{_PAPER}, with {_BY}.",
    "teacher": "An image encoder whose dense features were tuned by distillation from its own start without a Refiner, "
    f"the control of R-SC-V, the visual-only form of {_PAPER}, with {_BY}.",
}
_RANDOM_TEXT = (
    "**RANDOM TEXT TOWER: nothing was loaded into it, so no class name or sentence means anything here. "
    "Only the image tower is of use.**"
)
_LOAD = {
    "open_clip": """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
```

`FOLDER` is this repository's local copy; `hf-hub:OWNER/NAME` loads it from the hub.""",
    "timm": """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
tokens = model.forward_features(images)
```

`FOLDER` is this repository's local copy; `hf-hub:OWNER/NAME` loads it from the hub. timm resamples position embeddings
by a rule of its own, so features are the same at {size}x{size} pixels only.""",
}


@dataclass(frozen=True)
class Measure:
    """What the card shows as measured."""

    result: Optional[dict[str, Any]]  # probe.json
    why_not: str = ""  # the reason, where there is no measure of these weights
    row: Optional[str] = None  # the row of `result` that is these weights, where that is known


def _front_matter(row: BackboneRow, info: WeightsInfo, library: str) -> str:
    tags = ["dense-features", *(["self-distillation"] if "target" in info.training else []), "rsc-seg"]
    lines = [
        "---",
        f"license: {_licence_tag(info.licence)}",
        f"library_name: {library}",
        "pipeline_tag: " + ("zero-shot-image-classification" if library == "open_clip" else "image-feature-extraction"),
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if info.training.get("start", info.source) == "official":
        lines.append(f"base_model: timm/{row.release}")
    return "\n".join([*lines, "---"])


def _licence_tag(licence: str) -> str:
    known = {"apache-2.0", "mit", "cc-by-nc-4.0", "apple-ascl"}
    return licence.lower() if licence.lower() in known else "other"


def _facts(info: WeightsInfo, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    rows = [
        ("backbone", f"`{info.backbone}`, {info.depth} blocks"),
        ("activation", f"`{info.activation}`"),
        ("position embeddings away from the native size", f"rule `{info.position_rule}`"),
        ("last block for dense features", f"`{info.last_block}`"),
        ("input normalisation", f"mean {list(mean)}, standard deviation {list(std)}"),
        ("started from", info.training.get("start", info.source)),
        ("licence of the weights", info.licence),
    ]
    if "initial" in info.training:
        rows.append(("blended with", f"{info.training['initial']}, alpha {info.training.get('alpha')}"))
    if "text" in info.training:
        rows.append(("text tower", info.training["text"]))
    return _pipes(["property", "value"], [list(row) for row in rows])


def _pipes(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _training(info: WeightsInfo) -> str:
    t = info.training
    known = [
        (key, t[key])
        for key in ("data", "images", "seed", "alpha", "objective", "lambda", "target", "commit")
        if key in t
    ]
    if not known and "command" not in t:
        return "Nothing is recorded about the training of these weights."
    table = _pipes(["", ""], [[key, f"`{value}`"] for key, value in known])
    command = f"\n\n    {t['command']}" if "command" in t else ""
    return f"{table}{command}"


def _exports(info: WeightsInfo) -> str:
    """The commands that wrote these files, the first export first."""
    made = [entry for entry in info.training.get("exports", []) if isinstance(entry, dict)]
    return "\n\n".join(f"    {entry.get('command')}\n\nCommit `{entry.get('commit')}`." for entry in made)


def _measured(measure: Measure) -> str:
    result = measure.result
    if result is None:
        return f"Not measured: {measure.why_not}." if measure.why_not else "Not measured."
    header, rows = table_cells(result)
    notes = [f"- {row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
    facts = f"Data `{result['data']}`, {result['train_images']} training and {result['val_images']} validation images."
    own = "It is not recorded which of these rows, if any, is this file."
    if measure.row is not None:
        own = f"The row of this file is `{measure.row}`."
    return "\n".join(
        [_pipes(header, rows), "", own, "", facts, "Changes in brackets are against the first row.", *notes]
        + ["", f"    {result['command']}", "", f"Commit `{result['commit']}`."]
    )


def _aligned(info: WeightsInfo) -> str:
    """The sentence of an objective with region-language alignment; nothing for others."""
    name = str(info.training.get("objective"))
    objective = OBJECTIVES.get(name)
    if objective is None or objective.kind is None:
        return ""
    whose = {"teacher": "its own start's", "refiner": "a Refiner's"}.get(str(info.training.get("target")))
    second = "alone" if whose is None else f"beside a distillation of {whose} spatial correlations"
    return (
        f"An image encoder whose regions were tuned by {objective_title(name)}, region-language alignment {second}, as "
        f"in {_PAPER}, with {_BY}."
    )


def _opening(info: WeightsInfo) -> str:
    """What these weights are, as far as their records say."""
    if _aligned(info):
        return _aligned(info)
    known = _TUNED.get(str(info.training.get("target")))
    if known is not None:
        return known
    if "command" in info.training or "alpha" in info.training:
        return f"An image encoder that was tuned by a method that its records do not name, written with {_BY}."
    return f"An image encoder without any record of tuning, written with {_BY}."


def model_card(row: BackboneRow, info: WeightsInfo, *, library: str, measure: Measure) -> str:
    """README.md of a repository that holds these weights in the layout of `library` (open_clip or timm)."""
    title = f"{info.backbone}, refined" if info.training.get("target") == "refiner" else info.backbone
    parts = [
        _front_matter(row, info, library),
        f"# {title}",
        _opening(info),
        *([f"**{info.note}**"] if info.note else []),
        *([_RANDOM_TEXT] if info.training.get("text") == "none" else []),
        "## Loading",
        _LOAD[library].replace("{size}", str(row.native_size)),
        "## Properties",
        _facts(info, row.mean, row.std),
        "## Training",
        _training(info),
        *(["## Export", _exports(info)] if _exports(info) else []),
        "## Measured",
        _measured(measure),
    ]
    return "\n\n".join(parts) + "\n"


def timm_hub_config(row: BackboneRow, depth: int) -> str:
    """config.json of timm's hub layout."""
    extra: dict[str, Any] = {key: value for key, value in row.timm_args.items()}
    config = {
        "architecture": row.timm_id,
        "num_classes": row.joint_dim or 0,
        "num_features": row.embed_dim,
        "global_pool": "token",
        "model_args": {"img_size": row.native_size, "global_pool": "token", **extra, "depth": depth},
        "pretrained_cfg": {
            "tag": "rsc_seg",
            "input_size": [3, row.native_size, row.native_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(row.mean),
            "std": list(row.std),
            "num_classes": row.joint_dim or 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    return json.dumps(config, indent=2) + "\n"
