"""What `fusewire doctor` says of edge models."""

import json
import shutil
from pathlib import Path

from fusewire.settings import EdgeModel
from fusewire_cli import doctor


def check(folder: Path, *providers: str) -> doctor.CheckResult:
    return doctor._edge_model("tiny", EdgeModel(kind="edge", path=folder, providers=providers))


def test_the_cpu_alone_needs_no_mention(tiny_folder: Path) -> None:
    assert check(tiny_folder) == doctor.CheckResult("model", "ok", f"tiny: {tiny_folder}")


def test_it_says_which_provider_is_used_and_why_others_are_passed_over(tiny_folder: Path) -> None:
    result = check(tiny_folder, "cuda")
    assert result.state == "warning"
    assert f"tiny: {tiny_folder}, on cpu; cuda is passed over: onnxruntime " in result.what
    assert "is installed without it" in result.what
    assert "docs/edge.md" in result.mend


def test_a_folder_that_cannot_be_used_comes_first(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    (folder / "extra").write_text(json.dumps({}))
    result = check(folder, "cuda")
    assert (result.state, "cuda" in result.what) == ("fault", False)
