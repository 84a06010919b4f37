import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from tokenizers import Tokenizer

from fusewire_worker_edge.folder import ModelFolderError, read_manifest
from fusewire_worker_edge.importers import ModelImportError, convert
from fusewire_worker_edge.importers.convert import import_model
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.graph import write_graph
from fusewire_worker_edge.importers.reference import divergence
from fusewire_worker_edge.importers.repack import PackedMatrix
from fusewire_worker_edge.importers.source import EXACT, ImportOptions

MakeGguf = Callable[..., Path]

VARIANTS: dict[str, dict[str, Any]] = {
    "q4_1 with a tied q8_0 embedding": {},
    "q4_0": {"types": {"": "Q4_0"}},
    "q8_0": {"types": {"": "Q8_0"}},
    "q4_1 throughout": {"types": {"": "Q4_1"}},
    "an output of its own": {"tied": False},
    "q, k and v of different types": {"types": {"attn_v": "Q8_0", "attn_k": "F16", "": "Q4_0"}},
    "k-quants": {
        "types": {"ffn_down": "Q6_K", "": "Q4_K"},
        "metadata": {"hidden": 256},
        "tied": False,
    },
    "k-quants with a tied embedding": {
        "types": {"token_embd": "Q6_K", "": "Q4_K"},
        "metadata": {"hidden": 256},
    },
    "five bits": {"types": {"attn_v": "Q5_1", "": "Q5_0"}},
    "five bits of k-quants": {
        "types": {"ffn_down": "Q6_K", "": "Q5_K"},
        "metadata": {"hidden": 256},
        "tied": False,
    },
    "qwen2": {"metadata": {"architecture": "qwen2", "pre": "qwen2"}},
    "qwen3": {"metadata": {"architecture": "qwen3", "pre": "qwen2"}},
    "phi3": {"metadata": {"architecture": "phi3", "pre": "gpt-4o", "hidden": 128}},
    "gemma3": {"metadata": {"architecture": "gemma3", "tokenizer": "llama"}},
    "llama 3's factors of rotation": {"metadata": {"rope_factors": True, "pre": "llama-bpe"}},
    "sentencepiece": {"metadata": {"tokenizer": "llama"}},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_graph_computes_what_the_file_says(
    make_gguf: MakeGguf, tmp_path: Path, options: dict[str, Any]
) -> None:
    manifest = import_model(make_gguf(**options), tmp_path / "model", options=ImportOptions(EXACT))
    # Rounding activations to int8 costs about this much; the next test shows a wrong graph.
    assert manifest.fidelity is not None
    assert manifest.fidelity.kl < 0.02
    assert manifest.fidelity.tokens > 30


@pytest.mark.parametrize("kind", ["F16", "F32"])
def test_without_quantisation_the_graph_is_exact(
    make_gguf: MakeGguf, tmp_path: Path, kind: str
) -> None:
    fidelity = import_model(make_gguf({"": kind}), tmp_path / "model").fidelity
    assert fidelity is not None
    assert fidelity.kl < 1e-9
    assert fidelity.top1 == 1


def test_a_conversion_that_computes_something_else_is_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = write_graph

    def without_rotation(source: GgufFile, folder: Path) -> None:
        honest(source, folder)
        graph = (folder / "model.onnx").read_bytes()
        (folder / "model.onnx").write_bytes(
            graph.replace(b"rotary_interleaved\x18\x01", b"rotary_interleaved\x18\x00")
        )

    monkeypatch.setattr(convert, "write_graph", without_rotation)
    with pytest.raises(ModelImportError, match="computes something else"):
        import_model(tiny_gguf, tmp_path / "model")
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
    assert (decoder["head_size"], decoder["num_hidden_layers"], decoder["num_key_value_heads"]) == (
        16,
        2,
        2,
    )


def test_two_imports_of_one_file_are_the_same(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    assert import_model(tiny_gguf, tmp_path / "tiny") == read_manifest(tiny_folder)


def test_an_import_does_not_overwrite(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelFolderError, match="something already"):
        import_model(tiny_gguf, tmp_path / "model")


def test_what_a_killed_import_left_is_cleared_away(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model.onnx.data").write_bytes(b"half")
    import_model(tiny_gguf, tmp_path / "model")
    assert not (tmp_path / ".model.partial").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": (
        {"metadata": {"architecture": "mamba"}},
        "'mamba' cannot.*'llama', 'qwen2', 'qwen3', 'phi3' and 'gemma3' can",
    ),
    "a quantisation that is not known": (
        {"types": {"ffn_down": "TQ1_0"}, "metadata": {"hidden": 256}},
        r"TQ1_0.*blk\.0\.ffn_down\.weight",
    ),
    "no chat template": (
        {"metadata": {"template": ""}},
        "no chat template.*take an instruct model's file",
    ),
    "a tensor too many": (
        {"add": "blk.0.attn_sub_norm"},
        r"no place.*blk\.0\.attn_sub_norm\.weight",
    ),
    "a tensor too few": ({"drop": "blk.1.ffn_up"}, r"'blk\.1\.ffn_up\.weight' is missing"),
    "scaled rotation": ({"metadata": {"rope_scaling": "yarn"}}, "rope scaling 'yarn'"),
    "a rotation of half a block": (
        {"metadata": {"architecture": "phi3"}},
        r"rope.dimension_count. is 8: a multiple of 16",
    ),
    "another tokenizer": ({"metadata": {"tokenizer": "bert"}}, "tokenizer 'bert'"),
    "another pre-tokenizer": ({"metadata": {"pre": "bloom"}}, "pre-tokenizer 'bloom'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_converted_is_named(
    make_gguf: MakeGguf, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelImportError, match=message):
        import_model(make_gguf(**options), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("keep", [0, 100, 5000, 20_000])
def test_a_file_that_is_not_whole_is_refused(tiny_gguf: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelImportError, match=r"cut\.gguf is not a whole GGUF file"):
        import_model(tmp_path / "cut.gguf", tmp_path / "model")


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
HOSTILE = {
    "an array longer than the file": HEADER + struct.pack("<IIQ", 9, 0, 2**62),
    "an array of strings longer than the file": HEADER + struct.pack("<IIQ", 9, 8, 2**62),
    "a string longer than the file": HEADER + struct.pack("<IQ", 8, 2**63),
    "arrays within arrays": HEADER + struct.pack("<IIQ", 9, 9, 1),
    "an unknown type": HEADER + struct.pack("<I", 77),
    "another version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "another byte order": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "more pairs than there are": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "a huge tensor": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQQIQ", 2, 2**40, 2**20, 0, 0),
    "an empty tensor": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQIQ", 1, 0, 0, 0),
    "a tensor of an unknown type": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQIQ", 1, 32, 999, 0)
    + bytes(256),
    "a tensor of no whole blocks": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQIQ", 1, 33, 2, 0)
    + bytes(256),
    "a tensor beyond the end": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQIQ", 1, 32, 0, 2**40)
    + bytes(256),
    "two tensors of one name": b"GGUF"
    + struct.pack("<IQQ", 3, 2, 0)
    + 2 * (struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, 0, 0))
    + bytes(256),
    "a tensor that is not aligned": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<IQIQ", 1, 32, 0, 8)
    + bytes(256),
    "a text that is no UTF-8": HEADER + struct.pack("<IQ", 8, 1) + b"\xff",
    "too many dimensions": b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"t"
    + struct.pack("<I", 2**31),
    "no GGUF": b"PK\x03\x04" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_counts_that_reach_beyond_the_file_are_refused_at_once(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(ModelImportError, match=r"bad\.gguf is not a whole GGUF file"):
        GgufFile(tmp_path / "bad.gguf")


def test_an_id_that_is_no_token_is_refused(make_gguf: MakeGguf, tmp_path: Path) -> None:
    data = make_gguf().read_bytes()
    at = data.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    (tmp_path / "bad.gguf").write_bytes(data[:at] + b"\xff\xff\0\0" + data[at + 4 :])
    with pytest.raises(ModelImportError, match=r"eos_token_id' is 65535, and there are \d+ tokens"):
        GgufFile(tmp_path / "bad.gguf")


MISMADE = {
    "an odd alignment": ("general.alignment", 24, "alignment is 24"),
    "tokens that are no texts": ("tokenizer.ggml.tokens", [1, 2], "no list of texts"),
    "too few types of tokens": (
        "tokenizer.ggml.token_type",
        [1],
        "does not give each token a type",
    ),
    "no heads": ("llama.attention.head_count", 0, "is 0, where 1 to"),
    "more layers than any model": ("llama.block_count", 2**31, "where 1 to 1000 can be meant"),
    "a size that is a text": ("llama.embedding_length", "64", "no number"),
    "an epsilon that is no number": (
        "llama.attention.layer_norm_rms_epsilon",
        float("nan"),
        "no number",
    ),
}


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    """Write a metadata value with the type that fits it."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


@pytest.mark.parametrize(("key", "value", "message"), MISMADE.values(), ids=MISMADE.keys())
def test_metadata_that_no_model_has_is_refused(
    tiny_gguf: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    reader = GGUFReader(tiny_gguf)
    writer = GGUFWriter(tmp_path / "bad.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", key):
            sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelImportError, match=message):
        GgufFile(tmp_path / "bad.gguf")


def test_the_header_is_read_as_the_reference_reads_it(tiny_gguf: Path) -> None:
    ours, theirs = GgufFile(tiny_gguf), GGUFReader(tiny_gguf)

    expected = {
        name: field.contents()
        for name, field in theirs.fields.items()
        if not name.startswith("GGUF.")
    }
    assert ours.metadata == expected
    assert ours.names == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        assert np.array_equal(
            ours.floats(tensor.name), dequantize(tensor.data, tensor.tensor_type)
        ), tensor.name


def test_what_has_four_bits_is_kept_and_the_rest_is_rounded_to_eight(
    make_gguf: MakeGguf, tmp_path: Path
) -> None:
    path = make_gguf({"ffn_down": "Q6_K", "": "Q4_K"}, metadata={"hidden": 256}, tied=False)
    source = GgufFile(path)
    down, up = (
        source.matrix("blk.0.ffn_down.weight", 512),
        source.matrix("blk.0.ffn_up.weight", 256),
    )

    assert isinstance(down, PackedMatrix)
    assert isinstance(up, PackedMatrix)
    assert (down.bits, down.block_size, up.bits, up.block_size) == (8, 128, 4, 32)
    exact = source.floats("blk.0.ffn_down.weight")
    assert np.sqrt(np.mean((down.dequantize() - exact) ** 2) / np.mean(exact**2)) < 0.01
    assert np.allclose(up.dequantize(), source.floats("blk.0.ffn_up.weight"), atol=1e-6)


def test_tokens_that_only_fill_up_the_vocabulary_are_left_out(
    make_gguf: MakeGguf, tmp_path: Path
) -> None:
    manifest = import_model(make_gguf(metadata={"fillers": 9}), tmp_path / "model")
    plain = import_model(make_gguf(), tmp_path / "plain")

    assert manifest.vocab_size == plain.vocab_size
    assert manifest.fidelity is not None
    assert manifest.fidelity.kl < 0.05


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match=r"none\.gguf cannot be read: No such file"):
        import_model(tmp_path / "none.gguf", tmp_path / "model")


def test_a_begin_token_is_written_where_the_model_wants_one(
    make_gguf: MakeGguf, tmp_path: Path
) -> None:
    import_model(make_gguf(metadata={"add_bos": True}), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    assert tokenizer.encode("a").ids == [1, *tokenizer.encode("a", add_special_tokens=False).ids]


BLOCKS: dict[str, tuple[dict[str, Any], ImportOptions, int]] = {
    "quantised, in larger blocks": ({"metadata": {"hidden": 256}}, ImportOptions(128), 128),
    "k-quants, in larger blocks": (
        {"types": {"ffn_down": "Q6_K", "": "Q4_K"}, "metadata": {"hidden": 256}, "tied": False},
        ImportOptions(128),
        128,
    ),
    "halves, to four bits": ({"types": {"": "F16"}}, ImportOptions(32, 4), 32),
    "halves, to eight bits": ({"types": {"": "F16"}}, ImportOptions(128, 8), 128),
}


@pytest.mark.parametrize(("file_options", "options", "size"), BLOCKS.values(), ids=BLOCKS.keys())
def test_rounding_anew_computes_what_is_stored(
    make_gguf: MakeGguf,
    tmp_path: Path,
    file_options: dict[str, Any],
    options: ImportOptions,
    size: int,
) -> None:
    manifest = import_model(make_gguf(**file_options), tmp_path / "model", options=options)
    graph = onnx.load(tmp_path / "model" / "model.onnx", load_external_data=False).graph
    sizes = set()
    for node in graph.node:
        sizes |= {attribute.i for attribute in node.attribute if attribute.name == "block_size"}

    # A row that is no multiple of 128 has smaller blocks.
    assert max(sizes) == size
    assert manifest.block_size == options.block_size
    # A wrong graph would have been refused; random weights round far worse than a trained model's.
    assert manifest.fidelity is not None
    assert (manifest.fidelity.kl < 0.02) == (options.bits == 8)


def test_sentencepiece_spells_what_it_has_no_piece_for_in_bytes(
    make_gguf: MakeGguf, tmp_path: Path
) -> None:
    import_model(make_gguf(metadata={"tokenizer": "llama"}), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    ids = tokenizer.encode("the hé", add_special_tokens=False)

    assert ids.tokens == ["\u2581the", "\u2581", "h", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids.ids) == "the hé"


def test_divergence_of_equal_logits_is_zero() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    equal = divergence(logits, logits + 5)
    assert (equal.tokens, equal.top1) == (3, 1)
    assert equal.kl == pytest.approx(0, abs=1e-7)
