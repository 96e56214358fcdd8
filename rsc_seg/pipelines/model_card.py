"""A model card from what is known about a tuned encoder: its sidecar and, where there is one, its measure."""

import json
from typing import Any, Optional

from rsc_seg.models.registry import BackboneRow
from rsc_seg.models.weights_info import WeightsInfo
from rsc_seg.probe.table import table_cells

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


def _front_matter(row: BackboneRow, info: WeightsInfo, library: str) -> str:
    tags = ["dense-features", "self-distillation", "rsc-seg"]
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
    return _pipes(["property", "value"], [list(row) for row in rows])


def _pipes(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _training(info: WeightsInfo) -> str:
    t = info.training
    if not t:
        return "Nothing is recorded about the training of these weights."
    known = [(key, t[key]) for key in ("data", "images", "seed", "alpha", "target", "commit") if key in t]
    table = _pipes(["", ""], [[key, f"`{value}`"] for key, value in known])
    command = f"\n\n    {t['command']}" if "command" in t else ""
    return f"{table}{command}"


def _measured(result: Optional[dict[str, Any]]) -> str:
    if result is None:
        return "Not measured."
    header, rows = table_cells(result)
    notes = [f"- {row['name']}: {row['note']}" for row in result["rows"] if row["note"]]
    facts = f"Data `{result['data']}`, {result['train_images']} training and {result['val_images']} validation images."
    return "\n".join(
        [_pipes(header, rows), "", facts, "Changes in brackets are against the first row.", *notes]
        + ["", f"    {result['command']}", "", f"Commit `{result['commit']}`."]
    )


def model_card(row: BackboneRow, info: WeightsInfo, *, library: str, result: Optional[dict[str, Any]] = None) -> str:
    """README.md of a repository that holds these weights in the layout of `library` (open_clip or timm).

    `result` is a measure of the run that made them (probe.json).
    """
    title = f"{info.backbone}, refined" if info.training else info.backbone
    parts = [
        _front_matter(row, info, library),
        f"# {title}",
        "An image encoder whose dense features were tuned by R-SC-V, the visual-only form of "
        '"Refining CLIP\'s Spatial Awareness" (ICLR 2025), with rsc-seg, an independent implementation.',
        *([f"**{info.note}**"] if info.note else []),
        "## Loading",
        _LOAD[library].replace("{size}", str(row.native_size)),
        "## Properties",
        _facts(info, row.mean, row.std),
        "## Training",
        _training(info),
        "## Measured",
        _measured(result),
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
