"""`make fuzz`, for a moment."""

import sys
from pathlib import Path

import pytest

from fusewire.testing.command_line import background

FUZZ = Path(__file__).parents[1] / "fuzz"
SCRIPT = FUZZ / "models.py"


# What is fuzzed is the same Python everywhere; atheris itself has wheels for Linux alone (see
# pyproject.toml).
@pytest.mark.skipif(sys.platform != "linux", reason="atheris is installed on Linux alone")
@pytest.mark.parametrize("target", ["gguf", "safetensors", "config", "onnx"])
def test_hostile_model_files_are_refused_by_name(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), target, "--runs", "1500", "--folder", str(tmp_path)]
    with background(command, cwd=tmp_path) as fuzzing:
        assert fuzzing.wait() == 0, fuzzing.stdout[-3000:] + fuzzing.stderr[-3000:]
        assert "Done 1500 runs" in fuzzing.stderr


def test_inputs_that_were_once_misread_are_read_as_they_should_be(tmp_path: Path) -> None:
    with background([sys.executable, str(FUZZ / "parsers.py"), "replay"], cwd=tmp_path) as replay:
        assert replay.wait() == 0, replay.stdout[-3000:] + replay.stderr[-3000:]
        assert f"Done {len(list(FUZZ.glob('corpus/*/*')))} inputs" in replay.stdout
