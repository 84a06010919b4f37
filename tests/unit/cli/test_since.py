"""`--since`: the same forms and the same error for every command that has it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusewire.analysis.period import FORMS, FutureError, parse_time
from fusewire_cli.main import app

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
COMMANDS = [
    ("export", "csv", "folder"),
    ("compare", "a", "b"),
    ("ablate", "default"),
    ("report", "leaderboard"),
    ("report", "cost"),
    ("report", "drift"),
]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("12h", NOW - timedelta(hours=12)),
        (" 3D ", NOW - timedelta(days=3)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T08:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("2026-11-01T00:00:00+01:00", datetime(2026, 10, 31, 23, tzinfo=UTC)),
        ("2026-11-30T12:00:00Z", NOW),
    ],
)
def test_a_period_or_a_time(text: str, time: datetime) -> None:
    assert parse_time(text, NOW) == time
    assert parse_time(text, NOW).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        *(
            (text, "is no period: write 12h")
            for text in ("", "7", "d", "0d", "-7d", "7 days", "7m")
        ),
        ("2026-13-01", "is no period"),
        ("yesterday", "'yesterday' is no period"),
        ("0001-01-01T00:00+14:00", "is no period"),
        ("9999w", "more than 3660 days"),
        ("999999d", "is no period"),
    ],
)
def test_what_is_no_period_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_time(text, NOW)


def test_the_future_is_refused() -> None:
    with pytest.raises(FutureError, match="in the future: now is 2026-11-30 12:00"):
        parse_time("2026-12-01", NOW)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_refuses_what_is_none_alike(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, "--since", "yesterday"])
    assert done.exit_code == 2
    expected = (
        f"fusewire: 'yesterday' is no period: write {FORMS}\n  to mend it: --since takes {FORMS}\n"
    )
    assert done.stderr == expected


@pytest.mark.parametrize("text", ["2w", "3d", "12h", "2026-11-01", "2026-11-01T08:00"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_all_forms(
    command: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes on to the database, and there is none."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, "--since", text])
    assert done.exit_code != 0
    assert "period" not in done.stderr
    assert "database" in done.stderr
