"""Fuzz what reads model files: a hostile one must be refused by name. `make fuzz`.

Coverage guides the changes (libFuzzer through atheris), from whole tiny files. An input that was
not refused as it should be is left in build/fuzz, with the traceback on the screen.
"""

from pathlib import Path

import atheris  # type: ignore[import-untyped]  # it publishes none
from fuzzing import Target, main

with atheris.instrument_imports(include=["fusewire_worker_edge"]):
    from fusewire_worker_edge.graph_check import graph_problem
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.importers.gguf import GgufFile
    from fusewire_worker_edge.importers.gguf_header import MAGIC
    from fusewire_worker_edge.importers.snapshot import Snapshot

from onnx import TensorProto, helper

from fusewire.testing.tiny_gguf import write_gguf
from fusewire.testing.tiny_snapshot import write_snapshot

GRAPH_FILES = {"model.onnx_data"}


def gguf(data: bytes, folder: Path) -> None:
    """A GGUF file: its header, and all of its tensors."""
    file = folder / "model.gguf"
    file.write_bytes(data if data[:4] == MAGIC else MAGIC + data)
    source = GgufFile(file)
    for name in source.names:
        source.floats(name)
        if columns := source.columns(name):
            source.matrix(name, columns)


def safetensors(data: bytes, folder: Path) -> None:
    """The weights of a snapshot that is whole but for them."""
    (folder / "model.safetensors").write_bytes(data)
    source = Snapshot(folder)
    for name in source.names:
        source.floats(name)


def config(data: bytes, folder: Path) -> None:
    """The configuration of a snapshot that is whole but for it."""
    (folder / "config.json").write_bytes(data)
    Snapshot(folder)


def onnx(data: bytes, folder: Path) -> None:
    """The check of an ONNX graph: a problem as a part of a sentence, or none."""
    problem = graph_problem(data, GRAPH_FILES)
    assert problem is None or problem.startswith(("is ", "uses ", "has ", "keeps "))


TARGETS: dict[str, Target] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "config": config,
    "onnx": onnx,
}


def _graph() -> bytes:
    """A small graph with what the check looks for: a subgraph, external data, domains."""
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [])
    weights = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="model.onnx_data")
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMulNBits", ["a"], ["b"], domain="com.microsoft", K=8),
    ]
    graph = helper.make_graph(nodes, "graph", [], [], initializer=[weights])
    return bytes(helper.make_model(graph).SerializeToString())


def seeds(name: str, folder: Path, corpus: Path) -> None:
    """Write whole inputs into `corpus`, and into `folder` what stands around them."""
    if name == "onnx":
        (corpus / "graph.onnx").write_bytes(_graph())
        return
    if name == "gguf":
        for architecture in ("llama", "qwen3", "gemma3"):
            path = corpus / f"{architecture}.gguf"
            write_gguf(
                path,
                {"": "Q8_0"},
                is_tied=True,
                metadata={"architecture": architecture},
                drop="",
                add="",
            )
        return
    for architecture in ("llama", "phi3", "gemma3"):
        write_snapshot(corpus.parent / architecture, architecture)
        for path in (corpus.parent / architecture).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
            if path.stem == name or path.suffix == f".{name}":
                (corpus / f"{architecture}{path.suffix}").write_bytes(path.read_bytes())


if __name__ == "__main__":
    main(TARGETS, (ModelImportError,), seeds)
