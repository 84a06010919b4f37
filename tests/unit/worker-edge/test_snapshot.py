"""Hugging Face snapshots and folders for onnxruntime-genai: converted, adopted, refused."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fusewire.testing.tiny_snapshot import CONFIGS, config_of, write_safetensors, write_snapshot
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.folder import MANIFEST, verify
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.convert import import_model
from fusewire_worker_edge.importers.reference import reference_logits
from fusewire_worker_edge.importers.snapshot import Snapshot
from fusewire_worker_edge.importers.source import ImportOptions

THEIRS = json.loads((Path(__file__).parent / "data" / "snapshot_logits.json").read_text())
"""The logits after the last of `IDS`, by transformers 5.24 (torch 2.13, float32)."""
IDS = list(range(10, 50))


def config_with(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    write_snapshot(tmp_path / "tiny", "llama")
    return tmp_path / "tiny"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_snapshot_is_read_as_transformers_reads_it(tmp_path: Path, architecture: str) -> None:
    write_snapshot(tmp_path / "tiny", architecture)
    ours = reference_logits(Snapshot(tmp_path / "tiny"), IDS)[-1]
    assert ours == pytest.approx(THEIRS[architecture][: len(ours)], abs=1e-3)
    # transformers has logits for rows of no token too.
    assert len(THEIRS[architecture]) == len(ours) + 4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_snapshot_is_converted(tmp_path: Path, architecture: str) -> None:
    write_snapshot(tmp_path / "tiny", architecture)
    manifest = import_model(tmp_path / "tiny", tmp_path / "model")
    assert manifest.fidelity is not None
    assert manifest.fidelity.kl < 0.03
    assert manifest.architecture == architecture
    assert manifest.quantisation == {"BF16": len(Snapshot(tmp_path / "tiny")._tensors)}
    assert (manifest.block_size, manifest.end_tokens) == (128, (2,))
    assert verify(tmp_path / "model") == manifest


def test_the_older_and_the_newer_words_for_a_rotation_mean_the_same(tmp_path: Path) -> None:
    logits = []
    for name in ("old", "new"):
        write_snapshot(tmp_path / name, "gemma3")
        if name == "new":
            whole = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
            local = {"rope_type": "default", "rope_theta": 10_000.0}
            kinds = [*["sliding_attention"] * 5, "full_attention"]
            changes = {
                "rope_theta": None,
                "rope_scaling": None,
                "rope_local_base_freq": None,
                "layer_types": kinds,
            }
            rope = {"full_attention": whole, "sliding_attention": local}
            config_with(tmp_path / name, **changes, rope_parameters=rope)
        logits.append(reference_logits(Snapshot(tmp_path / name), IDS))
    assert np.array_equal(logits[0], logits[1])


def test_a_snapshot_in_several_files_and_with_parts_that_see(tmp_path: Path) -> None:
    """As Gemma 3 of 4B and more comes."""
    write_snapshot(tmp_path / "text", "gemma3", kind="F32")
    write_snapshot(tmp_path / "tiny", "gemma3", kind="F32")
    plain = Snapshot(tmp_path / "text")
    config = config_of("gemma3")
    (tmp_path / "tiny" / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": config})
    )
    names = list(plain._tensors)
    tensors_list = [plain._tensors[name] for name in names]
    theirs = list(json.loads(_header(tmp_path / "text" / "model.safetensors")))
    (tmp_path / "tiny" / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for file, indices in (("a.safetensors", range(40)), ("b.safetensors", range(40, len(names)))):
        tensors = {f"language_model.{theirs[i]}": tensors_list[i].read() for i in indices}
        if file == "a.safetensors":
            tensors["vision_tower.patch.weight"] = np.ones((2, 2), np.float32)
        write_safetensors(tmp_path / "tiny" / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    (tmp_path / "tiny" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    multimodal = Snapshot(tmp_path / "tiny")
    assert multimodal.names == plain.names
    assert np.array_equal(reference_logits(multimodal, IDS), reference_logits(plain, IDS))


def _header(file: Path) -> bytes:
    data = file.read_bytes()
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


def test_four_bits_are_as_far_from_the_snapshot_as_they_say(snapshot: Path, tmp_path: Path) -> None:
    manifest = import_model(
        snapshot, tmp_path / "model", options=ImportOptions(block_size=32, bits=4)
    )
    assert manifest.fidelity is not None
    assert manifest.fidelity.kl > 0.03
    assert manifest.block_size == 32


def test_a_template_of_its_own_file_is_taken(snapshot: Path, tmp_path: Path) -> None:
    config = json.loads((snapshot / "tokenizer_config.json").read_text())
    (snapshot / "chat_template.jinja").write_text(config.pop("chat_template"))
    (snapshot / "tokenizer_config.json").write_text(json.dumps(config))
    manifest = import_model(snapshot, tmp_path / "model")
    assert len(manifest.golden.prompt_ids) > 10


def without_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    config_with(folder, eos_token_id=2)


def without_end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    config_with(folder, eos_token_id=None)


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])


def move_tensor(folder: Path) -> None:
    """A tensor that would reach back into the header."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(_header(folder / "model.safetensors"))
    first = next(iter(header))
    begin, end = header[first]["data_offsets"]
    header[first]["data_offsets"] = [begin - 8, end - 8]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_type(folder: Path) -> None:
    write_safetensors(
        folder / "model.safetensors", {"model.norm.weight": np.ones(4, np.float32)}, "F8_E4M3"
    )


