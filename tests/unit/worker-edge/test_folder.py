import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from fusewire_worker_edge.folder import ModelFolderError, hash_file, list_models, main, verify
from fusewire_worker_edge.graph_check import graph_problem


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "models" / "tiny"))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files, as an attacker would who can write both."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [p.name for p in folder.iterdir() if p.name != "manifest.json"]
    manifest["files"] = {name: hash_file(folder, name).model_dump() for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_graph(folder: Path, edit: Callable[[ModelProto], None]) -> None:
    model = ModelProto.FromString((folder / "model.onnx").read_bytes())
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rehash(folder)


def test_a_whole_folder_passes(folder: Path) -> None:
    assert verify(folder).architecture == "llama"
    rehash(folder)
    verify(folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def by_link(make: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.move(folder / "model.onnx.data", outside)
        make(outside, folder / "model.onnx.data")

    return damage


def without_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    rehash(folder)


def pipe_for_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def link_for_manifest(folder: Path) -> None:
    outside = folder.parent / "manifest.json"
    shutil.move(folder / "manifest.json", outside)
    (folder / "manifest.json").symlink_to(outside)


def edit_manifest(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace(old, new))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder; pull or import"),
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        r"it is no model folder: it holds no 'manifest\.json'",
    ),
    "manifest of another format": (
        edit_manifest('"format": 1', '"format": 9'),
        r"'manifest\.json' is malformed: format",
    ),
    "manifest that is not JSON": (lambda f: (f / "manifest.json").write_text("{"), "malformed"),
    "manifest that names a file elsewhere": (
        edit_manifest('"tokenizer.json"', '"../x"'),
        r"names '\.\./x'",
    ),
    "a changed byte": (
        lambda f: flip(f / "model.onnx.data"),
        r"'model\.onnx\.data' has another hash",
    ),
    "a file cut short": (
        lambda f: os.truncate(f / "tokenizer.json", 10),
        r"'tokenizer\.json' has 10 bytes",
    ),
    "a file too few": (lambda f: (f / "tokenizer.json").unlink(), r"'tokenizer\.json' is missing"),
    "a file too many": (
        lambda f: (f / "custom_op.so").write_bytes(b"x"),
        r"'custom_op\.so' is not in the manifest",
    ),
    "a folder inside": (lambda f: (f / "more").mkdir(), "'more' is not in the manifest"),
    "a symbolic link": (
        by_link(lambda outside, name: name.symlink_to(outside)),
        r"'model\.onnx\.data' is a symbolic link",
    ),
    "a hard link": (by_link(os.link), "second name"),
    "a pipe": (pipe_for_tokenizer, r"'tokenizer\.json' is not an ordinary file"),
    "a linked manifest": (link_for_manifest, r"'manifest\.json' is a symbolic link"),
    "no graph": (without_graph, r"names no 'model\.onnx'"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(ModelFolderError, match=message) as error:
        verify(folder)
    assert str(folder) in str(error.value)
    assert error.value.mend


def test_a_folder_may_be_reached_by_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    verify(tmp_path / "link")


def set_location(value: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        external = next(t for t in model.graph.initializer if t.external_data)
        for entry in external.external_data:
            if entry.key == "location":
                entry.value = value

    return edit


def add_node(**fields: Any) -> Callable[[ModelProto], None]:
    return lambda model: model.graph.node.append(NodeProto(output=["x"], **fields))


def hide_node(**fields: Any) -> Callable[[ModelProto], None]:
    """Put the node into a branch of an If, where a look at the top level does not find it."""

    def edit(model: ModelProto) -> None:
        inner = NodeProto(output=["x"], **fields)
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        branch = helper.make_graph([inner], "branch", [], [value])
        model.graph.node.append(
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        )

    return edit


EVIL: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "data at an absolute path": (
        set_location("/etc/passwd"),
        "'/etc/passwd', which is not a file of the folder",
    ),
    "data above the folder": (set_location("../outside"), "not a file of the folder"),
    "data below the folder": (set_location("sub/../model.onnx.data"), "not a file of the folder"),
    "an operator of a stranger": (
        add_node(op_type="Run", domain="ai.evil"),
        "operator domain 'ai.evil'",
    ),
    "such an operator in a branch": (
        hide_node(op_type="Run", domain="ai.evil"),
        "operator domain 'ai.evil'",
    ),
    "compiled code": (
        add_node(op_type="EPContext", domain="com.microsoft", name="blob"),
        "EPContext node, 'blob'",
    ),
    "compiled code in a branch": (
        hide_node(op_type="EPContext", domain="com.microsoft"),
        "EPContext",
    ),
    "a function of a strange domain": (
        lambda m: m.functions.append(
            helper.make_function("ai.evil", "F", [], [], [], [helper.make_opsetid("", 21)])
        ),
        "operator domain 'ai.evil'",
    ),
    "an operator set of a stranger": (
        lambda m: m.opset_import.append(helper.make_opsetid("ai.evil", 1)),
        "operator domain 'ai.evil'",
    ),
}


@pytest.mark.parametrize(("edit", "message"), EVIL.values(), ids=EVIL.keys())
def test_a_graph_with_matching_hashes_may_still_be_refused(
    folder: Path, edit: Callable[[ModelProto], None], message: str
) -> None:
    edit_graph(folder, edit)
    with pytest.raises(ModelFolderError, match=message):
        verify(folder)


def test_external_data_of_a_constant_is_looked_at_too() -> None:
    value = TensorProto(
        name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    value.external_data.add(key="location", value="/etc/passwd")
    graph = helper.make_graph([helper.make_node("Constant", [], ["x"], value=value)], "g", [], [])
    assert "/etc/passwd" in (
        graph_problem(helper.make_model(graph).SerializeToString(), ["model.onnx.data"]) or ""
    )


def test_bytes_that_are_no_graph_are_refused() -> None:
    assert graph_problem(b"\xff\xff\xff", []) == "is not an ONNX model"


def test_models_are_listed_with_what_is_wrong_with_them(folder: Path) -> None:
    root = folder.parent
    (root / "broken").mkdir()
    (root / ".tiny.build.lock").touch()
    (root / "a-file").touch()
    folders = list_models(root)
    assert [(m.path.name, m.manifest is not None, m.problem) for m in folders] == [
        ("broken", False, "it is no model folder: it holds no 'manifest.json'"),
        ("tiny", True, None),
    ]
    assert list_models(root / "none") == []


# -- the check of an init container -----------------------------------------------------------


def test_the_check_passes_whole_folders_with_the_expected_manifest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest_sha256 = hash_file(folder, "manifest.json").sha256
    main([str(folder), f"{folder}={manifest_sha256}"])
    assert capsys.readouterr().out.count("files as in the manifest") == 2


def test_the_check_fails_on_a_damaged_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(folder / "model.onnx.data")
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert f"fusewire: {folder}: 'model.onnx.data' has another hash" in shown
    assert "pull or import the model again" in shown


def test_the_check_fails_on_another_model_that_is_whole_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = hash_file(folder, "manifest.json").sha256
    flip(folder / "model.onnx.data")
    rehash(folder)
    verify(folder)
    with pytest.raises(SystemExit) as end:
        main([f"{folder}={expected}"])
    assert end.value.code == 2
    assert f"{expected} is expected" in capsys.readouterr().err


def test_the_check_of_nothing_is_a_fault() -> None:
    with pytest.raises(SystemExit, match="name folders"):
        main([])
