"""What an ONNX graph is allowed to contain, told from its bytes alone.

A graph can name native code (operators of a foreign domain, blobs in EPContext nodes) and files
anywhere on the machine (external data). Tools that scan models do not look at either.
"""

from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]  # it publishes none
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
"""The operators that onnxruntime itself implements."""


def _parts(message: Message) -> Iterator[Message]:
    """The message and everything inside it, subgraphs and functions included."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _parts(part)


def _tensor_problem(tensor: Any, files: Collection[str]) -> str | None:
    for entry in tensor.external_data:
        if entry.key == "location" and entry.value not in files:
            return f"keeps the tensor '{tensor.name}' in '{entry.value}', which is not a file of the folder"
    return None


def graph_problem(data: bytes, files: Collection[str]) -> str | None:
    """Say what is wrong with a graph, or None.

    Args:
        data: the serialised model, without its external data.
        files: the names that external data may have.
    """
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        return "is not an ONNX model"
    for part in _parts(model):
        if (
            isinstance(part, NodeProto | FunctionProto | OperatorSetIdProto)
            and part.domain not in DOMAINS
        ):
            return f"uses the operator domain '{part.domain}'"
        if isinstance(part, NodeProto) and part.op_type == "EPContext":
            return f"has an EPContext node, '{part.name}', which embeds native code"
        if isinstance(part, TensorProto):
            problem = _tensor_problem(part, files)
            if problem:
                return problem
    return None