def one_more(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../x.safetensors"}})
    )


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "another model": (
        lambda f: config_with(f, model_type="mamba"),
        "model_type 'mamba' cannot be converted; .*llama",
    ),
    "quantised": (lambda f: config_with(f, quantization_config={"bits": 4}), "quantised already"),
    "another activation": (lambda f: config_with(f, hidden_act="relu"), "activation 'relu'"),
    "another rotation": (
        lambda f: config_with(f, rope_scaling={"rope_type": "yarn"}),
        "rope scaling 'yarn'",
    ),
    "half a rotation": (
        lambda f: config_with(f, rope_scaling={"rope_type": "llama3"}),
        "not describe.*'factor'",
    ),
    "no number": (
        lambda f: config_with(f, hidden_size="64"),
        "'hidden_size' of config.json is '64'",
    ),
    "no size": (lambda f: config_with(f, num_hidden_layers=10_000), "'num_hidden_layers' is 10000"),
    "no heads": (lambda f: config_with(f, num_attention_heads=0), "'num_attention_heads' is 0"),
    "more layers than tensors": (
        lambda f: config_with(f, num_hidden_layers=3),
        r"'blk\.2\.attn_norm\.weight' is miss",
    ),
    "fewer layers": (
        lambda f: config_with(f, num_hidden_layers=1),
        r"no place in such a decoder.*'blk\.1",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "a tokenizer of nothing": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json cannot be used",
    ),
    "no template": (without_template, "no chat template.*take an instruct model"),
    "no end": (without_end, "which token ends an answer"),
    "an end that is no token": (
        lambda f: config_with(f, eos_token_id=5000),
        "eos_token_id is 5000",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "model.safetensors cannot be read",
    ),
    "weights of nothing": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "not a whole safetensors file",
    ),
    "weights cut off": (
        cut,
        "not a whole safetensors file: tensor 'model.layers.1.*' is not where it says",
    ),
    "weights in the header": (move_tensor, "not where it says"),
    "weights of another type": (change_type, "of type F8_E4M3; F32, F16, BF16 can"),
    "a file elsewhere": (one_more, "'../x.safetensors', which is not a file of the folder"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_snapshot_that_cannot_be_converted_is_refused_by_name(
    snapshot: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(snapshot)
    with pytest.raises(ModelImportError, match=message):
        import_model(snapshot, tmp_path / "model")
    assert not (tmp_path / "model").exists()


# -- folders of onnxruntime-genai's -----------------------------------------------------------


@pytest.fixture
def genai(tiny_folder: Path, tmp_path: Path) -> Path:
    """One as its builder makes it: ours is of the same form, but for the manifest."""
    shutil.copytree(tiny_folder, tmp_path / "genai")
    (tmp_path / "genai" / MANIFEST).unlink()
    return tmp_path / "genai"


def changed_graph(folder: Path, change: Callable[[Any], object]) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_folder_is_taken_over_as_it_is(genai: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (genai / "README.md").write_text("not read by the engine")
    manifest = import_model(genai, tmp_path / "model")
    original = verify(tiny_folder)
    assert manifest.golden == original.golden
    assert manifest.fidelity is None
    assert (manifest.layers, manifest.vocab_size, manifest.end_tokens) == (
        2,
        original.vocab_size,
        original.end_tokens,
    )
    assert manifest.quantisation == {"4 bits": 10, "8 bits": 1}
    assert verify(tmp_path / "model") == manifest
    assert "README.md" not in manifest.files
    assert Generator(tmp_path / "model", manifest).golden_agreement() == 1


BUILT = Path(__file__).parent / "data" / "genai-phi"
"""A tiny random Phi-4-mini, by onnxruntime-genai 0.18's own builder (-p int4 -e cpu)."""


def test_a_folder_of_the_builder_answers_as_onnxruntime_genai_does(tmp_path: Path) -> None:
    manifest = import_model(BUILT, tmp_path / "model")
    theirs = json.loads(BUILT.with_suffix(".expected.json").read_text())
    generator = Generator(tmp_path / "model", manifest)
    assert generator.greedy(theirs["prompt"], len(theirs["greedy"])) == theirs["greedy"]
    assert (manifest.architecture, manifest.end_tokens, manifest.block_size) == (
        "phi3",
        (258, 256),
        32,
    )
    # Beyond, its graph rotates by another table, for all sequences of a step.
    assert manifest.context_length == 256


def deciding(model: Any) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "Greater")
    node.op_type = "Less"


def test_a_graph_that_decides_by_something_else_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BUILT, tmp_path / "genai")
    changed_graph(tmp_path / "genai", deciding)
    with pytest.raises(
        ModelImportError, match="decides by '/model/rope_caches_subgraph/Greater/output_0'"
    ):
        import_model(tmp_path / "genai", tmp_path / "model")


def with_positions(model: Any) -> None:
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, ["b", "s"])
    )


