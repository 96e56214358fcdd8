"""Weights and node names out of an ONNX file, by walking the few protobuf fields needed; no ONNX package takes part."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Field numbers of onnx.proto
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OP = 1, 3, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_FLOAT32 = 1


@dataclass(frozen=True)
class OnnxNode:
    """One operation: its name in the graph, its kind and the names of its inputs."""

    name: str
    op: str
    inputs: tuple[str, ...]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("an integer runs past the end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not part of ONNX")
        if at + size > len(data):
            raise ValueError("a field runs past the end")
        yield number, data[at : at + size]
        at += size


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer stands where bytes belong")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")


def _tensor(data: memoryview) -> tuple[str, Tensor | None]:
    dims: list[int] = []
    name, kind = "", 0
    content: memoryview | None = None
    for number, value in _fields(data):
        if number == _TENSOR_DIMS and isinstance(value, int):
            dims.append(value)
        elif number == _TENSOR_DIMS:
            packed, at = _bytes(value), 0
            while at < len(packed):
                size, at = _varint(packed, at)
                dims.append(size)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number in (_TENSOR_FLOATS, _TENSOR_RAW):
            content = _bytes(value)
    if kind != _FLOAT32:
        return name, None
    values = np.frombuffer(content if content is not None else b"", dtype="<f4").reshape(dims)
    return name, torch.from_numpy(values.astype(np.float32, copy=True))


def _node(data: memoryview) -> OnnxNode:
    name = op = ""
    inputs: list[str] = []
    for number, value in _fields(data):
        if number == _NODE_INPUT:
            inputs.append(_text(value))
        elif number == _NODE_NAME:
            name = _text(value)
        elif number == _NODE_OP:
            op = _text(value)
    return OnnxNode(name, op, tuple(inputs))


def read_graph(data: bytes) -> tuple[dict[str, Tensor], list[OnnxNode]]:
    """Float32 initialisers by name, and the nodes in order, of a serialised ONNX model.

    Initialisers of other types are left out. Floats are read as raw bytes or as one packed field, as exporters write.
    Raises ValueError when the bytes are not such a model.
    """
    tensors: dict[str, Tensor] = {}
    nodes: list[OnnxNode] = []
    for number, graph in _fields(memoryview(data)):
        if number != _MODEL_GRAPH:
            continue
        for part, value in _fields(_bytes(graph)):
            if part == _GRAPH_INITIALIZER:
                name, tensor = _tensor(_bytes(value))
                if tensor is not None:
                    tensors[name] = tensor
            elif part == _GRAPH_NODE:
                nodes.append(_node(_bytes(value)))
    return tensors, nodes
