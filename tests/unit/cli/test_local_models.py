"""Commands of an installation without `fusewire-cli[local]`, as the tools image is."""

import sys
from pathlib import Path

import pytest

from fusewire.errors import StartupError
from fusewire.settings import Database, EdgeModel, Settings
from fusewire_cli import builtin, doctor, local_models, models, session
from fusewire_cli.local.runner import Stack
from fusewire_cli.screen import RowFormat, clear_errors


@pytest.fixture(autouse=True)
def _without_local_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == local_models.PACKAGE:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, local_models.PACKAGE, None)
    monkeypatch.chdir(tmp_path)


def test_a_command_that_needs_them_says_what_is_missing_and_how_to_mend_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ending, clear_errors():
        models.show(None, RowFormat.table)
    assert ending.value.code == 2
    err = capsys.readouterr().err
    assert "fusewire-cli[local] is not installed" in err
    assert "to mend it: install it" in err


def test_another_module_that_is_missing_stays_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending, clear_errors():
        raise ModuleNotFoundError("No module named 'x'", name="x")
    assert ending.value.code == 1
    assert "fusewire-cli[local]" not in capsys.readouterr().err


def test_commands_of_operators_have_settings_from_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FUSEWIRE_DATABASE__URL", "postgresql+asyncpg://fusewire@db/fusewire")
    assert builtin.configuration() == {}
    assert session.settings().database == Database(url="postgresql+asyncpg://fusewire@db/fusewire")


async def test_a_stack_with_edge_models_does_not_start(tmp_path: Path) -> None:
    edge = {"tiny": EdgeModel(kind="edge", path=Path("/models/tiny"))}
    with pytest.raises(StartupError, match=r"fusewire-cli\[local\] is not installed"):
        await Stack(Settings(models=edge, data_dir=tmp_path / "data")).start()
    assert not (tmp_path / "data").exists()


def test_the_doctor_says_that_it_has_not_checked_an_edge_model() -> None:
    config = Settings(models={"tiny": EdgeModel(kind="edge", path=Path("/models/tiny"))})
    (result,) = doctor._models(config)
    assert (result.check, result.state) == ("model", "warning")
    assert "/models/tiny is not checked" in result.what