def without_past(model: Any) -> None:
    del model.graph.output[-1]


def of_half(model: Any) -> None:
    model.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def add_window(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.attribute.append(onnx.helper.make_attribute("sliding_window_cache", 1))


def foreign(model: Any) -> None:
    model.graph.node[0].domain = "com.example"


def elsewhere(model: Any) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"


def of_the_length(model: Any) -> None:
    """What it computes depends on how many tokens it is given at once."""
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "plain_logits"
    make = onnx.helper.make_node
    model.graph.initializer.append(
        onnx.helper.make_tensor("second", onnx.TensorProto.INT64, [], [1])
    )
    model.graph.node.extend(
        [
            make("Shape", ["input_ids"], ["ids_shape"]),
            make("Gather", ["ids_shape", "second"], ["ids_length"]),
            make("Cast", ["ids_length"], ["ids_factor"], to=onnx.TensorProto.FLOAT),
            make("Mul", ["plain_logits", "ids_factor"], ["logits"]),
        ]
    )


GRAPHS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an input that is not given": (
        with_positions,
        "'position_ids', which this engine does not know",
    ),
    "no cache": (without_past, "no 'present.1.value'"),
    "another number": (
        of_half,
        r"'past_key_values.0.key'.*float16.*float\[.*build it with -p int4 -e cpu",
    ),
    "a window of the past": (add_window, "keeps a window of the past.*windowed_kv_cache=false"),
    "foreign code": (foreign, "operator domain 'com.example'"),
    "no memory of what was": (
        of_the_length,
        "does not compute the same token by token as it does at once",
    ),
    "data elsewhere": (elsewhere, "'../secret', which is not a file of the folder"),
}


@pytest.mark.parametrize(("change", "message"), GRAPHS.values(), ids=GRAPHS.keys())
def test_a_graph_that_the_engine_cannot_run_is_refused(
    genai: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    changed_graph(genai, change)
    with pytest.raises(ModelImportError, match=message):
        import_model(genai, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {}}, "does not describe a decoder: 'decoder'"),
        ({}, "does not describe a decoder: 'model'"),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    genai: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (genai / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelImportError, match=message):
        import_model(genai, tmp_path / "model")


def test_what_is_taken_as_it_is_is_not_rounded(genai: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelImportError, match="leave block size and bits out"):
        import_model(genai, tmp_path / "model", options=ImportOptions(bits=8))
