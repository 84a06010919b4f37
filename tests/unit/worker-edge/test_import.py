import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fusewire_worker_edge.folder import ModelFolderError, read_manifest
from fusewire_worker_edge.importers import ModelImportError, convert
from fusewire_worker_edge.importers.convert import import_gguf
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.graph import write_graph
from fusewire_worker_edge.importers.reference import divergence

MakeGguf = Callable[..., Path]

VARIANTS: dict[str, dict[str, Any]] = {
    "q4_1 with a tied q8_0 embedding": {},
    "q4_0": {"types": {"": "Q4_0"}},
    "q8_0": {"types": {"": "Q8_0"}},
    "q4_1 throughout": {"types": {"": "Q4_1"}},
    "an output of its own": {"tied": False},
    "q, k and v of different types": {"types": {"attn_v": "Q8_0", "attn_k": "F16", "": "Q4_0"}},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_graph_computes_what_the_file_says(make_gguf: MakeGguf, tmp_path: Path, options: dict[str, Any]) -> None:
    manifest = import_gguf(make_gguf(**options), tmp_path / "model")
    # Rounding activations to int8 costs about this much; the next test shows what a wrong graph costs.
    assert manifest.fidelity.kl < 0.005
    assert manifest.fidelity.tokens > 30


@pytest.mark.parametrize("kind", ["F16", "F32"])
def test_without_quantisation_the_graph_is_exact(make_gguf: MakeGguf, tmp_path: Path, kind: str) -> None:
    fidelity = import_gguf(make_gguf({"": kind}), tmp_path / "model").fidelity
    assert fidelity.kl < 1e-9
    assert fidelity.top1 == 1


def test_a_conversion_that_computes_something_else_is_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = write_graph

    def without_rotation(source: GgufFile, folder: Path) -> None:
        honest(source, folder)
        graph = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(graph.replace(b"rotary_interleaved\x18\x01", b"rotary_interleaved\x18\x00"))

    monkeypatch.setattr(convert, "write_graph", without_rotation)
    with pytest.raises(ModelImportError, match="computes something else"):
        import_gguf(tiny_gguf, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == [".model.build.lock"]


def test_the_folder_says_what_it_is(tiny_folder: Path, tiny_gguf: Path) -> None:
    manifest = read_manifest(tiny_folder)
    assert manifest.source.name == "tiny.gguf"
    assert manifest.quantisation == {"F32": 5, "Q4_1": 14, "Q8_0": 1}
    assert manifest.end_tokens == (2, 0)
    assert set(manifest.files) == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    decoder = json.loads((tiny_folder / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_hidden_layers"], decoder["num_key_value_heads"]) == (16, 2, 2)


def test_two_imports_of_one_file_are_the_same(tiny_folder: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    assert import_gguf(tiny_gguf, tmp_path / "tiny") == read_manifest(tiny_folder)


def test_an_import_does_not_overwrite(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelFolderError, match="something already"):
        import_gguf(tiny_gguf, tmp_path / "model")


def test_what_a_killed_import_left_is_cleared_away(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.onnx.data").write_bytes(b"half")
    import_gguf(tiny_gguf, tmp_path / "model")
    assert not (tmp_path / ".model.partial").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"metadata": {"architecture": "qwen2"}}, "architecture 'qwen2'"),
    "a quantisation that is not known": ({"types": {"ffn_down": "Q6_K"}}, r"Q6_K.*blk\.0\.ffn_down\.weight"),
    "a tensor too many": ({"add": "blk.0.attn_q.bias"}, r"no place.*blk\.0\.attn_q\.bias"),
    "a tensor too few": ({"drop": "blk.1.ffn_up"}, r"'blk\.1\.ffn_up\.weight' is missing"),
    "scaled rotation": ({"metadata": {"rope_scaling": "yarn"}}, "rope scaling 'yarn'"),
    "another tokenizer": ({"metadata": {"tokenizer": "llama"}}, "tokenizer 'llama'"),
    "another pre-tokenizer": ({"metadata": {"pre": "tekken"}}, "pre-tokenizer 'tekken'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_converted_is_named(
    make_gguf: MakeGguf, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelImportError, match=message):
        import_gguf(make_gguf(**options), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000, 20_000])
def test_a_file_that_is_not_whole_is_refused(tiny_gguf: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelImportError, match=r"cut\.gguf is not a whole GGUF file"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "model")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=r"none\.gguf cannot be read: No such file"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "model")


def test_a_begin_token_is_written_where_the_model_wants_one(make_gguf: MakeGguf, tmp_path: Path) -> None:
    import_gguf(make_gguf(metadata={"add_bos": True}), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("a").ids == [1, *tokenizer.encode("a", add_special_tokens=False).ids]


def test_divergence_of_equal_logits_is_zero() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    found = divergence(logits, logits + 5)
    assert (found.tokens, found.top1) == (3, 1)
    assert found.kl == pytest.approx(0, abs=1e-7)
