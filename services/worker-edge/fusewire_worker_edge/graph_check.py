"""Check that an ONNX graph contains nothing dangerous, from its bytes alone.

A graph can name native code (operators of a foreign domain, blobs in EPContext nodes) and files
anywhere on the machine (external data). Tools that scan models check neither.
"""

from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]  # it publishes none
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
"""The domains of the operators that onnxruntime itself implements."""


def _parts(message: Message) -> Iterator[Message]:
    """Yield a message and all messages inside it, those of subgraphs and functions too."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        parts = [value] if isinstance(value, Message) else value
        for part in parts:
            yield from _parts(part)


def _tensor_problem(tensor: Any, files: Collection[str]) -> str | None:
    for entry in tensor.external_data:
        if entry.key == "location" and entry.value not in files:
            return (
                f"keeps the tensor '{tensor.name}' in '{entry.value}',"
                " which is not a file of the folder"
            )
    return None


def _part_problem(part: Message, files: Collection[str]) -> str | None:
    has_domain = isinstance(part, NodeProto | FunctionProto | OperatorSetIdProto)
    if has_domain and part.domain not in DOMAINS:
        return f"uses the operator domain '{part.domain}'"
    if isinstance(part, NodeProto) and part.op_type == "EPContext":
        return f"has an EPContext node, '{part.name}', which embeds native code"
    if isinstance(part, TensorProto):
        return _tensor_problem(part, files)
    return None


def graph_problem(data: bytes, files: Collection[str]) -> str | None:
    """Return the first problem of a graph, as the rest of a sentence about it, or None.

    Args:
        data: the serialised model, without its external data.
        files: the names of the files that external data may be in.
    """
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        return "is not an ONNX model"
    for part in _parts(model):
        problem = _part_problem(part, files)
        if problem:
            return problem
    return None
